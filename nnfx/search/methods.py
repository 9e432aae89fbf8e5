"""How a search spends its epochs: which points it tries, in which rounds, and which of them it trains to the end."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nnfx import checks

__all__ = ["Ask", "Bracket", "Grid", "Hyperband"]


class Grid(NamedTuple):
    """Try every combination; see `nnfx.search.grid`.

    Attributes:
        per_number: the number of values for each number.
    """

    per_number: int


class Bracket(NamedTuple):
    """One successive halving of Hyperband.

    Attributes:
        points: the number of points at the start.
        quotas: the number of them that are kept, by the number of epochs after which the others are dropped.
    """

    points: int
    quotas: Mapping[int, int]


class Hyperband(NamedTuple):
    """Repeated successive halving that drops points later each time, since the best epoch to do so is not known.

    With R the epochs of a run and η = `eta`, bracket s begins with n points and ranks them for the first time after
    r epochs; s goes from ⌊log_η (R / min_epochs)⌋ down to 0, where all points are trained to the end:

        n = ⌈(s_max + 1) ηˢ / (s + 1)⌉,  r = R / ηˢ,  and ⌊n / ηⁱ⌋ points are kept after r ηⁱ⁻¹ epochs.

    Attributes:
        min_epochs: the smallest number of epochs after which points are ranked.
        eta: the factor by which points decrease and epochs increase, an integer above 1.

    Example:
        >>> [bracket.points for bracket in Hyperband(eta=3).brackets(9)]
        [9, 5, 3]

    References:
        Li et al., *Hyperband: a novel bandit-based approach to hyperparameter optimization*, JMLR 2018, algorithm 1.
    """

    min_epochs: int = 1
    eta: int = 3

    def brackets(self, epochs: int) -> list[Bracket]:
        """Return the brackets for runs of this many epochs, the one that drops points earliest first.

        Raises:
            TypeError, ValueError: for numbers that are not integers or out of range.

        Example:
            >>> Hyperband(eta=3).brackets(9)[0]
            Bracket(points=9, quotas={1: 3, 3: 1})
        """
        checks.positive_integer("min_epochs", self.min_epochs)
        checks.positive_integer("eta", self.eta)
        if self.eta < 2:
            raise ValueError(f"eta: expected at least 2, got {self.eta}")
        if self.min_epochs > epochs:
            raise ValueError(f"min_epochs: expected at most {epochs}, the epochs of a run, got {self.min_epochs}")
        highest = 0
        while self.min_epochs * self.eta ** (highest + 1) <= epochs:
            highest += 1
        return [self._bracket(epochs, s, highest) for s in range(highest, -1, -1)]

    def _bracket(self, epochs: int, s: int, highest: int) -> Bracket:
        points = -(-(highest + 1) * self.eta**s // (s + 1))
        # whole epochs: the first rung is at R / ηˢ, rounded down
        rungs = [epochs * self.eta**i // self.eta**s for i in range(s)]
        return Bracket(points, {rung: points // self.eta ** (i + 1) for i, rung in enumerate(rungs)})


class Ask(NamedTuple):
    """Ask an Optuna sampler for points, a batch at a time, and tell it the mean loss of each.

    All points of a batch are trained together, so the sampler learns from a batch only when the next one begins.

    Attributes:
        sampler: such as `optuna.samplers.TPESampler(seed=0)`. With a seed, a search that was interrupted asks for the
            same points again, so that with `out` it continues where it stopped.
        batch: the number of points to ask for at a time.

    References:
        Akiba et al., *Optuna: a next-generation hyperparameter optimization framework*, KDD 2019.
    """

    sampler: Any
    batch: int = 16
