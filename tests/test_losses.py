import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        assert value == 0


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
        values = jax.eval_shape(loss, jax.ShapeDtypeStruct(outputs.shape, dtype), targets)
        assert values.shape == (7,)
        assert values.dtype == dtype
    single = f32(outputs)
    np.testing.assert_allclose(jax.jit(loss)(single, targets), loss(single, targets), rtol=1e-6)
    mapped = jax.jit(jax.vmap(lambda o, t: loss(o[None], t[None])[0]))(single, targets)
    np.testing.assert_allclose(mapped, loss(single, targets), rtol=1e-6)
    if outputs.ndim == 1:
        np.testing.assert_array_equal(loss(single[:, None], targets), loss(single, targets))
    with jax.enable_x64(True):

        @jax.jit
        def total_and_gradient(o):
            return jax.value_and_grad(lambda o: loss(o, jnp.asarray(targets)).sum())(o)

        def total(o):
            return np.asarray(total_and_gradient(o)[0])

        x = outputs
        gradient = np.asarray(total_and_gradient(x)[1]).ravel()
        for i in range(x.size):
            h = np.zeros(x.size)
            h[i] = 1e-6
            central = (total(x + h.reshape(x.shape)) - total(x - h.reshape(x.shape))) / 2e-6
            np.testing.assert_allclose(gradient[i], central, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_no_examples_have_no_losses(name):
    loss, outputs, targets = PER_EXAMPLE[name]
    assert loss(outputs[:0], targets[:0]).shape == (0,)
    assert jnp.isnan(losses.empirical(loss(outputs[:0], targets[:0])))


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


MASKED = np.array([[-np.inf, 1.0, 2.0], [0.5, -np.inf, 2.0], [3.0, -np.inf, -np.inf]])
ALLOWED = np.array([2, 0, 0])


def masked_reference(smoothing=0.0):
    """The loss and its gradient in float64, with `0 log 0 = 0`."""
    p = np.exp(MASKED) / np.exp(MASKED).sum(1, keepdims=True)
    y = np.eye(3)[ALLOWED] * (1 - smoothing) + smoothing / 3
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(y == 0, 0, y * np.log(p)).sum(1), p - y


@pytest.mark.parametrize(
    "form",
    [
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("integers", "one-hot")),
        "jit",
        "jit one-hot",
        "traced smoothing",
    ],
)
def test_classes_ruled_out(form):
    logits, labels = f32(MASKED), jnp.asarray(ALLOWED)
    if "one-hot" in form:
        labels = jax.nn.one_hot(labels, 3)
    options = (jnp.float32(0),) if form == "traced smoothing" else ()

    def loss(z, y, *options):
        each = losses.categorical_cross_entropy(z, y, *options)
        return each.sum(), each

    run = jax.value_and_grad(loss, has_aux=True)
    (_, values), gradient = (run if form in ("integers", "one-hot") else jax.jit(run))(logits, labels, *options)
    expected, slope = masked_reference()
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(ALLOWED))
    np.testing.assert_allclose(values, theirs, rtol=1e-6)


def test_a_share_for_a_class_ruled_out_costs_everything_as_in_pytorch():
    torch = pytest.importorskip("torch")
    logits = f32(MASKED)
    for labels, smoothing in ((ALLOWED, 0.1), (np.array([0, 1, 2]), 0.0)):
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(MASKED), torch.tensor(labels), label_smoothing=smoothing, reduction="none"
        )
        ours = losses.categorical_cross_entropy(logits, jnp.asarray(labels), smoothing)
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert (ours == jnp.inf).all()


def test_a_certain_class():
    logits, labels = f32([[0.0, np.inf, 1.0]] * 2), jnp.array([1, 0])
    values, pull = jax.vjp(lambda z: losses.categorical_cross_entropy(z, labels), logits)
    assert values.tolist() == [0, np.inf]
    np.testing.assert_array_equal(pull(jnp.array([1.0, 0.0]))[0], 0)
    assert jnp.isnan(losses.categorical_cross_entropy(f32([[-np.inf] * 3]), jnp.array([0]))).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_infinite_logits_that_are_right_and_wrong(smoothing):
    logits, labels = f32([-np.inf, np.inf, np.inf, -np.inf]), jnp.array([0, 1, 0, 1])
    values, pull = jax.vjp(lambda z: losses.binary_cross_entropy(z, labels, smoothing), logits)
    soft = np.asarray(labels) * (1 - smoothing) + smoothing / 2
    np.testing.assert_array_equal(values, [0, 0, np.inf, np.inf] if smoothing == 0 else [np.inf] * 4)
    np.testing.assert_allclose(pull(jnp.ones(4))[0], [0, 1, 1, 0] - soft, atol=1e-7)
    tangent = jax.jvp(lambda z: losses.binary_cross_entropy(z, labels), (logits,), (jnp.ones(4),))[1]
    np.testing.assert_allclose(tangent, [0, 0, 1, -1], atol=1e-7)


