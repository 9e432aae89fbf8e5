"""Intervals with their stated coverage, by split conformal calibration: forecasts are widened by their past errors.

Margins are computed for each step of the horizon and each channel from windows that were not trained on. If those and
the windows to come are exchangeable, an interval of level c covers its target with a probability of at least c, and
below c + 1/(n + 1) with n calibration windows, whatever the model. Series drift, so this holds only as far as errors
do not.

>>> forecasts, targets = jnp.zeros((9, 1, 1)), jnp.arange(1.0, 10.0).reshape(9, 1, 1)
>>> widened = widen(forecasts[:1], margins(forecasts, targets, level=0.9))
>>> widened.lower.item(), widened.upper.item()
(-9.0, 9.0)
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks
from nnfx.forecasting.heads import Interval
from nnfx.types import Array

__all__ = ["margins", "rank", "rolling", "widen"]


def rank(windows: int, level: float) -> int:
    """Return which of n calibration scores is the margin, counting from 1 for the smallest: `⌈(n + 1) level⌉`.

    Args:
        windows: n.
        level: the share of the targets to cover, above 0 and below 1.

    Raises:
        ValueError: for a level out of range, or fewer windows than the level needs, `level / (1 − level)`.

    Example:
        >>> rank(9, 0.9), rank(100, 0.9)
        (9, 91)
    """
    checks.positive_integer("windows", windows)
    least = _fewest(level)
    if windows < least:
        raise ValueError(f"windows: expected at least {least} to calibrate at a level of {level:g}, got {windows}")
    return math.ceil((windows + 1) * _share(level))


def margins(forecasts: Array | Interval, targets: Array, level: float) -> Array:
    """Return how far to widen forecasts, for each step and channel, to cover targets: a quantile of past errors.

    The score of a window is `max(l − y, y − u)`. For point forecasts, this is the absolute residual `|y − ŷ|`; for
    intervals, it is the score of conformalised quantile regression, negative if a target lies inside. The margin is the
    score of rank `⌈(n + 1) level⌉`.

    Args:
        forecasts: those of n calibration windows, points `(n, horizon, channels)` or intervals of that shape.
        targets: the actual values, `(n, horizon, channels)`.
        level: the share of the targets to cover, above 0 and below 1.

    Returns:
        `(horizon, channels)`, in the targets' unit; negative for intervals wider than necessary.

    Raises:
        ValueError: for shapes that do not match, values that are not finite, or too few windows for the level.

    Example:
        >>> margins(jnp.zeros((4, 1, 1)), jnp.array([3.0, -1.0, 4.0, 2.0]).reshape(4, 1, 1), level=0.6)
        Array([[3.]], dtype=float32)

    References:
        Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, Springer 2005.
        Romano, Patterson and Candès, *Conformalized quantile regression*, NeurIPS 2019.
    """
    found = _scores(forecasts, targets)
    return jnp.sort(found, axis=0)[rank(len(found), level) - 1]


def widen(forecasts: Array | Interval, margins: Array) -> Interval:
    """Widen forecasts by margins on both sides: `[l − m, u + m]`.

    Args:
        forecasts: points `(..., horizon, channels)` or intervals of that shape.
        margins: m, `(horizon, channels)`.

    Returns:
        The intervals; if a negative margin would invert one, it shrinks to its midpoint.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> widen(jnp.zeros((1, 1)), jnp.ones((1, 1)))
        Interval(lower=Array([[-1.]], dtype=float32), upper=Array([[1.]], dtype=float32))
    """
    lower, upper = _bounds(forecasts)
    margins = arrays.as_array("margins", margins, floats=True)
    if lower.ndim < 2 or margins.shape not in (lower.shape, lower.shape[-2:]):
        raise ValueError(
            f"margins: expected one for each step and channel of the forecasts, {list(lower.shape[-2:])}, got"
            f" {checks.describe(margins)}"
        )
    margins = jnp.broadcast_to(margins, lower.shape)
    middle = (lower + upper) / 2
    return Interval(jnp.minimum(lower - margins, middle), jnp.maximum(upper + margins, middle))


def rolling(
    forecasts: Array | Interval, targets: Array, origins: ArrayLike, level: float, calibration: int
) -> Interval:
    """Return intervals for a backtest, those of each origin calibrated on the errors known at that time.

    Step h of the forecast from origin s is known at origin t if `s + h < t`, counting h from 0. The margins at t are
    those of `margins` for all such steps.

    Args:
        forecasts: those of a backtest, points `(origins, horizon, channels)` or intervals of that shape.
        targets: the actual values, `(origins, horizon, channels)`.
        origins: the time of the first step of each forecast, ascending, `(origins,)`.
        level: the share of the targets to cover, above 0 and below 1.
        calibration: how many of the first origins are used for calibration only.

    Returns:
        Intervals for the other origins, `(origins − calibration, horizon, channels)`.

    Raises:
        TypeError: for origins that are not integers.
        ValueError: for shapes that do not match, origins that do not ascend, values that are not finite, or too few
            origins before the first interval for the level.

    Example:
        >>> targets = jnp.array([1.0, -2.0, 0.0, 9.0]).reshape(4, 1, 1)
        >>> rolling(jnp.zeros((4, 1, 1)), targets, np.arange(10, 14), level=0.5, calibration=2).upper.ravel()
        Array([2., 1.], dtype=float32)
    """
    times = arrays.as_numpy("origins", origins)
    found = _scores(forecasts, targets)
    count, horizon, _ = found.shape
    if not jnp.issubdtype(times.dtype, np.integer):
        raise TypeError(f"origins: expected integers, got {checks.describe(times)}")
    if times.shape != (count,) or (times[1:] <= times[:-1]).any():
        raise ValueError(
            f"origins: expected {count} ascending times, one for each forecast, got {checks.describe(times)}"
        )
    checks.positive_integer("calibration", calibration)
    if calibration >= count:
        raise ValueError(f"calibration: expected fewer than the {count} origins, got {calibration}")
    steps = np.arange(horizon)
    is_known = (times[None, :, None] + steps < times[calibration:, None, None])[..., None]
    known = is_known.sum(1)
    if known.min() < _fewest(level):
        raise ValueError(
            f"calibration: expected enough origins for {_fewest(level)} errors of each step before the first"
            f" interval, at a level of {level:g}, got {calibration} origins and {known.min()} errors"
        )
    places = np.vectorize(lambda windows: rank(int(windows), level))(known)

    def margins_of(is_known: Array, place: Array) -> Array:
        ordered = jnp.sort(jnp.where(is_known, found, jnp.finfo(found.dtype).max), axis=0)
        return jnp.take_along_axis(ordered, jnp.broadcast_to(place - 1, (1, *found.shape[1:])), axis=0)[0]

    margin = jax.vmap(margins_of)(jnp.asarray(is_known), jnp.asarray(places, jnp.int32))
    lower, upper = _bounds(forecasts)
    return widen(Interval(lower[calibration:], upper[calibration:]), margin)


def _share(level: Any) -> Fraction:
    """Return the fraction that a level stands for: 0.55 in binary is slightly more and could raise the rank by one."""
    checks.number("level", level, above=0, below=1)
    exact = Fraction(float(level))
    near = exact.limit_denominator(1_000_000)
    return near if 0 < near < 1 else exact


def _fewest(level: Any) -> int:
    """Return how many scores are needed for one of them to be the margin: `(n + 1) level ≤ n`."""
    share = _share(level)
    return math.ceil(share / (1 - share))


def _bounds(forecasts: Any) -> Interval:
    """Return forecasts as intervals; those of points have no width."""
    return Interval(*(arrays.as_array("forecasts", bound, floats=True) for bound in _pair(forecasts)))


def _pair(forecasts: Any) -> Interval:
    return forecasts if isinstance(forecasts, Interval) else Interval(forecasts, forecasts)


def _held(name: str, value: Any) -> Any:
    """Return floats: JAX arrays on the device, anything else in float64 on the host."""
    if isinstance(value, jax.Array):
        return arrays.as_array(name, value, floats=True)
    return arrays.as_numpy(name, value).astype(np.float64)


def _scores(forecasts: Array | Interval, targets: Array) -> Array:
    """Return how far each target lies outside its interval, negative inside, `(windows, horizon, channels)`."""
    lower, upper = (_held("forecasts", bound) for bound in _pair(forecasts))
    targets = _held("targets", targets)
    for name, value in (("forecasts", lower), ("targets", targets)):
        if getattr(value, "ndim", None) != 3 or value.shape != lower.shape:
            raise ValueError(
                f"{name}: expected (windows, horizon, channels), the same for forecasts and targets, got"
                f" {checks.describe(value)}"
            )
        checks.finite(name, value)
    if upper.shape != lower.shape:
        raise ValueError(
            f"forecasts: expected bounds of the same shape, got {checks.describe(upper)} for the upper one"
        )
    if any(isinstance(part, np.ndarray) for part in (lower, upper, targets)) and checks.is_concrete((lower, targets)):
        low, high, exact = (np.asarray(part, np.float64) for part in (lower, upper, targets))
        return arrays.as_array("forecasts", np.maximum(low - exact, exact - high))
    return jnp.maximum(lower - targets, targets - upper)
