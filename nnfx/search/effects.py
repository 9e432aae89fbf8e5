"""How the score depends on each name alone: its main effect, and the share of the scores' variance due to it."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.search.result import Search
from nnfx.search.scores import Scores, is_number
from nnfx.sweeps import Sweep
from nnfx.sweeps.result import Rows

SAMPLES = 20
"""How many samples of the points are modelled."""
MOST_POINTS = 1000
"""The largest number of points in a sample."""
BACKGROUND, MIXED = 128, 2048
"""Over how many combinations of the other names an effect is averaged, and all scores vary."""
VALUES = 24
"""At most this many values of a name are tried."""


class Curve(NamedTuple):
    """The partial dependence of the score on a name.

    Attributes:
        values: values of the name in increasing order, or the members of its choice, by word.
        score: the mean score with the name at each value, `(values,)`.
        standard_error: its standard error, `(values,)`.
        is_number: whether the values are numbers.
    """

    values: list[Any]
    score: np.ndarray
    standard_error: np.ndarray
    is_number: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Effects(Rows):
    """The importance of each name, and the partial dependence of the score on it.

    Attributes:
        rows: one dictionary per `name`, the most important first, and one for the `interactions` of all names: its
            `share` of the variance of the scores, and the `standard_error` of the share.
        curves: the partial dependence on each name.
        explained: how much of the variance of the points' scores the model predicts at points that it has not seen,
            R²; if this is small, shares and curves say little.
        metric: the metric that the scores are values of.
    """

    curves: dict[str, Curve]
    explained: float
    metric: str


def effects(found: Search | Sweep, seed: int = 0) -> Effects:
    """Return how the score depends on each name, averaged over the others.

    The score, as a function of a point, is modelled by scikit-learn's gradient-boosted trees. Its partial dependence on
    a name is the mean score with the name at a value, and with every other name drawn independently from the values
    tried. The variance of this mean is the name's share of the variance of all scores; what the names' shares leave
    over is due to their interactions. So a share is about the values that were tried, and grows with the range of a
    name.

    Everything is repeated for 20 samples, with replacement, of the points and of the seeds and folds. Their mean is
    returned, and their standard deviation as the standard error. Scores far worse than most are brought closer, as in
    `Scores.clipped`. Points that were dropped along the way count with their last score. Where a name is absent,
    because of a condition, this is one more of its values, but not part of its curve.

    Args:
        found: the result of a search or a sweep, with at least 4 points.
        seed: of the samples and the trees.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
        TypeError, ValueError: for anything else, too few points, or points that are all the same.

    References:
        Hutter, Hoos and Leyton-Brown, *An efficient approach for assessing hyperparameter importance*, ICML 2014;
        Friedman, *Greedy function approximation: a gradient boosting machine*, 2001, for the trees and for partial
        dependence.
    """
    scores = Scores.of(found)
    checks.non_negative_integer("seed", seed)
    return effects_of(scores, seed)


def effects_of(scores: Scores, seed: int) -> Effects:
    """Return the effects of the names on these scores; see `effects`."""
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scikit-learn: required to model scores; not installed: pip install 'nnfx[sklearn]'"
        ) from error
    count = len(scores.points)
    if count < 4:
        raise ValueError(f"found: expected at least 4 points to model scores, got {count}")
    rng = np.random.default_rng(seed)
    coded = {name: _Coded.of(scores.of_name(name)) for name in scores.names}
    inputs = np.concatenate([each.codes for each in coded.values()], axis=1)
    equally_often = np.arange(MIXED) % count  # each point, so that a mixture of one name has the variance of the points
    mixed = np.concatenate([each.codes[rng.permutation(equally_often)] for each in coded.values()], axis=1)
    begins = np.cumsum([0, *(each.codes.shape[1] for each in coded.values())])
    tried = [mixed]
    for each, begin in zip(coded.values(), begins[:-1], strict=True):
        rows = np.repeat(mixed[None, :BACKGROUND], len(each.values), axis=0)
        rows[:, :, begin : begin + each.codes.shape[1]] = each.of_values[:, None]
        tried.append(rows.reshape(-1, inputs.shape[1]))

    predicted, unseen, seen_by = [], np.zeros(count), np.zeros(count)
    groups = len(scores.values)
    for sample in range(SAMPLES):
        rows = rng.integers(count, size=min(count, MOST_POINTS))
        targets = scores.clipped(scores.values[rng.integers(groups, size=groups)].mean(0))
        model = GradientBoostingRegressor(
            n_estimators=50, learning_rate=0.2, random_state=(seed * SAMPLES + sample) % 2**32
        )
        model.fit(inputs[rows], targets[rows])
        predicted.append(model.predict(np.concatenate(tried)))
        left_out = np.setdiff1d(np.arange(count), rows)
        if len(left_out):
            unseen[left_out] += model.predict(inputs[left_out])
            seen_by[left_out] += 1

    of_all, *of_names = np.split(np.array(predicted), np.cumsum([len(rows) for rows in tried])[:-1], axis=1)
    curves, shares = {}, {}
    for (name, each), values in zip(coded.items(), of_names, strict=True):
        by_sample = values.reshape(SAMPLES, len(each.values), BACKGROUND).mean(2)
        is_present = np.array([value is not None for value in each.values])
        curves[name] = Curve(
            [value for value in each.values if value is not None],
            by_sample.mean(0)[is_present],
            by_sample.std(0, ddof=1)[is_present],
            each.is_number,
        )
        shares[name] = np.array([_variance(one, each.weights) for one in (by_sample.mean(0), *by_sample)])
    total = np.array([one.var() for one in (of_all.mean(0), *of_all)])
    rounding, tiny = (1e-12 * np.abs(of_all).max()) ** 2, np.finfo(float).tiny
    # the mixture is a sample, in which the names together can vary less than each by itself
    total = np.maximum(total, np.sum(list(shares.values()), axis=0))
    by_name = {name: np.where(total > rounding, share / np.maximum(total, tiny), 0) for name, share in shares.items()}
    by_name = dict(sorted(by_name.items(), key=lambda pair: -pair[1][0]))
    rest = np.where(total > rounding, 1 - np.sum(list(by_name.values()), axis=0), 0)
    return Effects(
        [
            {"name": name, "share": float(share[0]), "standard_error": float(share[1:].std(ddof=1))}
            for name, share in {**by_name, "interactions": rest}.items()
        ],
        curves,
        _explained(scores.clipped(scores.mean), unseen, seen_by),
        scores.metric,
    )


class _Coded(NamedTuple):
    """The values of a name as numbers for the trees: ranks, or 0/1 columns for the members of a choice.

    Attributes:
        codes: of each point, `(points, columns)`.
        values: the values to be tried, None for an absent one.
        of_values: their codes, `(values, columns)`.
        weights: how often each occurs, `(values,)`.
        is_number: whether they are numbers.
    """

    codes: np.ndarray
    values: list[Any]
    of_values: np.ndarray
    weights: np.ndarray
    is_number: bool

    @classmethod
    def of(cls, given: list[Any]) -> "_Coded":
        """Code the values of a name at each point."""
        if not is_number(given):
            values = sorted(set(given), key=lambda each: (each is None, each or ""))
            places = np.array([values.index(each) for each in given])
            codes = np.eye(len(values))
            return cls(codes[places], values, codes, np.bincount(places) / len(given), False)
        numbers = np.array([np.nan if value is None else float(value) for value in given])
        is_absent = np.isnan(numbers)
        distinct, places = np.unique(numbers[~is_absent], return_inverse=True)
        ranks = np.full((len(given), 1), -0.25)  # apart from all others
        ranks[~is_absent, 0] = places / max(len(distinct) - 1, 1)
        # every value, or as many that are equally far from each other among all, so that each stands for as many points
        if len(distinct) <= VALUES:
            tried, weights = distinct, np.bincount(places).astype(float)
        else:
            shares = (np.arange(VALUES) + 0.5) / VALUES
            tried = np.quantile(numbers[~is_absent], shares, method="inverted_cdf")
            weights = np.full(VALUES, len(places) / VALUES)
        values, codes = tried.tolist(), np.searchsorted(distinct, tried)[:, None] / max(len(distinct) - 1, 1)
        if is_absent.any():
            values, codes = [*values, None], np.concatenate([codes, [[-0.25]]])
            weights = np.append(weights, is_absent.sum())
        return cls(ranks, values, codes, weights / weights.sum(), True)


def _variance(values: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ (values - weights @ values) ** 2)


def _explained(scores: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> float:
    """Return R² of the mean predictions at points that were left out of some sample."""
    has_some = counts > 0
    errors = scores[has_some] - sums[has_some] / counts[has_some]
    spread = scores[has_some] - scores[has_some].mean() if has_some.any() else errors
    return float(1 - (errors**2).sum() / (spread**2).sum()) if (spread**2).sum() else float("nan")
