"""The space of a search: a range for each name, possibly on the condition that another name has a given value."""

import zlib
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import numpy as np

from nnfx import checks
from nnfx.sweeps import LogUniform, Uniform
from nnfx.types import Array

__all__ = ["Choice", "Integer", "Normal", "Point", "Range", "Space", "When", "check", "draw", "grid"]

Point = dict[str, Any]
"""One value for each name; names whose condition does not hold are absent."""


class Choice:
    """One of several equally likely members: numbers, strings, functions, or any other objects.

    >>> Choice("tanh", "relu")
    Choice('tanh', 'relu')
    """

    def __init__(self, *members: Any) -> None:
        self.members = members

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.members))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)


class Integer(NamedTuple):
    """A uniformly distributed integer from `low` to `high`, both inclusive."""

    low: int
    high: int


class Normal(NamedTuple):
    """A normally distributed number with the given mean and standard deviation."""

    mean: float
    sd: float


class When(NamedTuple):
    """A conditional range: its name is present only at points where another name has a given value.

    The range may be another `When`: then both conditions must hold. A condition on an absent name does not hold.

    Attributes:
        name: the other name, whose range is a `Choice` or an `Integer`.
        member: the value that the other name must have.
        range: the range if the condition holds.

    Example:
        >>> space = {
        ...     "optimizer": Choice("sgd", "adam"),
        ...     "momentum": When("optimizer", "sgd", Uniform(0.0, 1.0)),
        ... }
        >>> sorted({tuple(point) for point in draw(jax.random.key(0), 20, space)})
        [('optimizer',), ('optimizer', 'momentum')]
    """

    name: str
    member: Any
    range: Any


Range = Choice | Integer | Normal | Uniform | LogUniform | When
Space = Mapping[str, Range]
"""A range for each name."""


def same(first: Any, second: Any) -> bool:
    """Return whether two values are the same choice; `True` and `1` are different choices.

    >>> same(2, 2.0), same(1, True), same((8,), (8,))
    (True, False, True)
    """
    return first is second or bool(key_of(first) == key_of(second))


def key_of(value: Any) -> Any:
    """Return a hashable key, the same for equal values; `True` and `1` have different keys.

    >>> key_of([1, 2]) == key_of([1, 2]), key_of((True,)) == key_of((1,)), key_of(2) == key_of(2.0)
    (True, False, True)
    """
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return array.shape, str(array.dtype), array.tobytes()
    if isinstance(value, list | tuple):
        return type(value), tuple(map(key_of, value))
    if isinstance(value, dict):
        return dict, tuple((name, key_of(each)) for name, each in value.items())
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return (bool, value) if isinstance(value, bool) else value


def draw(key: Array, count: int, space: Space) -> list[Point]:
    """Draw random points, each name independently of all others.

    The value of a name in point i depends only on the key, the name, its range and i: a larger `count` extends the
    list of points, and adding other names does not change the values of this name.

    Args:
        key: a typed key.
        count: the number of points to draw.
        space: a range for each name.

    Returns:
        The points. Numbers are drawn in float64.

    Raises:
        TypeError, ValueError: as `check` does, and for a key that is not typed or a count that is not positive.

    Example:
        >>> points = draw(jax.random.key(0), 100, {"width": Choice(8, 16), "learning_rate": LogUniform(1e-4, 1.0)})
        >>> sorted({point["width"] for point in points}), min(point["learning_rate"] for point in points) > 1e-4
        ([8, 16], True)

    References:
        Bergstra and Bengio, *Random search for hyper-parameter optimization*, JMLR 2012.
    """
    checks.key("key", key)
    checks.positive_integer("count", count)
    names = check(space)
    shares = {name: _shares(jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode()))), count) for name in names}
    points = []
    for i in range(count):
        point: Point = {}
        for name in names:
            if is_active(space, name, point):
                point[name] = quantile(innermost(space[name]), float(shares[name][i]))
        points.append({name: point[name] for name in space if name in point})
    return points


def grid(per_number: int, space: Space) -> list[Point]:
    """Return every combination of values: all members of choices, and evenly spaced values of numeric ranges.

    Args:
        per_number: the number of values per numeric range: evenly spaced from one bound to the other, on a
            logarithmic scale for `LogUniform`; for `Normal`, the medians of as many equally likely intervals. A single
            value is the middle of the range. An `Integer` with fewer values takes all of them.
        space: a range for each name.

    Raises:
        TypeError, ValueError: as `check` does, and for a `per_number` that is not a positive integer.

    Example:
        >>> grid(3, {"width": Choice(8, 16), "learning_rate": LogUniform(0.01, 1.0)})[:2]
        [{'width': 8, 'learning_rate': 0.01}, {'width': 8, 'learning_rate': 0.1}]
    """
    checks.positive_integer("per_number", per_number)
    points: list[Point] = [{}]
    for name in check(space):
        values = _spaced(innermost(space[name]), per_number)
        points = [
            {**point, **added}
            for point in points
            for added in ([{name: value} for value in values] if is_active(space, name, point) else [{}])
        ]
    return [{name: point[name] for name in space if name in point} for point in points]


