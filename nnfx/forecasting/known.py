"""What a forecaster sees at an origin: the past of a series, and the columns that are known ahead over the horizon."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from nnfx import checks
from nnfx.data.times import difference, numbers_of, times_of
from nnfx.forecasting.values import in_floats
from nnfx.types import Array

__all__ = ["Channels", "beside", "check_aligned", "seen", "to_come"]


class Channels(NamedTuple):
    """The number of channels of each kind, in the order in which a forecaster sees them.

    Attributes:
        values: the channels of the series, which are forecast.
        past: the exogenous channels that are known up to the origin.
        future: the exogenous channels that are known up to the end of the forecast.
    """

    values: int
    past: int = 0
    future: int = 0

    def slices(self) -> tuple[slice, slice, slice]:
        """Return the slice of columns of each kind."""
        own = self.values + self.past
        return slice(self.values), slice(self.values, own), slice(own, own + self.future)


def beside(values: Any, y: Array, past: Any, future: Any) -> tuple[Array, Channels]:
    """Return a series with its exogenous columns appended, `(time, channels)`, and the number of columns of each kind.

    Args:
        values: the series as the user passed it, perhaps with times.
        y: the series as floats on the device, `(time, channels)`.
        past: columns that are known up to the origin; None for none.
        future: columns that are known ahead; None for none.
    """
    columns = [y]
    for name, given in (("past", past), ("future", future)):
        if given is None:
            columns.append(y[:, :0])
            continue
        x = in_floats(name, given)
        check_aligned(name, given, x, values, y)
        columns.append(x.astype(y.dtype))
    return jnp.concatenate(columns, axis=1), Channels(*(each.shape[1] for each in columns))


def check_aligned(name: str, given: Any, columns: Any, values: Any, series: Any) -> None:
    """Check that exogenous columns have the same times and number of series as the values.

    Args:
        name: the name of the argument, for error messages.
        given: the columns as the user passed them.
        columns: the columns as an array.
        values: the values as the user passed them.
        series: the values as an array.
    """
    if columns.shape[:-1] != series.shape[:-1]:
        raise ValueError(
            f"{name}: expected as many steps and series as the values, {checks.describe(series)}, got"
            f" {checks.describe(columns)}"
        )
    ours, theirs = times_of(values), times_of(given)
    if ours is None and theirs is None:
        ours, theirs = numbers_of(values), numbers_of(given)
        if ours is not None and theirs is not None and not ours.isin(theirs).any():
            return  # such as years and row numbers, which cannot be compared
    if ours is not None and theirs is not None and (other := difference(ours, theirs)):
        raise ValueError(f"{name}: expected the times of the values, got {other}")


def seen(rows: Array, channels: Channels, origins: Array, lookback: int, horizon: int) -> Array:
    """Return the windows that a forecaster sees at the given origins, `(origins, lookback, channels)`.

    Columns that are known ahead are cut one horizon later, as in `nnfx.forecasting.windows`.

    >>> rows = jnp.stack([jnp.arange(6.0), jnp.arange(10.0, 16.0)], axis=1)
    >>> seen(rows, Channels(1, 0, 1), jnp.array([3]), lookback=2, horizon=1)[0].tolist()
    [[1.0, 12.0], [2.0, 13.0]]
    """
    times = origins[:, None] + jnp.arange(-lookback, 0)[None]
    if not channels.future:
        return rows[times]
    values, past, future = (rows[:, columns] for columns in channels.slices())
    return jnp.concatenate([values[times], past[times], future[times + horizon]], axis=-1)


def to_come(rows: Array, channels: Channels, origins: Array, horizon: int) -> Array:
    """Return the values from each origin to the end of its horizon, `(origins, horizon, channels)`."""
    return rows[:, : channels.values][origins[:, None] + jnp.arange(horizon)[None]]
