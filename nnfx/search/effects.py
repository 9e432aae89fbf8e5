"""The main effect of each searched name on the score, and the fraction of the scores' variance due to that name."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.search.result import Search
from nnfx.search.scores import Scores, is_number
from nnfx.sweeps import Sweep
from nnfx.sweeps.result import Rows

SAMPLES = 20
"""The number of bootstrap samples of the points."""
MOST_POINTS = 1000
"""The largest number of points in a sample."""
BACKGROUND, MIXED = 128, 2048
"""The numbers of combinations of values used to average an effect, and to compute the total variance."""
VALUES = 24
"""The largest number of values at which the effect of a name is computed."""


class Curve(NamedTuple):
    """The partial dependence of the score on a name.

    Attributes:
        values: values of the name in increasing order, or the members of its choice as text.
        score: the mean score with the name at each value, `(values,)`.
        standard_error: the standard error of the mean score, `(values,)`.
        is_number: whether the values are numbers.
    """

    values: list[Any]
    score: np.ndarray
    standard_error: np.ndarray
    is_number: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Effects(Rows):
    """The importance of each name, and the partial dependence of the score on each name.

    Attributes:
        rows: one dictionary per `name`, the most important first, and one for the `interactions` of all names: the
            `share`, a fraction of the variance of the scores, and its `standard_error`.
        curves: the partial dependence on each name.
        explained: R², the fraction of the variance of the scores that the model explains at points to which it was not
            fitted; if R² is small, `rows` and `curves` mean little.
        metric: the name of the metric used as the score.
    """

    curves: dict[str, Curve]
    explained: float
    metric: str


def effects(found: Search | Sweep, seed: int = 0) -> Effects:
    """Estimate how the score depends on each name, averaged over the others.

    The score, as a function of a point, is modelled by scikit-learn's gradient-boosted trees. Its partial dependence
    on a name is the mean score with the name fixed at a value, and every other name drawn independently from the
    values tried. The importance of a name is the variance of this mean over the values of the name, as a fraction of
    the variance of all scores; the remaining fraction is due to interactions. So the importance refers to the values
    that were tried, and grows with the range of a name.

    The model is fitted to 20 bootstrap samples of the points and of the seeds and folds. The mean of the results is
    returned, with their standard deviation as the standard error. Outlying bad scores are clipped, as in
    `Scores.clipped`. Points that were dropped during training enter with their last score. A name that is absent
    because of a condition has an additional value, "absent", which is not part of its curve.

    Args:
        found: the result of a search or a sweep, with at least 4 points.
        seed: the random seed for the samples and the trees.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
        TypeError, ValueError: for a `found` of another type, too few points, or points that are all the same.

    References:
        Hutter, Hoos and Leyton-Brown, *An efficient approach for assessing hyperparameter importance*, ICML 2014;
        Friedman, *Greedy function approximation: a gradient boosting machine*, 2001, for the trees and for partial
        dependence.
    """
    scores = Scores.of(found)
    checks.non_negative_integer("seed", seed)
    return effects_of(scores, seed)


def effects_of(scores: Scores, seed: int) -> Effects:
    """Return the effects of the names on the given scores; see `effects`."""
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scikit-learn: required to model scores, but not installed: pip install 'nnfx[sklearn]'"
        ) from error
    count = len(scores.points)
    if count < 4:
        raise ValueError(f"found: expected at least 4 points to model scores, got {count}")
    rng = np.random.default_rng(seed)
    coded = {name: _Coded.of(scores.of_name(name)) for name in scores.names}
    inputs = np.concatenate([each.codes for each in coded.values()], axis=1)
    equally_often = np.arange(MIXED) % count  # so that each name alone has the same variance as among the points
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
    # in a finite sample, the total variance can be less than that of a single name
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
        codes: the codes of the points, `(points, columns)`.
        values: the values at which the effect is computed; None means absent.
        of_values: the codes of `values`, `(values, columns)`.
        weights: the relative frequency of each value, `(values,)`.
        is_number: whether the values are numbers.
    """

    codes: np.ndarray
    values: list[Any]
    of_values: np.ndarray
    weights: np.ndarray
    is_number: bool

    @classmethod
    def of(cls, given: list[Any]) -> "_Coded":
        """Encode the values of a name at all points."""
        if not is_number(given):
            values = sorted(set(given), key=lambda each: (each is None, each or ""))
            places = np.array([values.index(each) for each in given])
            codes = np.eye(len(values))
            return cls(codes[places], values, codes, np.bincount(places) / len(given), False)
        numbers = np.array([np.nan if value is None else float(value) for value in given])
        is_absent = np.isnan(numbers)
        distinct, places = np.unique(numbers[~is_absent], return_inverse=True)
        ranks = np.full((len(given), 1), -0.25)  # the code of an absent value, away from all others
        ranks[~is_absent, 0] = places / max(len(distinct) - 1, 1)
        # every value, or equally spaced quantiles, each of which represents the same number of points
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
    """Return R² of the mean out-of-sample predictions, over points that were left out of at least one sample."""
    has_some = counts > 0
    errors = scores[has_some] - sums[has_some] / counts[has_some]
    spread = scores[has_some] - scores[has_some].mean() if has_some.any() else errors
    return float(1 - (errors**2).sum() / (spread**2).sum()) if (spread**2).sum() else float("nan")
