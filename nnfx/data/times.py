"""Times of a series: whether they are regular, and where they are not."""

import datetime
import re
import sys
from typing import Any

import numpy as np

__all__ = ["difference", "irregularity", "times_of"]

_TOLERANCE = 0.1
"""How far a step may deviate from the usual one, as a fraction of it: months have 28 to 31 days."""


def irregularity(times: Any) -> str | None:
    """Describe the first time that is missing, repeated or out of order; None for regular times.

    Times are regular if each step is within a tenth of the usual one, which is their median. Months, quarters and years
    are therefore regular; the days from Monday to Friday count as regular too.

    Args:
        times: `(time,)`, dates, numbers or text in ISO 8601; or a pandas index, whose own frequency takes precedence.

    Returns:
        What to say after "got" in an error.

    Raises:
        ValueError: for times that have another rank or cannot be read.

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
    usual = np.sort(steps)[(len(steps) - 1) // 2]  # an actual step: the lower of two in the middle
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
    if getattr(times, "tz", None) is not None:  # in UTC, where no hour is skipped or repeated
        times = times.tz_convert(None)
    array = np.asarray(times)
    if array.dtype.kind in "iufmM":
        return array.astype(np.int64) if array.dtype.kind == "u" else array
    try:
        return array.astype("datetime64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"times: expected dates, numbers or text in ISO 8601, got {error}") from error


def _weekdays_between(times: np.ndarray) -> np.ndarray | None:
    """Return the steps, in weekdays, between times that are all on Monday to Friday; None for other times."""
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


def difference(times: Any, others: Any) -> str | None:
    """Describe the first of the other times that differs; None if none does, or if they cannot be compared.

    >>> difference(np.array(["2026-01", "2026-02"], "datetime64"), np.array(["2026-01", "2026-03"], "datetime64"))
    '2026-03 for 2026-02 (row 1)'
    """
    ours, theirs = _as_array(times), _as_array(others)
    is_comparable = (ours.dtype.kind in "mM") == (theirs.dtype.kind in "mM") and ours.shape == theirs.shape
    if not is_comparable or not (is_other := ours != theirs).any():
        return None
    row = int(is_other.argmax())
    return f"{theirs[row]} for {ours[row]} (row {row})"


def times_of(values: Any) -> Any:
    """Return the times of a series: those of an `nnfx.data.Series`, or the date index of a pandas frame.

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


_BEGINS_AS_DATE = re.compile(r"\d{4}-\d\d")


def _dates(index: Any) -> Any:
    """Return a pandas index if it holds dates, which are text when read from a file; else None."""
    if hasattr(index, "freq") or hasattr(index, "to_timestamp"):
        return index
    if not hasattr(index, "to_numpy") or getattr(index.dtype, "kind", "O") not in "OU":
        return None
    items = index.tolist()
    if not all(isinstance(item, datetime.date) or _BEGINS_AS_DATE.match(str(item)) for item in items):
        return None
    found = sys.modules["pandas"].to_datetime(items, format="ISO8601", utc=True, errors="coerce")
    return None if found.isna().any() else found
