"""Inputs of any dtype, and of the rank that a model expects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses, models
from nnfx.forecasting import baselines, forecasters

RNG = np.random.default_rng(0)
FORECASTER = functools.partial(forecasters.direct, lambda outputs: models.mlp((3,), outputs), channels=2)
MODELS = {
    "perceptron": (models.perceptron(), (5,)),
    "mlp": (models.mlp((3,)), (5,)),
    "mlp with batch norm": (models.mlp((3,), batch_norm=True), (5,)),
    "cnn": (models.cnn([models.max_pool(), models.conv(2)], 1, hidden=(3,)), (6, 6, 1)),
    "cnn of sequences": (models.cnn([models.conv(2), models.avg_pool()], 1), (6, 2)),
    "lenet": (models.lenet(1), (12, 12, 1)),
    "resnet": (models.resnet(8, width=2, outputs=1), (4, 4, 1)),
    "rnn": (models.rnn(1, (3,)), (4, 2)),
    "lstm": (models.lstm(1, (3,), bidirectional=True), (4, 2)),
    "gru": (models.gru(1, (3, 2)), (4, 2)),
    "stateful lstm": (models.lstm(1, (3,), stateful=True), (4, 2)),
    "direct": (FORECASTER(horizon=2), (4, 2)),
    "recursive": (forecasters.recursive(FORECASTER(horizon=1), 2), (4, 2)),
    "normalized": (forecasters.normalized(FORECASTER(horizon=2), "mean_std"), (4, 2)),
    "linear": (baselines.linear(2), (4, 2)),
    "dlinear": (baselines.dlinear(2, kernel=3), (4, 2)),
}
FORECASTERS = {"direct", "recursive", "normalized", "linear", "dlinear"}  # these require floats
HALF = [(name, dtype) for name in MODELS for dtype in (jnp.float16, jnp.bfloat16)]
WHOLE = [(name, dtype) for name in MODELS if name not in FORECASTERS for dtype in (jnp.uint8, jnp.int32)]


SLOW = pytest.mark.slow
CASES = [*HALF[::2], *WHOLE[::4], *(pytest.param(*each, marks=SLOW) for each in HALF[7::6] + WHOLE[9::6])]


def inputs_of(name, dtype):
    values = np.random.default_rng(0).integers(0, 4, size=(6, *MODELS[name][1]))
    return jnp.asarray(values, dtype)


def variables_of(name, dtype):
    """Return the shapes of the variables for inputs of this dtype."""
    return jax.eval_shape(MODELS[name][0].init, jax.random.key(0), inputs_of(name, dtype))


@functools.cache
def variables_and_outputs(name):
    """Return variables drawn with NumPy, and the outputs of the model in single precision."""
    rng = np.random.default_rng(1)
    shapes = variables_of(name, jnp.float32)

    def drawn(leaf):  # scaled such that no layer's outputs grow or vanish
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)

    params = jax.tree.map(drawn, shapes["params"])
    others = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), {**shapes, "params": {}})
    variables = {**others, "params": params}
    return variables, jax.jit(MODELS[name][0].apply)(variables, inputs_of(name, jnp.float32))


@pytest.mark.parametrize(("name", "dtype"), [HALF[1], WHOLE[3], *CASES])
def test_inputs_of_another_dtype_give_what_their_values_give(name, dtype):
    """Small integers are represented exactly in all dtypes."""
    assert {leaf.dtype for leaf in jax.tree.leaves(variables_of(name, dtype))} == {jnp.dtype("float32")}
    variables, expected = variables_and_outputs(name)
    outputs = jax.jit(MODELS[name][0].apply)(variables, inputs_of(name, dtype))
    assert outputs.dtype == jnp.float32
    assert np.ptp(expected) > 1e-3
    tolerance = 0.02 if name == "normalized" else 1e-5  # it subtracts and divides in the dtype of the windows
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_float64_where_jax_has_it(name):
    model, _ = MODELS[name]
    with jax.enable_x64(True):
        x, variables = inputs_of(name, jnp.float64), variables_of(name, jnp.float64)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float64"}
        shape = jax.eval_shape(lambda v: model.apply(v, x, key=jax.random.key(0), train=True)[0], variables)
        assert shape.dtype == jnp.float64
        single = jax.eval_shape(model.apply, variables, x.astype(jnp.float32))
        assert single.dtype == jnp.float64


@pytest.mark.slow
def test_a_recurrent_network_trains_in_float64():
    with jax.enable_x64(True):
        data = nnfx.data.prepare(RNG.normal(size=(6, 4, 2)), RNG.normal(size=6))
        run = nnfx.fit(models.lstm(1, (3,)), losses.mean_square_error, optax.sgd, epochs=1)(
            jax.random.key(0), data, learning_rate=0.1
        )
        assert {leaf.dtype.name for leaf in jax.tree.leaves(run.state.params)} == {"float64"}
        state = models.lstm(1, (3,)).stream.start(1)
        step = models.lstm(1, (3,)).stream.step
        state, outputs = jax.eval_shape(step, run.state.variables, state, data.train.inputs[:1, 0])
        assert outputs.dtype == jnp.float64


def test_whole_numbers_are_no_dtype_to_compute_in():
    for wrong in (jnp.int8, bool, "int32"):
        with pytest.raises(TypeError, match="compute_dtype: expected a float dtype, such as jnp.bfloat16, got"):
            nnfx.make_step(models.perceptron(), losses.mean_square_error, optax.sgd(0.1), compute_dtype=wrong)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (models.lenet(), (2, 28, 28), r"\(batch, height, width, channels\), got float32\[2,28,28\]; add a channel"),
        (models.resnet(8), (2, 28, 28), r"\(batch, height, width, channels\), got .*; add a channel"),
        (models.cnn([models.conv(2)]), (2, 28, 28), r"\(batch, height, width, channels\).*pass axes=1"),
        (models.cnn([models.conv(2)], axes=2), (2, 28, 30), r"\(batch, height, width, channels\), got"),
        (models.cnn([models.conv(2)], axes=1), (2, 28, 28, 1), r"\(batch, width, channels\), got"),
        (models.cnn([models.conv(2)]), (2, 28), r"\(batch, width, channels\) or \(batch, height, width, channels\)"),
        (models.perceptron(), (2, 28, 28), r"\(batch, features\), got float32\[2,28,28\]"),
        (models.mlp((4,)), (28,), r"\(batch, features\) or more axes, got float32\[28\]"),
        (models.lstm(), (2, 28), r"\(batch, time, features\), got float32\[2,28\]"),
        (models.gru(), (2, 28, 28, 1), r"\(batch, time, features\), got float32\[2,28,28,1\]"),
    ],
)
def test_inputs_of_another_rank_than_a_model_is_meant_for(model, shape, words):
    with pytest.raises(ValueError, match="inputs: expected " + words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_sequences_of_as_many_steps_as_channels_are_said_to_be():
    model = models.cnn([models.conv(2)], 1, axes=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 7, 7)))
    assert shapes["params"]["conv_0"]["kernel"].shape == (3, 7, 2)
    with pytest.raises(ValueError, match="axes: expected 1, 2 or None, got 3"):
        models.cnn([models.conv(2)], axes=3)
