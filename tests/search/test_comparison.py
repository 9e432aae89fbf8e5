"""The paired comparison of two points, against SciPy's permutation test."""

import numpy as np
import pytest
from scipy import stats

from nnfx.search.comparison import compare


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
