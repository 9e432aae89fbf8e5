"""From a series to examples: splits in time order, scaling by the training split, and windows of past and future.

Every forecaster is a `Model` that maps past windows `(batch, lookback, channels)` to future windows `(batch, horizon,
channels)`, so it is trained by `nnfx.fit` on such windows.

>>> import nnfx
>>> values = np.sin(np.arange(200.0)[:, None])
>>> train, valid, test = split(values, lookback=24, sizes=(0.7, 0.1, 0.2))
>>> scaler = Scaler.of(train)
>>> data = as_data(*(windows(scaler(part), lookback=24, horizon=6) for part in (train, valid)))
>>> data.train.inputs.shape, data.valid.targets.shape
((111, 24, 1), (15, 6, 1))
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.data.prepare import Data
from nnfx.data.preprocess import Preprocess
from nnfx.forecasting.known import check_aligned
from nnfx.forecasting.values import as_series, floating, in_floats, on_hand
from nnfx.types import Array, Batch, at_least_float32


class Windows(NamedTuple):
    """Past windows of a series, each with the window that follows it.

    Attributes:
        inputs: `(windows, lookback, channels)`, exogenous channels last.
        targets: `(windows, horizon, channels)`, without exogenous channels.
    """

    inputs: Array
    targets: Array


def windows(
    values: Any,
    lookback: int,
    horizon: int,
    stride: int = 1,
    *,
    past: Any = None,
    future: Any = None,
) -> Windows:
    """Cut a series into windows: for n = 0, 1, … inputs `y[sn : sn + L]` and targets `y[sn + L : sn + L + H]`.

    Exogenous columns become additional channels of the inputs. Columns known only in the past are cut like the series.
    Columns known ahead, such as calendars and plans, are cut H steps later, `x[sn + H : sn + H + L]`, so that their
    last H rows cover the horizon. Pass such columns in `past` as well if a model should also see their values at the
    times of the lookback.

    Args:
        values: y, one series `(time, channels)` or a panel `(series, time, channels)`, finite; an array, a list, an
            `nnfx.data.Series`, or a pandas or polars frame or Series; if it has times, they must be regular.
        lookback: L, the number of steps that a forecaster sees.
        horizon: H, the number of steps that it forecasts.
        stride: s, the number of steps from one window to the next.
        past: columns that are known up to the present, of the shape of the values except for the channels.
        future: x, columns that are known H steps ahead; the lookback must then be at least the horizon.

    Returns:
        The `(time − L − H) // s + 1` windows of each series, one series after another, as floats.

    Raises:
        TypeError: for values that are not real numbers, or sizes that are not integers.
        ValueError: for values that are of the wrong rank, not finite, missing, or no longer distinct once rounded to
            the dtype of the windows; for times with a gap, repeated or out of order; for fewer steps than one window
            covers; for exogenous columns whose times or series differ from those of the values; and for a horizon
            longer than the lookback if columns are known ahead.

    Example:
        >>> inputs, targets = windows(jnp.arange(6.0)[:, None], lookback=3, horizon=2)
        >>> inputs[:, :, 0].tolist(), targets[:, :, 0].tolist()
        ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0, 4.0], [4.0, 5.0]])
    """
    for name, size in {"lookback": lookback, "horizon": horizon, "stride": stride}.items():
        checks.positive_integer(name, size)
    y = in_floats("values", values)
    time = y.shape[-2]
    if time < lookback + horizon:
        raise ValueError(
            f"values: expected at least lookback + horizon = {lookback} + {horizon} steps, got {checks.describe(y)}"
        )
    if future is not None and lookback < horizon:
        raise ValueError(
            f"lookback: expected at least the horizon, {horizon}, if columns are known ahead, got {lookback}"
        )
    starts = stride * np.arange((time - lookback - horizon) // stride + 1)
    seen = starts[:, None] + np.arange(lookback)
    channels = [_cut(y, seen)]
    if past is not None:
        channels.append(_cut(_exogenous("past", past, values, y), seen))
    if future is not None:
        channels.append(_cut(_exogenous("future", future, values, y), seen + horizon))
    return Windows(jnp.concatenate(channels, axis=-1), _cut(y, starts[:, None] + lookback + np.arange(horizon)))


def _cut(values: Array, times: np.ndarray) -> Array:
    """Take the rows at times `(windows, steps)` from each series, and concatenate the windows of a panel."""
    cut = jnp.take(values, times, axis=-2, mode="clip")
    return cut.reshape(-1, *cut.shape[-2:])


def _exogenous(name: str, columns: Any, values: Any, y: Array) -> Array:
    x = in_floats(name, columns)
    check_aligned(name, columns, x, values, y)
    return x.astype(y.dtype)


def as_data(train: Windows, valid: Windows | None = None) -> Data:
    """Convert windows to data for `nnfx.fit`, which reach the model unchanged.

    Args:
        train: the training windows.
        valid: the held-out windows, whose targets lie in a later split; see `split`.

    Returns:
        Data whose preprocessing leaves windows unchanged.

    Raises:
        ValueError: for held-out windows whose sizes differ from those of the training windows.

    Example:
        >>> data = as_data(windows(jnp.arange(6.0)[:, None], lookback=3, horizon=2))
        >>> data.train.inputs.shape, data.valid
        ((2, 3, 1), None)
    """
    train = _as_windows("train", train)
    if valid is not None:
        valid = _as_windows("valid", valid)
        for name, one, other in zip(Windows._fields, train, valid, strict=True):
            if one.shape[1:] != other.shape[1:]:
                raise ValueError(
                    f"valid: expected {name} of the same sizes as the training windows, {checks.describe(one)},"
                    f" got {checks.describe(other)}"
                )

    def batch(part: Windows) -> Batch:
        return Batch(part.inputs, part.targets, jnp.ones(len(part.inputs), at_least_float32(part.inputs.dtype)))

    dtype = train.inputs.dtype
    unchanged = Preprocess(
        None, jnp.zeros((), dtype), jnp.ones((), dtype), (), train.inputs.shape[1:], keep_integers=False
    )
    return Data(batch(train), None if valid is None else batch(valid), unchanged)


def _as_windows(name: str, given: Any) -> Windows:
    """Return windows as floats on the device, after checking them."""
    if not isinstance(given, tuple) or len(given) != len(Windows._fields):
        raise TypeError(f"{name}: expected Windows, as returned by windows(...), got {checks.describe(given)}")
    parts: list[Array] = []
    for field, each in zip(Windows._fields, given, strict=True):
        where = f"{name}.{field}"
        x = on_hand(where, each)
        checks.numeric(where, x)
        if x.ndim < 2 or x.shape[0] != len(parts[0] if parts else x):
            rows = len(parts[0]) if parts else "windows"
            raise ValueError(f"{where}: expected ({rows}, steps, channels), got {checks.describe(x)}")
        checks.finite(where, x)
        if isinstance(x, np.ndarray):
            arrays.check_spread(where, x, axis=(0, 1))
        parts.append(arrays.to_device(where, x, floating(x)))
    return Windows(*parts)


def split(values: Any, lookback: int, sizes: Sequence[float]) -> tuple[Any, ...]:
    """Split a series in time order, so that the targets of each window lie in a single split.

    The first split is `y[: n₁]`. A later split begins L steps early, `y[b − L : b + n]`: its windows look back into the
    split before it, but all of their targets, from b on, are its own. So no training window contains values of a later
    split, and each step of a later split is a target.

    Args:
        values: y, one series `(time, channels)` or a panel `(series, time, channels)`, as for `windows`.
        lookback: L, the lookback of the windows that the splits will be cut into.
        sizes: two or more, such as the sizes of the training, held-out and test splits. Either in steps, in which case
            steps left over at the end are unused; or as fractions of all steps, which sum to 1. Fractions are rounded
            down to whole steps, and the steps left over go to the second split.

    Returns:
        The splits, one per size: frames or `nnfx.data.Series` if the values are such, arrays otherwise.

    Raises:
        TypeError: for sizes that mix steps and fractions, or a lookback that is not an integer.
        ValueError: for values that `windows` rejects, fewer than two sizes, sizes that are not positive, more steps
            than the series has, fractions that do not sum to 1 or leave a split empty, or a first split shorter than
            the lookback.

    Example:
        >>> [part[:, 0].tolist() for part in split(np.arange(10)[:, None], lookback=2, sizes=(5, 2, 3))]
        [[0, 1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8, 9]]

    References:
        Zhou et al., *Informer: beyond efficient transformer for long sequence time-series forecasting*, AAAI 2021,
        which uses the same borders, as do Zeng et al., *Are transformers effective for time series forecasting?*,
        AAAI 2023.
    """
    checks.positive_integer("lookback", lookback)
    checked = as_series("values", values)
    steps = _steps(sizes, checked.shape[-2])
    if steps[0] < lookback:
        raise ValueError(f"sizes: expected a first split of at least the lookback, {lookback} steps, got {steps[0]}")
    ends: list[int] = list(itertools.accumulate(steps))
    starts = [0, *(end - lookback for end in ends[:-1])]
    return tuple(_between(values, checked, start, end) for start, end in zip(starts, ends, strict=True))


def _between(values: Any, checked: Any, start: int, end: int) -> Any:
    """Return a range of steps of a series, with times and names if it has them, otherwise as an array."""
    if hasattr(values, "times") and hasattr(values, "_replace"):
        times = None if values.times is None else values.times[start:end]
        return values._replace(values=values.values[start:end], times=times)
    if hasattr(values, "iloc"):
        return values.iloc[start:end]
    if hasattr(values, "null_count"):  # a polars frame or Series
        return values[start:end]
    return checked[..., start:end, :]


def _steps(sizes: Sequence[float], time: int) -> list[int]:
    """Return the size of each split in steps."""
    sizes = sizes.tolist() if isinstance(sizes, np.ndarray | jax.Array) and sizes.ndim == 1 else sizes
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"sizes: expected a sequence, such as (0.7, 0.1, 0.2), got {checks.describe(sizes)}")
    if len(sizes) < 2:
        raise ValueError(f"sizes: expected two or more, got {checks.describe(sizes)}")
    for i, size in enumerate(sizes):
        checks.number(f"sizes[{i}]", size, above=0)
    if all(isinstance(size, float | np.floating) for size in sizes):
        if not math.isclose(sum(sizes), 1, abs_tol=1e-6):
            raise ValueError(f"sizes: expected fractions that sum to 1, got {tuple(sizes)}")
        steps = [_whole_part(size, time) for size in sizes]
        steps[1] += time - sum(steps)
        if min(steps) < 1:
            raise ValueError(f"sizes: expected fractions of {time} steps that leave no split empty, got {tuple(sizes)}")
        return steps
    if any(isinstance(size, float | np.floating) for size in sizes):
        raise TypeError(f"sizes: expected all sizes in steps or all as fractions, got {checks.describe(sizes)}")
    for i, size in enumerate(sizes):
        checks.positive_integer(f"sizes[{i}]", size)
    if sum(sizes) > time:
        raise ValueError(f"sizes: expected at most the {time} steps of the series, got {' + '.join(map(str, sizes))}")
    return [int(size) for size in sizes]


def _whole_part(fraction: Any, time: int) -> int:
    """Return a fraction of the steps, rounded down, allowing for the rounding error of the fraction's own dtype.

    >>> _whole_part(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    rounding = 4 * float(np.finfo(type(fraction)).eps)
    return math.floor(float(fraction) * time * (1 + rounding))


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
                `(series, ..., channels)`. Lists and frames are accepted as by `windows`.

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
