import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from nnfx import uncertainty
from tests.uncertainty.made import ALLOWED, BINARY, LABELS, LOGITS, MASK, SINGLE, P, f32, ints, masked

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SCORES = {
    "negative_log_likelihood": uncertainty.negative_log_likelihood,
    "brier_score": uncertainty.brier_score,
    "expected_calibration_error": uncertainty.expected_calibration_error,
    "reliability": uncertainty.reliability,
}


def test_negative_log_likelihood_against_scikit_learn():
    ours = uncertainty.negative_log_likelihood(f32(P), ints(LABELS))
    np.testing.assert_allclose(ours, -np.log(P[np.arange(200), LABELS]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.mean(), sklearn.metrics.log_loss(LABELS, P), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_negative_log_likelihood_is_finite_at_zero(dtype):
    p = jnp.array([[0.0, 1.0]], dtype)
    value, gradient = jax.value_and_grad(lambda p: uncertainty.negative_log_likelihood(p, ints([0])).sum())(p)
    assert value > 80
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_brier_score_against_a_loop_and_scikit_learn():
    ours = uncertainty.brier_score(f32(P), ints(LABELS))
    expected = [sum((p[k] - (k == y)) ** 2 for k in range(4)) for p, y in zip(P, LABELS, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    p = scipy.special.expit(SINGLE)
    two = uncertainty.brier_score(uncertainty.probabilities(f32(SINGLE)), ints(BINARY))
    np.testing.assert_allclose(two.mean() / 2, sklearn.metrics.brier_score_loss(BINARY, p), rtol=1e-5)


def by_bin(p, labels, bins):
    """Equation 3 of Guo et al., literally."""
    confidence, right = p.max(1), p.argmax(1) == labels
    rows = []
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        some = inside.any()
        rows.append(
            (confidence[inside].mean() if some else np.nan, right[inside].mean() if some else np.nan, inside.sum())
        )
    confidence, accuracy, counts = np.array(rows).T
    return confidence, accuracy, counts, np.nansum(counts / len(p) * np.abs(accuracy - confidence))


@pytest.mark.parametrize("bins", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(15, marks=pytest.mark.slow)])
def test_calibration_error_and_reliability_against_a_loop(bins):
    confidence, accuracy, counts, error = by_bin(P, LABELS, bins)
    diagram = uncertainty.reliability(f32(P), ints(LABELS), bins)
    np.testing.assert_array_equal(diagram.counts, counts)
    np.testing.assert_allclose(diagram.confidence, confidence, rtol=1e-5)
    np.testing.assert_allclose(diagram.accuracy, accuracy, rtol=1e-5)
    assert bins == 1 or (counts == 0).any()  # so that the mean of no examples is tested
    ours = uncertainty.expected_calibration_error(f32(P), ints(LABELS), bins)
    np.testing.assert_allclose(ours, error, rtol=1e-4)
    compiled = jax.jit(uncertainty.expected_calibration_error, static_argnums=2)(f32(P), ints(LABELS), bins)
    np.testing.assert_allclose(compiled, error, rtol=1e-4)


def test_an_empty_bin_raises_nothing_under_the_flags_that_look_for_nan():
    with jax.debug_nans(True), jax.debug_infs(True):
        diagram = uncertainty.reliability(f32([[0.25, 0.75]]), ints([1]), 4)
    np.testing.assert_array_equal(diagram.confidence, [np.nan, np.nan, 0.75, np.nan])
    np.testing.assert_array_equal(diagram.accuracy, [np.nan, np.nan, 1, np.nan])


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    p = f32([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert uncertainty.reliability(p, ints([0, 0, 0]), 4).counts.tolist() == [0, 1, 1, 1]


def test_calibration_error_of_low_precision_counts_every_example():
    p = jnp.broadcast_to(jnp.array([0.75, 0.25], jnp.bfloat16), (1000, 2))
    error = uncertainty.expected_calibration_error(p, ints(np.arange(1000) % 2))
    assert error == pytest.approx(0.25)


def test_scores_with_classes_ruled_out():
    p = uncertainty.probabilities(f32(masked(LOGITS)))
    for score in (uncertainty.negative_log_likelihood, uncertainty.brier_score):
        kept = score(p[ALLOWED], ints(LABELS[ALLOWED]))
        others = np.flatnonzero(~MASK)
        three = scipy.special.softmax(LOGITS[ALLOWED][:, others], 1)
        labels = np.searchsorted(others, LABELS[ALLOWED])
        np.testing.assert_allclose(kept, score(f32(three), ints(labels)), rtol=1e-4, atol=1e-6)
    error = uncertainty.expected_calibration_error(p[ALLOWED], ints(LABELS[ALLOWED]))
    np.testing.assert_allclose(error, by_bin(np.asarray(p[ALLOWED]), LABELS[ALLOWED], 15)[3], rtol=1e-4)


def test_all_scores_at_once_against_scikit_learn():
    found = jax.jit(uncertainty.score)(f32(P), ints(LABELS))
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(LABELS, P.argmax(1)),
        "negative_log_likelihood": sklearn.metrics.log_loss(LABELS, P),
        "brier_score": np.square(P - np.eye(4)[LABELS]).sum(1).mean(),
        "expected_calibration_error": by_bin(P, LABELS, 15)[3],
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("name", SCORES)
def test_wrong_probabilities_and_labels_are_named(name):
    score = SCORES[name]
    good, labels = f32([[0.25, 0.75], [0.5, 0.5]]), ints([0, 1])
    score(good, labels)
    for wrong in (good * 3 - 1, good * 0.5, good.at[0, 0].set(jnp.nan)):
        with pytest.raises(ValueError, match=r"^probabilities: expected numbers from 0 to 1"):
            score(wrong, labels)
    for wrong in (good[:, 1], good[:, :1], good[None]):
        with pytest.raises(ValueError, match=r"^probabilities: expected \(batch, classes\)"):
            score(wrong, labels)
    with pytest.raises(ValueError, match=r"^labels: expected labels from 0 to 1, got labels from 0 to 2"):
        score(good, ints([0, 2]))
    for wrong in (f32([0, 1]), ints([0]), ints([[0], [1]])):
        with pytest.raises(ValueError, match=r"^labels: expected integers"):
            score(good, wrong)


def test_wrong_bins_are_named():
    with pytest.raises(ValueError, match=r"^bins: "):
        uncertainty.reliability(f32(P), ints(LABELS), bins=0)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
@pytest.mark.parametrize("name", ["negative_log_likelihood", "brier_score", "expected_calibration_error"])
def test_traced_labels_out_of_range_are_no_numbers(name, labels):
    score = jax.jit(SCORES[name])
    assert jnp.isnan(score(f32([[0.25, 0.75], [0.5, 0.5]]), ints(labels))).any()
    assert jnp.isnan(score(f32([[0.25, 3.75], [0.5, 0.5]]), ints([0, 1]))).any()


def test_scores_take_what_users_hold():
    pandas, polars, torch = map(pytest.importorskip, ("pandas", "polars", "torch"))
    p, labels = [[0.25, 0.75], [0.75, 0.25]], [1, 1]
    frames = (np.array, pandas.DataFrame, lambda rows: polars.DataFrame(rows, orient="row"), torch.tensor)
    for door in (list, *frames):
        series = door if door in (list, np.array, torch.tensor) else pandas.Series
        np.testing.assert_allclose(uncertainty.brier_score(door(p), series(labels)), [0.125, 1.125])
        assert uncertainty.expected_calibration_error(door(p), series(labels)) == pytest.approx(0.25)


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 256), (np.uint8, 300), (np.int8, 128)])
def test_labels_of_few_bits(dtype, classes):
    rng = np.random.default_rng(1)
    labels = np.append(rng.integers(0, 100, 8), [0, min(classes - 1, np.iinfo(dtype).max)])
    p = scipy.special.softmax(rng.normal(size=(10, classes)) + 9 * np.eye(classes)[labels], 1)
    expected = {
        "negative_log_likelihood": -np.log(p[np.arange(10), labels]),
        "brier_score": ((p - np.eye(classes)[labels]) ** 2).sum(1),
        "expected_calibration_error": abs(p.max(1).mean() - 1),  # all are right, and of one bin
    }
    for name, values in expected.items():
        score = SCORES[name] if "error" not in name else functools.partial(SCORES[name], bins=1)
        for ours in (score, jax.jit(score)):
            np.testing.assert_allclose(ours(f32(p), jnp.asarray(labels.astype(dtype))), values, rtol=1e-4)
