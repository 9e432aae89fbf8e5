"""Times of a series: whether they are regular, and where they are not."""

from typing import Any

import numpy as np

__all__ = ["irregularity", "times_of"]

_TOLERANCE = 0.1
"""How far a step may be from the usual one, in parts of it: months have 28 to 31 days."""


def irregularity(times: Any) -> str | None:
    """Describe the first time that is missing, repeated or out of order; None for regular times.

    Times are regular if each step is the usual one, their median, to a tenth of it; so months, quarters and years are,
    and so are the weekdays from Monday to Friday.

    Args:
        times: `(time,)` of dates, numbers or text in ISO 8601; or a pandas index, whose own frequency counts.

    Returns:
        What to say after "got" in an error.

    Raises:
        ValueError: for times of another rank, or that cannot be read.

    Example:
        >>> irregularity(np.array(["2026-01", "2026-02", "2026-04", "2026-05"], "datetime64"))
        'a gap of 2 months after 2026-02 (row 1) in steps of 1 month'
        >>> irregularity([1900, 1901, 1901])
        '1901 twice (rows 1 and 2)'
    """
    if getattr(times, "freq", None) is not None and not hasattr(times, "to_timestamp"):
        return None  # an index of pandas with a frequency, such as that of business days
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
    usual = np.sort(steps)[(len(steps) - 1) // 2]  # one of them: the lower of two in the middle
    is_wrong = np.abs(steps - usual) > _TOLERANCE * usual
    if not is_wrong.any() or _are_weekdays(shown):
        return None
    first = int(is_wrong.argmax())
    kind = "a gap" if steps[first] > usual else "a step"
    return (
        f"{kind} of {_duration(steps[first], shown.dtype)} after {shown[first]} (row {first})"
        f" in steps of {_duration(usual, shown.dtype)}"
    )


def _as_array(times: Any) -> np.ndarray:
    """Return times as datetime64, timedelta64 or numbers."""
    if hasattr(times, "to_timestamp"):  # periods of pandas
        times = times.to_timestamp()
    if getattr(times, "tz", None) is not None:  # in UTC, where no hour is left out or comes twice
        times = times.tz_convert(None)
    array = np.asarray(times)
    if array.dtype.kind in "iufmM":
        return array.astype(np.int64) if array.dtype.kind == "u" else array
    try:
        return array.astype("datetime64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"times: expected dates, numbers or text in ISO 8601, got {error}") from error


def _are_weekdays(times: np.ndarray) -> bool:
    """Say whether days follow each other from Monday to Friday."""
    if times.dtype.kind != "M" or np.datetime_data(times.dtype)[0] in ("Y", "M", "W"):
        return False
    days = times.astype("datetime64[D]")
    of_day = times - days
    if (of_day != of_day[0]).any() or not np.is_busday(days).all():
        return False
    return bool((np.busday_count(days[:-1], days[1:]) == 1).all())


_UNITS = {"Y": "year", "M": "month", "W": "week", "D": "day", "h": "hour", "m": "minute", "s": "second"}
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}


def _duration(step: Any, dtype: np.dtype[Any]) -> str:
    """Say a number of steps of a dtype in the largest unit that divides it."""
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


def times_of(values: Any) -> Any:
    """Return the times that a series has: those of an `nnfx.data.Series`, or the index of a frame of pandas by date.

    Returns:
        What `irregularity` takes; None where values have no times, as arrays have none.
    """
    if hasattr(values, "values") and hasattr(values, "times"):
        return values.times
    index = getattr(values, "index", None)
    is_of_dates = hasattr(index, "freq") or hasattr(index, "to_timestamp")
    return index if is_of_dates else None
