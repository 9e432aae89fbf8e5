"""The points of a sweep: a grid, or random draws."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.arrays import as_numpy, column_names
from nnfx.types import Array

Points = dict[str, np.ndarray]
"""Hyper-parameters by name, `(points,)` each."""


class Uniform(NamedTuple):
    """Draw uniformly between two numbers."""

    low: float
    high: float


class LogUniform(NamedTuple):
    """Draw log-uniformly between two positive numbers."""

    low: float
    high: float


DRAWS = 2**32 - 1
"""The number that a sweep's key is folded with to draw points; no seed has it."""


def grid(**values: ArrayLike) -> Points:
    """Return every combination of these values; the last name varies fastest.

    Args:
        **values: a number or `(n,)` numbers for each hyper-parameter.

    Raises:
        ValueError: for values that are empty, of a higher rank, or not finite.

    Example:
        >>> grid(learning_rate=[0.1, 1.0], momentum=[0.0, 0.9])["learning_rate"].tolist()
        [0.1, 0.1, 1.0, 1.0]
    """
    columns = {name: np.atleast_1d(_column(name, value)) for name, value in values.items()}
    check_points(columns, same_length=False)
    combined = np.meshgrid(*columns.values(), indexing="ij")
    return {name: mesh.ravel() for name, mesh in zip(columns, combined, strict=True)}


def draw(key: Array, count: int, **ranges: Uniform | LogUniform) -> Points:
    """Return random points, with each hyper-parameter drawn independently.

    Args:
        key: a typed key.
        count: the number of points to draw.
        **ranges: a `Uniform` or a `LogUniform` for each hyper-parameter.

    Raises:
        TypeError: for a key that is not typed, or a range that is neither `Uniform` nor `LogUniform`.
        ValueError: for a range that is not increasing, or a `LogUniform` that is not positive.

    Example:
        >>> points = draw(jax.random.key(0), 100, learning_rate=LogUniform(1e-4, 1.0))
        >>> bool((points["learning_rate"] > 1e-4).all())
        True

    References:
        Bergstra and Bengio, *Random search for hyper-parameter optimization*, JMLR 2012.
    """
    checks.key("key", key)
    checks.positive_integer("count", count)
    points = {}
    for i, (name, bounds) in enumerate(sorted(ranges.items())):
        if not isinstance(bounds, Uniform | LogUniform):
            raise TypeError(f"{name}: expected Uniform or LogUniform, got {checks.describe(bounds)}")
        check_range(name, bounds)
        low, high = np.log(bounds) if isinstance(bounds, LogUniform) else bounds
        drawn = jax.random.uniform(jax.random.fold_in(key, i), (count,), minval=low, maxval=high)
        points[name] = np.asarray(np.exp(drawn) if isinstance(bounds, LogUniform) else drawn)
    return points


def chosen(key: Array, points: Any, values: Mapping[str, Any]) -> Points:
    """Return the points of a sweep, given directly, as a grid, or as ranges to draw them from.

    Args:
        key: the sweep's key, used to draw points.
        points: a mapping or a frame of columns, a sequence of mappings, or the number of points to draw; None for a
            grid.
        values: numbers for each hyper-parameter; if points are to be drawn, ranges and single numbers; if they are
            given, single numbers that all points share.

    Raises:
        TypeError: for ranges without a number of points, and for points of any other type.
        ValueError: for points that are not finite numbers, or not the same number for each hyper-parameter.
    """
    ranges = {name: value for name, value in values.items() if isinstance(value, Uniform | LogUniform)}
    if isinstance(points, int | np.integer) and not isinstance(points, bool):
        checks.positive_integer("points", points)
        if not ranges:
            raise TypeError(f"points: expected a range to draw {points} points from, got none")
        drawn = draw(jax.random.fold_in(key, np.uint32(DRAWS)), int(points), **ranges)
        fixed = {name: _column(name, value) for name, value in values.items() if name not in ranges}
        for name, value in fixed.items():
            if value.ndim:
                raise ValueError(
                    f"{name}: expected a range or one number to draw {points} points, got {checks.describe(value)}"
                )
        return {name: drawn[name] if name in ranges else np.full(int(points), fixed[name]) for name in values}
    if ranges:
        name, bounds = next(iter(ranges.items()))
        raise TypeError(
            f"{name}: expected numbers, got {bounds}; to draw 20 points from ranges, pass points=20 as well, or"
            " call nnfx.sweeps.draw"
        )
    if points is None:
        return grid(**values) if values else {}
    columns = {name: _column(name, column) for name, column in _columns(points).items()}
    check_points(columns)
    for name, value in values.items():
        shared = _column(name, value)
        if name in columns or shared.ndim:
            got = "one there as well" if name in columns else checks.describe(shared)
            raise ValueError(f"{name}: expected one number for all points, apart from their own, got {got}")
        columns[name] = np.full(number_of(columns), shared)
    check_points(columns)
    return columns


def _columns(points: Any) -> Mapping[str, Any]:
    """Return the columns, by name, of a mapping, a frame, or a sequence of mappings."""
    names = column_names(points)
    if names is not None:
        return {name: points[column] for name, column in zip(names, points.columns, strict=True)}
    if isinstance(points, Mapping):
        return points
    if isinstance(points, Sequence) and points and all(isinstance(point, Mapping) for point in points):
        for i, point in enumerate(points):
            if set(point) != set(points[0]):
                wanted, got = (", ".join(map(str, each)) for each in (points[0], point))
                raise ValueError(f"points[{i}]: expected a number for each of {wanted}, got {got or 'none'}")
        return {name: [point[name] for point in points] for name in points[0]}
    raise TypeError(
        "points: expected numbers by hyper-parameter, such as {'learning_rate': [0.01, 0.1]}, a frame of them, or a"
        f" list of points, got {checks.describe(points)}"
    )


def _column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Uniform | LogUniform):
        raise TypeError(f"{name}: expected numbers, got {values}; draw numbers from it with nnfx.sweeps.draw")
    column: np.ndarray = as_numpy(name, values)
    return column


def check_range(name: str, bounds: Uniform | LogUniform) -> None:
    """Require a range to increase, and to be positive if it is logarithmic."""
    checks.number(f"{name}.low", bounds.low, above=0 if isinstance(bounds, LogUniform) else None)
    checks.number(f"{name}.high", bounds.high, above=bounds.low)


def number_of(points: Points) -> int:
    """Return how many points there are: one if only seeds and folds differ."""
    return len(next(iter(points.values()))) if points else 1


def check_points(points: Mapping[str, Any], same_length: bool = True) -> None:
    """Require finite numbers `(points,)` for each hyper-parameter, by default the same number for each.

    Raises:
        ValueError: otherwise.
    """
    if not points:
        raise ValueError("points: expected at least one hyper-parameter, got none")
    lengths = {}
    for name, values in points.items():
        values = np.asarray(values)
        checks.numeric(name, values)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name}: expected numbers (points,), at least one, got {checks.describe(values)}")
        checks.finite(name, values)
        lengths[name] = len(values)
    if same_length and len(set(lengths.values())) > 1:
        raise ValueError(f"points: expected the same number of values for each hyper-parameter, got {lengths}")
