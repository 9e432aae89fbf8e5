"""How a search spends its epochs: which points it tries, in which rounds, and which of them it trains to the end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnfx import checks
from nnfx.sweeps import Halving

__all__ = ["Ask", "Bracket", "Extrapolation", "Grid", "HyperGradient", "Hyperband"]


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


class Extrapolation(NamedTuple):
    """Drop points whose learning curves, extrapolated, are unlikely to get below the best loss so far.

    At each rung, a power law is fitted to the held-out losses of each point, averaged over seeds and folds. A point is
    dropped if the probability that it gets below the best of all points, now or in earlier rounds, is less than
    `level`; see `nnfx.search.extrapolation.chance_below`. Unlike halving, it drops few points if they are close to each
    other, and nearly all of them if one is far ahead.

    The probability is that of the model, and real curves are no exact power laws: the point that would have been best
    is sometimes dropped, more often at a higher level. On the five problems of `experiments.search_methods` it finds
    hardly better points than random search; `Halving` does.

    Attributes:
        rungs: the numbers of epochs after which points are dropped, increasing, from 3 to below the epochs of the run.
        level: the probability below which a point is dropped, between 0 and 1.

    References:
        Domhan, Springenberg and Hutter, *Speeding up automatic hyperparameter optimization of deep neural networks by
        extrapolation of learning curves*, IJCAI 2015.
    """

    rungs: Sequence[int]
    level: float = 0.05

    def check(self, epochs: int) -> None:
        """Check that the rungs increase, from 3 to below the epochs of a run, and that the level is a probability.

        Raises:
            TypeError, ValueError: otherwise.
        """
        Halving(self.rungs).check(epochs)
        if self.rungs[0] < 3:
            raise ValueError(f"rungs[0]: expected at least 3 epochs to extrapolate from, got {self.rungs[0]}")
        checks.number("level", self.level, above=0, below=1)


GRADIENT_COST = 3
"""The number of runs that one run and the gradient through it are counted as in a budget."""


class HyperGradient(NamedTuple):
    """Descend the gradient of the held-out loss with respect to the searched numbers, from many points side by side.

    The gradient is that of the whole run: of the lowest held-out loss of its epochs, averaged over seeds and folds.
    Each update trains all points and differentiates through their training; Adam then moves the numbers that have a
    `Uniform` or `LogUniform` range, on a scale on which the range is from 0 to 1, logarithmic for the latter. Numbers
    at a bound of their range stay within it. Static choices, and numbers with other ranges, keep the values drawn. At
    the end, the point with the lowest loss of each descent is trained as by a sweep.

    The gradient of a run with respect to a number is useful only if the loss changes smoothly with it. A dropout rate,
    for instance, is compared with random numbers, and its gradient ignores that. The memory needed grows with the
    number of steps of a run; see `rematerialize_epochs` of `nnfx.fit`. In a budget, a run and its gradient count as
    three runs: on the five problems of `experiments.search_methods`, random search finds better points for the same
    budget.

    Attributes:
        steps: the number of times that the gradient is evaluated, at least 2; the first time at the points drawn. No
            numbers move along the last gradient.
        rate: the learning rate of Adam: about how far a number moves in an update, as a fraction of its range.

    References:
        Maclaurin, Duvenaud and Adams, *Gradient-based hyperparameter optimization through reversible learning*, ICML
        2015; Griewank and Walther, *Evaluating derivatives*, 2008, chapter 4, for the cost of a gradient.
    """

    steps: int = 10
    rate: float = 0.05

    def check(self) -> None:
        """Check the numbers.

        Raises:
            TypeError, ValueError: for a number of steps that is not an integer above 1, or a rate that is not positive.
        """
        checks.positive_integer("steps", self.steps)
        if self.steps < 2:
            raise ValueError(f"steps: expected at least 2, since the first is at the points drawn, got {self.steps}")
        checks.number("rate", self.rate, above=0)
