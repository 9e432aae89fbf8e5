"""How far back in time a recurrent network's gradient reaches: its norm at each lag."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nnfx import checks, losses, memo
from nnfx.training import rows
from nnfx.types import Array, Batch, Mean, Model, PerExample, Variables

__all__ = ["gradient_by_lag"]


def gradient_by_lag(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> Array:
    """Return the mean norm of the gradient k steps before the end: `E ‖∂ℓ / ∂s_{T−k}‖` for k = 1 … T.

    Here s is the state of all layers together (for an LSTM, hidden states and cells), T the length of the sequences,
    and E the weighted mean over the examples. If the norm decays exponentially with k, the gradient vanishes, and
    nothing is learned from the distant past; if it grows exponentially, the gradient explodes. If the model has outputs
    at every step, the loss covers all steps.

    Args:
        model: a recurrent model with a stream, such as `nnfx.models.rnn`, `lstm` or `gru` in one direction. It is
            applied in evaluation mode, from a state of zeros.
        loss: the per-example loss, `(outputs, targets) -> (batch,)`.
        variables: the variables of the model.
        batch: inputs `(batch, time, features)`, targets and weights.

    Returns:
        `(time,)`, in the units of the loss; the first entry is for lag 1, the last for the initial state of zeros.

    Raises:
        TypeError: if `model` is not a Model, `batch` is not a Batch, or `loss` is not a function.
        ValueError: for a model without a stream, inputs of the wrong shape or not finite, lengths that differ,
            targets that do not suit the loss, or a loss that is not per example.

    Example:
        In a linear network, the gradient decays through the recurrent weights alone, here by one half per step:

        >>> from nnfx import models
        >>> model = models.rnn(hidden=(2,), activation="identity")
        >>> layer = {"input_kernel": jnp.ones((1, 2)), "recurrent_kernel": 0.5 * jnp.eye(2), "bias": jnp.zeros(2)}
        >>> output = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.zeros(1)}
        >>> batch = Batch(jnp.zeros((1, 4, 1)), jnp.ones(1), jnp.ones(1))
        >>> gradient_by_lag(model, losses.mean_square_error, {"params": {"layer_0": layer, "output": output}}, batch)
        Array([5.   , 2.5  , 1.25 , 0.625], dtype=float32)

    References:
        Bengio, Simard and Frasconi, *Learning long-term dependencies with gradient descent is difficult*, IEEE
        Transactions on Neural Networks 1994.
        Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """
    _check(model, loss, variables, batch)
    return _gradient_by_lag(model, loss, variables, batch)


@memo.compiled(static=2)
def _gradient_by_lag(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> Array:
    stream = model.stream
    assert stream is not None
    batch = rows.filled(batch)
    size, time, _ = batch.inputs.shape
    start = stream.start(size, batch.inputs.dtype)
    has_all = jax.eval_shape(model.apply, variables, batch.inputs).ndim == 3

    def total(offsets: Any) -> Array:
        def step(state: Any, at: tuple[Array, Any]) -> tuple[Any, Array]:
            x, offset = at
            return stream.step(variables, jax.tree.map(jnp.add, state, offset), x)

        _, outputs = lax.scan(step, start, (jnp.swapaxes(batch.inputs, 0, 1), offsets))
        # Examples do not mix, so the gradient of the sum holds the gradient of each example.
        return loss(jnp.swapaxes(outputs, 0, 1) if has_all else outputs[-1], batch.targets).sum()

    offsets = jax.tree.map(lambda part: jnp.zeros((time, *part.shape), part.dtype), start)
    gradient = jax.tree.leaves(jax.grad(total)(offsets))
    norms = _norms(jnp.concatenate([part.reshape(time, size, -1) for part in gradient], axis=-1))
    return jax.vmap(lambda values: Mean.of(values, batch.weights).value)(norms)[::-1]


def _norms(vectors: Array) -> Array:
    """Return the norms along the last axis, accurately even if the squares of the components underflow."""
    largest = jnp.abs(vectors).max(-1, keepdims=True)
    scaled = vectors / jnp.where(largest > 0, largest, 1)
    return largest[..., 0] * jnp.sqrt(jnp.square(scaled).sum(-1))


def _check(model: Any, loss: Any, variables: Any, batch: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model(init, apply), got {checks.describe(model)}")
    stream = model.stream
    if stream is None:
        raise ValueError(
            "model: expected a model with a stream, such as nnfx.models.lstm in one direction, got a model without one"
        )
    state = jax.tree.leaves(jax.eval_shape(lambda: stream.start(1)))
    if not all(jnp.issubdtype(part.dtype, jnp.floating) for part in state):
        raise ValueError(
            "model: expected a recurrent network, whose state is floats, got one with integers in its state"
        )
    if not callable(loss):
        raise TypeError(f"loss: expected a function of outputs and targets, got {checks.describe(loss)}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables: expected variables of a model, {{'params': ...}}, got {checks.describe(variables)}"
        )
    if not isinstance(batch, Batch):
        raise TypeError(f"batch: expected a Batch, such as data.train, got {type(batch).__name__}")
    inputs = batch.inputs
    if not hasattr(inputs, "dtype") or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"batch.inputs: expected floats (batch, time, features), got {checks.describe(inputs)}")
    if inputs.ndim != 3 or 0 in inputs.shape:
        raise ValueError(f"batch.inputs: expected non-empty (batch, time, features), got {checks.describe(inputs)}")
    for name in ("targets", "weights"):
        values = getattr(batch, name)
        if values.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                f"batch.{name}: expected {len(inputs)} rows, as many as inputs, got {checks.describe(values)}"
            )
    checks.weights("batch.weights", batch.weights)
    if batch.weights.ndim == 1:
        batch = rows.filled(batch)
    checks.finite("batch.inputs", batch.inputs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        checks.finite(f"variables: {jax.tree_util.keystr(path, simple=True, separator='/')}", leaf)
    outputs = jax.eval_shape(model.apply, variables, inputs)
    losses.check(loss, outputs, batch.targets)
    values = jax.eval_shape(loss, outputs, batch.targets)
    if getattr(values, "shape", None) != batch.weights.shape:
        raise ValueError(f"loss: expected one value per example, {batch.weights.shape}, got {checks.describe(values)}")
