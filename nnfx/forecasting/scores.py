"""Scores of forecasts, one number per example; the scores of the M4 competition follow its definitions.

Like losses and metrics, each takes forecasts and targets `(batch, horizon, channels)` and returns `(batch,)`, in the
units of the values passed, so scale forecasts of a scaled series back first. The score of many series is the mean over
the batch.

JAX arrays are scored on their devices, in their own dtype. Values on the host, such as lists, frames and NumPy arrays,
are subtracted there in float64, so no digits are lost for series far from zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks, ops
from nnfx.forecasting.values import check_times, on_hand
from nnfx.losses import mean_absolute_error, mean_of_each, mean_square_error
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
    """Root mean square error per example, `√mean (ŷ − y)²`; overall, take the root of the mean `mean_square_error`.

    Args:
        forecasts: ŷ, `(batch, ...)`.
        targets: y, of the same shape.

    Returns:
        `(batch,)`, in the units of the targets.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> root_mean_square_error(jnp.array([[1.0, 7.0]]), jnp.array([[0.0, 0.0]]))
        Array([5.], dtype=float32)
    """
    forecast, y = _held("forecasts", forecasts), _held("targets", targets)
    forecast = forecast.reshape(y.shape) if forecast.shape == (*y.shape, 1) else forecast
    return ops.square_root(mean_of_each(jnp.square(_errors(forecast, y))))


def smape(forecasts: Array, targets: Array) -> Array:
    """Symmetric mean absolute percentage error: the mean of `200 |ŷ − y| / (|ŷ| + |y|)`, from 0 to 200.

    Args:
        forecasts: ŷ, `(batch, ...)`.
        targets: y, of the same shape.

    Returns:
        `(batch,)`, in percent; the error is zero where forecast and target are both zero.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> smape(jnp.array([[1.0, 3.0]]), jnp.array([[3.0, 3.0]]))
        Array([50.], dtype=float32)

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, section 2.3.
    """
    forecast, y = _pair(forecasts, targets)
    # Halve both, so that no sum overflows in half precision.
    error, size = _difference(forecast / 2, y / 2), ops.absolute(_device(forecast) / 2) + ops.absolute(_device(y) / 2)
    is_zero = size == 0
    return mean_of_each(jnp.where(is_zero, 0, 200 * (ops.absolute(error) / jnp.where(is_zero, 1, size))))


def seasonal_naive_error(history: ArrayLike, period: int = 1) -> Array:
    """Return the mean of `|yₜ − yₜ₋ₘ|` over a history: the error of a seasonal naive forecast, and the scale of `mase`.

    Args:
        history: y, the values known before the forecasts, such as the training split, `(time, channels)` for one
            series or `(batch, time, channels)`.
        period: m, the number of steps in a season; 1 if there is none.

    Returns:
        `(channels,)` or `(batch, channels)`, in the units of the history.

    Raises:
        TypeError: for a period that is not an integer, or a history that does not contain real numbers.
        ValueError: for a history that has the wrong rank, is not finite, is no longer than a season, or repeats
            exactly.

    Example:
        >>> seasonal_naive_error(jnp.array([[1.0], [5.0], [2.0], [8.0]]), period=2)
        Array([2.], dtype=float32)
    """
    checks.positive_integer("period", period)
    check_times("history", history)
    y = _held("history", on_hand("history", history))
    if y.ndim not in (2, 3):
        raise ValueError(f"history: expected (time, channels) or (batch, time, channels), got {checks.describe(y)}")
    if y.shape[-2] <= period:
        raise ValueError(f"history: expected more steps than one season of {period}, got {checks.describe(y)}")
    checks.finite("history", y)
    error = ops.absolute(_difference(y[..., period:, :], y[..., :-period, :])).mean(-2)
    if checks.is_concrete(error) and not bool((error > 0).all()):
        raise ValueError(f"history: expected seasons of {period} that differ, got a series that repeats itself")
    return error


def mase(forecasts: Array, targets: Array, scale: ArrayLike) -> Array:
    """Mean absolute scaled error, the mean of `|ŷ − y| / s`; 1 equals the past error of the seasonal naive forecast.

    Args:
        forecasts: ŷ, `(batch, horizon, channels)`.
        targets: y, of the same shape.
        scale: s > 0, the `seasonal_naive_error` of the history, `(channels,)` or `(batch, channels)`.

    Returns:
        `(batch,)`, dimensionless.

    Raises:
        ValueError: for targets that are not finite, shapes that do not match, or a scale that is not positive.

    Example:
        >>> scale = seasonal_naive_error(jnp.array([[1.0], [3.0], [5.0]]))
        >>> mase(jnp.array([[[6.0], [6.0]]]), jnp.array([[[7.0], [9.0]]]), scale)
        Array([1.], dtype=float32)

    References:
        Hyndman and Koehler, *Another look at measures of forecast accuracy*, International Journal of Forecasting
        2006.
    """
    error = _errors(forecasts, targets, axes=3)
    return (ops.absolute(error).mean(1) / _scale(scale, error)).mean(-1)


def owa(forecasts: Array, targets: Array, scale: ArrayLike, benchmark: Array) -> Array:
    """Overall weighted average of M4: `½ (sMAPE / sMAPE of the benchmark + MASE / MASE of the benchmark)`.

    The errors are averaged over all series before they are divided.

    Args:
        forecasts: the forecasts, `(batch, horizon, channels)`.
        targets: the actual values, of the same shape.
        scale: the scale, as for `mase`, `(channels,)` or `(batch, channels)`.
        benchmark: the forecasts of `baselines.naive2`, of the same shape.

    Returns:
        A scalar; below 1 if better than the benchmark.

    Raises:
        ValueError: for targets that are not finite, shapes that do not match, or a scale that is not positive.

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
    """Pinball loss: the mean of `max(q e, (q − 1) e)` with `e = y − ŷ`, lowest if ŷ is the q-quantile of y.

    Args:
        forecasts: ŷ, `(batch, ..., levels)`, one forecast per level for each target.
        targets: y, `(batch, ...)`.
        levels: q, `(levels,)`, above 0 and below 1.

    Returns:
        `(batch,)`, in the units of the targets.

    Raises:
        ValueError: for targets that are not finite, shapes that do not match, or levels that are not above 0 and below
            1.

    Example:
        >>> pinball(jnp.array([[[1.0, 1.0]]]), jnp.array([[3.0]]), jnp.array([0.1, 0.9]))
        Array([1.], dtype=float32)

    References:
        Koenker and Bassett, *Regression quantiles*, Econometrica 1978.
    """
    forecast = _held("forecasts", forecasts)
    _require_floats(forecast)
    q = arrays.as_array("levels", levels, floats=True).astype(_device(forecast[..., :0]).dtype)
    if q.ndim != 1 or forecast.ndim < 2 or forecast.shape[-1:] != q.shape:
        raise ValueError(
            f"levels: expected one for each element of the last axis of the forecasts, {checks.describe(forecast)}, got"
            f" {checks.describe(q)}"
        )
    if checks.is_concrete(q) and not bool(((q > 0) & (q < 1)).all()):
        raise ValueError(f"levels: expected numbers above 0 and below 1, got {q.tolist()}")
    _, y = _pair(forecast[..., 0], targets)
    error = _difference(y[..., None], forecast)
    q = jnp.where((q > 0) & (q < 1), q, jnp.nan).reshape(*[1] * y.ndim, -1)
    return mean_of_each(jnp.maximum(q * error, (q - 1) * error))


