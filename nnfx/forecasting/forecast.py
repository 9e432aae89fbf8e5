"""Forecasts beyond the end of a series, with times and intervals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.forecasting import conformal, heads
from nnfx.forecasting.backtest import Backtest, Trained
from nnfx.forecasting.heads import POINT, Head, Interval
from nnfx.forecasting.prepare import History, SeriesData
from nnfx.forecasting.scaling import Scaler
from nnfx.tables import table
from nnfx.types import Array, Model
from nnfx.uncertainty.conformal import fewest

__all__ = ["Forecast", "forecast"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """A forecast of the steps after the end of a series, in the original units of the series.

    Attributes:
        values: point forecasts, `(steps, channels)`.
        interval: lower and upper bounds of the same shape; None if no level was requested.
        level: the fraction of the values that the interval should cover; None if there is no interval.
        outputs: the forecasts with all parameters of the head, `(steps, channels, parameters)`, for its `quantiles`;
            the point forecasts for the head `POINT`. Beyond the horizon, they treat earlier point forecasts as exact.
        times: datetime64 `(steps,)`, or a pandas index if the times of the series have a time zone; the numbers that
            follow those in the index of a frame, such as years; None if they are unknown.
        names: the names of the channels, `()` if they have none.
    """

    values: Array
    interval: Interval | None
    level: float | None
    outputs: Array
    times: Any
    names: tuple[str, ...]

    def __repr__(self) -> str:
        """Return a table with one row for each step."""
        first = range(1, len(self.values) + 1) if self.times is None else _shown(self.times)
        columns = self._columns()
        header = ["step" if self.times is None else "time", *columns]
        return table(header, zip(first, *(values.tolist() for values in columns.values()), strict=True))

    def frame(self) -> Any:
        """Return a pandas frame with a column for each channel and bound; its index contains the times, if known.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(self._columns(), index=self.times)

    def _columns(self) -> dict[str, np.ndarray]:
        count = self.values.shape[1]
        names = self.names or (["value"] if count == 1 else [f"value {i}" for i in range(count)])
        parts = {"": self.values}
        if self.interval is not None:
            end = ""
            while any(f"{name} {bound}{end}" in names for name in names for bound in ("lower", "upper")):
                end += " bound"  # a column of the series may itself be called "a upper"
            parts |= {f" lower{end}": self.interval.lower, f" upper{end}": self.interval.upper}
        return {f"{name}{what}": np.asarray(part)[:, i] for i, name in enumerate(names) for what, part in parts.items()}


def _shown(times: Any) -> np.ndarray:
    """Return times without their zone, as dates if all of them are at midnight, as in many pandas indices."""
    times = np.asarray(times if getattr(times, "tz", None) is None else times.tz_localize(None))
    if times.dtype.kind != "M" or np.datetime_data(times.dtype)[0] in ("Y", "M", "W"):
        return times
    days = times.astype("datetime64[D]")
    return days if (days == times).all() else times.astype("datetime64[s]")


def forecast(
    trained: Trained | Model,
    data: SeriesData,
    steps: int,
    *,
    future: Any = None,
    head: Head = POINT,
    level: float | None = None,
    calibration: Backtest | None = None,
) -> Forecast:
    """Forecast the steps that follow the end of a series.

    Up to the horizon, the result is the beginning of a single forecast. Beyond it, the forecaster is applied to its
    own point forecasts, one horizon at a time, like `nnfx.forecasting.forecasters.recursive`. With columns known
    ahead, the last application begins early enough to end with the last step, so that no later values are needed.

    Args:
        trained: a run on `data`, or a saved run opened by `nnfx.load`; or a model without parameters, such as `naive`
            of `nnfx.forecasting.baselines`, which sees the series in its original units.
        data: the series, as returned by `nnfx.forecasting.prepare`.
        steps: the number of steps to forecast.
        future: the columns known ahead, for the steps after the series, in their original units: `(steps, columns)`,
            or `(horizon, columns)` if that is more, since a forecaster sees its whole horizon. Named columns may be in
            any order; their times, if they have any, must continue those of the series.
        head: the meaning of the model's outputs.
        level: the fraction of the values that the intervals should cover, above 0 and below 1; None for no intervals.
        calibration: a backtest of the same forecaster, with a horizon of at least `steps`, whose errors widen or
            narrow the intervals; see `nnfx.forecasting.conformal.margins`. None for the intervals of the head.

    Returns:
        The forecast, which prints as a table. Its times continue the times of the series: monthly times stay monthly,
        and times on weekdays skip the weekend.

    Raises:
        TypeError: for data not returned by `prepare`, or steps that are not an integer.
        ValueError: for columns known ahead that are missing, unknown or of the wrong length or times; for more steps
            than the horizon if some columns are known only in the past, or if a head makes the intervals, which would
            ignore the errors of the point forecasts fed back to it; for a level that the head or the calibration cannot
            provide; for forecasts whose sizes differ from those of the data; and for times that follow no known
            calendar.

    Example:
        >>> import nnfx
        >>> from nnfx.forecasting import baselines, prepare
        >>> passengers = nnfx.data.airline_passengers()
        >>> data = prepare(passengers, lookback=12, horizon=12)
        >>> forecast(baselines.seasonal_naive(12, period=12), data, 3)
        time     passengers
        -------  ----------
        1961-01         417
        1961-02         391
        1961-03         419
    """
    _check(trained, data, steps)
    history = data.history
    planned = history.rows_to_come("future", future, max(steps, history.horizon))
    times = history.next_times(steps)
    outputs = _outputs(trained, history, planned, steps, head)
    interval = _interval(head, outputs, history.horizon, level, calibration)
    return Forecast(head.point(outputs), interval, level, outputs, times, history.names["values"])


