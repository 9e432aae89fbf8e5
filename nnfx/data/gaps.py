"""Gaps in time series, and how to fill them."""

import numpy as np

from nnfx.data.times import counted

__all__ = ["carried", "continued", "filled"]

_AT_MOST = 10
"""The largest factor by which filling may increase the number of rows; a larger one suggests a wrong date."""


def filled(name: str, times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Insert the missing times into a series, with NaN as their values.

    The step of the series is the median of all its steps. Steps are counted in months if all times are on the same day
    of the month, such as the first or the last, and in weekdays from Monday to Friday if the times cover more than two
    weeks without a Saturday or Sunday.

    Args:
        name: the name of the times, for error messages.
        times: datetime64 `(time,)`, ascending.
        values: float64 `(time, channels)`.

    Returns:
        All times, their values, and booleans `(time,)`, true for the inserted times.

    Raises:
        ValueError: for times that are not a whole number of steps after the first, or if filling the gaps would
            multiply the number of rows by more than ten.

    Example:
        >>> times = np.array(["2026-01", "2026-02", "2026-04", "2026-05"], "datetime64")
        >>> times, values, is_inserted = filled("times", times, np.arange(4.0)[:, None])
        >>> values.ravel(), is_inserted.tolist()
        (array([ 0.,  1., nan,  2.,  3.]), [False, False, True, False, False])
    """
    counts, of_counts = counted(times)
    steps = np.diff(counts)
    usual = int(np.sort(steps)[(len(steps) - 1) // 2])
    places, rest = np.divmod(counts - counts[0], usual)
    if rest.any():
        first = int(np.argmax(rest != 0))
        raise ValueError(f"{name}: expected gaps of a whole number of steps, got {times[first]} between two steps")
    rows = int(places[-1]) + 1
    if rows > _AT_MOST * len(times):
        raise ValueError(
            f"{name}: expected at most {_AT_MOST} times as many rows with gaps filled, got {rows} from {len(times)}"
        )
    whole = np.full((rows, *values.shape[1:]), np.nan)
    whole[places] = values
    is_inserted = np.ones(rows, bool)
    is_inserted[places] = False
    return of_counts(counts[0] + usual * np.arange(rows)), whole, is_inserted


def carried(values: np.ndarray, is_missing: np.ndarray) -> np.ndarray:
    """Fill missing values with the last known value before them; values before the first known one stay unchanged.

    >>> carried(np.array([[1.0], [0.0], [3.0]]), np.array([[False], [True], [False]])).ravel()
    array([1., 1., 3.])
    """
    rows = np.where(is_missing, 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(rows), axis=0)


def continued(place: str, values: np.ndarray) -> np.ndarray:
    """Replace each NaN by the last known value before it.

    Args:
        place: the place that the values come from, for error messages.
        values: float64 `(time, ...)`.

    Raises:
        ValueError: if a first value is missing.

    Example:
        >>> continued("line 7", np.array([1.0, np.nan, 3.0]))
        array([1., 1., 3.])
    """
    if np.isnan(values[0]).any():
        raise ValueError(f"{place}: expected a number as the first value, got none")
    table = values.reshape(len(values), -1)
    return carried(table, np.isnan(table)).reshape(values.shape)
