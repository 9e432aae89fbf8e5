"""Successive halving: train all points briefly, drop the worst at each rung, and train the best to the end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnfx import checks

__all__ = ["Halving"]


class Halving(NamedTuple):
    """Settings for successive halving: when to drop points, and how many to keep.

    Points are ranked by their best held-out loss so far, averaged over seeds and folds; points with more members
    without a finite loss rank lower.

    Attributes:
        rungs: the numbers of epochs after which to drop points, increasing and below the epochs of a run.
        keep: the fraction of the points kept at each rung, above 0 and below 1; at least one is kept.

    Example:
        >>> import jax, nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=40)
        >>> halving = Halving(rungs=(5, 10), keep=0.5)
        >>> rates = np.logspace(-3, 0, 8)
        >>> result = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), halving=halving, learning_rate=rates)
        >>> sorted(row["epochs"] for row in result.rows)
        [5, 5, 5, 5, 10, 10, 40, 40]

    References:
        Jamieson and Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, 2016.
    """

    rungs: Sequence[int]
    keep: float = 1 / 3

    def check(self, epochs: int) -> None:
        """Check that the rungs increase and stay below `epochs`, and that the fraction is between 0 and 1.

        Raises:
            TypeError, ValueError: if they do not.
        """
        rungs = self.rungs
        if isinstance(rungs, str) or not isinstance(rungs, Sequence | np.ndarray):
            raise TypeError(f"rungs: expected a sequence of epochs, such as (5, 10), got {checks.describe(rungs)}")
        for i, rung in enumerate(rungs):
            checks.positive_integer(f"rungs[{i}]", rung)
        given = [int(rung) for rung in rungs]
        if not given or given != sorted(set(given)) or given[-1] >= epochs:
            raise ValueError(f"rungs: expected epochs that increase and stay below {epochs}, got {tuple(given)}")
        checks.number("keep", self.keep, above=0, below=1)

    def quotas(self, points: int) -> dict[int, int]:
        """Return the number of points kept at each rung, by rung.

        >>> Halving((5, 10), keep=0.5).quotas(8)
        {5: 4, 10: 2}
        """
        kept = {}
        for rung in self.rungs:
            points = max(1, round(points * self.keep))
            kept[int(rung)] = points
        return kept


def ranked(losses: np.ndarray) -> np.ndarray:
    """Return the positions of the points, best first, given losses `(groups, points)`.

    Points are ranked by their number of non-finite losses, and then by the mean of their finite losses.

    >>> ranked(np.array([[1.0, np.nan, 2.0, np.nan], [4.0, np.nan, 2.0, 0.0]])).tolist()
    [2, 0, 3, 1]
    """
    failed = ~np.isfinite(losses)
    kept = np.where(failed, 0, losses).astype(np.float64).sum(0) / np.maximum((~failed).sum(0), 1)
    return np.lexsort((kept, failed.sum(0)))
