"""The rounds of a search: the points that are trained together, and the number kept at each rung."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nnfx import checks
from nnfx.search import space as spaces
from nnfx.search.dropping import Dropping, Hopeless, Quotas
from nnfx.search.methods import Ask, Bracket, Extrapolation, Grid, Hyperband, HyperGradient
from nnfx.search.programs import Maker, distinct
from nnfx.search.space import Choice, Point, Space
from nnfx.sweeps import Halving
from nnfx.sweeps.points import DRAWS
from nnfx.types import Array

MOST_DRAWS = 16
"""The number of draws per new point after which a space counts as exhausted."""


class Round(NamedTuple):
    """Points that are trained together.

    Attributes:
        name: the name of the round; "" if the search has only one.
        points: the points.
        dropping: the rule for dropping points; None to train all points to the end.
    """

    name: str
    points: list[Point]
    dropping: Dropping | None = None


Method = Halving | Hyperband | Extrapolation | HyperGradient | Ask


def rounds(
    maker: Maker, key: Array, space: Space | None, points: Any, method: Any, budget: int | None, groups: int
) -> list[Round]:
    """Return the rounds of a search in which no round depends on the results of earlier rounds.

    Raises:
        TypeError, ValueError: if the points, budget and method are incompatible with each other, with the space or
            with the runs.
    """
    if method is not None and not isinstance(method, Halving | Hyperband | Extrapolation):
        raise TypeError(
            "method: expected Halving, Hyperband, Extrapolation, HyperGradient, Ask or None, got"
            f" {checks.describe(method)}"
        )
    if isinstance(method, Hyperband):
        return _brackets(maker, key, space, points, method, budget, groups)
    if budget is not None and not isinstance(method, Extrapolation):
        return _repeated(maker, key, space, points, method, budget, groups)
    tried = distinct(given(key, space, points))
    epochs = epochs_of(maker, tried, same=isinstance(method, Extrapolation))
    return [Round("", tried, dropping_of(method, len(tried), epochs))]


def dropping_of(method: Halving | Extrapolation | Bracket | None, points: int, epochs: int) -> Dropping | None:
    """Return the rule for dropping some of `points` points; None if all are trained to the end."""
    if method is None:
        return None
    if isinstance(method, Bracket):
        return Quotas(method.quotas) if method.quotas else None
    method.check(epochs)
    if isinstance(method, Extrapolation):
        return Hopeless(tuple(map(int, method.rungs)), float(method.level), epochs)
    return Quotas(method.quotas(points))


def _repeated(
    maker: Maker, key: Array, space: Space | None, points: Any, method: Halving | None, budget: int, groups: int
) -> list[Round]:
    """Return as many rounds of `points` new points as fit into a budget, or a single round of as many as fit."""
    epochs = epochs_of(maker, drawn(key, space, 1))

    def cost(count: int) -> int:
        kept = {} if method is None else method.quotas(count)
        return groups * member_epochs(count, kept, epochs)

    if method is not None:
        method.check(epochs)
    size = 1 if points is None else points
    if isinstance(points, Sequence):
        raise TypeError(f"points: expected the number to draw in each round of a budget, or None, got {told(points)}")
    checks.positive_integer("points", size)
    check_budget(budget, cost(size), f"{size} point{'s' * (size > 1)}")
    if points is None:
        while cost(size + 1) <= budget:
            size += 1
    repetitions = 1 if points is None else budget // cost(size)
    tried = new_points(key, space, repetitions * size)
    epochs_of(maker, tried, same=True)
    some = [tried[begin : begin + size] for begin in range(0, len(tried), size)]
    if len(some) == 1:
        return [Round("", some[0], dropping_of(method, len(some[0]), epochs))]
    return [
        Round(f"round-{number:03d}", each, dropping_of(method, len(each), epochs)) for number, each in enumerate(some)
    ]


def _brackets(
    maker: Maker, key: Array, space: Space | None, points: Any, method: Hyperband, budget: int | None, groups: int
) -> list[Round]:
    """Return the brackets of Hyperband, once, or repeated until the next bracket does not fit into the budget."""
    if points is not None:
        raise TypeError(f"points: expected None, since Hyperband determines how many to draw, got {told(points)}")
    epochs = epochs_of(maker, drawn(key, space, 1))
    brackets = method.brackets(epochs)
    numbers = list(range(len(brackets)))
    if budget is not None:
        costs = [groups * member_epochs(bracket.points, bracket.quotas, epochs) for bracket in brackets]
        check_budget(budget, costs[0], "the first bracket")
        spent = np.cumsum(np.tile(costs, -(-budget // sum(costs))))
        numbers = list(range(int((spent <= budget).sum())))
    chosen = [brackets[number % len(brackets)] for number in numbers]
    tried = new_points(key, space, sum(bracket.points for bracket in chosen))
    epochs_of(maker, tried, same=True)
    found = []
    for number, bracket in zip(numbers, chosen, strict=True):
        some, tried = tried[: bracket.points], tried[bracket.points :]
        if not some:
            break
        found.append(Round(bracket_name(number, len(brackets)), some, dropping_of(bracket, len(some), epochs)))
    return found


def bracket_name(number: int, brackets: int) -> str:
    """Return the name of a bracket; the brackets repeat after the last one.

    >>> [bracket_name(number, 2) for number in range(4)]
    ['bracket-1', 'bracket-0', 'bracket-1-001', 'bracket-0-001']
    """
    again, place = divmod(number, brackets)
    return f"bracket-{brackets - 1 - place}" + (f"-{again:03d}" if again else "")


def member_epochs(points: int, kept: Mapping[int, int], epochs: int) -> int:
    """Return the total number of epochs for which points are trained, if some are dropped during training.

    >>> member_epochs(9, {1: 3, 3: 1}, 9)
    21
    """
    spent = done = 0
    for rung, remaining in [*kept.items(), (epochs, 0)]:
        spent += points * (rung - done)
        points, done = remaining, rung
    return spent


def check_budget(budget: int, least: int, what: str) -> None:
    """Check that a budget is at least `least` member-epochs, the cost of `what`.

    Raises:
        ValueError: if it is not.
    """
    if budget < least:
        raise ValueError(f"budget: expected at least {least} member-epochs, for {what}, got {budget}")


def given(key: Array, space: Space | None, points: Any) -> list[Point]:
    """Return the requested points: drawn at random, on a grid, or given explicitly."""
    if isinstance(points, Grid):
        return spaces.grid(points.per_number, needed(space))
    if isinstance(points, int | np.integer) and not isinstance(points, bool):
        checks.positive_integer("points", points)
        return drawn(key, space, int(points))
    if isinstance(points, Sequence) and points and all(isinstance(point, Mapping) for point in points):
        fixed = {} if space is None else _fixed(space)
        for i, point in enumerate(points):
            if others := [name for name in point if not isinstance(name, str)]:
                raise TypeError(f"points[{i}]: expected names as keys, got {checks.describe(others[0])}")
            if twice := sorted(fixed.keys() & point.keys()):
                raise ValueError(f"points[{i}]: expected no value for {twice[0]}, which the space fixes, got one")
        return [{**fixed, **{name: _plain(value) for name, value in point.items()}} for point in points]
    raise TypeError(
        f"points: expected the number to draw, Grid(per_number), or a list of dictionaries, got {told(points)}"
    )


def _plain(value: Any) -> Any:
    """Convert a NumPy or JAX number to a Python number; return anything else unchanged."""
    is_one = (
        isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0 and checks.is_concrete(value)
    )
    return np.asarray(value).item() if is_one else value


def drawn(key: Array, space: Space | None, count: int) -> list[Point]:
    """Draw points from a space with a key derived from the key of the search."""
    checks.key("key", key)
    return spaces.draw(jax.random.fold_in(key, np.uint32(DRAWS)), count, needed(space))


def new_points(key: Array, space: Space | None, count: int) -> list[Point]:
    """Draw distinct points from a space; fewer than `count` if the space is nearly exhausted.

    >>> len(new_points(jax.random.key(0), {"width": Choice(8, 16)}, 5))
    2
    """
    draws = count
    while len(found := distinct(drawn(key, space, draws))) < count and draws < MOST_DRAWS * count:
        draws *= 2
    return found[:count]


def needed(space: Space | None) -> Space:
    """Return the space, or raise an error if it is None."""
    if space is None:
        raise TypeError("space: expected ranges by name, such as {'width': Choice(8, 16)}, got none")
    return space


def _fixed(space: Space) -> Point:
    """Return the values of a space in which every name has a single value, shared by all given points.

    >>> _fixed({"momentum": Choice(0.9)})
    {'momentum': 0.9}
    """
    spaces.check(space)
    fixed = {}
    for name, range_ in space.items():
        if not isinstance(range_, Choice) or len(range_.members) != 1:
            raise TypeError(f"{name}: expected Choice(value), since the points are given, got {range_}")
        fixed[name] = range_.members[0]
    return fixed


def epochs_of(maker: Maker, points: Sequence[Point], same: bool = False) -> int:
    """Return the smallest number of epochs among the points' runs; with `same`, require it to be the same for all."""
    found = sorted({program.fit.epochs for program in maker.programs(points)})
    if same and len(found) > 1:
        raise ValueError(f"epochs: expected the same number in all programs, got {', '.join(map(str, found))}")
    return found[0]


def told(points: Any) -> str:
    """Describe the argument `points` for an error message."""
    return "none" if points is None else checks.describe(points)
