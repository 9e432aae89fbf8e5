"""The points of a sweep: a grid, random draws, or given points."""

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
    """A uniform distribution between two numbers."""

    low: float
    high: float


class LogUniform(NamedTuple):
    """A log-uniform distribution between two positive numbers."""

    low: float
    high: float


DRAWS = 2**32 - 1
"""The number folded into a sweep's key to draw points; it is never used for a seed."""


def grid(**values: ArrayLike) -> Points:
    """Return every combination of the given values; the last name varies fastest.

    Args:
        **values: one number or an array `(n,)` for each hyper-parameter.

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
    """Draw random points, each hyper-parameter independently.

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
    """Return the points of a sweep: given explicitly, as a grid, or drawn from ranges.

    Args:
        key: the sweep's key, used to draw points.
        points: a mapping or a frame of columns, a sequence of mappings, or the number of points to draw; None for a
            grid.
        values: for a grid, numbers for each hyper-parameter; to draw points, ranges and single numbers; with given
            points, single numbers that all points share.

    Raises:
        TypeError: for ranges without a number of points, and for points of any other type.
        ValueError: for points that are not finite numbers, or columns of different lengths.
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
            got = "one in `points` too" if name in columns else checks.describe(shared)
            raise ValueError(f"{name}: expected one number for all points, not given in `points`, got {got}")
        columns[name] = np.full(number_of(columns), shared)
    check_points(columns)
    return columns


def _columns(points: Any) -> Mapping[str, Any]:
    """Return the columns of a mapping, a frame, or a sequence of mappings, by name."""
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
        "points: expected numbers by hyper-parameter, such as {'learning_rate': [0.01, 0.1]}, a data frame, or a"
        f" list of points, got {checks.describe(points)}"
    )


def _column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Uniform | LogUniform):
        raise TypeError(f"{name}: expected numbers, got {values}; draw numbers from the range with nnfx.sweeps.draw")
    column: np.ndarray = as_numpy(name, values)
    return column


def check_range(name: str, bounds: Uniform | LogUniform) -> None:
    """Require `low < high`, and a positive `low` for a log-uniform range."""
    checks.number(f"{name}.low", bounds.low, above=0 if isinstance(bounds, LogUniform) else None)
    checks.number(f"{name}.high", bounds.high, above=bounds.low)


def number_of(points: Points) -> int:
    """Return the number of points; without hyper-parameters, there is one."""
    return len(next(iter(points.values()))) if points else 1


def check_points(points: Mapping[str, Any], same_length: bool = True) -> None:
    """Require finite numbers `(points,)` for each hyper-parameter, by default columns of the same length.

    Raises:
        TypeError: for values that are not numbers.
        ValueError: for no hyper-parameters, or columns that are empty, not finite, or of different lengths.
    """
    if not points:
        raise ValueError("points: expected at least one hyper-parameter, got none")
    lengths = {}
    for name, values in points.items():
        values = np.asarray(values)
        checks.numeric(name, values)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name}: expected at least one number, (points,), got {checks.describe(values)}")
        checks.finite(name, values)
        lengths[name] = len(values)
    if same_length and len(set(lengths.values())) > 1:
        raise ValueError(f"points: expected the same number of values for each hyper-parameter, got {lengths}")
