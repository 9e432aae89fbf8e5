"""Intervals with guaranteed coverage, by split conformal prediction: forecasts are widened by calibration errors.

Margins are computed for each step of the horizon and each channel from windows that were not used in training. If
calibration windows and future windows are exchangeable, an interval at level c covers its target with a probability
from c to below c + 1/(n + 1) for n calibration windows, whatever the model. For a series that drifts, this holds
only as long as the errors do not drift too.

>>> forecasts, targets = jnp.zeros((9, 1, 1)), jnp.arange(1.0, 10.0).reshape(9, 1, 1)
>>> widened = widen(forecasts[:1], margins(forecasts, targets, level=0.9))
>>> widened.lower.item(), widened.upper.item()
(-9.0, 9.0)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks
from nnfx.types import Array
from nnfx.uncertainty.conformal import Interval, bounds, distances, fewest, margins, rank, widen

__all__ = ["margins", "rank", "rolling", "widen"]


def rolling(
    forecasts: Array | Interval, targets: Array, origins: ArrayLike, level: float, calibration: int
) -> Interval:
    """Return intervals for a backtest, calibrated at each origin on the errors known at that time.

    Step h of the forecast from origin s is known at origin t if `s + h < t`, counting h from 0. The margins at t are
    computed from all known errors in the same way as by `margins`.

    Args:
        forecasts: the forecasts of a backtest, points `(origins, horizon, channels)` or intervals of that shape.
        targets: the actual values, `(origins, horizon, channels)`.
        origins: the time of the first step of each forecast, `(origins,)`, in ascending order.
        level: the fraction of the targets to cover, above 0 and below 1.
        calibration: the number of first origins that are used for calibration only.

    Returns:
        Intervals for the other origins, `(origins − calibration, horizon, channels)`.

    Raises:
        TypeError: for origins that are not integers.
        ValueError: for shapes that do not match, origins not in ascending order, values that are not finite, or too few
            origins before the first interval for the level.

    Example:
        >>> targets = jnp.array([1.0, -2.0, 0.0, 9.0]).reshape(4, 1, 1)
        >>> rolling(jnp.zeros((4, 1, 1)), targets, np.arange(10, 14), level=0.5, calibration=2).upper.ravel()
        Array([2., 1.], dtype=float32)
    """
    times = arrays.as_numpy("origins", origins)
    found = distances(forecasts, targets)
    if found.ndim != 3:
        raise ValueError(f"targets: expected (origins, horizon, channels), got {checks.describe(found)}")
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
    if known.min() < fewest(level):
        raise ValueError(
            f"calibration: expected enough origins to give at least {fewest(level)} errors per step before the first"
            f" interval, at a level of {level:g}, got {calibration} origins and {known.min()} errors"
        )
    places = np.vectorize(lambda examples: rank(int(examples), level))(known)

    def margins_of(is_known: Array, place: Array) -> Array:
        ordered = jnp.sort(jnp.where(is_known, found, jnp.finfo(found.dtype).max), axis=0)
        return jnp.take_along_axis(ordered, jnp.broadcast_to(place - 1, (1, *found.shape[1:])), axis=0)[0]

    margin = jax.vmap(margins_of)(jnp.asarray(is_known), jnp.asarray(places, jnp.int32))
    lower, upper = bounds(forecasts)
    return widen(Interval(lower[calibration:], upper[calibration:]), margin)