def coverage(lower: Array, upper: Array, targets: Array) -> Array:
    """The fraction of targets within their intervals: the mean of `[l ≤ y ≤ u]`.

    Args:
        lower: l, `(batch, ...)`.
        upper: u, of the same shape.
        targets: y, of the same shape.

    Returns:
        `(batch,)` from 0 to 1, in the dtype of the bounds; NaN if a bound is NaN.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> coverage(jnp.zeros((1, 4)), jnp.ones((1, 4)), jnp.array([[-1.0, 0.0, 0.5, 2.0]]))
        Array([0.5], dtype=float32)
    """
    low, high, y = _bounds(lower, upper, targets)
    inside = (_difference(low, y) <= 0) & (_difference(y, high) <= 0)
    unknown = jnp.isnan(_device(low)) | jnp.isnan(_device(high))
    return mean_of_each(jnp.where(unknown, jnp.nan, inside.astype(_device(low[..., :0]).dtype)))


def interval_width(lower: Array, upper: Array) -> Array:
    """The mean width of intervals, `u − l`; at equal coverage, narrower intervals are more informative.

    Args:
        lower: l, `(batch, ...)`.
        upper: u, of the same shape.

    Returns:
        `(batch,)`, in the units of the bounds.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> interval_width(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
        Array([2.], dtype=float32)
    """
    low = _held("lower", lower)
    return mean_of_each(_difference(_upper(low, upper), low))