OUT_OF_RANGE = {
    "class 7 of 3": (losses.categorical_cross_entropy, [[1.0, 2.0, 3.0]], [7]),
    "class −1": (losses.categorical_cross_entropy, [[1.0, 2.0, 3.0]], [-1]),
    "no class": (losses.categorical_cross_entropy, [[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]),
    "negative share": (losses.categorical_cross_entropy, [[1.0, 2.0, 3.0]], [[2.0, -1.0, 0.0]]),
    "label 2": (losses.binary_cross_entropy, [0.5], [2]),
    "label −1": (losses.binary_cross_entropy, [0.5], [-1]),
    "label 2 of a probability": (losses.binary_cross_entropy_from_probabilities, [0.5], [2]),
    "logit as probability": (losses.binary_cross_entropy_from_probabilities, [1.5], [1]),
    "negative probability": (losses.binary_cross_entropy_from_probabilities, [-0.5], [0]),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_cannot_be_meant_is_an_error_or_traced_not_a_number(name):
    loss, outputs, targets = OUT_OF_RANGE[name]
    with pytest.raises(ValueError, match=r"targets: |probabilities: "):
        loss(f32(outputs), jnp.asarray(targets))
    value, gradient = jax.jit(jax.value_and_grad(lambda o, t: loss(o, t).sum()))(f32(outputs), jnp.asarray(targets))
    assert jnp.isnan(value)
    assert jnp.isnan(gradient).all()


def test_soft_binary_labels_of_mixup_are_probabilities():
    value = jax.jit(losses.binary_cross_entropy)(f32([2.0]), f32([0.25]))
    p = sigmoid(2.0)
    np.testing.assert_allclose(value, -0.25 * np.log(p) - 0.75 * np.log(1 - p), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.mean_square_error, losses.mean_absolute_error, losses.huber])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
def test_whole_outputs_lose_nothing_of_the_targets(loss, dtype):
    outputs, targets = np.array([1, 0, 1], dtype), np.array([0.5, 0.25, 3.75])
    error = np.abs(outputs.astype(float) - targets)
    expected = {
        "mean_square_error": error**2,
        "mean_absolute_error": error,
        "huber": np.where(error <= 1, error**2 / 2, error - 0.5),
    }[loss.__name__]
    for ours in (loss(jnp.asarray(outputs), f32(targets)), loss(outputs, targets), loss(outputs, f32(targets))):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    small, large = np.array([2], np.uint8), np.array([5], np.uint8)
    assert loss(jnp.asarray(small), jnp.asarray(large)).tolist() == loss(f32([2.0]), f32([5.0])).tolist()


def test_losses_take_what_users_hold():
    pandas, polars, torch = map(pytest.importorskip, ("pandas", "polars", "torch"))
    expected = losses.binary_cross_entropy(f32([0.5, -2.0]), jnp.array([1, 0])).tolist()
    for door in (list, np.array, pandas.Series, polars.Series, torch.tensor):
        assert losses.binary_cross_entropy(door([0.5, -2.0]), door([1, 0])).tolist() == expected
        assert losses.binary_cross_entropy(logits=f32([0.5, -2.0]), labels=door([1, 0])).tolist() == expected
        rows = [[0.0, 0.5], [-2.0, 0.0]]
        held = torch.tensor(rows) if door is torch.tensor else np.array(rows)
        np.testing.assert_allclose(
            losses.categorical_cross_entropy(held, door([1, 1])), [0.474077, 0.126928], rtol=1e-5
        )
        losses.check(losses.huber, jax.ShapeDtypeStruct((2,), jnp.float32), door([1.0, 2.0]))
    with pytest.raises(ValueError, match="targets: expected no masked or missing values, got 1"):
        losses.mean_square_error([1.0, 2.0], np.ma.masked_equal([1.0, 9.0], 9.0))
    with pytest.raises(TypeError, match="outputs: expected an array of real numbers"):
        losses.mean_square_error(["a", "b"], [1.0, 2.0])


def test_an_exact_fit_has_no_absolute_gradient_as_in_pytorch():
    torch = pytest.importorskip("torch")
    outputs = np.array([1.0, 2.0, -3.0], np.float32)
    targets = np.array([1.0, 1.0, 1.0], np.float32)
    theirs = torch.tensor(outputs, requires_grad=True)
    torch.nn.functional.l1_loss(theirs, torch.tensor(targets), reduction="sum").backward()
    ours = jax.grad(lambda o: losses.mean_absolute_error(o, targets).sum())(jnp.asarray(outputs))
    np.testing.assert_array_equal(ours, theirs.grad.numpy())


def test_weights_of_the_empirical_loss_are_checked():
    for wrong in ([1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="weights: expected"):
            losses.empirical([1.0, 2.0], wrong)
    assert jnp.isnan(jax.jit(losses.empirical)(f32([1.0, 2.0]), f32([2.0, -1.0])))
    assert losses.empirical([1, 2], [1, 3]) == 1.75


NARROW = [(np.uint8, 256), (np.uint8, 300), (np.int8, 128), (np.int8, 200)]
"""Dtypes of labels, with numbers of classes that they cannot hold."""


@pytest.mark.parametrize(("dtype", "classes"), NARROW)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_of_few_bits(dtype, classes, smoothing):
    logits = np.random.default_rng(1).normal(size=(4, classes))
    labels = np.array([0, 1, classes - 200 if classes > 200 else 3, min(classes - 1, np.iinfo(dtype).max)])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(4), labels] - smoothing * log_p.mean(1)
    narrow = jnp.asarray(labels.astype(dtype))
    for loss in (losses.categorical_cross_entropy, jax.jit(losses.categorical_cross_entropy)):
        np.testing.assert_allclose(loss(f32(logits), narrow, smoothing), expected, rtol=1e-5)
