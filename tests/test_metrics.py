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


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_roc_auc_of_many_rows_in_few_bits(dtype):
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=20_000) < 0.01).astype(int)
    scores = jnp.asarray(rng.normal(size=20_000) + labels, dtype)
    expected = sklearn.metrics.roc_auc_score(labels, np.asarray(scores, np.float64))
    np.testing.assert_allclose(metrics.roc_auc(scores, jnp.asarray(labels)), expected, rtol=1e-6)
