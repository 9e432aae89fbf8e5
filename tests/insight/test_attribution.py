import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nnfx import models, ops
from nnfx.insight import features
from tests.insight.networks import IMAGES, LINEAR, MODEL, VARIABLES, close, linear

CAM = features.class_activation_map
ONE = models.cnn([models.conv(1)], outputs=1)


class Pooled(nn.Module):
    """Convolution, ReLU, global average pooling and a dense layer, built from Flax modules."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


@pytest.mark.slow
def test_with_global_average_pooling_the_map_is_weights_times_maps():
    model = models.from_linen(Pooled())
    variables = model.init(jax.random.key(0), IMAGES)
    params = variables["params"]
    pooled = Pooled().bind(variables)
    maps = nn.relu(nn.Conv(4, (3, 3), parent=None).apply({"params": params["Conv_0"]}, IMAGES))
    logits = np.asarray(pooled(IMAGES))
    # Conv_0 is captured before its ReLU: Grad-CAM by hand, with the derivative of ReLU in the mean over positions
    before = np.asarray(nn.Conv(4, (3, 3), parent=None).apply({"params": params["Conv_0"]}, IMAGES))
    weights = np.asarray(params["Dense_0"]["kernel"])[:, logits.argmax(-1)].T  # (batch, features)
    alphas = weights * (before > 0).mean((1, 2)) / 64
    expected = np.maximum(np.einsum("nk,nhwk->nhw", alphas, before), 0)
    close(features.class_activation_map(model, variables, IMAGES, "Conv_0"), expected, atol=1e-6)
    assert maps.shape == before.shape

    own = models.cnn([models.conv(4), ops.global_avg_pool], outputs=3)  # conv_0 is captured after its ReLU
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: CAM(MODEL, VARIABLES, IMAGES, "convo_1"),
            ValueError,
            "layer: expected one of 'conv_0', .*did you mean 'conv_1'",
        ),
        (
            lambda: CAM(MODEL, VARIABLES, IMAGES, "dense/hidden_0"),
            ValueError,
            "layer: expected a layer of feature maps",
        ),
        (lambda: CAM(MODEL, VARIABLES, IMAGES[0, 0], "conv_1"), ValueError, r"inputs: expected .*float32\[8,2\]"),
        (
            lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", 3),
            ValueError,
            "classes: expected classes from 0 to 2, got 3",
        ),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", [0, 1]), ValueError, r"classes: .*\(6,\).*int32\[2\]"),
        (lambda: CAM(MODEL, VARIABLES, IMAGES, "conv_1", 1.0), TypeError, "classes: expected integers, got 1.0"),
        (
            lambda: CAM(ONE, ONE.init(jax.random.key(0), IMAGES), IMAGES, "conv_0", relative=True),
            ValueError,
            "relative: expected False for a model with a single logit",
        ),
        (lambda: CAM("cnn", VARIABLES, IMAGES, "conv_1"), TypeError, "model: expected a Model.*'cnn'"),
        (
            lambda: features.saliency(MODEL, VARIABLES, IMAGES, -1),
            ValueError,
            "classes: expected classes from 0 to 2, got -1",
        ),
        (
            lambda: features.saliency(MODEL, VARIABLES, IMAGES.astype(int)),
            TypeError,
            "inputs: expected an array of",
        ),
        (lambda: features.saliency(LINEAR, linear(), jnp.ones(5)), ValueError, r"inputs: .*float32\[5\]"),
        (
            lambda: features.saliency(
                LINEAR._replace(apply=lambda variables, x, **options: x), linear(), jnp.ones((2, 4, 5))
            ),
            ValueError,
            r"outputs \(batch, classes\)",
        ),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_sequences_are_refused_by_name():
    sequences = models.Sequences(jnp.ones((2, 3, 4)), jnp.array([3, 1]))
    model = models.gru(2, hidden=(3,))
    variables = model.init(jax.random.key(0), sequences)
    with pytest.raises(TypeError, match="inputs: expected one array .*, got Sequences; pass the values of sequences"):
        features.saliency(model, variables, sequences)
    assert features.saliency(model, variables, sequences.values).shape == (2, 3)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_classes_of_few_bits(dtype):
    kernel = jax.random.normal(jax.random.key(0), (2, 256))
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(256)}}
    found = features.saliency(models.perceptron(256), variables, jnp.ones((2, 2)), jnp.array([0, 100], dtype))
    close(found, np.abs(np.asarray(kernel)[:, [0, 100]]).T)
