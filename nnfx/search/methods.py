"""Search methods: which points are tried, in which rounds, and which of them are trained to the end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnfx import checks
from nnfx.sweeps import Halving

__all__ = ["Ask", "Bracket", "Extrapolation", "Grid", "HyperGradient", "Hyperband", "Seconds"]


class Grid(NamedTuple):
    """Try every combination of values; see `nnfx.search.grid`.

    Attributes:
        per_number: the number of values per numeric range.
    """

    per_number: int


class Seconds(NamedTuple):
    """A budget of time: rounds are trained as long as another one fits, judging by the time that the previous one took.

    The first round is always trained, and includes the time to compile its programs. The number of rounds depends on
    the speed of the machine; the results of each round do not.

    Attributes:
        seconds: the time that the search may use, from its call to its end, above 0.
    """

    seconds: float

    def check(self) -> None:
        """Check that the time is above 0.

        Raises:
            TypeError, ValueError: if it is not.
        """
        checks.number("budget.seconds", self.seconds, above=0)


class Bracket(NamedTuple):
    """One run of successive halving within Hyperband.

    Attributes:
        points: the number of points at the start.
        quotas: the number of points kept, by the number of epochs after which the others are dropped.
    """

    points: int
    quotas: Mapping[int, int]


class Hyperband(NamedTuple):
    """Repeated successive halving that drops points later each time, since the best time to drop them is unknown.

    With R the number of epochs of a run and η = `eta`, bracket s begins with n points and ranks them first after
    r epochs; s goes from ⌊log_η (R / min_epochs)⌋ down to 0, where all points are trained to the end:

        n = ⌈(s_max + 1) ηˢ / (s + 1)⌉,  r = R / ηˢ,  and ⌊n / ηⁱ⌋ points are kept after r ηⁱ⁻¹ epochs.

    Attributes:
        min_epochs: the smallest number of epochs after which points are ranked.
        eta: the factor by which the number of points decreases and that of epochs increases, an integer above 1.

    Example:
        >>> [bracket.points for bracket in Hyperband(eta=3).brackets(9)]
        [9, 5, 3]

    References:
        Li et al., *Hyperband: a novel bandit-based approach to hyperparameter optimization*, JMLR 2018, algorithm 1.
    """

    min_epochs: int = 1
    eta: int = 3

    def brackets(self, epochs: int) -> list[Bracket]:
        """Return the brackets for runs of `epochs` epochs, beginning with the bracket that drops points earliest.

        Raises:
            TypeError, ValueError: for attributes that are not integers or are out of range.

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
        # rungs are whole epochs, rounded down: the first is ⌊R / ηˢ⌋
        rungs = [epochs * self.eta**i // self.eta**s for i in range(s)]
        return Bracket(points, {rung: points // self.eta ** (i + 1) for i, rung in enumerate(rungs)})


class Ask(NamedTuple):
    """Ask an Optuna sampler for points, one batch at a time, and tell it the mean loss of each point.

    All points of a batch are trained together, so the sampler learns from a batch only when the next one begins.

    Attributes:
        sampler: an Optuna sampler, such as `optuna.samplers.TPESampler(seed=0)`. With a seed, an interrupted search
            asks for the same points again, so that with `out` it continues where it stopped.
        batch: the number of points in a batch.

    References:
        Akiba et al., *Optuna: a next-generation hyperparameter optimization framework*, KDD 2019.
    """

    sampler: Any
    batch: int = 16


class Extrapolation(NamedTuple):
    """Drop points whose learning curves, extrapolated, are unlikely to get below the best loss so far.

    At each rung, a power law is fitted to the held-out losses of each point, averaged over seeds and folds. A point is
    dropped if the probability that its loss gets below the lowest loss of all points so far is less than `level`; see
    `nnfx.search.extrapolation.chance_below`. Unlike halving, this drops few points if their losses are close to each
    other, and nearly all points if one is far ahead.

    The probability holds under the model, and real learning curves are not exact power laws: the point that would have
    been best is sometimes dropped, more often at a higher level. On the five problems of `experiments.search_methods`,
    this method finds hardly any better points than random search, unlike `Halving`.

    Attributes:
        rungs: the numbers of epochs after which points are dropped, increasing, from 3 to below a run's epochs.
        level: the probability below which a point is dropped, between 0 and 1.

    References:
        Domhan, Springenberg and Hutter, *Speeding up automatic hyperparameter optimization of deep neural networks by
        extrapolation of learning curves*, IJCAI 2015.
    """

    rungs: Sequence[int]
    level: float = 0.05

    def check(self, epochs: int) -> None:
        """Check that the rungs increase, from at least 3 to below `epochs`, and that the level is a probability.

        Raises:
            TypeError, ValueError: if they are not.
        """
        Halving(self.rungs).check(epochs)
        if self.rungs[0] < 3:
            raise ValueError(f"rungs[0]: expected at least 3 epochs to extrapolate from, got {self.rungs[0]}")
        checks.number("level", self.level, above=0, below=1)


GRADIENT_COST = 3
"""The cost in a budget, in runs, of one run together with its gradient."""


class HyperGradient(NamedTuple):
    """Descend the gradient of the held-out loss with respect to hyper-parameters, from many points side by side.

    The loss is the lowest held-out loss of a whole run, averaged over seeds and folds. Each step trains all points and
    differentiates through their training; Adam then updates the hyper-parameters that have a `Uniform` or `LogUniform`
    range, on a linear or logarithmic scale that maps the range to [0, 1], and clips them to the range. Static choices,
    and hyper-parameters with other ranges, keep the values drawn. At the end, the best point of each descent is
    trained as in a sweep.

    The gradient with respect to a hyper-parameter is useful only if the loss changes smoothly with it. A dropout rate,
    for instance, is compared with random numbers, and the gradient ignores this effect. Memory grows with the number
    of steps of a run; see `rematerialize_epochs` of `nnfx.fit`. In a budget, a run and its gradient count as three
    runs: on the five problems of `experiments.search_methods`, random search finds better points for the same budget.

    Attributes:
        steps: the number of gradient evaluations, at least 2, the first at the points drawn; the last gradient is not
            followed by an update.
        rate: the learning rate of Adam: roughly how far a hyper-parameter moves per step, as a fraction of its range.

    References:
        Maclaurin, Duvenaud and Adams, *Gradient-based hyperparameter optimization through reversible learning*, ICML
        2015; Griewank and Walther, *Evaluating derivatives*, 2008, chapter 4, for the cost of a gradient.
    """

    steps: int = 10
    rate: float = 0.05

    def check(self) -> None:
        """Check the attributes.

        Raises:
            TypeError, ValueError: for `steps` that is not an integer above 1, or a rate that is not positive.
        """
        checks.positive_integer("steps", self.steps)
        if self.steps < 2:
            raise ValueError(f"steps: expected at least 2, since the first is at the points drawn, got {self.steps}")
        checks.number("rate", self.rate, above=0)
