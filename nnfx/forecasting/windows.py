"""From a series to examples: splits in time order, and windows of past and future.

Every forecaster is a `Model` that maps past windows `(batch, lookback, channels)` to future windows `(batch, horizon,
channels)`, so it is trained by `nnfx.fit` on such windows.

>>> import nnfx
>>> from nnfx.forecasting.scaling import Scaler
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

    The first split is `y[: n₁]`. A later split begins L steps early, `y[b − L : b + n]`: its windows look back into
    the previous split, but all of their targets lie in their own split, from b on. So no training window contains
    values of a later split, and each step of a later split is a target.

    Args:
        values: y, one series `(time, channels)` or a panel `(series, time, channels)`, as for `windows`.
        lookback: L, the lookback of the windows that the splits will be cut into.
        sizes: two or more, such as the sizes of the training, held-out and test splits. Either in steps, in which case
            steps left over at the end are unused; or as fractions of all steps, which sum to 1. Fractions are rounded
            down to whole steps, and the steps left over go to the second split.

    Returns:
        The splits, one per size: of the type of the values for a frame or an `nnfx.data.Series`, arrays otherwise.

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
        which uses the same boundaries, as do Zeng et al., *Are transformers effective for time series forecasting?*,
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
