"""Prepare a series for training, and keep its end for `nnfx.forecasting.forecast`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.data.frames import as_columns, frame_names, in_order_of, places, repeated
from nnfx.data.prepare import Data
from nnfx.data.preprocess import Preprocess
from nnfx.data.times import clock_of, difference, following
from nnfx.forecasting.known import Channels, check_aligned
from nnfx.forecasting.scaling import Scaler
from nnfx.forecasting.values import as_series
from nnfx.forecasting.windows import Windows, as_data, windows

__all__ = ["History", "SeriesData", "prepare"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class History:
    """A series up to the present, on the host.

    Attributes:
        rows: the values followed by the exogenous columns, `(time, channels)`, in their original units.
        channels: the number of columns of each kind.
        names: the names of the columns of each kind, `()` if they have none.
        times: the times of the initial rows; None if unknown.
        appended: the number of rows appended to the initial rows.
        scaler: the mean and the scale of each column.
        lookback: the number of steps that a forecaster sees.
        horizon: the number of steps that it forecasts at once.
    """

    rows: np.ndarray
    channels: Channels
    names: Mapping[str, tuple[str, ...]]
    times: Any
    appended: int
    scaler: Scaler
    lookback: int
    horizon: int

    def next_times(self, steps: int) -> Any:
        """Return the times of the next steps after the series; None if the times of the series are unknown."""
        return None if self.times is None else following(self.times, self.appended + steps)[self.appended :]

    def rows_to_come(self, kind: str, given: Any, steps: int | None = None) -> np.ndarray:
        """Return new rows of one kind of column, checked, with the columns in order, `(steps, channels)`.

        Args:
            kind: a field of `channels`, and the name of the argument, for error messages.
            given: the rows as the user passed them.
            steps: the number of rows needed; None for any number.

        Raises:
            ValueError: for columns or rows that are missing, unknown or out of order.
        """
        count = getattr(self.channels, kind)
        if (given is None) == (count > 0):
            raise ValueError(f"{kind}: expected {self._rows_after(kind, steps)}, got {checks.describe(given)}")
        if given is None:
            return np.empty((steps or 0, 0))
        given = _in_order(self.names[kind], given, kind)
        rows: np.ndarray = np.asarray(as_series(kind, given))
        if rows.ndim != 2 or rows.shape[1] != count or (steps is not None and len(rows) != steps):
            raise ValueError(f"{kind}: expected {self._rows_after(kind, steps)}, got {checks.describe(rows)}")
        theirs, ours = clock_of(given), self.next_times(len(rows))
        if ours is not None and theirs is not None and (other := difference(ours, theirs)):
            raise ValueError(f"{kind}: expected the times after the series, got {other}")
        return rows.astype(np.float64)

    def _rows_after(self, kind: str, steps: int | None) -> str:
        """Describe the rows that `rows_to_come` expects for a kind of column."""
        if not (count := getattr(self.channels, kind)):
            return "None, as in the data"
        names = ", ".join(map(repr, self.names[kind]))
        times = self.next_times(1)
        return (
            f"({'steps' if steps is None else steps}, {count}), the rows{' of ' * bool(names)}{names} after the series"
            f"{'' if times is None else f', from {times[0]} on'}"
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["train", "valid", "preprocess"],
    meta_fields=["features", "report", "history"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SeriesData(Data):
    """Windows of a series, ready for training, with the series itself; returned by `prepare`.

    Attributes:
        history: the series up to the present, from which `nnfx.forecasting.forecast` continues.
    """

    history: History = dataclasses.field(kw_only=True)

    @property
    def scaler(self) -> Scaler:
        """The mean and the scale of the values, then of the exogenous columns, as measured for training."""
        return self.history.scaler

    def append(self, values: Any, *, past: Any = None, future: Any = None) -> "SeriesData":
        """Return the data with new observations appended, so that a trained forecaster continues from there.

        The training windows and the scales do not change.

        Args:
            values: the new values, `(steps, channels)`.
            past: the columns known only in the past, at the new steps; None if the data have none.
            future: the columns known ahead, at the new steps; None if the data have none.

        Raises:
            ValueError: for columns that are missing or unknown, or times that do not continue those of the series.

        Example:
            >>> data = prepare([[1.0], [2.0], [4.0]], lookback=2, horizon=1)
            >>> data.append([[8.0], [16.0]]).history.rows.ravel().tolist()
            [1.0, 2.0, 4.0, 8.0, 16.0]
        """
        history = self.history
        new = history.rows_to_come("values", values)
        others = [history.rows_to_come(kind, given, len(new)) for kind, given in (("past", past), ("future", future))]
        rows = np.concatenate([history.rows, np.concatenate([new, *others], axis=1)])
        return dataclasses.replace(
            self, history=dataclasses.replace(history, rows=rows, appended=history.appended + len(new))
        )


def prepare(
    values: Any,
    lookback: int,
    horizon: int,
    *,
    past: Any = None,
    future: Any = None,
    valid_windows: int = 0,
) -> SeriesData:
    """Prepare a series for training: check it, scale it, cut it into windows, and keep it to forecast from its end.

    Each column is scaled, `(y − μ) / σ`, by its mean and its standard deviation before the first held-out target.
    The meaning and the order of the columns are as in `nnfx.forecasting.windows`.

    Args:
        values: the series, `(time, channels)`: an array, a list, an `nnfx.data.Series`, or a pandas or polars frame or
            Series; if it has times, they must be regular.
        lookback: the number of steps that a forecaster sees.
        horizon: the number of steps that it forecasts at once.
        past: exogenous columns that are known up to the present, `(time, channels)`. Wrap models that forecast every
            channel they see, such as the baselines, in `nnfx.forecasting.baselines.without_exogenous`.
        future: exogenous columns that are known ahead, over the horizon; the lookback must then be at least the
            horizon.
        valid_windows: the number of latest windows to hold out, for stopping rules and for choosing the best weights;
            no held-out target appears in a training window.

    Returns:
        Data for `nnfx.fit` and, together with the run, for `nnfx.forecasting.forecast`. The run's `predict` takes
        windows `(batch, lookback, channels)` and returns point forecasts, both in the original units of the series.

    Raises:
        TypeError: for values that are not real numbers, or sizes that are not integers.
        ValueError: as `windows` does; for more than one series; for columns of one name; and for too few steps for
            one training window and the held-out windows.

    Example:
        >>> data = prepare(np.sin(np.arange(40.0))[:, None], lookback=8, horizon=4, valid_windows=5)
        >>> data.train.inputs.shape, data.valid.targets.shape
        ((21, 8, 1), (5, 4, 1))
    """
    for name, size in {"lookback": lookback, "horizon": horizon}.items():
        checks.positive_integer(name, size)
    checks.non_negative_integer("valid_windows", valid_windows)
    parts: list[np.ndarray] = []
    names: dict[str, tuple[str, ...]] = {}
    for name, given in {"values": values, "past": past, "future": future}.items():
        if given is None:
            parts.append(parts[0][:, :0])
            names[name] = ()
            continue
        checked = as_series(name, given)
        if checked.ndim != 2:
            raise ValueError(f"{name}: expected one series, (time, channels), got {checks.describe(checked)}")
        if parts:
            check_aligned(name, given, checked, values, parts[0])
        parts.append(np.asarray(checked).astype(np.float64))
        names[name] = _names(given)
        if twice := repeated(names[name]):
            raise ValueError(f"{name}: expected columns with unique names, got {', '.join(map(repr, twice))} twice")
    held_out = valid_windows + horizon - 1 if valid_windows else 0
    time = len(parts[0])
    if time < lookback + horizon + held_out:
        raise ValueError(
            f"values: expected at least {lookback + horizon + held_out} steps, for one training window"
            f"{' and the held-out windows' * bool(held_out)}, got {checks.describe(parts[0])}"
        )
    rows = np.concatenate(parts, axis=1)
    channels = Channels(*(part.shape[1] for part in parts))
    scaler = Scaler.of(rows, where=np.arange(time) < time - held_out)
    y, *exogenous = (np.asarray(scaler(rows))[:, columns] for columns in channels.slices())
    before, ahead = (columns if columns.shape[1] else None for columns in exogenous)
    cut = windows(y, lookback, horizon, past=before, future=ahead)
    valid = Windows(*(part[-valid_windows:] for part in cut)) if valid_windows else None
    data = as_data(Windows(*(part[: len(part) - held_out] for part in cut)), valid)
    history = History(rows, channels, names, clock_of(values), 0, scaler, lookback, horizon)
    return SeriesData(data.train, data.valid, _scaling(data, scaler, channels.values), history=history)


def _scaling(data: Data, scaler: Scaler, channels: int) -> Preprocess:
    """Return the map from windows in original units to scaled windows, and from scaled forecasts to original units."""
    forecasts = (1, *data.train.targets.shape[1:])
    return dataclasses.replace(
        data.preprocess,
        mean=scaler.mean[None],
        scale=scaler.scale[None],
        target_mean=jnp.broadcast_to(scaler.mean[None, :, :channels], forecasts),
        target_scale=jnp.broadcast_to(scaler.scale[None, :, :channels], forecasts),
    )


def _names(given: Any) -> tuple[str, ...]:
    """Return the column names of a series or a frame; `()` if it has none."""
    if hasattr(given, "values") and hasattr(given, "times"):  # an nnfx.data.Series
        return tuple(given.names)
    return frame_names(as_columns(given)) or ()


def _in_order(names: tuple[str, ...], given: Any, name: str) -> Any:
    """Return a series or a frame with its columns in the order of the names, and anything without names unchanged."""
    if hasattr(given, "values") and hasattr(given, "times"):
        own = tuple(given.names)
        order = places(names, own, name) if names and own else slice(None)
        return given._replace(values=given.values[:, order])
    return in_order_of(names, given, name)
