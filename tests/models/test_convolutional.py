import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models, ops
from nnfx.models import avg_pool, cnn, conv, max_pool

IMAGES = np.random.default_rng(0).normal(size=(3, 12, 12, 2)).astype(np.float32)


def init(model, inputs=IMAGES):
    return jax.jit(model.init)(jax.random.key(0), inputs)


def shapes_of(model, inputs=IMAGES):
    """Return the shapes of the variables and of the outputs; nothing is computed."""
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return variables, jax.eval_shape(model.apply, variables, inputs).shape


class FlaxCNN(nn.Module):
    """The same network as in Flax's documentation."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv_0")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(5, (3, 3), strides=(2, 2), kernel_dilation=1, padding="VALID", name="conv_1")(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        return nn.Dense(3, name="output")(nn.relu(nn.Dense(6, name="hidden_0")(x)))


def test_the_mean_of_a_padded_window_may_leave_out_the_padding():
    ones = jnp.ones((1, 3, 3, 1))
    for counts in (True, False):
        pooled = avg_pool(3, strides=1, padding="SAME", count_include_pad=counts)(ones)
        expected = nn.avg_pool(ones, (3, 3), padding="SAME", count_include_pad=counts)
        np.testing.assert_allclose(pooled, expected, rtol=1e-6)
        assert (pooled[0, 0, 0, 0] < 1) == counts


def test_a_stack_equals_the_same_layers_of_flax():
    layers = [conv(4), max_pool(), conv(5, strides=2, padding="VALID"), avg_pool()]
    model = cnn(layers, outputs=3, hidden=(6,))
    params = init(model)["params"]
    theirs = {"conv_0": params["conv_0"], "conv_1": params["conv_1"], **params["dense"]}

    def outputs_and_gradient(apply, params):
        def loss(params):
            outputs = apply({"params": params}, IMAGES)
            return (outputs**2).sum(), outputs

        gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
        return outputs, gradient

    outputs, ours = outputs_and_gradient(model.apply, params)
    expected_outputs, expected = outputs_and_gradient(FlaxCNN().apply, theirs)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    for name in ("conv_0", "conv_1"):
        np.testing.assert_allclose(ours[name]["kernel"], expected[name]["kernel"], rtol=1e-4, atol=1e-4)


def test_sequences_pass_through_the_same_stack():
    series = IMAGES[:, :, 0, :]
    model = cnn([conv(4, 3, padding=[(2, 0)]), max_pool(3)], outputs=2)
    assert shapes_of(model, series)[0]["params"]["conv_0"]["kernel"].shape == (3, 2, 4)
    later = series + (np.arange(12) >= 7).astype(np.float32)[None, :, None]
    causal = cnn([conv(4, 3, padding=[(2, 0)])], outputs=None)
    variables = init(causal, series)
    apply = jax.jit(causal.apply)
    before, after = (np.asarray(apply(variables, x)) for x in (series, later))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_without_outputs_the_feature_maps_come_back():
    model = cnn([conv(4), max_pool(), conv(7, 1)], outputs=None)
    assert shapes_of(model)[1] == (3, 6, 6, 7)


def test_dilated_kernels_see_farther():
    model = cnn([conv(1, 3, dilation=4, padding="VALID")], outputs=None)
    assert shapes_of(model)[1] == (3, 4, 4, 1)


def test_lenet_has_the_parameters_of_the_paper_without_weights_in_its_pools():
    variables, _ = shapes_of(models.lenet(), np.zeros((1, 28, 28, 1), np.float32))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    assert sizes["conv_0"] == 6 * 26
    assert sizes["conv_1"] == 16 * (6 * 25 + 1)
    assert sizes["dense"] == 120 * 401 + 84 * 121 + 10 * 85


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66)])
def test_a_residual_network_has_as_many_parameters_as_the_paper_says(depth, millions):
    model = models.resnet(depth)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    kernels = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    assert kernels == pytest.approx(millions, abs=0.02)


@functools.cache
def residual_network():
    """Return its initial variables, with weights from NumPy, and its compiled `apply` in training."""
    model = models.resnet(8, width=2, outputs=5)
    apply = jax.jit(lambda variables, x, weights: model.apply(variables, x, weights=weights, train=True))
    rng, shapes = np.random.default_rng(0), shapes_of(model)[0]
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    statistics = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["batch_stats"])
    return {"params": params, "batch_stats": statistics}, apply


def test_a_residual_network_halves_its_maps_twice():
    variables, apply = residual_network()
    outputs, state = apply(variables, IMAGES, np.ones(3, np.float32))
    assert outputs.shape == (3, 5)
    assert state["batch_stats"]["stem"]["batch_norm"]["weight"] == 3


def test_padding_rows_change_nothing_of_what_a_residual_network_learns():
    variables, apply = residual_network()
    padded = np.concatenate([IMAGES, np.full((2, 12, 12, 2), 7, np.float32)])
    weights = np.array([1, 1, 1, 0, 0], np.float32)
    alone, state = apply(variables, IMAGES, np.ones(3, np.float32))
    among, padded_state = apply(variables, padded, weights)
    np.testing.assert_allclose(among[:3], alone, rtol=1e-3, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), dict(state), dict(padded_state))


@pytest.mark.slow
def test_a_network_learns_where_a_bar_lies():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    images = rng.normal(0, 0.3, (200, 6, 6, 1))
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(6)
        image[(place, slice(None)) if label else (slice(None), place)] += 1
    data = nnfx.data.prepare(images, labels, standardize=False, key=jax.random.key(0), valid_fraction=0.25)
    train = nnfx.fit(
        cnn([conv(4), ops.global_max_pool], outputs=2), nnfx.losses.categorical_cross_entropy, optax.adam,
        epochs=30, batch_size=30, metrics={"accuracy": nnfx.metrics.accuracy},
    )  # fmt: skip
    run = train(jax.random.key(1), data, learning_rate=0.03)
    assert run.final["valid_accuracy"] > 0.95


WRONG = {
    "no sequence": (lambda: cnn(conv(3)), TypeError, "layers: expected a sequence"),
    "no layer": (lambda: cnn([3]), TypeError, r"layers\[0\]: expected conv\(...\) or a function, got 3"),
    "no features": (lambda: conv(0), ValueError, "features: expected a positive integer, got 0"),
    "hidden without outputs": (
        lambda: cnn([], None, hidden=(3,)),
        ValueError,
        "hidden: expected an empty sequence if outputs=None",
    ),
    "hidden of no width": (lambda: cnn([], hidden=(0,)), ValueError, r"hidden\[0\]: expected a positive integer"),
    "no outputs": (lambda: cnn([], outputs=0), ValueError, "outputs: expected a positive integer, got 0"),
    "dropout of one": (lambda: cnn([], dropout=1.0), ValueError, "dropout: .*below 1, got 1"),
    "unknown activation": (lambda: cnn([], activation="rellu"), ValueError, "'relu'"),
    "depth": (lambda: models.resnet(18), ValueError, r"depth: expected 6n \+ 2, such as 8, 14 or 20, got 18"),
    "flat inputs": (lambda: shapes_of(cnn([conv(3)]), np.ones((4, 9))), ValueError, r"inputs: expected \(batch, width"),
    "kernel per axis": (lambda: shapes_of(cnn([conv(3, (3, 3, 3))])), ValueError, "kernel: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_raises_a_clear_error(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        make()
