"""Metrics of all rows together, against scikit-learn, on their own and within runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics

import nnfx
from nnfx import metrics

ROWS = 80
CLASS_METRICS = {
    "precision": sklearn.metrics.precision_score,
    "recall": sklearn.metrics.recall_score,
    "f1": sklearn.metrics.f1_score,
}


def drawn(seed, classes=None, shape=()):
    """Return logits or outputs, labels, and weights, some of which are zero."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, ROWS).astype(np.float32) * (rng.uniform(size=ROWS) < 0.8)
    if classes is None:
        targets = rng.normal(3, 1, size=(ROWS, *shape)).astype(np.float32)
        return targets + rng.normal(size=targets.shape).astype(np.float32), targets, weights
    labels = rng.integers(0, classes, ROWS)
    logits = rng.normal(size=(ROWS, classes)).astype(np.float32)
    logits[np.arange(ROWS), labels] += 1
    return (logits[:, 1] - logits[:, 0] if classes == 2 else logits), labels, weights


@pytest.mark.parametrize("average", ["binary", "macro", "micro", "weighted"])
@pytest.mark.parametrize("name", CLASS_METRICS)
def test_class_metrics_against_scikit_learn(name, average):
    classes = 2 if average == "binary" else 4
    logits, labels, weights = drawn(0, classes)
    labels[labels == 3] = 2  # class 3 is only predicted
    predicted = logits > 0 if classes == 2 else logits.argmax(1)
    ours = getattr(metrics, name)
    for weight in (None, weights):
        expected = CLASS_METRICS[name](labels, predicted, average=average, sample_weight=weight, zero_division=0)
        np.testing.assert_allclose(ours(logits, labels, weight, average=average), expected, rtol=1e-5)
        if average in ("binary", "macro"):  # the default of each
            np.testing.assert_allclose(jax.jit(ours)(logits, labels, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_confusion_matrix_and_balanced_accuracy_against_scikit_learn(classes):
    logits, labels, weights = drawn(1, classes)
    predicted = logits > 0 if classes == 2 else logits.argmax(1)
    expected = sklearn.metrics.confusion_matrix(labels, predicted)
    np.testing.assert_array_equal(metrics.confusion_matrix(logits, labels), expected)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(logits, np.eye(classes)[labels]) if classes > 2 else expected, expected
    )
    expected = sklearn.metrics.confusion_matrix(labels, predicted, sample_weight=weights)
    np.testing.assert_allclose(metrics.confusion_matrix(logits, labels, weights), expected, rtol=1e-5)
    for weight in (None, weights):
        expected = sklearn.metrics.balanced_accuracy_score(labels, predicted, sample_weight=weight)
        np.testing.assert_allclose(metrics.balanced_accuracy(logits, labels, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_areas_under_curves_against_scikit_learn(name, ties):
    scores, labels, weights = drawn(2, 2)
    scores = scores.round() if ties else scores
    theirs = {"roc_auc": sklearn.metrics.roc_auc_score, "average_precision": sklearn.metrics.average_precision_score}
    for weight in (None, weights):
        expected = theirs[name](labels, scores, sample_weight=weight)
        np.testing.assert_allclose(getattr(metrics, name)(scores, labels, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_errors_against_scikit_learn(shape):
    outputs, targets, weights = drawn(3, shape=shape)
    for weight in (None, weights):
        expected = sklearn.metrics.r2_score(targets, outputs, sample_weight=weight)
        np.testing.assert_allclose(metrics.r2(outputs, targets, weight), expected, rtol=1e-4)
        expected = sklearn.metrics.root_mean_squared_error(targets, outputs, sample_weight=weight)
        np.testing.assert_allclose(metrics.root_mean_square_error(outputs, targets, weight), expected, rtol=1e-5)


def test_metrics_per_example_against_scikit_learn():
    logits, labels, _ = drawn(4, 3)
    p = scipy.special.softmax(logits.astype(np.float64), 1)
    np.testing.assert_allclose(metrics.log_loss(logits, labels).mean(), sklearn.metrics.log_loss(labels, p), rtol=1e-5)
    np.testing.assert_allclose(
        metrics.brier(logits, labels).mean(), ((p - np.eye(3)[labels]) ** 2).sum(1).mean(), rtol=1e-5
    )
    logits, labels, _ = drawn(4, 2)
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    np.testing.assert_allclose(
        metrics.brier(logits, labels).mean(), sklearn.metrics.brier_score_loss(labels, p), rtol=1e-5
    )
    np.testing.assert_allclose(metrics.log_loss(logits, labels).mean(), sklearn.metrics.log_loss(labels, p), rtol=1e-5)
    outputs, targets, _ = drawn(4)
    expected = sklearn.metrics.mean_absolute_percentage_error(targets, outputs)
    np.testing.assert_allclose(metrics.mean_absolute_percentage_error(outputs, targets).mean(), expected, rtol=1e-5)


OVERALL = [
    "average_precision",
    "balanced_accuracy",
    "f1",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "root_mean_square_error",
]


@pytest.mark.parametrize("name", OVERALL)
def test_rows_without_weight_do_not_count_whatever_they_hold(name):
    metric = getattr(metrics, name)
    outputs, targets, _ = drawn(5, 2)
    weights = np.arange(ROWS) % 3 > 0
    broken = np.where(weights, outputs, np.nan).astype(np.float32)
    found = metric(jnp.asarray(broken), np.where(weights, targets, 9), weights)
    np.testing.assert_allclose(found, metric(jnp.asarray(outputs[weights]), targets[weights]), rtol=1e-5)
    assert jnp.isnan(metric(jnp.asarray(outputs), targets, np.zeros(ROWS)))
    assert jnp.isnan(metric(jnp.full(ROWS, jnp.nan), targets))


def test_of_constant_targets_r2_is_as_in_scikit_learn():
    targets = np.ones(4, np.float32)
    for outputs in (targets, targets + 1):
        assert metrics.r2(outputs, targets) == sklearn.metrics.r2_score(targets, outputs)


@metrics.overall
def count(outputs, targets, weights):
    return weights.sum()


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)


def fitted(**options):
    return nnfx.fit(nnfx.models.mlp((4,)), nnfx.losses.binary_cross_entropy, optax.sgd, batch_size=64, **options)


@pytest.fixture(scope="module")
def run(data):
    names = ["roc_auc", "average_precision", "f1", "binary_accuracy", count]
    return fitted(epochs=3, metrics=names)(jax.random.key(0), data, learning_rate=0.5)


def test_a_run_measures_them_on_all_held_out_rows_at_once(run, data):
    scores = np.asarray(run.apply(data.valid.inputs, run.state.variables))[:, 0]
    labels = np.asarray(data.valid.targets)
    for name, expected in {
        "roc_auc": sklearn.metrics.roc_auc_score(labels, scores),
        "average_precision": sklearn.metrics.average_precision_score(labels, scores),
        "f1": sklearn.metrics.f1_score(labels, scores > 0),
        "binary_accuracy": sklearn.metrics.accuracy_score(labels, scores > 0),
        "count": len(labels),
    }.items():
        np.testing.assert_allclose(run.history[f"valid_{name}"][-1], expected, rtol=1e-5)
        found = run.evaluate(data.valid, run.state.variables)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    assert "train_roc_auc" not in run.history
    assert "train_binary_accuracy" in run.history


def test_more_rows_than_are_evaluated_at_once(monkeypatch, run, data):
    before = run.evaluate(data.valid)
    monkeypatch.setattr(nnfx.training.step, "EVALUATION_ROWS", 50)
    parts = run.fit.bind(run.hyper)
    after = nnfx.evaluate(parts.model, parts.measures, run.best.variables, data.valid)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name].value, value, rtol=1e-5)


def test_in_a_sweep_each_member_has_its_own(data):
    train = fitted(epochs=2, metrics="roc_auc")
    swept = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), seeds=2, learning_rate=[0.1, 0.5])
    areas = np.asarray(swept.member(3).history["valid_roc_auc"])
    assert areas.shape == (2,)
    scores = swept.member(3).apply(data.valid.inputs, swept.member(3).state.variables)
    np.testing.assert_allclose(areas[-1], metrics.roc_auc(scores, data.valid.targets), rtol=1e-4)


