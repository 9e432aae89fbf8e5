"""Which hyper-parameters a sweep tries: a grid, or random draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.types import Array

Points = dict[str, np.ndarray]
"""Hyper-parameters by name, `(points,)` each."""


class Uniform(NamedTuple):
    """Draw evenly between two numbers."""

    low: float
    high: float


class LogUniform(NamedTuple):
    """Draw the logarithm evenly between those of two positive numbers."""

    low: float
    high: float


def grid(**values: ArrayLike) -> Points:
    """Return every combination of these values; the last name runs fastest.

    Args:
        **values: for each hyper-parameter a number or `(n,)` numbers.

    Raises:
        ValueError: for values that are empty, of a higher rank, or not finite.

    Example:
        >>> grid(learning_rate=[0.1, 1.0], momentum=[0.0, 0.9])["learning_rate"].tolist()
        [0.1, 0.1, 1.0, 1.0]
    """
    columns = {name: np.atleast_1d(np.asarray(value)) for name, value in values.items()}
    check_points(columns, same_length=False)
    combined = np.meshgrid(*columns.values(), indexing="ij")
    return {name: mesh.ravel() for name, mesh in zip(columns, combined, strict=True)}


def draw(key: Array, count: int, **ranges: Uniform | LogUniform) -> Points:
    """Return random points, each hyper-parameter drawn by itself.

    Args:
        key: a typed key.
        count: how many points.
        **ranges: for each hyper-parameter a `Uniform` or a `LogUniform`.

    Raises:
        TypeError: for a key that is not typed, or a range that is neither.
        ValueError: for a range that is not increasing, or not positive where its logarithm is drawn.

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
        checks.number(f"{name}.low", bounds.low, above=0 if isinstance(bounds, LogUniform) else None)
        checks.number(f"{name}.high", bounds.high, above=bounds.low)
        low, high = np.log(bounds) if isinstance(bounds, LogUniform) else bounds
        drawn = jax.random.uniform(jax.random.fold_in(key, i), (count,), minval=low, maxval=high)
        points[name] = np.asarray(np.exp(drawn) if isinstance(bounds, LogUniform) else drawn)
    return points


def check_points(points: Mapping[str, Any], same_length: bool = True) -> None:
    """Require finite numbers `(points,)` for each hyper-parameter, as many for each.

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
        raise ValueError(f"points: expected as many numbers for each hyper-parameter, got {lengths}")