def check(space: Any) -> list[str]:
    """Check a space, and return its names, each after the names on which it depends.

    Raises:
        TypeError: for anything other than a mapping from names to ranges.
        ValueError: for an empty space, a `Choice` without members, bounds that do not increase, conditions on unknown
            names or on values that the other name cannot have, and conditions that form a cycle.

    Example:
        >>> check({"momentum": When("optimizer", "sgd", Uniform(0, 1)), "optimizer": Choice("sgd", "adam")})
        ['optimizer', 'momentum']
    """
    if not isinstance(space, Mapping):
        raise TypeError(
            f"space: expected ranges by name, such as {{'width': Choice(8, 16)}}, got {checks.describe(space)}"
        )
    if not space:
        raise ValueError("space: expected at least one range, got none")
    for name, given in space.items():
        if not isinstance(name, str):
            raise TypeError(f"space: expected names as keys, got {checks.describe(name)}")
        _check_range(name, innermost(given))
    for name, given in space.items():
        for condition in _conditions(given):
            _check_condition(name, condition, space)
    ordered: list[str] = []
    for name in space:
        _visit(name, space, [], ordered)
    return ordered


def is_active(space: Space, name: str, point: Mapping[str, Any]) -> bool:
    """Return whether all conditions of a name hold at a point."""
    return all(each.name in point and same(point[each.name], each.member) for each in _conditions(space[name]))


def is_conditional(given: Range) -> bool:
    """Return whether a name with this range may be absent."""
    return isinstance(given, When)


def quantile(given: Range, share: float) -> Any:
    """Return the quantile of a distribution at a probability `share`, 0 < share < 1.

    >>> quantile(Uniform(-1, 1), 0.75), quantile(Integer(1, 6), 0.99), quantile(Choice("a", "b"), 0.4)
    (0.5, 6, 'a')
    """
    match given:
        case Choice():
            return given.members[int(share * len(given.members))]
        case Integer(low, high):
            return int(low) + int(share * (int(high) - int(low) + 1))
        case Normal(mean, sd):
            return NormalDist(float(mean), float(sd)).inv_cdf(share)
        case LogUniform(low, high):
            return float(np.exp(np.log(low) + share * (np.log(high) - np.log(low))))
        case Uniform(low, high):
            return float(low + share * (high - low))
    raise TypeError(f"range: expected a range without conditions, got {checks.describe(given)}")


def _spaced(given: Range, count: int) -> list[Any]:
    """Return all members of a choice, or `count` evenly spaced values of a numeric range."""
    match given:
        case Choice():
            return list(given.members)
        case _ if count == 1:
            return [quantile(given, 0.5)]
        case Integer(low, high):
            return sorted({round(each) for each in np.linspace(low, high, count)})
        case Normal():
            return [quantile(given, (i + 0.5) / count) for i in range(count)]
        case LogUniform(low, high):
            return [float(each) for each in np.geomspace(low, high, count)]
        case Uniform(low, high):
            return [float(each) for each in np.linspace(low, high, count)]
    raise TypeError(f"range: expected a range without conditions, got {checks.describe(given)}")


def _shares(key: Array, count: int) -> np.ndarray:
    """Draw float64 numbers uniformly from the open interval (0, 1); each depends only on the key and its index."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(count, dtype=np.uint32))
    high, low = np.asarray(jax.vmap(lambda each: jax.random.bits(each, (2,), np.uint32))(keys)).astype(np.uint64).T
    return (((high >> np.uint64(6)) << np.uint64(26)) + (low >> np.uint64(6)) + 0.5) / 2.0**52


def innermost(given: Any) -> Any:
    """Return the range inside all conditions."""
    while isinstance(given, When):
        given = given.range
    return given


def _conditions(given: Any) -> Sequence[When]:
    """Return the conditions around a range, the outermost first."""
    found = []
    while isinstance(given, When):
        found.append(given)
        given = given.range
    return found


def _check_range(name: str, given: Any) -> None:
    match given:
        case Choice():
            if not given.members:
                raise ValueError(f"{name}: expected a Choice with at least one member, got none")
        case Integer(low, high):
            for side, bound in (("low", low), ("high", high)):
                if isinstance(bound, bool) or not isinstance(bound, int | np.integer):
                    raise TypeError(f"{name}.{side}: expected a whole number, got {checks.describe(bound)}")
            checks.number(f"{name}.high", high, above=low)
        case Normal(mean, sd):
            checks.number(f"{name}.mean", mean)
            checks.number(f"{name}.sd", sd, above=0)
        case Uniform(low, high) | LogUniform(low, high):
            checks.number(f"{name}.low", low, above=0 if isinstance(given, LogUniform) else None)
            checks.number(f"{name}.high", high, above=low)
        case _:
            raise TypeError(
                f"{name}: expected Choice, Integer, Normal, Uniform, LogUniform or When, got {checks.describe(given)};"
                " pass several values as Choice(value, ...), and a single value as Choice(value)"
            )


def _check_condition(name: str, condition: When, space: Space) -> None:
    checks.choice(f"{name}: When.name", condition.name, space)
    parent = innermost(space[condition.name])
    match parent:
        case Choice():
            can_be = any(same(member, condition.member) for member in parent.members)
        case Integer(low, high):
            member = condition.member
            is_whole = isinstance(member, int | np.integer) and not isinstance(member, bool)
            can_be = is_whole and bool(low <= member <= high)
        case _:
            raise TypeError(
                f"{name}: When.name: expected a name with a Choice or an Integer, got {condition.name!r} with {parent}"
            )
    if not can_be:
        raise ValueError(
            f"{name}: When.member: expected a value of {condition.name}, {parent}, got {condition.member!r}"
        )


def _visit(name: str, space: Space, above: list[str], ordered: list[str]) -> None:
    """Append a name to `ordered` after the names that it depends on."""
    if name in ordered:
        return
    if name in above:
        circle = [*above[above.index(name) :], name]
        raise ValueError(f"{name}: expected conditions without a cycle, got {' → '.join(circle)}")
    for condition in _conditions(space[name]):
        _visit(condition.name, space, [*above, name], ordered)
    ordered.append(name)
