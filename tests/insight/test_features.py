import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.insight import features
from tests.insight.networks import IMAGES, LINEAR, MODEL, VARIABLES, by_hand, close, linear

KEY = jax.random.key(0)
TOP = (MODEL, VARIABLES, IMAGES)


def test_filters_are_the_kernel_with_its_features_first():
    kernel = VARIABLES["params"]["conv_0"]["kernel"]
    found = features.filters(VARIABLES, "conv_0")
    assert found.shape == (4, 3, 3, 2)
    for unit in range(4):
        np.testing.assert_array_equal(found[unit], kernel[..., unit])
    dense = features.filters(linear((6,)), "outputs", shape=(2, 3, 1))
    np.testing.assert_array_equal(dense[1, ..., 0].ravel(), linear((6,))["params"]["kernel"][:, 1])


def test_drawn_filters_keep_their_zero_grey_and_reach_an_end():
    images = features.drawable(features.filters(VARIABLES, "conv_0"))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    close(jnp.abs(images - 0.5).max((1, 2, 3)), 0.5)
    close(features.drawable(-features.filters(VARIABLES, "conv_0")), 1 - images)


def test_the_input_that_excites_a_linear_unit_is_its_weights(key):
    variables = linear()
    for unit in range(3):
        found = features.maximize(key, LINEAR, variables, "outputs", unit, (5,), steps=600, l2=0.5)
        weights = variables["params"]["kernel"][:, unit]
        close(found.inputs, weights, atol=0.01)  # w / 2λ
        close(found.activation, weights @ found.inputs, atol=1e-3)
    bounded = features.maximize(key, LINEAR, variables, "outputs", 0, (5,), l2=0.0, bounds=(-1.0, 2.0))
    np.testing.assert_array_equal(bounded.inputs, np.where(variables["params"]["kernel"][:, 0] > 0, 2.0, -1.0))


@pytest.mark.slow
def test_maximising_beats_real_inputs_and_is_mapped_over_units(key):
    options = {"steps": 60, "bounds": (-1.0, 1.0), "l2": 0.0, "pool": "max"}
    inputs = IMAGES.clip(-1, 1)

    def one(unit):
        return features.maximize(key, MODEL, VARIABLES, "conv_1", unit, (8, 8, 2), **options)

    found = jax.jit(jax.vmap(one))(jnp.arange(5))
    assert found.inputs.shape == (5, 8, 8, 2)
    best = jax.vmap(lambda unit: features.top_inputs(MODEL, VARIABLES, inputs, "conv_1", unit, 1, pool="max"))
    activations = best(jnp.arange(5)).activations[:, 0]
    alive = activations > 0  # a unit whose weights are all negative is dead
    assert alive.sum() >= 3
    assert (found.activation[alive] > activations[alive]).all()
    activation = features.layer_outputs(MODEL, VARIABLES, found.inputs[2:3])["conv_1"][..., 2].max()
    close(found.activation[2], activation)
    close(one(2).inputs, found.inputs[2], atol=1e-2)


@pytest.mark.slow
def test_jitter_and_total_variation_make_smoother_inputs(key):
    def roughness(**options):
        found = features.maximize(
            key, MODEL, VARIABLES, "dense/output", 1, (8, 8, 2), steps=80, bounds=(-1.0, 1.0), **options
        )
        return float(jnp.abs(jnp.diff(found.inputs, axis=1)).mean() / jnp.abs(found.inputs).mean())

    plain = roughness(l2=0.0)
    assert roughness(l2=0.0, total_variation=0.05) < plain
    assert roughness(l2=0.0, jitter=1, total_variation=0.05) < plain
    assert roughness(l2=0.0, jitter=1) != plain


def test_the_top_inputs_are_those_of_a_full_sort():
    images = jnp.asarray(np.random.default_rng(1).normal(size=(23, 8, 8, 2)), jnp.float32)
    maps = by_hand(VARIABLES["params"], images)["conv_1"][..., 3]
    centre = maps[:, 1, 1]
    for pool, expected in {"mean": maps.mean((1, 2)), "max": maps.max((1, 2)), "center": centre}.items():
        found = features.top_inputs(MODEL, VARIABLES, images, "conv_1", 3, 5, chunk=4, pool=pool)
        order = np.argsort(-expected, kind="stable")[:5]
        np.testing.assert_array_equal(found.rows, order)
        close(found.activations, expected[order])
    every = jax.vmap(lambda unit: features.top_inputs(MODEL, VARIABLES, images, "conv_1", unit, 23).rows)(jnp.arange(5))
    assert (jnp.sort(every, axis=1) == jnp.arange(23)[None]).all(), "no row twice and none left out"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: features.top_inputs(*TOP, "conv_1", 5, 1), ValueError, "unit: expected .*below 5, got 5"),
        (lambda: features.top_inputs(*TOP, "conv_1", -1, 1), ValueError, "unit: expected .*at least 0"),
        (lambda: features.top_inputs(*TOP, "conv_1", 1.5, 1), TypeError, "unit: expected an integer, got 1.5"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 7), ValueError, "count: expected at most the 6 .*got 7"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 0), ValueError, "count: expected a positive"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 1, pool="maxi"), ValueError, "pool: .*did you mean 'max'"),
        (lambda: features.maximize(KEY, LINEAR, linear(), "output", 0, (5,)), ValueError, "did you mean 'outputs'"),
        (lambda: features.maximize(KEY, LINEAR, linear(), "outputs", 0, 5), TypeError, "shape: expected"),
        (lambda: features.maximize(0, LINEAR, linear(), "outputs", 0, (5,)), TypeError, "key: expected a typed key"),
        (
            lambda: features.maximize(KEY, LINEAR, linear(), "outputs", 0, (5,), l2=-1.0),
            ValueError,
            "l2: expected .*at least 0, got -1",
        ),
        (
            lambda: features.maximize(KEY, LINEAR, linear(), "outputs", 0, (5,), jitter=0.5),
            TypeError,
            "jitter: expected an integer",
        ),
        (
            lambda: features.maximize(KEY, LINEAR, linear(), "outputs", 0, (5,), bounds=(1, 0)),
            ValueError,
            r"bounds\[1\]: expected .*above 1, got 0",
        ),
        (lambda: features.filters(VARIABLES, "conv_9"), ValueError, "layer: expected one of 'conv_0'"),
        (lambda: features.filters(VARIABLES, "conv_0", (3, 3)), ValueError, "shape: expected None for a convolution"),
        (
            lambda: features.filters(linear(), "outputs"),
            ValueError,
            "shape: .*'outputs', a dense layer of 5 inputs, got None",
        ),
        (
            lambda: features.filters(VARIABLES["params"], "conv_0"),
            ValueError,
            "variables: expected variables of a model",
        ),
        (lambda: features.drawable(jnp.ones(3)), ValueError, r"images: expected \(images, ...\)"),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
