"""Scores of forecasts, one number per example, those of the M4 competition as it defines them.

As losses and metrics do, each takes forecasts and targets `(batch, horizon, channels)` and returns `(batch,)`, in units
of the values it is given: forecasts of scaled series are scaled back first. The score of many series is the mean over
the batch.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.losses import mean_absolute_error, mean_square_error
from nnfx.types import Array

__all__ = [
    "coverage",
    "interval_score",
    "interval_width",
    "mase",
    "mean_absolute_error",
    "mean_square_error",
    "msis",
    "owa",
    "pinball",
    "root_mean_square_error",
    "seasonal_naive_error",
    "smape",
]


def root_mean_square_error(forecasts: Array, targets: Array) -> Array:
    """Root mean square error of each example: `√mean (ŷ − y)²`; that of all is the root of `mean_square_error`'s mean.

    Args:
        forecasts: ŷ, `(batch, ...)`.
        targets: y, in their shape.

    Returns:
        `(batch,)`, in the targets' unit.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not fit.

    Example:
        >>> root_mean_square_error(jnp.array([[1.0, 7.0]]), jnp.array([[0.0, 0.0]]))
        Array([5.], dtype=float32)
    """
    return jnp.sqrt(mean_square_error(forecasts, targets))


def smape(forecasts: Array, targets: Array) -> Array:
    """Symmetric mean absolute percentage error: the mean of `200 |ŷ − y| / (|ŷ| + |y|)`, from 0 to 200.

    Args:
        forecasts: ŷ, `(batch, ...)`.
        targets: y, in their shape.

    Returns:
        `(batch,)` in percent; where forecast and target are both zero the error is.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not fit.

    Example:
        >>> smape(jnp.array([[1.0, 3.0]]), jnp.array([[3.0, 3.0]]))
        Array([50.], dtype=float32)

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, section 2.3.
    """
    y = _targets(forecasts, targets)
    size = jnp.abs(forecasts) + jnp.abs(y)
    is_zero = size == 0
    return _per_example(jnp.where(is_zero, 0, 200 * jnp.abs(forecasts - y) / jnp.where(is_zero, 1, size)))


def seasonal_naive_error(history: ArrayLike, period: int = 1) -> Array:
    """The mean of `|yₜ − yₜ₋ₘ|` over a history: the error of the seasonal naive there, and the scale of `mase`.

    Args:
        history: y, what was known before the forecasts, such as the training part, `(time, channels)` of one series or
            `(batch, time, channels)`.
        period: m, how many steps make a season; 1 where there is none.

    Returns:
        `(channels,)` or `(batch, channels)`, in the unit of the history.

    Raises:
        TypeError: for a period that is not a whole number, or a history that is not of real numbers.
        ValueError: for a history of another rank, not finite, no longer than a season, or that repeats itself exactly.

    Example:
        >>> seasonal_naive_error(jnp.array([[1.0], [5.0], [2.0], [8.0]]), period=2)
        Array([2.], dtype=float32)
    """
    checks.positive_integer("period", period)
    y = jnp.asarray(history)
    checks.numeric("history", y)
    if y.ndim not in (2, 3):
        raise ValueError(f"history: expected (time, channels) or (batch, time, channels), got {checks.describe(y)}")
    if y.shape[-2] <= period:
        raise ValueError(f"history: expected more steps than one season of {period}, got {checks.describe(y)}")
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)  # differences of unsigned numbers wrap around
    checks.finite("history", y)
    error = jnp.abs(y[..., period:, :] - y[..., :-period, :]).mean(-2)
    if checks.is_concrete(error) and not bool((error > 0).all()):
        raise ValueError(
            f"history: expected series that change within a season of {period}, got one that repeats itself"
        )
    return error


def mase(forecasts: Array, targets: Array, scale: ArrayLike) -> Array:
    """Mean absolute scaled error: the mean of `|ŷ − y| / s`, 1 where as large as the seasonal naive's in the history.

    Args:
        forecasts: ŷ, `(batch, horizon, channels)`.
        targets: y, in their shape.
        scale: s > 0, what `seasonal_naive_error` makes of the history, `(channels,)` or `(batch, channels)`.

    Returns:
        `(batch,)`, without a unit.

    Raises:
        ValueError: for targets that are not finite, shapes that do not fit, or a scale that is not positive.

    Example:
        >>> scale = seasonal_naive_error(jnp.array([[1.0], [3.0], [5.0]]))
        >>> mase(jnp.array([[[6.0], [6.0]]]), jnp.array([[[7.0], [9.0]]]), scale)
        Array([1.], dtype=float32)

    References:
        Hyndman and Koehler, *Another look at measures of forecast accuracy*, International Journal of Forecasting 2006.
    """
    y = _targets(forecasts, targets, axes=3)
    return (jnp.abs(forecasts - y).mean(1) / _scale(scale, forecasts)).mean(-1)


def owa(forecasts: Array, targets: Array, scale: ArrayLike, benchmark: Array) -> Array:
    """Overall weighted average of M4: `½ (sMAPE / sMAPE of the benchmark + MASE / MASE of the benchmark)`.

    The errors are means over all series, before they are divided.

    Args:
        forecasts: `(batch, horizon, channels)`.
        targets: in their shape.
        scale: of `mase`, `(channels,)` or `(batch, channels)`.
        benchmark: the forecasts of `baselines.naive2`, in their shape.

    Returns:
        A scalar; below 1 where better than the benchmark.

    Raises:
        ValueError: for targets that are not finite, shapes that do not fit, or a scale that is not positive.

    Example:
        >>> targets, benchmark = jnp.full((1, 2, 1), 2.0), jnp.full((1, 2, 1), 4.0)
        >>> owa(jnp.full((1, 2, 1), 3.0), targets, jnp.ones(1), benchmark).round(3)
        Array(0.55, dtype=float32)

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, section 2.3.
    """
    percentage = smape(forecasts, targets).mean() / smape(benchmark, targets).mean()
    scaled = mase(forecasts, targets, scale).mean() / mase(benchmark, targets, scale).mean()
    return (percentage + scaled) / 2


def pinball(forecasts: Array, targets: Array, levels: ArrayLike) -> Array:
    """Pinball loss: the mean of `max(q e, (q − 1) e)` with `e = y − ŷ`, least where ŷ is the q-quantile of y.

    Args:
        forecasts: ŷ, `(batch, ..., levels)`, for each target one forecast a level.
        targets: y, `(batch, ...)`.
        levels: q, `(levels,)`, above 0 and below 1.

    Returns:
        `(batch,)`, in the targets' unit.

    Raises:
        ValueError: for targets that are not finite, shapes that do not fit, or levels that are not above 0 and below 1.

    Example:
        >>> pinball(jnp.array([[[1.0, 1.0]]]), jnp.array([[3.0]]), jnp.array([0.1, 0.9]))
        Array([1.], dtype=float32)

    References:
        Koenker and Bassett, *Regression quantiles*, Econometrica 1978.
    """
    _require_floats(forecasts)
    q = jnp.asarray(levels, forecasts.dtype)
    if q.ndim != 1 or forecasts.ndim < 2 or forecasts.shape[-1:] != q.shape:
        raise ValueError(
            f"levels: expected one for each of the last axis of the forecasts, {checks.describe(forecasts)}, got"
            f" {checks.describe(q)}"
        )
    if checks.is_concrete(q) and not bool(((q > 0) & (q < 1)).all()):
        raise ValueError(f"levels: expected numbers above 0 and below 1, got {q.tolist()}")
    error = _targets(forecasts[..., 0], targets)[..., None] - forecasts
    q = q.reshape(*[1] * targets.ndim, -1)
    return _per_example(jnp.maximum(q * error, (q - 1) * error))


def coverage(lower: Array, upper: Array, targets: Array) -> Array:
    """The share of targets within their intervals: the mean of `[l ≤ y ≤ u]`.

    Args:
        lower: l, `(batch, ...)`.
        upper: u, in its shape.
        targets: y, in its shape.

    Returns:
        `(batch,)` from 0 to 1, in the dtype of the bounds; NaN where a bound is.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not fit.

    Example:
        >>> coverage(jnp.zeros((1, 4)), jnp.ones((1, 4)), jnp.array([[-1.0, 0.0, 0.5, 2.0]]))
        Array([0.5], dtype=float32)
    """
    y = _targets(lower, targets)
    inside = (lower <= y) & (y <= _upper(lower, upper))
    return _per_example(jnp.where(jnp.isnan(lower + upper), jnp.nan, inside.astype(lower.dtype)))


def interval_width(lower: Array, upper: Array) -> Array:
    """The mean width of intervals, `u − l`: of two that cover alike, the narrower tell more.

    Args:
        lower: l, `(batch, ...)`.
        upper: u, in its shape.

    Returns:
        `(batch,)`, in the unit of the bounds.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> interval_width(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
        Array([2.], dtype=float32)
    """
    return _per_example(_upper(lower, upper) - lower)


def interval_score(lower: Array, upper: Array, targets: Array, level: ArrayLike) -> Array:
    """Interval score: the mean of `(u − l) + 2/α (l − y)⁺ + 2/α (y − u)⁺`, α = 1 − level; least for the true quantiles.

    Args:
        lower: l, `(batch, ...)`, the quantile α/2.
        upper: u, in its shape, the quantile 1 − α/2.
        targets: y, in its shape.
        level: the part of the targets that the intervals are to cover, above 0 and below 1; may be traced.

    Returns:
        `(batch,)`, in the targets' unit.

    Raises:
        ValueError: for targets that are not finite, shapes that do not fit, or a level that is not above 0 and below 1.

    Example:
        >>> interval_score(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[0.5, 2.0]]), level=0.5)
        Array([3.], dtype=float32)

    References:
        Gneiting and Raftery, *Strictly proper scoring rules, prediction, and estimation*, Journal of the American
        Statistical Association 2007, equation 43.
    """
    return _per_example(_interval_scores(lower, upper, targets, level))


def msis(lower: Array, upper: Array, targets: Array, scale: ArrayLike, level: ArrayLike = 0.95) -> Array:
    """Mean scaled interval score of M4: the `interval_score` divided by the scale of `mase`.

    Args:
        lower: l, `(batch, horizon, channels)`.
        upper: u, in its shape.
        targets: y, in its shape.
        scale: s > 0, what `seasonal_naive_error` makes of the history, `(channels,)` or `(batch, channels)`.
        level: the part of the targets that the intervals are to cover, above 0 and below 1; may be traced.

    Returns:
        `(batch,)`, without a unit.

    Raises:
        ValueError: for targets that are not finite, shapes that do not fit, a scale that is not positive, or a level
            that is not above 0 and below 1.

    Example:
        >>> msis(jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1)), jnp.array([[[0.5], [2.0]]]), jnp.array([2.0]), level=0.5)
        Array([1.5], dtype=float32)

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, section 2.3.
    """
    _targets(lower, targets, axes=3)
    return (_interval_scores(lower, upper, targets, level).mean(1) / _scale(scale, lower)).mean(-1)


def _interval_scores(lower: Array, upper: Array, targets: Array, level: ArrayLike) -> Array:
    checks.number("level", level, above=0, below=1)
    y, upper = _targets(lower, targets), _upper(lower, upper)
    outside = jnp.maximum(lower - y, 0) + jnp.maximum(y - upper, 0)
    return upper - lower + 2 / (1 - jnp.asarray(level, lower.dtype)) * outside


def _targets(forecasts: Any, targets: Any, axes: int | None = None) -> Array:
    """Return the targets in the dtype of the forecasts, once they are found to fit."""
    _require_floats(forecasts)
    checks.numeric("targets", targets)
    if forecasts.ndim < 1 or forecasts.ndim != (axes or forecasts.ndim):
        wanted = "(batch, ...)" if axes is None else "(batch, horizon, channels)"
        raise ValueError(f"forecasts: expected {wanted}, got {checks.describe(forecasts)}")
    if forecasts.shape != targets.shape:
        raise ValueError(
            f"targets: expected the shape of the forecasts, {checks.describe(forecasts)}, got"
            f" {checks.describe(targets)}"
        )
    checks.finite("targets", targets)
    return targets.astype(forecasts.dtype)


def _require_floats(forecasts: Any) -> None:
    """Refuse whole numbers: targets brought to their dtype would lose what is behind the point."""
    if not hasattr(forecasts, "dtype") or not jnp.issubdtype(forecasts.dtype, jnp.floating):
        raise TypeError(f"forecasts: expected an array of floats, got {checks.describe(forecasts)}")


def _upper(lower: Array, upper: Array) -> Array:
    if upper.shape != lower.shape:
        raise ValueError(
            f"upper: expected the shape of the lower bounds, {checks.describe(lower)}, got {checks.describe(upper)}"
        )
    return upper


def _scale(scale: ArrayLike, forecasts: Array) -> Array:
    """Return the scale of each example and channel."""
    s = jnp.asarray(scale, forecasts.dtype)
    batch, _, channels = forecasts.shape
    if s.shape not in ((channels,), (batch, channels)):
        raise ValueError(f"scale: expected ({channels},) or ({batch}, {channels}), got {checks.describe(s)}")
    if checks.is_concrete(s) and not bool((s > 0).all()):
        raise ValueError("scale: expected positive numbers, got some that are not")
    return jnp.broadcast_to(s, (batch, channels))


def _per_example(values: Array) -> Array:
    """Average all but the first axis."""
    return values.reshape(values.shape[0], -1).mean(-1)
