import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from nnfx import losses
from nnfx.types import Mean

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=7) * 3
LABELS = RNG.integers(0, 2, size=7)
TARGETS = LOGITS + np.where(np.arange(7) % 2, 0.7, -1.7)  # far from the kinks
CLASS_LOGITS = RNG.normal(size=(7, 4))
CLASSES = RNG.integers(0, 4, size=7)


def f32(values):
    return jnp.asarray(values, jnp.float32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy(smoothing):
    p, y = sigmoid(LOGITS), LABELS * (1 - smoothing) + smoothing / 2
    expected = -y * np.log(p) - (1 - y) * np.log(1 - p)
    ours = losses.binary_cross_entropy(f32(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    ours = losses.binary_cross_entropy_from_probabilities(f32(p), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_binary_cross_entropy_against_scikit_learn():
    ours = losses.empirical(losses.binary_cross_entropy(f32(LOGITS), jnp.asarray(LABELS)))
    np.testing.assert_allclose(ours, sklearn.metrics.log_loss(LABELS, sigmoid(LOGITS)), rtol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 1.0, 1e-30])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binary_cross_entropy_from_probabilities_is_finite_at_the_ends(probability, label, dtype):
    p = jnp.full(1, probability, dtype)
    value, gradient = jax.value_and_grad(
        lambda p: losses.binary_cross_entropy_from_probabilities(p, jnp.full(1, label)).sum()
    )(p)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    if probability == label:
        assert jnp.isnan(value)


def test_binary_cross_entropy_is_accurate_for_large_logits():
    values = losses.binary_cross_entropy(f32([80.0, -80.0]), jnp.array([0, 0]))
    np.testing.assert_allclose(values, [80.0, np.exp(-80.0)], rtol=1e-6)


def test_several_binary_outputs_are_averaged():
    logits, labels = LOGITS[:6].reshape(2, 3), LABELS[:6].reshape(2, 3)
    each = losses.binary_cross_entropy(f32(LOGITS[:6]), jnp.asarray(LABELS[:6]))
    together = losses.binary_cross_entropy(f32(logits), jnp.asarray(labels))
    np.testing.assert_allclose(together, np.asarray(each).reshape(2, 3).mean(1), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("one_hot", [False, True])
def test_categorical_cross_entropy(smoothing, one_hot):
    probabilities = np.exp(CLASS_LOGITS) / np.exp(CLASS_LOGITS).sum(1, keepdims=True)
    y = np.eye(4)[CLASSES] * (1 - smoothing) + smoothing / 4
    labels = f32(np.eye(4)[CLASSES]) if one_hot else jnp.asarray(CLASSES)
    ours = losses.categorical_cross_entropy(f32(CLASS_LOGITS), labels, smoothing)
    np.testing.assert_allclose(ours, -(y * np.log(probabilities)).sum(1), rtol=1e-5)
    if smoothing == 0:
        reference = sklearn.metrics.log_loss(CLASSES, probabilities, labels=range(4))
        np.testing.assert_allclose(losses.empirical(ours), reference, rtol=1e-5)


def test_square_absolute_and_huber():
    outputs, targets = RNG.normal(size=(5, 3)) * 2, RNG.normal(size=(5, 3))
    e = np.abs(outputs - targets)
    args = f32(outputs), f32(targets)
    np.testing.assert_allclose(losses.mean_square_error(*args), (e**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses.mean_absolute_error(*args), e.mean(1), rtol=1e-5)
    for delta in (0.5, 2.0):
        expected = np.where(e <= delta, e**2 / 2, delta * (e - delta / 2)).mean(1)
        np.testing.assert_allclose(losses.huber(*args, delta=delta), expected, rtol=1e-5)


PER_EXAMPLE = {
    "binary_cross_entropy": (losses.binary_cross_entropy, LOGITS, LABELS),
    "from_probabilities": (losses.binary_cross_entropy_from_probabilities, sigmoid(LOGITS), LABELS),
    "categorical_cross_entropy": (losses.categorical_cross_entropy, CLASS_LOGITS, CLASSES),
    "smoothed": (functools.partial(losses.categorical_cross_entropy, label_smoothing=0.1), CLASS_LOGITS, CLASSES),
    "mean_square_error": (losses.mean_square_error, LOGITS, TARGETS),
    "mean_absolute_error": (losses.mean_absolute_error, LOGITS, TARGETS),
    "huber": (losses.huber, LOGITS, TARGETS),
}


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_contracts_of_a_loss(name):
    loss, outputs, targets = PER_EXAMPLE[name]
    targets = jnp.asarray(targets) if targets.dtype.kind == "i" else f32(targets)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        values = loss(jnp.asarray(outputs, dtype), targets)
        assert values.shape == (7,)
        assert values.dtype == dtype
    single = f32(outputs)
    np.testing.assert_allclose(jax.jit(loss)(single, targets), loss(single, targets), rtol=1e-6)
    mapped = jax.vmap(lambda o, t: loss(o[None], t[None])[0])(single, targets)
    np.testing.assert_allclose(mapped, loss(single, targets), rtol=1e-6)
    if outputs.ndim == 1:
        np.testing.assert_array_equal(loss(single[:, None], targets), loss(single, targets))
    with jax.enable_x64(True):

        def total(o):
            return loss(o, jnp.asarray(targets)).sum()

        x = jnp.asarray(outputs)
        gradient = np.asarray(jax.grad(total)(x)).ravel()
        for i in range(x.size):
            h = np.zeros(x.size)
            h[i] = 1e-6
            central = (total(x + h.reshape(x.shape)) - total(x - h.reshape(x.shape))) / 2e-6
            np.testing.assert_allclose(gradient[i], central, rtol=1e-6, atol=1e-9)


def test_smoothing_and_delta_may_be_traced():
    traced = jax.jit(losses.binary_cross_entropy)(f32(LOGITS), jnp.asarray(LABELS), jnp.float32(0.2))
    np.testing.assert_allclose(traced, losses.binary_cross_entropy(f32(LOGITS), jnp.asarray(LABELS), 0.2), rtol=1e-6)
    slope = jax.grad(lambda d: losses.huber(f32(LOGITS), f32(0 * LOGITS), d).sum())(jnp.float32(1.0))
    assert jnp.isfinite(slope)


def test_the_empirical_loss_is_the_weighted_mean():
    values, weights = RNG.normal(size=6), RNG.uniform(size=6)
    expected = np.average(values, weights=weights)
    np.testing.assert_allclose(losses.empirical(f32(values), f32(weights)), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.empirical(f32(values)), values.mean(), rtol=1e-5)


def test_means_of_parts_merge_into_the_mean_of_the_whole():
    values, weights = f32(RNG.normal(size=6)), f32(RNG.uniform(size=6))
    parts = [Mean.of(values[:2], weights[:2]), Mean.of(values[2:], weights[2:])]
    merged = Mean(parts[0].total + parts[1].total, parts[0].weight + parts[1].weight)
    np.testing.assert_allclose(merged.value, losses.empirical(values, weights), rtol=1e-6)


def test_a_mean_of_many_values_of_few_bits():
    assert losses.empirical(jnp.ones(70_000, jnp.float16)) == 1


def test_no_weight_at_all_gives_nan_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(losses.empirical)(jnp.ones(3), jnp.zeros(3))
    assert jnp.isnan(value)
    assert jnp.isfinite(gradient).all()