def interval_score(lower: Array, upper: Array, targets: Array, level: ArrayLike) -> Array:
    """Interval score: the mean of `(u − l) + 2/α (l − y)⁺ + 2/α (y − u)⁺`, α = 1 − level; best at the true quantiles.

    Args:
        lower: l, `(batch, ...)`, the quantile α/2.
        upper: u, of the same shape, the quantile 1 − α/2.
        targets: y, of the same shape.
        level: the fraction of targets that the intervals should cover, above 0 and below 1; may be traced.

    Returns:
        `(batch,)`, in the units of the targets.

    Raises:
        ValueError: for targets that are not finite, shapes that do not match, or a level that is not above 0 and below
            1.

    Example:
        >>> interval_score(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[0.5, 2.0]]), level=0.5)
        Array([3.], dtype=float32)

    References:
        Gneiting and Raftery, *Strictly proper scoring rules, prediction, and estimation*, Journal of the American
        Statistical Association 2007, equation 43.
    """
    return mean_of_each(_interval_scores(lower, upper, targets, level))


def msis(lower: Array, upper: Array, targets: Array, scale: ArrayLike, level: ArrayLike = 0.95) -> Array:
    """Mean scaled interval score of M4: the `interval_score` divided by the scale of `mase`.

    Args:
        lower: l, `(batch, horizon, channels)`.
        upper: u, of the same shape.
        targets: y, of the same shape.
        scale: s > 0, the `seasonal_naive_error` of the history, `(channels,)` or `(batch, channels)`.
        level: the fraction of targets that the intervals should cover, above 0 and below 1; may be traced.

    Returns:
        `(batch,)`, dimensionless.

    Raises:
        ValueError: for targets that are not finite, shapes that do not match, a scale that is not positive, or a level
            that is not above 0 and below 1.

    Example:
        >>> msis(jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1)), jnp.array([[[0.5], [2.0]]]), jnp.array([2.0]), level=0.5)
        Array([1.5], dtype=float32)

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, section 2.3.
    """
    found = _interval_scores(lower, upper, targets, level, axes=3)
    return (found.mean(1) / _scale(scale, found)).mean(-1)


def _interval_scores(lower: Any, upper: Any, targets: Any, level: ArrayLike, axes: int | None = None) -> Array:
    checks.number("level", level, above=0, below=1)
    low, high, y = _bounds(lower, upper, targets, axes)
    outside = jnp.maximum(_difference(low, y), 0) + jnp.maximum(_difference(y, high), 0)
    share = jnp.asarray(level, outside.dtype)
    factor = 2 / (1 - jnp.where((share > 0) & (share < 1), share, jnp.nan))
    return _difference(high, low) + factor * outside


