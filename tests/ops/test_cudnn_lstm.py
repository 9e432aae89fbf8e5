import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from nnfx import ops
from nnfx.ops import RecurrentWeights, cudnn_lstm

INPUTS, HIDDEN = 3, 4


def drawn():
    rng = np.random.default_rng(0)
    shapes = [(INPUTS, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,), (5, 7, INPUTS), (5, HIDDEN), (5, HIDDEN)]
    inputs, recurrent, bias, x, *state = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return x, RecurrentWeights(inputs, recurrent, bias), tuple(state)


def test_the_weights_lie_as_jax_reads_them_for_cudnn():
    """Compare with JAX's own reference for cuDNN's LSTM, which runs everywhere, on the array passed to cuDNN."""
    x, weights, state = drawn()
    unpacked = rnn.unpack_lstm_weights(cudnn_lstm.flat(weights), INPUTS, HIDDEN, 1, False)
    sizes = {"input_size": INPUTS, "hidden_size": HIDDEN, "num_layers": 1, "dropout": 0.0, "bidirectional": False}
    ends = (part[None] for part in state)
    outputs, *last = rnn.lstm_ref(x, *ends, *unpacked, jnp.full(5, 7, jnp.int32), *sizes.values())
    ours, own_last = ops.recurrence(ops.lstm_cell, x, weights, state)
    np.testing.assert_allclose(outputs, ours, rtol=1e-5, atol=1e-5)
    for theirs, own in zip(last, own_last, strict=True):
        np.testing.assert_allclose(theirs[0], own, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="JAX computes on a GPU here")
def test_without_gpus_there_is_no_cudnn():
    with pytest.raises(RuntimeError, match="formulation: expected an NVIDIA GPU for 'cudnn', got the cpu backend"):
        ops.recurrence(ops.lstm_cell, *drawn(), formulation="cudnn")


def test_cudnn_computes_in_single_precision_alone():
    arguments = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), drawn())
    with pytest.raises(TypeError, match="inputs: expected float32 for cuDNN, got bfloat16"):
        ops.recurrence(ops.lstm_cell, *arguments, formulation="cudnn")