def _check(trained: Any, data: Any, steps: int) -> None:
    if not hasattr(trained, "apply"):
        raise TypeError(f"trained: expected a run, or a Model without parameters, got {checks.describe(trained)}")
    if not isinstance(data, SeriesData):
        raise TypeError(f"data: expected data returned by nnfx.forecasting.prepare, got {checks.describe(data)}")
    checks.positive_integer("steps", steps)
    if data.history.channels.past and steps > data.history.horizon:
        raise ValueError(
            f"steps: expected at most {data.history.horizon} (the horizon), since some columns are known only in the"
            f" past, got {steps}"
        )


def _outputs(trained: Trained | Model, history: History, planned: np.ndarray, steps: int, head: Head) -> Array:
    """Forecast one horizon at a time, and return the outputs in the original units of the series."""
    lookback, horizon, channels = history.lookback, history.horizon, history.channels
    of_values, of_past, of_future = channels.slices()
    is_scaled = not isinstance(trained, Model)
    scaler = history.scaler

    def in_view(rows: np.ndarray, columns: slice) -> np.ndarray:
        part = Scaler(scaler.mean[:, columns], scaler.scale[:, columns])
        return np.asarray(part(rows) if is_scaled else arrays.to_device("values", rows, scaler.mean.dtype))

    latest = history.rows[-lookback:]
    y, past = in_view(latest[:, of_values], of_values), in_view(latest[:, of_past], of_past)
    ahead = in_view(np.concatenate([latest[:, of_future], planned]), of_future)
    blocks: list[np.ndarray] = []
    done = 0
    while done < steps:  # on the host, where growing arrays need no recompilation
        start = max(min(done, steps - horizon), 0) if channels.future else done
        window = [y[start : start + lookback], past]
        if channels.future:
            window.append(ahead[start + horizon :][:lookback])
        outputs = _applied(trained, np.concatenate(window, axis=1)[None])
        wanted = (1, horizon, channels.values, *([head.parameters] if head.parameters else []))
        if outputs.shape != wanted:
            raise ValueError(
                f"trained: expected forecasts {list(wanted)} for this horizon and head, got {checks.describe(outputs)}"
            )
        blocks.append(np.asarray(outputs)[0, done - start :])
        y = np.concatenate([y, np.asarray(head.point(jnp.asarray(blocks[-1])), y.dtype)])
        done = start + horizon
    found = jnp.asarray(np.concatenate(blocks)[:steps])
    return head.affine(found, scaler.mean[:, of_values], scaler.scale[:, of_values]) if is_scaled else found


def _applied(trained: Trained | Model, window: np.ndarray) -> Array:
    if not isinstance(trained, Model):
        return trained.apply(window)
    if jax.tree.leaves(jax.eval_shape(trained.init, jax.random.key(0), window)):
        raise TypeError("trained: expected a run, or a Model without parameters, got a Model with parameters")
    return trained.apply({"params": {}}, window)


def _interval(
    head: Head, outputs: Array, horizon: int, level: float | None, calibration: Backtest | None
) -> Interval | None:
    """Return the interval of a forecast, calibrated on a backtest if one is given; None without a level."""
    if level is None:
        if calibration is not None:
            raise ValueError("level: expected the fraction of values to cover, for a calibration, got None")
        return None
    if head.parameters and len(outputs) > horizon:
        raise ValueError(
            f"level: expected None beyond the horizon, {horizon} steps, since the intervals of a head ignore the errors"
            f" of the point forecasts fed back to it, got {level} for {len(outputs)} steps"
        )
    if calibration is None:
        return heads.interval(head, outputs, level)
    if not isinstance(calibration, Backtest):
        raise TypeError(f"calibration: expected a Backtest, got {checks.describe(calibration)}")
    past = calibration.outputs
    if past.ndim != outputs.ndim + 1 or past.shape[2:] != outputs.shape[1:] or past.shape[1] < len(outputs):
        wanted = ", ".join(map(str, ["origins", f"{len(outputs)} steps or more", *outputs.shape[1:]]))
        raise ValueError(f"calibration: expected outputs ({wanted}) for this head, got {checks.describe(past)}")
    if len(past) < (least := fewest(level)):
        raise ValueError(f"calibration: expected at least {least} origins for a level of {level:g}, got {len(past)}")
    before, now = (heads.interval(head, each, level) if head.parameters else each for each in (past, outputs))
    return conformal.widen(now, conformal.margins(before, calibration.targets, level)[: len(outputs)])