def test_rows_count_once_unless_weights_are_asked_for():
    x, y, weights = np.array([[1.0], [2.0], [-1.0], [5.0]]), np.array([1, 0, 0, 1]), np.array([1.0, 3.0, 2.0, 0.0])
    data = nnfx.data.prepare(x, y, weights=weights, standardize=False)
    train = fitted_full(
        metrics={
            "plain": metrics.binary_accuracy,
            "weighted": metrics.weighted(metrics.binary_accuracy),
        }
    )
    run = train(jax.random.key(0), data, learning_rate=1e-30)
    right = np.asarray(run.apply(data.train.inputs)[:, 0] > 0) == y
    np.testing.assert_allclose(run.final["train_plain"], right[:3].mean(), rtol=1e-6)
    np.testing.assert_allclose(run.final["train_weighted"], np.average(right, weights=weights), rtol=1e-6)
    by_weight = fitted_full(metrics={"count": count, "sum": metrics.weighted(count)})(
        jax.random.key(0), data, learning_rate=1e-30
    )
    found = by_weight.evaluate(data.train)
    assert (float(found["count"]), float(found["sum"])) == (3.0, 6.0)


def fitted_full(**options):
    return nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, **options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("auc", ValueError, "metrics: expected a function, or one of accuracy, .*, got 'auc'"),
        ({"auc": "auc"}, ValueError, "metrics: expected a function, or one of accuracy"),
        (["accuracy", "accuracy"], ValueError, "metrics: expected unique names, got 'accuracy' twice"),
        ([lambda outputs, targets: outputs], TypeError, "metrics: expected functions with a name, or a mapping"),
        ([functools.partial(metrics.f1, average="macro")], TypeError, "metrics: expected functions with a name"),
        ([3], TypeError, "metrics: expected functions with a name, or a mapping"),
        (3, TypeError, "metrics: expected functions or names, .*, got 3"),
        ({"loss": "accuracy"}, ValueError, "metrics: expected names other than 'loss'"),
    ],
)
def test_metrics_that_cannot_be_meant(given, error, message):
    with pytest.raises(error, match=message):
        fitted(epochs=1, metrics=given)


