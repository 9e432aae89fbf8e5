"""The times of a series: checks that they are regular, and the times that follow."""

import datetime
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["clock_of", "counted", "difference", "following", "irregularity", "numbers_of", "times_of"]

_TOLERANCE = 0.1
"""How far a step may deviate from the median step, as a fraction of it: months have 28 to 31 days."""


def irregularity(times: Any) -> str | None:
    """Describe the first time that is missing, repeated or out of order; return None if the times are regular.

    Times are regular if each step is within a tenth of the median step. Months, quarters and years
    are therefore regular; weekdays count as regular too.

    Args:
        times: `(time,)`, dates, numbers or ISO 8601 text; or a pandas index, whose own frequency takes precedence.

    Returns:
        A description to follow "got" in an error message, or None.

    Raises:
        ValueError: for times of the wrong rank, or that cannot be parsed.

    Example:
        >>> irregularity(np.array(["2026-01", "2026-02", "2026-04", "2026-05"], "datetime64"))
        'a gap of 2 months after 2026-02 (row 1) in steps of 1 month'
        >>> irregularity([1900, 1901, 1901])
        '1901 twice (rows 1 and 2)'
    """
    frequency = None if hasattr(times, "to_timestamp") else getattr(times, "freq", None)
    if getattr(frequency, "n", 0) > 0:
        return None  # a pandas index with a frequency, such as business days; negative if reversed
    shown = _as_array(times)
    if shown.ndim != 1:
        raise ValueError(f"times: expected (time,), got {shown.dtype}[{','.join(map(str, shown.shape))}]")
    unknown = np.isnan(shown) if shown.dtype.kind == "f" else np.isnat(shown) if shown.dtype.kind in "mM" else []
    if np.any(unknown):
        return f"no time in row {int(np.argmax(unknown))}"
    numbers = shown.astype(np.int64) if shown.dtype.kind in "mM" else shown
    if len(numbers) < 2:
        return None
    steps = np.diff(numbers)
    for wrong in np.flatnonzero(numbers[1:] <= numbers[:-1])[:1].tolist():
        if numbers[wrong + 1] == numbers[wrong]:
            return f"{shown[wrong]} twice (rows {wrong} and {wrong + 1})"
        return f"{shown[wrong + 1]} after {shown[wrong]} (row {wrong + 1})"
    usual = np.sort(steps)[(len(steps) - 1) // 2]  # an actual step: the lower of the two middle ones
    is_wrong = np.abs(steps - usual) > _TOLERANCE * usual
    if (weekdays := _weekdays_between(shown)) is not None and np.median(weekdays) == 1:
        is_wrong = weekdays != 1
    if not is_wrong.any():
        return None
    first = int(is_wrong.argmax())
    kind = "a gap" if steps[first] > usual else "a step"
    return (
        f"{kind} of {_duration(steps[first], shown.dtype)} after {shown[first]} (row {first})"
        f" in steps of {_duration(usual, shown.dtype)}"
    )


def _as_array(times: Any) -> np.ndarray:
    """Return times as datetime64, timedelta64 or numbers."""
    if hasattr(times, "to_timestamp"):  # pandas periods
        times = times.to_timestamp()
    if getattr(times, "tz", None) is not None:  # convert to UTC, where no hour is skipped or repeated
        times = times.tz_convert(None)
    array = np.asarray(times)
    if array.dtype.kind in "iufmM":
        return array.astype(np.int64) if array.dtype.kind == "u" else array
    try:
        return array.astype("datetime64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"times: expected dates, numbers or ISO 8601 text, got {error}") from error


def _weekdays_between(times: np.ndarray) -> np.ndarray | None:
    """Return the steps between times, counted in weekdays; None if any time is on a Saturday or Sunday."""
    if times.dtype.kind != "M" or np.datetime_data(times.dtype)[0] in ("Y", "M", "W"):
        return None
    days = times.astype("datetime64[D]")
    of_day = times - days
    if (of_day != of_day[0]).any() or not np.is_busday(days).all():
        return None
    return np.busday_count(days[:-1], days[1:])


_UNITS = {"Y": "year", "M": "month", "W": "week", "D": "day", "h": "hour", "m": "minute", "s": "second"}
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}


def _duration(step: Any, dtype: np.dtype[Any]) -> str:
    """Describe a step between times of a dtype in the largest unit that divides it."""
    if dtype.kind not in "mM":
        return f"{step:g}" if dtype.kind == "f" else str(step)
    unit, multiple = np.datetime_data(dtype)
    amount, name = int(step) * multiple, _UNITS.get(unit, unit)
    if unit not in ("Y", "M", "W"):
        duration = np.array(amount).astype(f"timedelta64[{unit}]")[()]
        for larger, seconds in _SECONDS.items():
            if duration % np.timedelta64(seconds, "s") == np.timedelta64(0, "s"):
                amount, name = int(duration / np.timedelta64(seconds, "s")), larger
                break
    return f"{amount} {name}{'s' if amount != 1 and len(name) > 2 else ''}"


def following(times: Any, steps: int) -> Any:
    """Return the times that follow the last one, in the same calendar.

    Months, quarters and years keep the day of the month, or fall on the last day of a shorter month, and stay on the
    last day if all times are on it; times from Monday to Friday skip the weekend. The frequency of a pandas index,
    given or inferred by pandas, takes precedence.

    Args:
        times: two or more regular times, `(time,)`, as for `irregularity`.
        steps: the number of times to return.

    Returns:
        `(steps,)`, with the dtype of the times; for a pandas index, datetime64 or, if the index has a time zone, an
        index in that zone.

    Raises:
        ValueError: for fewer than two times, or times that are not regular in any known calendar.

    Example:
        >>> following(np.array(["2023-11-30", "2023-12-31"], "datetime64"), 2)
        array(['2024-01-31', '2024-02-29'], dtype='datetime64[D]')
    """
    later = _following(times, steps)
    zone = getattr(times, "tz", None)
    return later if zone is None else sys.modules["pandas"].DatetimeIndex(later, tz="UTC").tz_convert(zone)


def _following(times: Any, steps: int) -> np.ndarray:
    """Return the times that follow, in UTC if the times have a time zone."""
    if hasattr(times, "to_timestamp"):  # pandas periods, which know their calendar
        return _as_array(times[-1:].repeat(steps) + np.arange(1, steps + 1))
    frequency = getattr(times, "freq", None)
    if frequency is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas 3 warns about the type, which `date_range` accepts
            frequency = getattr(times, "inferred_freq", None)
    if frequency is not None:
        pandas = sys.modules["pandas"]
        ranging = pandas.timedelta_range if np.asarray(times).dtype.kind == "m" else pandas.date_range
        return _as_array(ranging(times[-1], periods=steps + 1, freq=frequency)[1:])
    known = _as_array(times)
    if len(known) < 2:
        raise ValueError(f"times: expected two or more, to tell which times come next, got {len(known)}")
    if known.dtype.kind == "f":
        return known[-1] + np.median(np.diff(known)) * np.arange(1, steps + 1)
    counts, of_counts = counted(known)
    apart = np.diff(counts)
    if (apart != apart[0]).any():
        steps_given = np.diff(known.astype(np.int64))
        least, most = (_duration(step, known.dtype) for step in (steps_given.min(), steps_given.max()))
        raise ValueError(
            f"times: expected equal steps, months or weekdays, to tell which times come next,"
            f" got steps of {least} to {most}; use a pandas index with a frequency, or values without times"
        )
    later: np.ndarray = of_counts(counts[-1] + apart[0] * np.arange(1, steps + 1))
    return later


def counted(times: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return times as integers, evenly spaced if the times are regular, and the function that converts back.

    Times in different months are counted in months if all fall on the same day of the month (on the last day of a month
    too short for it), or all on the last day. Times that cover more than two weeks, none of them on a weekend, are
    counted in weekdays. In both cases, all must be at the same time of day. Other times are counted in the unit of
    their dtype.

    Args:
        times: datetime64, timedelta64 or integers `(time,)`, ascending.

    Example:
        >>> counts, of_counts = counted(np.array(["2026-01-31", "2026-02-28", "2026-04-30"], "datetime64"))
        >>> np.diff(counts), of_counts(counts[:1] + 2)
        (array([1, 2]), array(['2026-03-31'], dtype='datetime64[D]'))
    """
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] not in ("Y", "M", "W"):
        days = times.astype("datetime64[D]")
        months, of_day = days.astype("datetime64[M]"), times - days
        if (of_day == of_day[0]).all():
            day, last = days - months.astype(days.dtype), _last_days(months)
            anchor = day.max() if (day != last).any() else np.timedelta64(30, "D")
            if (np.diff(months.astype(np.int64)) > 0).all() and (day == np.minimum(anchor, last)).all():
                return months.astype(
                    np.int64
                ), lambda counts: _in_months(counts, anchor).astype(times.dtype) + of_day[0]
            if np.is_busday(days).all() and (days[-1] - days[0]).astype(int) > 14:
                return np.busday_count("1970-01-01", days), lambda counts: _weekdays(counts, times.dtype) + of_day[0]
    return times.astype(np.int64), lambda counts: counts.astype(times.dtype)


def _last_days(months: np.ndarray) -> np.ndarray:
    """Return the last day of each month, counted in days after the first day of the month."""
    return (
        (months + np.timedelta64(1, "M")).astype("datetime64[D]")
        - months.astype("datetime64[D]")
        - np.timedelta64(1, "D")
    )


def _in_months(counts: np.ndarray, anchor: np.timedelta64) -> np.ndarray:
    """Return the same day of each month, or the last day of a shorter month."""
    months = counts.astype("datetime64[M]")
    return months.astype("datetime64[D]") + np.minimum(anchor, _last_days(months))


def _weekdays(counts: np.ndarray, dtype: Any) -> np.ndarray:
    return np.busday_offset("1970-01-01", counts, roll="forward").astype(dtype)


def difference(times: Any, others: Any) -> str | None:
    """Describe the first difference between the times of two series; return None if they agree or cannot be compared.

    >>> difference(np.array(["2026-01", "2026-02"], "datetime64"), np.array(["2026-01", "2026-03"], "datetime64"))
    '2026-03 for 2026-02 (row 1)'
    """
    ours, theirs = _as_array(times), _as_array(others)
    is_comparable = (ours.dtype.kind in "mM") == (theirs.dtype.kind in "mM") and ours.shape == theirs.shape
    if not is_comparable:
        return None
    is_float = "f" in (ours.dtype.kind, theirs.dtype.kind)  # such as 0.1 + 0.2, and 0.3
    is_other = ~np.isclose(theirs, ours, rtol=1e-12, atol=1e-12) if is_float else ours != theirs
    if not is_other.any():
        return None
    row = int(is_other.argmax())
    return f"{theirs[row]} for {ours[row]} (row {row})"


def times_of(values: Any) -> Any:
    """Return the times of a series: the `times` of an `nnfx.data.Series`, or the date index of a pandas frame.

    Returns:
        Times that `irregularity` accepts; None for values without times, such as arrays.
    """
    if hasattr(values, "values") and hasattr(values, "times"):
        return values.times
    index: Any = getattr(values, "index", None)
    levels = [index]
    if getattr(index, "nlevels", 1) > 1:
        levels = [index.get_level_values(level) for level in range(index.nlevels)]
    return next((found for level in levels if (found := _dates(level)) is not None), None)


def numbers_of(values: Any) -> Any:
    """Return the index of a pandas frame if it contains numbers, such as years, seconds or row numbers; else None."""
    index = getattr(values, "index", None)
    return index if getattr(getattr(index, "dtype", None), "kind", "O") in "iuf" else None


def clock_of(values: Any) -> Any:
    """Return the times of a series, or the numbers in the index of a pandas frame unless they merely count its rows."""
    times = times_of(values)
    numbers = numbers_of(values) if times is None else None
    return times if numbers is None or np.array_equal(numbers, np.arange(len(numbers))) else numbers


_BEGINS_AS_DATE = re.compile(r"\d{4}-\d\d")


def _dates(index: Any) -> Any:
    """Return the dates in a pandas index, which may be text if read from a file; None if it contains anything else."""
    if hasattr(index, "freq") or hasattr(index, "to_timestamp"):
        return index
    if not hasattr(index, "to_numpy") or getattr(index.dtype, "kind", "O") not in "OU":
        return None
    items = index.tolist()
    if not all(isinstance(item, datetime.date) or _BEGINS_AS_DATE.match(str(item)) for item in items):
        return None
    found = sys.modules["pandas"].to_datetime(items, format="ISO8601", utc=True, errors="coerce")
    return None if found.isna().any() else found.tz_convert(None)