def _held(name: str, value: Any) -> Any:
    """Return a JAX array unchanged, and anything else in float64 on the host."""
    if isinstance(value, jax.Array):
        checks.numeric(name, value)
        return value
    return arrays.as_numpy(name, value).astype(np.float64)


def _device(value: Any) -> Array:
    """Return a value, on the host or the device, as a JAX array of floats."""
    return arrays.as_array("values", value, floats=True)


def _difference(a: Any, b: Any) -> Array:
    """Subtract in float64 on the host if either value is on the host, otherwise on the device in its dtype."""
    on_host = isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
    if on_host and checks.is_concrete((a, b)):
        return _device(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    a, b = _device(a), _device(b)
    dtype = jnp.promote_types(a.dtype, b.dtype) if on_host else a.dtype
    return a.astype(dtype) - b.astype(dtype)


def _pair(forecasts: Any, targets: Any, axes: int | None = None) -> tuple[Any, Any]:
    """Return forecasts and targets, after checking that they match."""
    forecast, y = _held("forecasts", forecasts), _held("targets", targets)
    _check(forecast, y, axes)
    return forecast, y if isinstance(forecast, np.ndarray) or isinstance(y, np.ndarray) else y.astype(forecast.dtype)


def _errors(forecasts: Any, targets: Any, axes: int | None = None) -> Array:
    return _difference(*_pair(forecasts, targets, axes))


def _bounds(lower: Any, upper: Any, targets: Any, axes: int | None = None) -> tuple[Any, Any, Any]:
    low, y = _pair(lower, targets, axes)
    return low, _upper(low, upper), y


def _check(forecasts: Any, targets: Any, axes: int | None) -> None:
    """Require floating-point forecasts, and finite targets of the same shape."""
    _require_floats(forecasts)
    if forecasts.ndim < 1 or forecasts.ndim != (axes or forecasts.ndim):
        wanted = "(batch, ...)" if axes is None else "(batch, horizon, channels)"
        raise ValueError(f"forecasts: expected {wanted}, got {checks.describe(forecasts)}")
    if forecasts.shape != targets.shape:
        raise ValueError(
            f"targets: expected the shape of the forecasts, {checks.describe(forecasts)}, got"
            f" {checks.describe(targets)}"
        )
    checks.finite("targets", targets)


def _require_floats(forecasts: Any) -> None:
    """Reject JAX integers: targets cast to their dtype would lose their fractional part."""
    if not jnp.issubdtype(forecasts.dtype, jnp.floating):
        raise TypeError(f"forecasts: expected an array of floats, got {checks.describe(forecasts)}")


def _upper(lower: Any, upper: Any) -> Any:
    upper = _held("upper", upper)
    if upper.shape != lower.shape:
        raise ValueError(
            f"upper: expected the shape of the lower bounds, {checks.describe(lower)}, got {checks.describe(upper)}"
        )
    if checks.is_concrete((lower, upper)) and upper.size:
        with jax.ensure_compile_time_eval():
            if bool((lower >= upper).all()) and bool(
                (lower > upper).any()
            ):  # the bounds of a model may cross in places
                raise ValueError(
                    "upper: expected bounds above the lower ones, got bounds below them; are they swapped?"
                )
    return upper


def _scale(scale: Any, forecasts: Array) -> Array:
    """Return the scale of each example and channel, NaN where a traced scale is not positive."""
    s = arrays.as_array("scale", scale, floats=True).astype(forecasts.dtype)
    batch, _, channels = forecasts.shape
    if s.shape not in ((channels,), (batch, channels)):
        raise ValueError(f"scale: expected ({channels},) or ({batch}, {channels}), got {checks.describe(s)}")
    if checks.is_concrete(s) and not bool((s > 0).all()):
        raise ValueError("scale: expected positive numbers, got some that are not")
    return jnp.broadcast_to(jnp.where(s > 0, s, jnp.nan), (batch, channels))
