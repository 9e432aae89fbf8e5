"""The paired comparison of two points, against SciPy's permutation test."""

import itertools

import numpy as np
import pytest
from scipy import stats

from nnfx.search.comparison import compare, holm
from tests.search.made import search_of


def by_scipy(first, second):
    return stats.permutation_test(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue


@pytest.mark.parametrize("pairs", [1, 2, 5, 9])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_p_values_are_those_of_scipy(pairs, shift):
    rng = np.random.default_rng(pairs)
    first, second = rng.normal(size=(2, pairs)) + np.array([[shift], [0.0]])
    found = compare(first, second)
    np.testing.assert_allclose(found.p_value, by_scipy(first, second) if pairs > 1 else 1.0)
    np.testing.assert_allclose(found.difference, (first - second).mean())
    if pairs > 1:
        np.testing.assert_allclose(found.standard_error, stats.sem(first - second))
    else:
        assert np.isnan(found.standard_error)
    assert found.pairs == pairs


def test_p_values_of_clear_and_of_no_differences_are_known():
    worse = np.arange(6.0)
    assert compare(worse + 1, worse).p_value == 2 / 2**6
    assert compare(worse, worse).p_value == 1.0
    assert compare([0.1, 0.2, 0.3], [0.2, 0.1, 0.3]).p_value == 1.0
    assert compare([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]).p_value == 1 / 8, "all as far, though not to the bit"


def test_many_pairs_are_told_apart_by_drawn_signs():
    """Of differences of the same size, the signs have a binomial distribution."""
    differences = np.repeat([1.0, -1.0], [39, 21])
    found = compare(differences, np.zeros(60))
    assert found == compare(differences, np.zeros(60)), "the signs are always the same"
    expected = stats.binomtest(39, 60).pvalue
    np.testing.assert_allclose(found.p_value, expected, atol=4 * (expected / 2**17) ** 0.5)
    assert 0 < compare(np.ones(60), np.zeros(60)).p_value < 1e-5


def test_failed_runs_are_left_out():
    found = compare([1.0, np.nan, 3.0, 9.0], [0.0, 0.0, 2.0, np.inf])
    assert (found.pairs, found.difference) == (2, 1.0)
    nothing = compare([np.nan], [1.0])
    assert nothing.pairs == 0
    assert np.isnan(nothing.p_value)


def by_closed_testing(p_values):
    """Return the largest Bonferroni p-value of all sets of hypotheses that contain each one."""
    count = len(p_values)
    sets = [each for size in range(1, count + 1) for each in itertools.combinations(range(count), size)]
    return [
        max(min(1, len(some) * min(p_values[i] for i in some)) for some in sets if one in some) for one in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_holm_is_closed_testing_with_bonferroni(count):
    p_values = np.random.default_rng(count).uniform(0, 0.3, count) ** 2
    p_values[-1] = p_values[0]
    np.testing.assert_allclose(holm(p_values), by_closed_testing(p_values))


def test_what_could_not_be_tested_does_not_count():
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])


def test_pairs_of_points_are_compared_and_adjusted():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (12, 1))  # shared by the points of a group, and removed by pairing
    values = np.array([[3.0, 1.0, 1.0, 2.0]]) + noise + rng.normal(0, 0.02, (12, 4))
    found = search_of([{"rate": float(i)} for i in range(4)], values)
    rows = found.pairs().rows
    order = found.by_point().numbers
    assert [(row["first"], row["second"]) for row in rows] == list(itertools.combinations(order, 2))
    for row in rows:
        first, second = values[:, row["first"]], values[:, row["second"]]
        np.testing.assert_allclose(row["difference"], (first - second).mean())
        np.testing.assert_allclose(row["standard_error"], stats.sem(first - second))
        np.testing.assert_allclose(row["p_value"], by_scipy(first, second))
        assert row["differ"] is (row["adjusted"] <= 0.05)
    np.testing.assert_allclose([row["adjusted"] for row in rows], by_closed_testing([row["p_value"] for row in rows]))
    assert [{row["first"], row["second"]} for row in rows if not row["differ"]] == [{1, 2}]
    assert len(found.pairs(2).rows) == 1
    for count, message in ((1, "count: expected at least 2"), (0, "count: expected a positive integer")):
        with pytest.raises(ValueError, match=message):
            found.pairs(count)
    with pytest.raises(ValueError, match="level: expected .* below 1"):
        found.pairs(level=1)


def test_pairs_of_points_that_were_dropped_are_left_out():
    points = [{"rate": float(i)} for i in range(3)]
    values = np.tile([[3.0, 1.0, 2.0]], (8, 1)) + np.arange(8.0)[:, None]
    found = search_of(points, values, reasons=["dropped", "epochs", "epochs"])
    assert [(row["first"], row["second"]) for row in found.pairs().rows] == [(1, 2)]
    alone = search_of(points, values, reasons=["dropped", "epochs", "dropped"])
    with pytest.raises(ValueError, match="count: expected .* trained to the end, got 10 and 1"):
        alone.pairs()
