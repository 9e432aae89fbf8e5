"""Statistics of the training rows, and checks that the device can represent and distinguish their values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks

__all__ = [
    "check_range",
    "check_resolution",
    "check_weights",
    "device_dtype",
    "has_weight",
    "medians",
    "moments",
    "spread",
]


def moments(x: np.ndarray, rows: np.ndarray, is_known: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation (1 for constant features) over the given rows, `(1, ...)` each.

    The arguments are as for `spread`.
    """
    mean, scale = spread(x, rows, is_known)
    scale[scale <= 1e-12 * np.abs(mean)] = 1
    return mean, scale


def spread(x: np.ndarray, rows: np.ndarray, is_known: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation over the given rows, `(1, ...)` each.

    Args:
        x: the values, `(rows, ...)`.
        rows: a mask or the positions of the rows to measure.
        is_known: booleans of the shape of `x`, true for the values to measure; all by default. A feature without any
            gets the mean 0 and the deviation 1.
    """
    x = x[rows]
    if is_known is None:
        return x.mean(0, keepdims=True), x.std(0, keepdims=True)
    known = is_known[rows]
    some = known.any(0, keepdims=True)
    mean, deviation = (of(0, keepdims=True, where=known | ~some) for of in (x.mean, x.std))
    return np.where(some, mean, 0), np.where(some, deviation, 1)


def has_weight(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return which targets have positive weight, with the given shape of the targets; None if weights are per row.

    >>> has_weight(np.array([[1.0, 0.0]]), (1, 2))
    array([[ True, False]])
    """
    if weights.ndim == 1:
        return None
    return np.broadcast_to((weights > 0).reshape(*weights.shape, *(1,) * (len(shape) - weights.ndim)), shape)


def medians(
    x: np.ndarray, lost: np.ndarray, measured: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the feature medians over the measured rows, and the positions of features with missing values there."""
    if x.ndim != 2:
        raise ValueError(f"inputs: expected (rows, features) to fill in medians, got {checks.describe(x)}")
    unknown = lost[measured].all(0)
    if unknown.any():
        raise ValueError(f"inputs: expected at least one known value of {names[int(unknown.argmax())]!r}, got NaN")
    indicators = tuple(int(i) for i in np.flatnonzero(lost[measured].any(0)))
    return np.nanmedian(x[measured], axis=0, keepdims=True), indicators


def check_range(x: np.ndarray, names: tuple[str, ...], dtype: Any) -> None:
    """Raise an error for features that would overflow or underflow in the dtype that predictions may use."""
    if x.dtype != np.float64:
        return
    limits = jnp.finfo(dtype)
    largest = np.maximum(np.fmax.reduce(x), -np.fmin.reduce(x)).reshape(x.shape[1], -1).max(1)
    is_lost = (largest > float(limits.max)) | ((largest > 0) & (largest < float(limits.tiny)))
    if is_lost.any():
        first = int(is_lost.argmax())
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can hold, got {names[first]!r} with values up to"
            f" {largest[first]:g}; divide it by its scale first"
        )


def check_resolution(mean: np.ndarray, scale: np.ndarray, names: tuple[str, ...], dtype: Any) -> None:
    """Raise an error for features whose spread would be lost in the dtype that predictions may use."""
    limits = jnp.finfo(dtype)
    most = 1e5 * float(np.finfo(np.float32).eps) / float(limits.eps)
    lost = (np.abs(mean) > most * scale).reshape(mean.shape[1], -1).any(1)
    if lost.any():
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can tell apart, got {names[int(lost.argmax())]!r} with"
            f" a mean of over {most:,.0f} standard deviations; subtract an offset first"
        )
    vanishing = (scale < float(limits.tiny)).reshape(scale.shape[1], -1).any(1)
    if vanishing.any():
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can hold, got {names[int(vanishing.argmax())]!r} with a"
            f" standard deviation of {scale.min():g}; divide it by its scale first"
        )


def check_weights(weights: np.ndarray) -> None:
    """Raise an error for weights that underflow in the device's dtype, or whose sum overflows."""
    limits = jnp.finfo(device_dtype(weights.dtype, at_least=float))
    lowest, total = float(weights[weights > 0].min()), float(weights.sum())
    if lowest < float(limits.tiny) or total > float(limits.max):
        raise ValueError(
            f"weights: expected at least {float(limits.tiny):g} and a sum of at most {float(limits.max):g}, got"
            f" {lowest:g} and a sum of {total:g}; divide them by their mean first"
        )


def device_dtype(dtype: Any, at_least: type) -> Any:
    """Return the device's dtype for a dtype, or for `at_least` (int or float) if the dtype is of a lower kind."""
    kind = np.floating if at_least is float else np.number
    return jax.dtypes.canonicalize_dtype(dtype if jnp.issubdtype(dtype, kind) else at_least)
