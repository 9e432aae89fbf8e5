import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from nnfx import models, ops
from nnfx.insight import features
from nnfx.types import Model

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 2)), jnp.float32)
MODEL = models.cnn([models.conv(4), models.max_pool(), models.conv(5, padding="VALID")], outputs=3, hidden=(7,))
VARIABLES = MODEL.init(jax.random.key(3), IMAGES)
LINEAR = models.perceptron(outputs=3)


def linear(shape=(5,), key=1):
    return LINEAR.init(jax.random.key(key), jnp.ones((1, *shape)))


def close(got, expected, **tolerance):
    np.testing.assert_allclose(got, expected, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


def by_hand(params, images):
    """The layers of MODEL, by lax and NumPy alone."""

    def convolved(x, layer, padding):
        axes = ("NHWC", "HWIO", "NHWC")
        maps = lax.conv_general_dilated(x, layer["kernel"], (1, 1), padding, dimension_numbers=axes)
        return np.maximum(np.asarray(maps) + np.asarray(layer["bias"]), 0)

    first = convolved(images, params["conv_0"], "SAME")
    pooled = first.reshape(len(first), 4, 2, 4, 2, 4).max((2, 4))
    second = convolved(pooled, params["conv_1"], "VALID")
    flat = second.reshape(len(second), -1)
    dense = {name: (np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for name, layer in params["dense"].items()}
    hidden = np.maximum(flat @ dense["hidden_0"][0] + dense["hidden_0"][1], 0)
    return {
        "conv_0": first,
        "conv_1": second,
        "dense/hidden_0": hidden,
        "dense/output": hidden @ dense["output"][0] + dense["output"][1],
    }


class Pooled(nn.Module):
    """Convolution, ReLU, global average pooling and a dense layer, made of Flax's own parts."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


# layer_outputs


def test_the_outputs_of_layers_are_those_computed_by_hand():
    outputs = features.layer_outputs(MODEL, VARIABLES, IMAGES)
    expected = by_hand(VARIABLES["params"], IMAGES)
    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        close(output, expected[name], err_msg=name)
    close(outputs["dense/output"], MODEL.apply(VARIABLES, IMAGES))


def test_layers_keep_their_order_under_jit():
    outputs = jax.jit(features.layer_outputs, static_argnums=0)(MODEL, VARIABLES, IMAGES)
    assert list(outputs) == ["conv_0", "conv_1", "dense/hidden_0", "dense/output"]
    model = models.resnet(depth=8, width=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    names = list(jax.eval_shape(lambda variables: features.layer_outputs(model, variables, IMAGES), variables))
    assert names[:2] == ["stem/batch_norm", "stem"]
    assert names[-1] == "output"


def test_a_model_of_one_layer_and_a_layer_used_twice_have_names():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="layer")
            return nn.Dropout(0.5, deterministic=True)(layer(layer(x))) * 2

    assert list(features.layer_outputs(LINEAR, linear(), jnp.ones((2, 5)))) == ["outputs"]
    model = models.from_linen(Twice())
    outputs = features.layer_outputs(model, model.init(jax.random.key(0), jnp.ones((1, 4))), jnp.ones((2, 4)))
    assert list(outputs) == ["layer", "layer[1]", "outputs"]  # dropout, off, passes on what it is given
    close(outputs["outputs"], 2 * outputs["layer[1]"])


def test_what_a_lifted_transformation_hides_is_left_out():
    class Partly(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="seen")(nn.remat(nn.Dense)(3, name="hidden")(x))

    model = models.from_linen(Partly())
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    assert list(features.layer_outputs(model, variables, jnp.ones((2, 4)))) == ["seen"]
    with pytest.raises(ValueError, match="Flax Linen modules"):
        features.layer_outputs(Model(model.init, jax.jit(model.apply)), variables, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    "model", [models.from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs)), Model(None, lambda variables, x: x)]
)
def test_a_model_without_linen_modules_is_refused(model):
    variables = {} if model.init is None else model.init(jax.random.key(0), jnp.ones((1, 5)))
    with pytest.raises(ValueError, match=r"model: expected one of Flax Linen modules.*from_linen"):
        features.layer_outputs(model, variables, jnp.ones((1, 5)))


# filters, drawable


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


# maximize, top_inputs


def test_the_input_that_excites_a_linear_unit_is_its_weights(key):
    variables = linear()
    for unit in range(3):
        found = features.maximize(LINEAR, variables, "outputs", unit, (5,), key, steps=600, l2=0.5)
        weights = variables["params"]["kernel"][:, unit]
        close(found.inputs, weights, atol=0.01)  # w / 2λ
        close(found.activation, weights @ found.inputs, atol=1e-3)
    bounded = features.maximize(LINEAR, variables, "outputs", 0, (5,), key, l2=0.0, bounds=(-1.0, 2.0))
    np.testing.assert_array_equal(bounded.inputs, np.where(variables["params"]["kernel"][:, 0] > 0, 2.0, -1.0))


def test_maximising_beats_real_inputs_and_is_mapped_over_units(key):
    options = {"steps": 60, "bounds": (-1.0, 1.0), "l2": 0.0, "pool": "max"}
    inputs = IMAGES.clip(-1, 1)

    def one(unit):
        return features.maximize(MODEL, VARIABLES, "conv_1", unit, (8, 8, 2), key, **options)

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


def test_jitter_and_total_variation_make_smoother_inputs(key):
    def roughness(**options):
        found = features.maximize(
            MODEL, VARIABLES, "dense/output", 1, (8, 8, 2), key, steps=80, bounds=(-1.0, 1.0), **options
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


# class_activation_map, saliency


def test_with_global_average_pooling_the_map_is_weights_times_maps():
    model = models.from_linen(Pooled())
    variables = model.init(jax.random.key(0), IMAGES)
    params = variables["params"]
    pooled = Pooled().bind(variables)
    maps = nn.relu(nn.Conv(4, (3, 3), parent=None).apply({"params": params["Conv_0"]}, IMAGES))
    logits = np.asarray(pooled(IMAGES))
    # Conv_0 is seen before its ReLU: Grad-CAM by hand with the derivative of ReLU, which the mean over positions sees
    before = np.asarray(nn.Conv(4, (3, 3), parent=None).apply({"params": params["Conv_0"]}, IMAGES))
    weights = np.asarray(params["Dense_0"]["kernel"])[:, logits.argmax(-1)].T  # (batch, features)
    alphas = weights * (before > 0).mean((1, 2)) / 64
    expected = np.maximum(np.einsum("nk,nhwk->nhw", alphas, before), 0)
    close(features.class_activation_map(model, variables, IMAGES, "Conv_0"), expected, atol=1e-6)
    assert maps.shape == before.shape

    own = models.cnn([models.conv(4), ops.global_avg_pool], outputs=3)  # conv_0 is seen behind its ReLU
    variables = own.init(jax.random.key(1), IMAGES)
    maps = np.asarray(features.layer_outputs(own, variables, IMAGES)["conv_0"])
    weights = np.asarray(variables["params"]["dense"]["output"]["kernel"])
    for c in range(3):
        expected = np.maximum(maps @ weights[:, c] / 64, 0)  # CAM (Zhou et al. 2016), up to the number of positions
        close(features.class_activation_map(own, variables, IMAGES, "conv_0", c), expected, atol=1e-6)
        lead = np.maximum(maps @ (weights[:, c] - weights.mean(1)) / 64, 0)
        close(features.class_activation_map(own, variables, IMAGES, "conv_0", c, relative=True), lead, atol=1e-6)


def test_a_common_level_of_the_logits_silences_all_maps_but_relative_ones():
    model = models.cnn([models.conv(4), ops.global_avg_pool], outputs=3)
    variables = model.init(jax.random.key(1), IMAGES)
    lower = jax.tree.map(lambda leaf: leaf - 10 if leaf.shape == (4, 3) else leaf, variables)
    assert features.class_activation_map(model, variables, IMAGES, "conv_0").any()
    assert not features.class_activation_map(model, lower, IMAGES, "conv_0").any()
    maps = [features.class_activation_map(model, v, IMAGES, "conv_0", relative=True) for v in (variables, lower)]
    close(*maps, atol=1e-5)


def test_the_map_has_the_size_of_the_image_and_each_example_its_own():
    found = features.class_activation_map(MODEL, VARIABLES, IMAGES, "conv_1")
    assert found.shape == (6, 8, 8)
    assert (found >= 0).all()
    classes = MODEL.apply(VARIABLES, IMAGES).argmax(-1)
    for i in range(6):
        alone = features.class_activation_map(MODEL, VARIABLES, IMAGES[i : i + 1], "conv_1", classes[i])
        close(alone[0], found[i], atol=1e-6)
    compiled = jax.jit(lambda x: features.class_activation_map(MODEL, VARIABLES, x, "conv_1"))(IMAGES)
    close(compiled, found, atol=1e-6)


def test_the_saliency_of_a_linear_model_is_the_size_of_its_weights():
    variables = linear((6,))
    kernel = np.abs(variables["params"]["kernel"])
    inputs = jax.random.normal(jax.random.key(2), (4, 6))
    chosen = np.array([0, 2, 1, 1])
    close(features.saliency(LINEAR, variables, inputs, chosen), kernel[:, chosen].T)
    best = np.asarray(LINEAR.apply(variables, inputs)).argmax(-1)
    close(features.saliency(LINEAR, variables, inputs), kernel[:, best].T)

    flat = models.mlp(hidden=(), outputs=3)
    variables = flat.init(jax.random.key(0), IMAGES)
    weights = np.abs(np.asarray(variables["params"]["output"]["kernel"])[:, 1]).reshape(8, 8, 2).max(-1)
    found = jax.jit(lambda x: features.saliency(flat, variables, x, 1))(IMAGES)
    close(found, np.broadcast_to(weights, found.shape))


def test_saliency_needs_no_linen_modules():
    model = models.from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs))
    variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    found = features.saliency(model, variables, jnp.ones((2, 5)), 2)
    close(found[0], np.abs(variables["params"]["kernel"][:, 2]))


# errors

KEY = jax.random.key(0)
TOP = (MODEL, VARIABLES, IMAGES)
CAM = features.class_activation_map
ONE = models.cnn([models.conv(1)], outputs=1)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: CAM(MODEL, VARIABLES, IMAGES, "convo_1"),
            ValueError,
            "layer: expected one of 'conv_0', .*did you mean 'conv_1'",
        ),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "dense/hidden_0"), ValueError, "layer: expected one of feature maps"),
        (lambda: CAM(MODEL, VARIABLES, IMAGES[0, 0], "conv_1"), ValueError, r"inputs: expected .*float32\[8,2\]"),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", 3), ValueError, "classes: expected from 0 to 2, got 3"),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", [0, 1]), ValueError, r"classes: .*\(6,\).*int32\[2\]"),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", 1.0), TypeError, "classes: expected integers, got 1.0"),
        (
            lambda: CAM(ONE, ONE.init(KEY, IMAGES), IMAGES, "conv_0", relative=True),
            ValueError,
            "relative: expected False for a model of one logit",
        ),
        (lambda: CAM("cnn", VARIABLES, IMAGES, "conv_1"), TypeError, "model: expected a Model.*'cnn'"),
        (lambda: features.layer_outputs(None, {}, IMAGES), TypeError, "model: expected a Model"),
        (lambda: features.saliency(*TOP, -1), ValueError, "classes: expected from 0 to 2, got -1"),
        (lambda: features.saliency(MODEL, VARIABLES, IMAGES.astype(int)), TypeError, "inputs: expected a floating"),
        (lambda: features.saliency(LINEAR, linear(), jnp.ones(5)), ValueError, r"inputs: .*float32\[5\]"),
        (lambda: features.saliency(LINEAR, linear(), jnp.ones((2, 4, 5))), ValueError, r"outputs \(batch, classes\)"),
        (lambda: features.top_inputs(*TOP, "conv_1", 5, 1), ValueError, "unit: expected .*below 5, got 5"),
        (lambda: features.top_inputs(*TOP, "conv_1", -1, 1), ValueError, "unit: expected .*at least 0"),
        (lambda: features.top_inputs(*TOP, "conv_1", 1.5, 1), TypeError, "unit: expected an integer, got 1.5"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 7), ValueError, "count: expected at most the 6 .*got 7"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 0), ValueError, "count: expected a positive"),
        (lambda: features.top_inputs(*TOP, "conv_1", 0, 1, pool="maxi"), ValueError, "pool: .*did you mean 'max'"),
        (lambda: features.maximize(LINEAR, linear(), "output", 0, (5,), KEY), ValueError, "did you mean 'outputs'"),
        (lambda: features.maximize(LINEAR, linear(), "outputs", 0, 5, KEY), TypeError, "shape: expected"),
        (lambda: features.maximize(LINEAR, linear(), "outputs", 0, (5,), 0), TypeError, "key: expected a typed key"),
        (
            lambda: features.maximize(LINEAR, linear(), "outputs", 0, (5,), KEY, l2=-1.0),
            ValueError,
            "l2: expected .*at least 0, got -1",
        ),
        (
            lambda: features.maximize(LINEAR, linear(), "outputs", 0, (5,), KEY, jitter=0.5),
            TypeError,
            "jitter: expected an integer",
        ),
        (
            lambda: features.maximize(LINEAR, linear(), "outputs", 0, (5,), KEY, bounds=(1, 0)),
            ValueError,
            r"bounds\[1\]: expected .*above 1, got 0",
        ),
        (lambda: features.filters(VARIABLES, "conv_9"), ValueError, "layer: expected one of 'conv_0'"),
        (lambda: features.filters(VARIABLES, "conv_0", (3, 3)), ValueError, "shape: expected none for a convolution"),
        (lambda: features.filters(linear(), "outputs"), ValueError, "shape: .*'outputs'.* on 5, got None"),
        (lambda: features.filters(VARIABLES["params"], "conv_0"), ValueError, "variables: expected a model's"),
        (lambda: features.drawable(jnp.ones(3)), ValueError, r"images: expected \(images, ...\)"),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
