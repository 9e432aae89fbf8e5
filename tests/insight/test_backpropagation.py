import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from nnfx import activations, losses, models
from nnfx.insight import backpropagation, graph
from nnfx.models.dense import Perceptron
from nnfx.types import Batch

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 1.0, 1.0])
MSE = losses.mean_square_error
MODELS = {name: models.mlp((4, 3), 2, name, bias_initializer="normal") for name in activations.names()} | {
    "three pieces": models.mlp((4,), 2, functools.partial(activations.maxout, pieces=3), bias_initializer="normal"),
    "perceptron": models.perceptron(2, "sigmoid"),
}


def batch(dtype, rows=slice(None)):
    return Batch(*(jnp.asarray(part[rows], dtype) for part in (X, Y, WEIGHTS)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(model, loss, params, batch):
    def of(params):
        return losses.empirical(loss(model.apply({"params": params}, batch.inputs), batch.targets), batch.weights)

    return jax.grad(of)(params)


def check(model, loss, params, batch, tolerance):
    found = backpropagation.lay_open(model, loss, {"params": params}, batch)
    expected = gradient(model, loss, params, batch)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * largest),
        found.gradient,
        expected,
    )
    return found


# One with pieces and one without hidden layers; the others are slow tests.
A_FEW = {"three pieces", "perceptron"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in A_FEW else pytest.mark.slow) for n in MODELS])
def test_the_product_of_the_factors_is_the_gradient_to_twelve_digits(name):
    model = MODELS[name]
    params = model.init(KEY, X)["params"]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        check(model, MSE, params, batch(jnp.float64), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "three pieces"])
def test_and_in_single_precision_for_one_example_and_for_several(name):
    params = MODELS[name].init(KEY, X)["params"]
    check(MODELS[name], MSE, params, batch(jnp.float32), 1e-6)
    check(MODELS[name], MSE, params, batch(jnp.float32, slice(0, 1)), 1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        losses.categorical_cross_entropy,
        pytest.param(losses.huber, marks=pytest.mark.slow),
        losses.mean_absolute_error,
    ],
)
def test_any_loss_begins_the_way_back(loss):
    model = MODELS["tanh"]
    data = batch(jnp.float32)
    if loss is losses.categorical_cross_entropy:
        data = data._replace(targets=jnp.arange(6, dtype=jnp.int32) % 2)
    check(model, loss, model.init(KEY, X)["params"], data, 1e-6)


def test_every_factor_is_the_one_derived_by_hand():
    model = MODELS["sigmoid"]
    params = jax.tree.map(np.asarray, model.init(KEY, X)["params"])
    found = backpropagation.lay_open(model, MSE, {"params": params}, batch(jnp.float32))
    h, layers = X, []
    for name in ("hidden_0", "hidden_1", "output"):
        z = h @ params[name]["kernel"] + params[name]["bias"]
        layers.append((name, h, z))
        h = 1 / (1 + np.exp(-z)) if name != "output" else z
    error = (h - Y) * WEIGHTS[:, None] / WEIGHTS.sum()  # of the mean over two outputs
    for layer, (name, inputs, z) in zip(reversed(found.layers), reversed(layers), strict=True):
        slope = np.exp(-z) / (1 + np.exp(-z)) ** 2 if name != "output" else np.ones_like(z)
        expected = {
            "inputs": inputs,
            "pre_activations": z,
            "local_derivatives": slope,
            "errors": error,
            "deltas": error * slope,
            "kernel_gradient": inputs.T @ (error * slope),
            "bias_gradient": (error * slope).sum(0),
            "passed_back": (error * slope) @ params[name]["kernel"].T,
        }
        assert layer.name == name
        for factor, value in expected.items():
            np.testing.assert_allclose(getattr(layer, factor), value, rtol=1e-4, atol=1e-6, err_msg=factor)
        error = expected["passed_back"]


def test_the_piece_that_won_gets_the_error_and_the_others_none():
    model = MODELS["three pieces"]
    layer = backpropagation.lay_open(model, MSE, model.init(KEY, X), batch(jnp.float32)).layers[0]
    assert layer.local_derivatives.shape == (6, 12)
    winners = np.asarray(layer.pre_activations).reshape(6, 4, 3).argmax(-1)
    np.testing.assert_array_equal(np.asarray(layer.local_derivatives).reshape(6, 4, 3), np.eye(3)[winners])


def test_it_prints_every_factor():
    model = models.perceptron(activation="sigmoid")
    params = {"kernel": jnp.array([[3.0], [-2.0]]), "bias": jnp.array([1.0])}
    one = Batch(jnp.array([[-1.0, 2.0]]), jnp.array([[1.0]]), jnp.ones(1))
    text = str(backpropagation.lay_open(model, MSE, {"params": params}, one))
    # g'(z) = g (1 − g), ∂L/∂h = 2 (g − 1); the gradient of the weights is their product times x = (−1, 2)
    g = 1 / (1 + np.exp(6))
    for number in (-6, g, g * (1 - g), 2 * (g - 1), 2 * (g - 1) * g * (1 - g), 4 * (g - 1) * g * (1 - g)):
        assert f"{number:.4g}" in text
    maxout = MODELS["three pieces"]
    assert "unit 3 piece 2" in str(backpropagation.lay_open(maxout, MSE, maxout.init(KEY, X), batch(jnp.float32)))


