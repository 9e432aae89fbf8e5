"""The programs of a search: points grouped by static choices, and checked before anything is trained."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search.space import Choice, Integer, Point, Space, When, is_conditional, key_of
from nnfx.sessions.described_parts import parts_of
from nnfx.sweeps.points import Points
from nnfx.training import hyperparameters
from nnfx.training.fit import Fit
from nnfx.training.run import Run

Make = Callable[..., Fit]


@dataclasses.dataclass(frozen=True)
class Program:
    """Points that differ only in traced hyper-parameters.

    Attributes:
        static: the static choices, by name.
        fit: the run function.
        numbers: the position of each point among all points of the search.
        columns: the traced hyper-parameters of the points, `(points,)` by name.
    """

    static: Point
    fit: Fit
    numbers: tuple[int, ...]
    columns: Points

    def moved(self, begin: int) -> "Program":
        """Return the program with `begin` added to the numbers of its points."""
        return dataclasses.replace(self, numbers=tuple(begin + number for number in self.numbers))

    @property
    def words(self) -> str:
        """The static choices, as text."""
        return words(self.static)

    @property
    def folder(self) -> str:
        """The static choices, as the name of a folder."""
        return re.sub(r"[^\w.=+-]+", "_", self.words)[:80].strip("_")


class Maker:
    """Calls `make` once for each combination of static choices.

    Args:
        make: the result of `nnfx.fit`, or a function of static choices that returns it.

    Raises:
        TypeError: for a `make` of another type.
    """

    def __init__(self, make: Fit | Make) -> None:
        if isinstance(make, Run) or not callable(make):
            hint = "; pass its attribute `fit`" if isinstance(make, Run) else ""
            raise TypeError(
                "make: expected the result of nnfx.fit, or a function of static choices that returns it, got"
                f" {checks.describe(make)}{hint}"
            )
        self._make = make
        self._made: dict[Any, Fit] = {}
        self._loss: dict[str, str] = {}
        named = {} if isinstance(make, Fit) else inspect.signature(make).parameters
        takes = [each for each in named.values() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        self.names = tuple(each.name for each in takes)
        self.required = tuple(each.name for each in takes if each.default is each.empty)

    @property
    def make(self) -> Fit | Make:
        """The given `make`, but called only once for each combination of static choices."""
        if isinstance(self._make, Fit):
            return self._make
        return functools.wraps(self._make)(lambda **static: self.fit(static))

    def fit(self, static: Point) -> Fit:
        """Return the run function for a combination of static choices."""
        if (made := self._made.get(identity(static))) is not None:
            return made
        fit = self._make if isinstance(self._make, Fit) else self._make(**static)
        if not isinstance(fit, Fit):
            raise TypeError(
                f"make: expected it to return the result of nnfx.fit, got {checks.describe(fit)} for"
                f" {words(static) or 'no static choices'}"
            )
        self._check_loss(fit, static)
        self._made[identity(static)] = fit
        return fit

    def _check_loss(self, fit: Fit, static: Point) -> None:
        """Check that all programs have the same loss, since points are ranked by it."""
        facts = {path: fact for path, fact in parts_of(fit).items() if path.partition(".")[0] == "loss"}
        self._loss = self._loss or facts
        if facts != self._loss:
            raise ValueError(
                f"loss: expected the same in all programs, since points are ranked by it, got {self._loss['loss']} and"
                f" {facts['loss']} (with {words(static)})"
            )

    def check(self, space: Space) -> None:
        """Check that static choices are discrete and that no required choice is missing.

        Raises:
            TypeError: if not.
        """
        for name in self.names:
            given: Any = space.get(name)
            while isinstance(given, When):
                given = given.range
            if given is not None and not isinstance(given, Choice | Integer):
                raise TypeError(
                    f"{name}: expected a Choice or an Integer, since `make` takes it and each value needs its own"
                    f" program, got {given}"
                )
        for name in self.required:
            if name not in space or is_conditional(space[name]):
                got = "one with a condition" if name in space else "none"
                raise TypeError(f"{name}: expected a range, since `make` requires it, got {got}")

    def programs(self, points: Sequence[Point]) -> list[Program]:
        """Group points by their static choices and the names of their hyper-parameters, and check them.

        Raises:
            TypeError, ValueError: for unknown or missing names, and values that a run does not accept.
        """
        groups: dict[Any, list[int]] = {}
        for number, point in enumerate(points):
            static = identity(self._static(point))
            groups.setdefault((static, frozenset(point)), []).append(number)
        return [self._program(numbers, points) for numbers in groups.values()]

    def _static(self, point: Point) -> Point:
        return {name: value for name, value in point.items() if name in self.names}

    def _program(self, numbers: Sequence[int], points: Sequence[Point]) -> Program:
        first = points[numbers[0]]
        static, traced = self._static(first), [name for name in first if name not in self.names]
        for name in self.required:
            if name not in static:
                raise TypeError(f"{name}: expected a value, since `make` requires it, got none")
        fit = self.fit(static)
        for name in traced:
            for number in numbers:
                self._check_traced(name, fit, points[number])
        for number in numbers:
            values = {name: points[number][name] for name in traced}
            with in_program(static):
                hyperparameters.check(values, fit.all_factories)
        columns = {name: np.array([float(points[number][name]) for number in numbers]) for name in traced}
        return Program(static, fit, tuple(numbers), columns)

    def _check_traced(self, name: str, fit: Fit, point: Point) -> None:
        if name not in fit.hyper_names:
            known = [*self.names, *fit.hyper_names]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{name}: expected a keyword of `make` ({', '.join(self.names) or 'none'}) or a hyper-parameter of its"
                f" runs ({', '.join(fit.hyper_names) or 'none'}), got neither at {words(point)}{hint}"
            )
        if isinstance(point[name], bool | str) or not isinstance(point[name], int | float | np.number):
            raise TypeError(
                f"{name}: expected one number, since `make` does not take it by keyword, got"
                f" {checks.describe(point[name])}"
            )


@contextlib.contextmanager
def in_program(static: Point) -> Iterator[None]:
    """Append the static choices of a program to the messages of errors raised in this context."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not static:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error} (with {words(static)})") from error


def word(value: Any) -> str:
    """Return a value as short text: functions by name, floats to four digits.

    >>> word((8, 8)), word(max), word(0.1)
    ('(8, 8)', 'max', '0.1')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return getattr(value, "__name__", None) or str(value)


def labels(values: Sequence[Any]) -> list[str]:
    """Return a distinct label for each of several values; values with the same name are numbered.

    >>> labels(["tanh", lambda x: x, lambda x: -x])
    ['tanh', '<lambda>', '<lambda> (2)']
    """
    found = [word(value) for value in values]
    return [
        each if (before := found[:i].count(each)) == 0 else f"{each} ({before + 1})" for i, each in enumerate(found)
    ]


def words(point: Mapping[str, Any]) -> str:
    """Return a point as text.

    >>> words({"width": 8, "learning_rate": 0.1})
    'width=8, learning_rate=0.1'
    """
    return ", ".join(f"{name}={word(value)}" for name, value in point.items())


def distinct(points: Sequence[Point]) -> list[Point]:
    """Return the points without repetitions, in the order of their first appearance.

    >>> distinct([{"width": 8}, {"width": 16}, {"width": 8}])
    [{'width': 8}, {'width': 16}]
    """
    found: dict[Any, Point] = {}
    for point in points:
        found.setdefault(identity(point), point)
    return list(found.values())


def identity(point: Point) -> Any:
    """Return a hashable key, the same for equal points."""
    return tuple((name, key_of(point[name])) for name in sorted(point))
