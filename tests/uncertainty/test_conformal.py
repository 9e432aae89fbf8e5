import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nnfx.uncertainty import conformal
from tests.uncertainty.made import LABELS, P, f32, ints


@pytest.mark.parametrize(
    ("examples", "level", "expected"),
    [
        (1, 0.5, 1),
        (9, 0.9, 9),
        (10, 0.9, 10),
        (18, 0.9, 18),
        (19, 0.9, 18),
        (99, 0.55, 55),
        (19, 0.95, 19),
        (3, 0.1, 1),
    ],
)
def test_the_rank_by_hand(examples, level, expected):
    assert conformal.rank(examples, level) == expected


def test_the_rank_is_the_least_that_covers():
    """The k-th smallest of n scores covers a new score with probability k / (n + 1)."""
    for percent in range(1, 100):
        for examples in (1, 2, 5, 19, 20, 99, 100, 1000):
            wanted = Fraction(percent, 100)
            enough = [k for k in range(1, examples + 1) if Fraction(k, examples + 1) >= wanted]
            if enough:
                assert conformal.rank(examples, percent / 100) == enough[0]
            else:
                with pytest.raises(ValueError, match=f"at least {math.ceil(wanted / (1 - wanted))} to calibrate"):
                    conformal.rank(examples, percent / 100)


def test_margins_by_hand():
    targets = jnp.stack([jnp.array([1.0, -5.0, 2.0]), jnp.array([10.0, 0.0, -20.0])], 1)[:, None]
    np.testing.assert_array_equal(conformal.margins(jnp.zeros((3, 1, 2)), targets, 0.5), [[2.0, 10.0]])
    np.testing.assert_array_equal(conformal.margins(jnp.ones((3, 1, 2)), targets, 0.75), [[6.0, 21.0]])
    # conformalised quantile regression: the distance beyond the nearer bound, negative within
    interval = conformal.Interval(jnp.full((3, 1, 2), -3.0), jnp.full((3, 1, 2), 4.0))
    np.testing.assert_array_equal(conformal.margins(interval, targets, 0.25), [[-3.0, -3.0]])
    np.testing.assert_array_equal(conformal.margins(interval, targets, 0.5), [[-2.0, 6.0]])
    np.testing.assert_array_equal(conformal.margins(interval, targets, 0.75), [[2.0, 17.0]])


def test_a_negative_margin_narrows_to_the_middle_at_most():
    interval = conformal.Interval(jnp.array([[0.0, 0.0]]), jnp.array([[4.0, 1.0]]))
    narrowed = conformal.widen(interval, jnp.array([[-1.0, -1.0]]))
    assert narrowed.lower.tolist() == [[1.0, 0.5]]
    assert narrowed.upper.tolist() == [[3.0, 0.5]]


def test_margins_of_one_number_an_example():
    targets = f32([3.0, -1.0, 4.0, 2.0])
    assert conformal.margins(jnp.zeros(4), targets, 0.6) == 3
    lower, upper = conformal.widen(jnp.ones(2), conformal.margins(jnp.zeros(4), targets, 0.6))
    assert (lower.tolist(), upper.tolist()) == ([-2, -2], [4, 4])


def adaptive_by_hand(p, u):
    """Equation 5 of Romano et al. for every class, the first of equal ones in front."""
    scores = np.empty_like(p)
    for i, row in enumerate(p):
        total = 0.0
        for k in sorted(range(len(row)), key=lambda k, row=row: -row[k]):
            scores[i, k] = total + u[i] * row[k]
            total += row[k]
    return scores


def test_scores_of_classes_by_hand(key):
    np.testing.assert_allclose(conformal.lac(f32(P)), 1 - P, atol=1e-6)
    scores = np.asarray(conformal.aps(key, f32(P)), np.float64)
    u = scores[np.arange(len(P)), P.argmax(1)] / P.max(1)
    assert scipy.stats.kstest(u, "uniform").pvalue > 0.001
    np.testing.assert_allclose(scores, adaptive_by_hand(P, u), atol=1e-6)
    equal = conformal.aps(key, f32([[0.25, 0.25, 0.5]]))[0]
    np.testing.assert_allclose(equal - equal[2] / 2, [0.5, 0.75, equal[2] / 2], atol=1e-6)


def test_the_threshold_is_a_score_of_the_labels():
    scores = 1 - P[np.arange(len(P)), LABELS]
    for level in (0.1, 0.5, 0.9, 0.995):
        expected = np.sort(scores)[math.ceil(round(201 * level, 6)) - 1]
        found = conformal.threshold(conformal.lac(f32(P)), ints(LABELS), level)
        assert found == pytest.approx(expected, abs=1e-6)


CALIBRATION, NEW, REPETITIONS = 30, 100, 4000


def classes(method, key, level):
    """Return how many of the new labels the sets hold, by probabilities that are wrong; the key makes the data."""
    of_data, of_labels, of_scores = jax.random.split(key, 3)
    logits = jax.random.normal(of_data, (CALIBRATION + NEW, 4))
    labels = jax.random.categorical(of_labels, 2 * logits - jnp.arange(4.0)[None])
    scores = method(of_scores, jax.nn.softmax(logits))
    limit = conformal.threshold(scores[:CALIBRATION], labels[:CALIBRATION], level)
    sets = scores[CALIBRATION:] <= limit
    return jnp.take_along_axis(sets, labels[CALIBRATION:, None], 1).sum()


