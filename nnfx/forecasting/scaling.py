"""The scaling of a series by its training split, and back to its original units."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.forecasting.values import as_series, floating, on_hand
from nnfx.types import Array, at_least_float32


class Scaler(NamedTuple):
    """The mean and scale of each channel of each series; calling it computes `(y − μ) / σ`.

    Attributes:
        mean: μ, `(1, channels)`, or `(series, 1, channels)` for a panel.
        scale: σ > 0, of the same shape.
    """

    mean: Array
    scale: Array

    @classmethod
    def of(cls, values: Any, where: Any = None) -> "Scaler":
        """Measure the mean and the standard deviation over time, `σ² = Σ (y − μ)² / n`; σ is 1 for a constant channel.

        Args:
            values: the training values only, `(time, channels)` or `(series, time, channels)`, finite, as for
                `windows`; concrete values are measured in float64.
            where: booleans `(time,)`, true for the steps to measure; all steps by default.

        Raises:
            TypeError, ValueError: for values that are not real numbers, of the wrong rank, not finite, or whose spread
                is lost in the rounding of their dtype; and for a `where` that is not one boolean per step.

        Example:
            >>> scaler = Scaler.of(jnp.array([[1.0, 7.0], [3.0, 7.0]]))
            >>> scaler(jnp.array([[5.0, 8.0]])), scaler.inverse(jnp.array([[3.0, 1.0]]))
            (Array([[3., 1.]], dtype=float32), Array([[5., 8.]], dtype=float32))
        """
        x = as_series("values", values)
        dtype = at_least_float32(floating(x))
        if isinstance(x, np.ndarray) and checks.is_concrete(where) and not arrays.is_exact(x.dtype, dtype):
            return cls._measured(x, None if where is None else _steps_where(where, x), dtype)
        x = jnp.asarray(x)
        is_measured = None if where is None else _steps_where(where, x)
        precise = x.astype(dtype)

        def average(values: Array) -> Array:
            return values.mean(-2, keepdims=True, where=is_measured)

        mean = average(precise)
        mean = mean + average(precise - mean)  # correct the rounding error of the sum
        scale = jnp.sqrt(average(jnp.square(precise - mean)))
        is_constant = scale <= jnp.finfo(precise.dtype).eps * jnp.abs(mean)
        if checks.is_concrete((mean, scale)):
            _check_resolution(np.asarray(mean), np.where(is_constant, np.inf, scale), dtype)
        return cls(mean, jnp.where(is_constant, 1, scale))

    @classmethod
    def _measured(cls, values: np.ndarray, is_measured: np.ndarray | None, dtype: Any) -> "Scaler":
        """Return the scaler of concrete values, measured in float64 on the host."""
        arrays.check_range("values", values, dtype)
        exact, where = values.astype(np.float64), True if is_measured is None else is_measured
        mean, scale = exact.mean(-2, keepdims=True, where=where), exact.std(-2, keepdims=True, where=where)
        is_constant = scale <= 1e-12 * np.abs(mean)
        _check_resolution(mean, np.where(is_constant, np.inf, scale), dtype)
        scale = np.where(is_constant, 1, scale)
        arrays.check_range("values", scale, dtype)
        return cls(jnp.asarray(mean, dtype), jnp.asarray(scale, dtype))

    def __call__(self, values: Any) -> Array:
        """Scale values, `(y − μ) / σ`; values that the device cannot represent exactly are scaled on the host.

        Args:
            values: `(..., channels)`, such as windows `(windows, steps, channels)`; for the scaler of a panel,
                `(series, ..., channels)`. Lists and frames are accepted, as for `windows`.

        Raises:
            ValueError: for missing values, or if the number of channels or series differs from that of the measured
                values.
        """
        x = on_hand("values", values)
        mean, scale = self._aligned(x)
        if not isinstance(x, np.ndarray) or not checks.is_concrete(self) or arrays.is_exact(x.dtype, mean.dtype):
            x = arrays.to_device("values", x, floating(x))
            return ((x - mean) / scale).astype(x.dtype)
        scaled = (x.astype(np.float64) - np.asarray(mean, np.float64)) / np.asarray(scale, np.float64)
        return arrays.to_device("values", scaled, floating(x))

    def inverse(self, values: Any) -> Array:
        """Convert scaled values, such as forecasts, to their original units, `σ y + μ`; shapes are as for scaling.

        Raises:
            ValueError: if the number of channels or series differs from that of the measured values.
        """
        x = on_hand("values", values)
        mean, scale = self._aligned(x)
        x = arrays.to_device("values", x, floating(x))
        return (x * scale + mean).astype(x.dtype)

    def _aligned(self, x: Any) -> tuple[Array, Array]:
        """Return the mean and the scale, reshaped to broadcast against the values."""
        *series, _, channels = self.mean.shape
        if x.ndim < len(series) + 1 or x.shape[: len(series)] != tuple(series) or x.shape[-1] != channels:
            expected = ", ".join([*map(str, series), "...", str(channels)])
            raise ValueError(f"values: expected ({expected}), as measured, got {checks.describe(x)}")
        shape = (*series, *[1] * (x.ndim - len(series) - 1), channels)
        return self.mean.reshape(shape), self.scale.reshape(shape)


def _steps_where(where: Any, values: Any) -> Any:
    """Return which values to measure, with the shape of the values, given which steps to measure."""
    steps = where if isinstance(where, jax.Array) else arrays.as_numpy("where", where)
    if steps.shape != values.shape[-2:-1] or steps.dtype != bool:
        raise ValueError(
            f"where: expected booleans [{values.shape[-2]}], one for each step, got {checks.describe(steps)}"
        )
    if checks.is_concrete(steps) and not np.asarray(steps).any():
        raise ValueError("where: expected at least one step to measure, got none")
    library = np if isinstance(values, np.ndarray) else jnp
    return library.broadcast_to(steps.reshape(*(1,) * (values.ndim - 2), -1, 1), values.shape)


def _check_resolution(mean: np.ndarray, scale: np.ndarray, dtype: Any) -> None:
    """Raise an error for channels whose spread is lost when rounded to the dtype of the device."""
    most = 1e5 * float(np.finfo(np.float32).eps) / float(jnp.finfo(dtype).eps)
    lost = np.argwhere(np.abs(mean) > most * scale)
    if len(lost):
        raise ValueError(
            f"values: expected channels that {jnp.dtype(dtype)} can tell apart, got channel {lost[0][-1]} with a mean"
            f" of over {most:,.0f} standard deviations; subtract an offset first"
        )
