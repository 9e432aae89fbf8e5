"""The rounds of a search: the points that are trained together, and the number kept at each rung."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nnfx import checks
from nnfx.search import space as spaces
from nnfx.search.methods import Ask, Grid, Hyperband
from nnfx.search.programs import Maker, distinct
from nnfx.search.space import Choice, Point, Space
from nnfx.sweeps import Halving
from nnfx.sweeps.points import DRAWS
from nnfx.types import Array


class Round(NamedTuple):
    """Points that are trained together.

    Attributes:
        name: its name among the rounds of the search; "" if there is only one.
        points: the points.
        quotas: the number of them to keep, by the number of epochs after which the others are dropped.
    """

    name: str
    points: list[Point]
    quotas: Mapping[int, int]


Method = Halving | Hyperband | Ask


def rounds(maker: Maker, key: Array, space: Space | None, points: Any, method: Any) -> list[Round]:
    """Return the rounds of a search, unless a sampler determines them.

    Raises:
        TypeError, ValueError: for points or a method that do not suit each other, with the space or with the runs.
    """
    if isinstance(method, Hyperband):
        if points is not None:
            raise TypeError(f"points: expected none, since Hyperband decides how many to draw, got {_told(points)}")
        brackets = method.brackets(_epochs(maker, drawn(key, space, 1)))
        tried = drawn(key, space, sum(bracket.points for bracket in brackets))
        _epochs(maker, tried, same=True)
        found = []
        for s, bracket in zip(reversed(range(len(brackets))), brackets, strict=True):
            some, tried = tried[: bracket.points], tried[bracket.points :]
            found.append(Round(f"bracket-{s}", distinct(some), bracket.quotas))
        return found
    if method is not None and not isinstance(method, Halving):
        raise TypeError(f"method: expected Halving, Hyperband, Ask or None, got {checks.describe(method)}")
    tried = distinct(given(key, space, points))
    if method is None:
        return [Round("", tried, {})]
    method.check(_epochs(maker, tried))
    return [Round("", tried, method.quotas(len(tried)))]


def given(key: Array, space: Space | None, points: Any) -> list[Point]:
    """Return the requested points: drawn, on a grid, or given one by one."""
    if isinstance(points, Grid):
        return spaces.grid(points.per_number, _needed(space))
    if isinstance(points, int | np.integer) and not isinstance(points, bool):
        checks.positive_integer("points", points)
        return drawn(key, space, int(points))
    if isinstance(points, Sequence) and points and all(isinstance(point, Mapping) for point in points):
        fixed = {} if space is None else _fixed(space)
        for i, point in enumerate(points):
            if twice := sorted(fixed.keys() & point.keys()):
                raise ValueError(f"points[{i}]: expected no value for {twice[0]}, which the space fixes, got one")
        return [{**fixed, **point} for point in points]
    raise TypeError(
        f"points: expected how many to draw, Grid(per_number), or a list of dictionaries, got {_told(points)}"
    )


def drawn(key: Array, space: Space | None, count: int) -> list[Point]:
    """Return points drawn from a space with a search's key."""
    checks.key("key", key)
    return spaces.draw(jax.random.fold_in(key, np.uint32(DRAWS)), count, _needed(space))


def _needed(space: Space | None) -> Space:
    if space is None:
        raise TypeError("space: expected ranges by name, such as {'width': Choice(8, 16)}, got none")
    return space


def _fixed(space: Space) -> Point:
    """Return the values of a space in which every name has only one, for all of the given points.

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


def _epochs(maker: Maker, points: Sequence[Point], same: bool = False) -> int:
    """Return the fewest epochs of the runs of these points, or of all of them if they must be the same."""
    found = sorted({program.fit.epochs for program in maker.programs(points)})
    if same and len(found) > 1:
        raise ValueError(f"epochs: expected the same number in all programs, got {', '.join(map(str, found))}")
    return found[0]


def _told(points: Any) -> str:
    return "none" if points is None else checks.describe(points)