def numbers(predict, key, level):
    targets = 1 + jax.random.normal(key, (CALIBRATION + NEW,)) ** 3  # heavy tails, and predictions that are biased
    known, new = (jax.tree.map(lambda a, part=part: a[part], predict(targets)) for part in PARTS)
    lower, upper = conformal.widen(new, conformal.margins(known, targets[:CALIBRATION], level))
    return ((lower <= targets[CALIBRATION:]) & (targets[CALIBRATION:] <= upper)).sum()


PARTS = slice(CALIBRATION), slice(CALIBRATION, None)
METHODS = {
    "LAC": lambda key, level: classes(lambda _, p: conformal.lac(p), key, level),
    "APS": lambda key, level: classes(conformal.aps, key, level),
    "residuals": lambda key, level: numbers(jnp.zeros_like, key, level),
    "quantiles": lambda key, level: numbers(
        lambda targets: conformal.Interval(0 * targets - 1, 0 * targets + 4), key, level
    ),
}


@pytest.mark.parametrize(
    "name", ["APS", "residuals", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LAC", "quantiles"))]
)
def test_the_coverage_has_the_beta_distribution(name, key):
    """Given calibration data, the coverage is Beta(r, n + 1 − r), so hits among new data are beta-binomial."""
    level = 0.8
    hits = jax.jit(jax.vmap(lambda key: METHODS[name](key, level)))(jax.random.split(key, REPETITIONS))
    rank = math.ceil((CALIBRATION + 1) * level)
    exact = scipy.stats.betabinom(NEW, rank, CALIBRATION + 1 - rank)
    found = np.searchsorted(np.sort(hits), np.arange(NEW + 1), side="right") / REPETITIONS
    # Dvoretzky, Kiefer and Wolfowitz: a deviation that is exceeded with a probability below 1e-4
    assert np.abs(found - exact.cdf(np.arange(NEW + 1))).max() < math.sqrt(math.log(2e4) / (2 * REPETITIONS))


def test_scores_of_true_probabilities_are_uniform(key):
    """The score of a label is then U(0, 1), so the limit is the level but for sampling: Beta(r, n + 1 − r)."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(5), 2000)
    labels = (p.cumsum(1) < draw.uniform(size=(2000, 1))).sum(1)
    scores = conformal.aps(key, f32(p))
    of_labels = np.asarray(scores)[np.arange(2000), labels]
    assert scipy.stats.kstest(of_labels, "uniform").pvalue > 0.001
    found = conformal.threshold(scores, ints(labels), 0.9)
    assert 0.001 < scipy.stats.beta(1801, 200).cdf(found) < 0.999


def test_wrong_input(key):
    predictions, targets = jnp.zeros((30, 3, 2)), jnp.ones((30, 3, 2))
    with pytest.raises(ValueError, match="examples: expected at least 9 to calibrate at a level of 0.9, got 8"):
        conformal.margins(predictions[:8], targets[:8], 0.9)
    for level in (0.0, 1.0, 90, math.nan):
        with pytest.raises(ValueError, match="level: expected a finite number above 0 and below 1"):
            conformal.margins(predictions, targets, level)
    with pytest.raises(ValueError, match=r"targets: expected the shape of the predictions, .* float32\[30,2\]"):
        conformal.margins(predictions, targets[:, 0], 0.5)
    with pytest.raises(ValueError, match="targets: expected finite numbers, got 1 not finite, the first at"):
        conformal.margins(predictions, targets.at[3, 1, 0].set(jnp.nan), 0.5)
    with pytest.raises(ValueError, match="predictions: expected finite numbers"):
        conformal.margins(predictions.at[3, 1, 0].set(jnp.nan), targets, 0.5)
    with pytest.raises(ValueError, match="predictions: expected bounds of the same shape"):
        conformal.margins(conformal.Interval(predictions, predictions[:1]), targets, 0.5)
    with pytest.raises(ValueError, match=r"margins: expected one margin for each output of the predictions, \[3, 2\]"):
        conformal.widen(predictions, jnp.ones(3))
    scores, labels = conformal.lac(f32(P)), ints(LABELS)
    with pytest.raises(ValueError, match=r"scores: expected \(examples, classes\), got float32\[200\]"):
        conformal.threshold(scores[:, 0], labels, 0.5)
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        conformal.threshold(scores.at[0, 0].set(jnp.nan), labels, 0.5)
    with pytest.raises(ValueError, match="labels: expected labels from 0 to 3"):
        conformal.threshold(scores, labels + 1, 0.5)
    with pytest.raises(ValueError, match="labels: expected integers"):
        conformal.threshold(scores, labels[:3], 0.5)
    with pytest.raises(ValueError, match="examples: expected at least 999 to calibrate at a level of 0.999, got 200"):
        conformal.threshold(scores, labels, 0.999)
    with pytest.raises(ValueError, match="probabilities: expected numbers from 0 to 1"):
        conformal.lac(2 * f32(P))
    with pytest.raises(TypeError, match="key: expected a typed key"):
        conformal.aps(0, f32(P))