def test_an_overall_metric_of_several_numbers_is_refused(data):
    train = fitted(epochs=1, metrics={"matrix": metrics.overall(lambda outputs, targets, weights: outputs)})
    with pytest.raises(ValueError, match="matrix: expected one number for all rows together, got float32"):
        train(jax.random.key(0), data, learning_rate=0.1)


@pytest.mark.parametrize("name", ["f1", "roc_auc", "r2"])
def test_shapes_that_do_not_fit(name):
    metric = getattr(metrics, name)
    with pytest.raises(ValueError, match="expected"):
        metric(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"weights: expected one per row, \(3,\), got"):
        metric(jnp.zeros(3), jnp.zeros(3, int), jnp.ones(2))


def test_averages_that_do_not_exist():
    with pytest.raises(ValueError, match="average: expected .*, got 'samples'"):
        metrics.f1(jnp.zeros(3), jnp.zeros(3, int), average="samples")
    with pytest.raises(
        ValueError, match="average: expected 'macro', 'micro' or 'weighted' for 3 classes, got 'binary'"
    ):
        metrics.f1(jnp.zeros((2, 3)), jnp.zeros(2, int), average="binary")


# several labels per row


SEVERAL = {"all": jnp.ones((2, 3), int), "none": jnp.zeros((2, 3), int), "two": jnp.array([[1.0, 1, 0], [1, 0, 0]])}
OF_CLASSES = ["accuracy", "f1", "precision", "recall", "balanced_accuracy", "confusion_matrix", "brier", "log_loss"]


@pytest.mark.parametrize("labels", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_several_labels_per_row_are_refused(name, labels):
    with pytest.raises(ValueError, match=r"sum to 1, got \[[^]]*\]; for several labels per row use binary_"):
        getattr(metrics, name)(jnp.array([[5.0, -1, -1]] * 2), labels)


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "balanced_accuracy", "accuracy"])
def test_several_labels_per_row_are_not_a_number_once_traced(name):
    found = jax.jit(getattr(metrics, name))(jnp.array([[5.0, -1, -1]] * 2), SEVERAL["all"])
    assert jnp.isnan(found).all()


def test_a_row_of_weight_zero_may_have_any_labels():
    logits, labels = jnp.array([[5.0, -1], [0, 1], [3, 0]]), jnp.array([[1, 0], [1, 1], [0, 1]])
    weights = jnp.array([1.0, 0.0, 1.0])
    assert metrics.confusion_matrix(logits, labels, weights).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "balanced_accuracy", "confusion_matrix", "roc_auc"])