@pytest.mark.parametrize("name", [pytest.param("relu", marks=pytest.mark.slow), "three pieces", "perceptron"])
def test_the_graph_has_a_node_a_unit_and_an_edge_a_weight(name):
    model = MODELS[name]
    found = backpropagation.lay_open(model, MSE, model.init(KEY, X), batch(jnp.float32))
    figure = graph.draw(found, example=4)
    assert isinstance(figure, Figure)
    (axis,) = figure.axes
    units = [layer.outputs.shape[1] for layer in found.layers]
    assert len(axis.patches) == 3 + sum(units)
    assert len(axis.lines) == sum(a * b for a, b in zip([3, *units[:-1]], units, strict=True))
    written = " ".join(text.get_text() for text in axis.texts)
    for layer in found.layers:
        for value in (layer.outputs[4, 0], layer.errors[4, 0]):
            assert f"{float(value):.2g}".replace("-", "−") in written


def test_masked_targets_are_left_out():
    model = models.mlp((3,), 2, activation="tanh")
    data = batch(jnp.float32)
    weights = jnp.ones((6, 2)).at[0, 1].set(0).at[4].set(0)
    masked = data._replace(
        targets=jnp.where(weights > 0, data.targets, jnp.nan), weights=weights, inputs=data.inputs.at[4].set(jnp.nan)
    )
    variables = model.init(KEY, data.inputs)
    found = backpropagation.lay_open(model, MSE, variables, masked)

    def mean(params):
        errors = jnp.square(model.apply({"params": params}, data.inputs) - data.targets)
        return (errors * weights).sum() / weights.sum()

    value, gradient = jax.jit(jax.value_and_grad(mean))(variables["params"])
    np.testing.assert_allclose(found.loss, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.gradient, gradient)
    error = (jax.jit(model.apply)(variables, data.inputs) - data.targets)[0, 0] ** 2
    np.testing.assert_allclose(found.losses[0], error, rtol=1e-5)
    assert found.losses.shape == (6,)


# errors


class Skip(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + Perceptron(3)(x)


DATA = batch(jnp.float32)


def lay_open(model, data=DATA):
    return backpropagation.lay_open(model, MSE, model.init(KEY, data.inputs), data)


FOUND = lay_open(MODELS["perceptron"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lay_open(models.mlp((4,), 2, batch_norm=True)), "model: expected stacked perceptrons.*BatchNorm"),
        (lambda: lay_open(models.from_linen(nn.Dense(2))), "model: expected stacked perceptrons.*Dense"),
        (
            lambda: lay_open(models.from_linen(Skip()), DATA._replace(targets=jnp.ones((6, 3)))),
            "model: expected stacked perceptrons.*Skip",
        ),
        (
            lambda: lay_open(models.perceptron(2, jax.nn.softmax)),
            "model: .*activations that act on each unit alone.*'outputs'",
        ),
        (lambda: lay_open(MODELS["tanh"], DATA._replace(weights=jnp.ones(5))), "batch: expected 5 rows"),
        (lambda: graph.draw(FOUND, 6), "example: .*below 6, got 6"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


OTHERS = {
    "recurrent": (models.gru(1, hidden=(2,)), jnp.ones((2, 3, 1))),
    "sequences": (models.gru(1, hidden=(2,)), models.Sequences(jnp.ones((2, 3, 1)), jnp.array([2, 3]))),
    "convolutional": (models.cnn([models.conv(2, 3)], 1), jnp.ones((2, 8, 8, 1))),
    "attention": (models.transformer(1, width=4, heads=1), jnp.ones((2, 3, 1))),
    "tokens": (models.embedding(5, 3, models.gru(1, hidden=(2,))), jnp.ones((2, 3), jnp.int32)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_inputs_are_named(kind):
    model, inputs = OTHERS[kind]
    shapes = jax.eval_shape(model.init, KEY, inputs)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    batch = Batch(inputs, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="model: expected stacked perceptrons, .*, got a model with "):
        backpropagation.lay_open(model, losses.binary_cross_entropy, variables, batch)


def test_images_are_flattened_as_the_network_does():
    model, images = models.mlp((3,), activation="tanh"), jax.random.normal(KEY, (4, 2, 2, 1))
    variables, batch = model.init(KEY, images), Batch(images, jnp.ones((4, 1)), jnp.array([1.0, 1.0, 0.0, 1.0]))
    found = backpropagation.lay_open(model, losses.mean_square_error, variables, batch)

    def loss(variables):
        return losses.empirical(losses.mean_square_error(model.apply(variables, images), batch.targets), batch.weights)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found.gradient, jax.jit(jax.grad(loss))(variables)["params"])
