"""NVIDIA's cuDNN LSTM, via `jax.experimental.rnn`."""

import jax
import jax.numpy as jnp
from jax import lax

from nnfx import checks
from nnfx.ops.cells import RecurrentWeights, State
from nnfx.types import Array


def lstm(inputs: Array, weights: RecurrentWeights, state: State, lengths: Array | None) -> tuple[Array, State]:
    """Apply an LSTM along time with cuDNN, in float32; the arguments are checked by `nnfx.ops.recurrence`.

    cuDNN does not support forward mode, second derivatives or `vmap`, and needs at least one step in each sequence.
    """
    from jax.experimental import rnn  # imported here, since it loads GPU kernels that few users need

    if inputs.dtype != jnp.float32:
        raise TypeError(f"inputs: expected float32 for cuDNN, got {checks.describe(inputs)}")
    if jax.default_backend() != "gpu":
        raise RuntimeError(f"formulation: expected an NVIDIA GPU for 'cudnn', got the {jax.default_backend()} backend")
    batch, time, features = inputs.shape
    if lengths is None:
        lengths = jnp.full(batch, time)
    hidden, cell = (part[None] for part in state)
    outputs, hidden, cell = rnn.lstm(
        inputs,
        hidden,
        cell,
        flat(weights),
        lengths.astype(jnp.int32),
        features,
        weights.recurrent.shape[0],
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
        precision=lax.Precision.HIGHEST,
    )
    return outputs, (hidden[0], cell[0])


def flat(weights: RecurrentWeights) -> Array:
    """Return the weights as one vector in cuDNN's order: kernels gate by gate, biases, and a second bias of zeros."""
    kernels = [kernel.T.ravel() for kernel in (weights.inputs, weights.recurrent)]
    return jnp.concatenate([*kernels, weights.bias, jnp.zeros_like(weights.bias)])