def test_boolean_labels_are_zeros_and_ones(name):
    logits, labels = jnp.array([1.0, -1.0, 2.0, -3.0]), jnp.array([True, False, False, True])
    expected = {
        "confusion_matrix": sklearn.metrics.confusion_matrix(labels, logits > 0),
        "roc_auc": sklearn.metrics.roc_auc_score(labels, logits),
    }
    if name not in expected:
        named = {"f1": "f1_score", "precision": "precision_score", "recall": "recall_score"}
        expected[name] = getattr(sklearn.metrics, named.get(name, "balanced_accuracy_score"))(labels, logits > 0)
    np.testing.assert_allclose(getattr(metrics, name)(logits, labels), expected[name])


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 256), (np.int8, 128)])
def test_labels_of_few_bits(dtype, classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, min(classes, np.iinfo(dtype).max + 1), ROWS)
    logits = rng.normal(size=(ROWS, classes)).astype(np.float32)
    logits[np.arange(ROWS), labels] += 3
    expected = {
        "f1": sklearn.metrics.f1_score(labels, logits.argmax(1), average="macro", zero_division=0),
        "perplexity": np.exp(-scipy.special.log_softmax(logits, 1)[np.arange(ROWS), labels].mean()),
    }
    known = np.unique(labels)
    expected["balanced_accuracy"] = sklearn.metrics.recall_score(
        labels, logits.argmax(1), labels=known, average="macro", zero_division=0
    )
    for name, value in expected.items():
        found = jax.jit(getattr(metrics, name))(jnp.asarray(logits), jnp.asarray(labels.astype(dtype)))
        np.testing.assert_allclose(found, value, rtol=1e-5)
    counts = metrics.confusion_matrix(jnp.asarray(logits), jnp.asarray(labels.astype(dtype)))
    np.testing.assert_array_equal(
        counts, sklearn.metrics.confusion_matrix(labels, logits.argmax(1), labels=range(classes))
    )


OVERALL = ["average_precision", "balanced_accuracy", "f1", "precision", "r2", "recall", "roc_auc"]
OVERALL += ["root_mean_square_error", "confusion_matrix"]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.uint8])
@pytest.mark.parametrize("name", OVERALL)
def test_weights_and_outputs_of_few_bits_can_be_summed(name, dtype):
    rng = np.random.default_rng(2)
    labels = np.arange(70_000) % 2  # half precision cannot count them, and float16 cannot hold their number
    scores = jnp.asarray(rng.normal(size=70_000) + labels, jnp.float16)
    metric = getattr(metrics, name)
    with jax.enable_x64(True):
        exact = metric(jnp.asarray(scores, jnp.float64), jnp.asarray(labels), jnp.ones(70_000, jnp.float64))
    for ours in (metric, jax.jit(metric)):
        np.testing.assert_allclose(ours(scores, labels, jnp.ones(70_000, dtype)), exact, rtol=1e-4)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", [*OVERALL, "perplexity"])
def test_weights_that_cannot_be_meant(name, weight):
    logits = np.array([[0.5, 0.1], [0.2, 0.7], [0.0, 1.0]])
    logits = logits if name == "perplexity" else logits[:, 1]
    with pytest.raises(ValueError, match="weights: expected (non-negative|finite) numbers, got"):
        getattr(metrics, name)(logits, [0, 1, 1], [1.0, weight, 1.0])


@pytest.mark.parametrize("name", [name for name in OVERALL if name != "confusion_matrix"])
def test_of_no_rows_they_are_not_a_number(name):
    assert np.isnan(getattr(metrics, name)(jnp.zeros(0), jnp.zeros(0, jnp.int32)))
    assert np.isnan(getattr(metrics, name)([], np.zeros(0, int)))
    assert metrics.confusion_matrix(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_numbers_far_from_zero_keep_their_digits_on_the_host(shape):
    outputs, targets, weights = (each.astype(float) for each in drawn(4, shape=shape))
    weights = np.where(np.arange(ROWS) == 7, 0, weights)
    far = targets + 1e9
    far[7] = np.nan  # of weight zero, like the next one
    weights[8], far[8] = 0, -1e30
    r2 = sklearn.metrics.r2_score(targets, outputs, sample_weight=weights)
    np.testing.assert_allclose(metrics.r2(outputs + 1e9, far, weights), r2, rtol=1e-5)
    error = sklearn.metrics.root_mean_squared_error(targets, outputs, sample_weight=weights)
    np.testing.assert_allclose(metrics.root_mean_square_error(outputs + 1e9, far, weights), error, rtol=1e-5)
