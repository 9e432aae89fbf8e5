"""The points of a search or a sweep with their scores, for analysis and plots."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search.programs import labels
from nnfx.search.result import Search
from nnfx.search.space import Point, key_of
from nnfx.sweeps import Sweep


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of points, in the order in which the points were drawn.

    Attributes:
        points: the points.
        values: the score of each run, `(groups, points)`, one group for each seed and fold, NaN for runs that failed.
        dropped: which points were dropped during training, `(points,)`.
        epochs: the number of epochs trained, `(points,)`, summed over all runs of a point.
        metric: the name of the metric used as the score.
        largest_first: whether larger scores are better.
    """

    points: tuple[Point, ...]
    values: np.ndarray
    dropped: np.ndarray
    epochs: np.ndarray
    metric: str
    largest_first: bool

    @classmethod
    def of(cls, found: Search | Sweep) -> "Scores":
        """Return the scores of a search, or of a sweep.

        Raises:
            TypeError: for a `found` of another type.
            ValueError: if all points are the same.
        """
        if not isinstance(found, Search | Sweep):
            raise TypeError(f"found: expected the result of a search or a sweep, got {checks.describe(found)}")
        values, dropped = found.by_group(found.judged_by[0])
        width = values.shape[1]
        epochs = np.zeros(width)
        if isinstance(found, Search):
            points = found.points
            for row in found.rows:
                epochs[row["point"]] += row["epochs"]
        else:
            columns = {name: np.asarray(column) for name, column in found.hyper.items()}
            points = tuple({name: float(column[i]) for name, column in columns.items()} for i in range(width))
            for row in found.rows:
                epochs[row["member"] % width] += row["epochs"]
        scores = cls(points, values, dropped, epochs, *found.judged_by)
        if not scores.names:
            raise ValueError(f"found: expected points that differ, got {width} equal points")
        return scores

    @property
    def names(self) -> tuple[str, ...]:
        """The names whose values differ between points."""
        names = dict.fromkeys(name for point in self.points for name in point)
        return tuple(name for name in names if len(set(map(key_of, self._values(name)))) > 1)

    def of_name(self, name: str) -> list[Any]:
        """Return the value of a name at each point, None where the name is absent; members of a choice as labels."""
        values = self._values(name)
        if is_number(values):
            return values
        members = {key_of(value): value for value in values if value is not None}
        words = dict(zip(members, labels(list(members.values())), strict=True))
        return [None if value is None else words[key_of(value)] for value in values]

    def _values(self, name: str) -> list[Any]:
        return [point.get(name) for point in self.points]

    @property
    def mean(self) -> np.ndarray:
        """The mean score of each point, `(points,)`, NaN if one of its runs failed."""
        return self.values.mean(0)

    def clipped(self, values: np.ndarray) -> np.ndarray:
        """Clip the scores of points at Tukey's outer fence on the bad side, and move failed points to the fence.

        The fence is three interquartile ranges beyond the worse quartile of the finite scores, so that a few diverged
        runs do not hide the differences between all others.

        References:
            Tukey, *Exploratory data analysis*, 1977.
        """
        sign = -1.0 if self.largest_first else 1.0
        finite = sign * values[np.isfinite(values)]
        if not len(finite):
            raise ValueError("found: expected a point whose runs all ended with finite scores, got none")
        low, high = np.quantile(finite, [0.25, 0.75])
        fence = min(high + 3 * (high - low), finite.max())
        return sign * np.minimum(np.where(np.isfinite(values), sign * values, np.inf), fence)


def is_number(values: Sequence[Any]) -> bool:
    """Return whether the values of a name are numbers, apart from None for absent values.

    >>> is_number([1, None, 0.5]), is_number([True]), is_number(["tanh"])
    (True, False, False)
    """
    present = [value for value in values if value is not None]
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in present)
