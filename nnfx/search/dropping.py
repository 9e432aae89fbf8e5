"""Rules for dropping points during a search: all but the best, or those unlikely to become the best."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from nnfx.search.extrapolation import chance_below
from nnfx.sweeps.halving import ranked


class Dropping(Protocol):
    """A rule for dropping points, applied at rungs, that is, after given numbers of epochs."""

    @property
    def rungs(self) -> Collection[int]:
        """The numbers of epochs after which points are dropped."""

    @property
    def words(self) -> str:
        """The rule as text."""

    def kept(self, losses: np.ndarray) -> np.ndarray:
        """Return the positions of the points to keep, given the held-out losses so far, `(groups, points, epochs)`.

        Losses are NaN for epochs that were not run. Points that were dropped before stay dropped, even if returned.
        """


class Quotas(NamedTuple):
    """Keep the points with the lowest losses so far, averaged over seeds and folds.

    Attributes:
        by_rung: the number of points kept, by the number of epochs after which the others are dropped.
    """

    by_rung: Mapping[int, int]

    @property
    def rungs(self) -> Collection[int]:
        """The numbers of epochs after which points are dropped."""
        return self.by_rung

    @property
    def words(self) -> str:
        """The rule as text."""
        return str(dict(self.by_rung))

    def kept(self, losses: np.ndarray) -> np.ndarray:
        """Return the positions of the points to keep.

        >>> losses = np.array([[[3.0, 1.0], [2.0, 2.5], [np.nan, np.nan]]])
        >>> Quotas({2: 1}).kept(losses).tolist()
        [0]
        """
        return np.sort(ranked(best_so_far(losses)[..., -1])[: self.by_rung[losses.shape[-1]]])


class Hopeless(NamedTuple):
    """Drop the points that are unlikely to become better than the current best point; see `nnfx.search.Extrapolation`.

    Attributes:
        rungs: the numbers of epochs after which points are dropped.
        level: the probability below which a point is dropped.
        epochs: the number of epochs of a run.
        best: the lowest loss of points trained in earlier rounds; infinite if there are none.
    """

    rungs: tuple[int, ...]
    level: float
    epochs: int
    best: float = np.inf

    @property
    def words(self) -> str:
        """The rule as text."""
        return str(self)

    def kept(self, losses: np.ndarray) -> np.ndarray:
        """Return the positions of the points to keep, which always include the best so far.

        >>> falling = 1 / np.arange(1.0, 11)
        >>> losses = np.stack([falling, 0.5 + 0.01 * falling, 0.3 + falling])[None]
        >>> Hopeless((10,), 0.05, epochs=20).kept(losses).tolist()
        [0]
        """
        so_far = best_so_far(losses)
        lowest = so_far[..., -1].mean(0)
        lowest = np.where(np.isfinite(lowest), lowest, np.inf)
        curves = np.where(np.isnan(losses), so_far, losses).mean(0)  # a run that has stopped keeps its best weights
        chances = chance_below(curves, self.epochs, min(self.best, lowest.min()))
        return np.flatnonzero((chances >= self.level) | (lowest == lowest.min()))


def best_so_far(losses: np.ndarray) -> np.ndarray:
    """Return the lowest finite loss up to each epoch, in float64; NaN before the first finite loss.

    >>> best_so_far(np.array([np.nan, 2.0, np.inf, 1.0])).tolist()
    [nan, 2.0, 2.0, 1.0]
    """
    losses = np.asarray(losses, np.float64)
    lowest: np.ndarray = np.fmin.accumulate(np.where(np.isfinite(losses), losses, np.nan), axis=-1)
    return lowest
