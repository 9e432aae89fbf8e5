import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from nnfx import metrics


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_roc_auc_against_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=60)
    scores = rng.normal(size=60) + labels
    if ties:
        scores = scores.round()
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    np.testing.assert_allclose(metrics.roc_auc(jnp.asarray(scores), jnp.asarray(labels)), expected, rtol=1e-5)
    column = jnp.asarray(scores)[:, None]
    np.testing.assert_allclose(jax.jit(metrics.roc_auc)(column, jnp.asarray(labels)), expected, rtol=1e-5)


def test_roc_auc_of_one_class_is_not_a_number():
    assert jnp.isnan(metrics.roc_auc(jnp.arange(3.0), jnp.ones(3)))


def test_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, size=50)
    expected = sklearn.metrics.accuracy_score(labels, logits.argmax(1))
    assert metrics.accuracy(jnp.asarray(logits), jnp.asarray(labels)).mean() == pytest.approx(expected)
    assert metrics.accuracy(jnp.asarray(logits), jnp.eye(3)[labels]).mean() == pytest.approx(expected)


def test_binary_accuracy_of_one_and_of_several_outputs():
    logits, labels = jnp.array([[1.0, -1.0], [2.0, 3.0]]), jnp.array([[1, 1], [1, 1]])
    assert metrics.binary_accuracy(logits, labels).tolist() == [0.5, 1.0]
    assert metrics.binary_accuracy(logits[:, :1], labels[:, 0]).tolist() == [1.0, 1.0]


def test_what_is_not_a_number_is_not_right():
    assert jnp.isnan(metrics.roc_auc(jnp.array([0.1, jnp.nan]), jnp.array([0, 1])))
    assert jnp.isnan(metrics.accuracy(jnp.array([[jnp.nan, 0.0]]), jnp.array([0]))).all()
    assert jnp.isnan(metrics.binary_accuracy(jnp.array([jnp.nan]), jnp.array([0]))).all()


@pytest.mark.parametrize(
    "dtype", [jnp.float16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (jnp.bfloat16, jnp.float32))]
)
def test_roc_auc_of_many_rows_in_few_bits(dtype):
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=20_000) < 0.01).astype(int)
    scores = jnp.asarray(rng.normal(size=20_000) + labels, dtype)
    expected = sklearn.metrics.roc_auc_score(labels, np.asarray(scores, np.float64))
    np.testing.assert_allclose(metrics.roc_auc(scores, jnp.asarray(labels)), expected, rtol=1e-6)


def test_classes_ruled_out_are_never_chosen():
    logits = jnp.array([[-jnp.inf, -5.0, -4.0], [-jnp.inf, -jnp.inf, 0.0]])
    assert metrics.accuracy(logits, jnp.array([2, 2])).tolist() == [1, 1]
    assert metrics.binary_accuracy(jnp.array([-jnp.inf, jnp.inf]), jnp.array([0, 0])).tolist() == [1, 0]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [[0.0, 0.0, 0.0]] * 2, [[1.0, -1.0, 1.0]] * 2])
def test_labels_that_cannot_be_meant(labels):
    logits, labels = jnp.array([[1.0, 2.0, 0.0]] * 2), jnp.asarray(labels)
    with pytest.raises(ValueError, match="labels: expected"):
        metrics.accuracy(logits, labels)
    found = jax.jit(metrics.accuracy)(logits, labels)
    assert jnp.isnan(found).any()
    for name in ("binary_accuracy", "roc_auc"):
        wrong = jnp.array([0, 1, 2])
        assert jnp.isnan(jax.jit(getattr(metrics, name))(jnp.arange(3.0), wrong)).any()


@pytest.mark.parametrize("labels", [[0, 1.5], [0, np.nan], [np.inf, 0]])
def test_classes_are_whole_numbers(labels):
    with pytest.raises(ValueError, match="labels: expected (whole|finite) numbers"):
        metrics.accuracy([[1.0, 2.0, 0.0]] * 2, labels)
    assert metrics.accuracy([[1.0, 2.0, 0.0]] * 2, [0.0, 1.0]).tolist() == [0, 1]


def test_metrics_take_what_users_hold():
    pandas, polars, torch = map(pytest.importorskip, ("pandas", "polars", "torch"))
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    for door in (list, np.array, pandas.Series, polars.Series, torch.tensor):
        assert metrics.roc_auc(door(scores), door(labels)) == 0.75
        assert metrics.binary_accuracy(door(scores), door(labels)).tolist() == [0, 0, 1, 1]
        rows = np.stack([-np.array(scores), scores], 1)
        assert metrics.accuracy(rows, door(labels)).tolist() == [0, 0, 1, 1]
    assert metrics.accuracy(jnp.array([[1, 2], [3, 0]]), jnp.array([1, 1])).tolist() == [1, 0]  # integer outputs
    assert metrics.binary_accuracy(jnp.array([True, False]), jnp.array([True, True])).tolist() == [1, 0]


def test_the_ranks_of_scores_that_single_precision_cannot_tell_apart():
    labels = np.array([0, 1, 0, 1, 1])
    scores = 1.7e9 + np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert metrics.roc_auc(scores, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    assert metrics.roc_auc(scores.astype(np.int64), labels) == pytest.approx(5 / 6)


def test_no_examples_are_neither_right_nor_wrong():
    assert metrics.accuracy(jnp.zeros((0, 3)), jnp.zeros(0, int)).shape == (0,)
    assert metrics.accuracy(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0,)
    assert metrics.binary_accuracy(jnp.zeros((0, 2)), jnp.zeros((0, 2), int)).shape == (0,)
    assert jnp.isnan(metrics.roc_auc(jnp.zeros(0), jnp.zeros(0, int)))


NARROW = [(np.uint8, 256), (np.uint8, 300), (np.int8, 128), (np.int8, 200)]
"""Dtypes of labels, with numbers of classes that they cannot hold."""


@pytest.mark.parametrize(("dtype", "classes"), NARROW)
def test_labels_of_few_bits(dtype, classes):
    logits = np.random.default_rng(1).normal(size=(4, classes)).astype(np.float32)
    labels = np.array([0, 1, 44, min(classes - 1, np.iinfo(dtype).max)])
    logits[:2, labels[:2]] += 9
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    expected = {
        metrics.accuracy: logits.argmax(1) == labels,
        metrics.log_loss: -np.log(p[np.arange(4), labels]),
        metrics.brier: ((p - np.eye(classes)[labels]) ** 2).sum(1),
        metrics.bits_per_token: -np.log2(p[np.arange(4), labels]),
    }
    for metric, values in expected.items():
        for ours in (metric, jax.jit(metric)):
            found = ours(jnp.asarray(logits), jnp.asarray(labels.astype(dtype)))
            np.testing.assert_allclose(found, values, rtol=1e-5)
