"""A paired test of whether points differ by more than chance, without assumptions about the noise."""

from typing import NamedTuple

import numpy as np

from nnfx.types import Array

MOST = 20
"""The largest number of pairs for which all choices of signs are tried; for more pairs, signs are drawn."""
DRAWN = 2**17
FEWEST_PAIRS = 6
"""The smallest number of pairs for which a p-value of 5 % or less is possible."""
_BLOCK = 2**13


class Comparison(NamedTuple):
    """The difference between two points in runs with the same seed and fold.

    Attributes:
        difference: the mean of the paired differences, first minus second.
        standard_error: the standard error of that mean; NaN for one pair.
        p_value: the probability of a mean at least this far from 0 if the sign of each difference were random.
        pairs: the number of pairs; pairs in which either run failed are left out.
    """

    difference: float
    standard_error: float
    p_value: float
    pairs: int


def compare(first: Array | np.ndarray, second: Array | np.ndarray) -> Comparison:
    """Compare paired scores, which are NaN where a run failed, by a two-sided sign-flip test.

    The p-value is the fraction of all 2ⁿ choices of signs for the n differences whose mean is at least as far from 0
    as the observed mean. It is exact for up to 20 pairs; for more, 131,072 choices are drawn from a fixed seed, and
    the observed signs are added to them. It cannot be below 2 / 2ⁿ, so a level of 5 % requires six pairs.

    Args:
        first: the scores of one point, `(pairs,)`.
        second: the scores of the other point, `(pairs,)`.

    Example:
        >>> compare(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        Comparison(difference=-2.0, standard_error=0.57..., p_value=0.25, pairs=3)

    References:
        Fisher, *The design of experiments*, 1935, section 21; Phipson and Smyth, *Permutation p-values should never be
        zero*, 2010, for drawn signs.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if not count:
        return Comparison(np.nan, np.nan, np.nan, 0)
    error = float(differences.std(ddof=1) / count**0.5) if count > 1 else np.nan
    return Comparison(float(differences.mean()), error, _p_value(differences), count)


def _p_value(differences: np.ndarray) -> float:
    observed = abs(differences.sum())
    least = observed - 1e-9 * np.abs(differences).sum()  # tolerates rounding that depends on the order
    if len(differences) <= MOST:
        sums = np.zeros(1)
        for each in differences:
            sums = np.concatenate([sums + each, sums - each])
        return float((np.abs(sums) >= least).mean())
    draw, extreme = np.random.default_rng(0), 0
    for _ in range(DRAWN // _BLOCK):  # drawing all at once would take much memory
        signs = draw.integers(0, 2, (_BLOCK, len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= least).sum())
    return (1 + extreme) / (1 + DRAWN)


def holm(p_values: Array | np.ndarray) -> np.ndarray:
    """Adjust p-values for multiple testing by Holm's method, valid under any dependence between the tests.

    In increasing order, `max over j ≤ i of (n − j + 1) p₍ⱼ₎`, at most 1. If hypotheses with an adjusted p-value of at
    most 5 % are rejected, the probability of any wrong rejection is at most 5 %. NaN, for hypotheses that could not be
    tested, stays NaN and does not count towards n.

    Args:
        p_values: `(tests,)`.

    Returns:
        `(tests,)`, float64.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm, *A simple sequentially rejective multiple test procedure*, 1979.
    """
    given = np.asarray(p_values, np.float64)
    order = np.argsort(given)  # NaN last
    count = int(np.isfinite(given).sum())
    factors = np.maximum(count - np.arange(len(given)), 1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1)
    return adjusted
