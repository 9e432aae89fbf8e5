"""Collections of time series in the `.tsf` format of the Monash forecasting archive."""

import re
from typing import NamedTuple, TextIO

import numpy as np

from nnfx import checks
from nnfx.data.gaps import continued
from nnfx.data.reading import Source, reading_text
from nnfx.data.series_files import Missing, Series
from nnfx.data.tables import marked, tags, values_of

__all__ = ["Collection", "read_tsf"]


class Collection(NamedTuple):
    """A collection of series from the Monash forecasting archive, with their attributes.

    Attributes:
        series: the series in the order of the file, each with one channel.
        horizon: the number of steps to forecast; None if the file does not say.
        attributes: all other attributes by name, each a tuple of strings, numbers or datetime64 values, one per
            series.
    """

    series: tuple[Series, ...]
    horizon: int | None
    attributes: dict[str, tuple[str | float | np.datetime64, ...]]


def read_tsf(
    source: Source, *, period: int | None = None, encoding: str = "utf-8", missing: Missing = "error"
) -> Collection:
    r"""Read a file of the Monash archive: a collection of series of any lengths, one per line.

    The lines of the header begin with `@`: `@attribute name type` declares an attribute of type `string`,
    `numeric`, or `date` such as `1979-01-01 00-00-00`; attributes precede the values of each series, separated by
    colons. `@frequency` is the step between values. The attribute `series_name` names the series, which are otherwise
    called `T1`, `T2`, … The times follow from `start_timestamp` and the frequency: steps of months keep the day of the
    month, or fall on the last day of a month that is too short.

    Args:
        source: the path or the bytes of the file, plain or compressed with gzip.
        period: the number of steps in a season, kept with the values; by default, it is derived from the frequency: 4
            for `quarterly`, 12 for `monthly`, 52 for `weekly`, 7 for `daily`, and the number of steps in a day for
            shorter steps.
        encoding: the encoding of the text.
        missing: what to do about missing values, written as `?`: raise an `"error"`; use NaN (`"nan"`); or repeat the
            previous value (`"previous"`).

    Returns:
        The series, with times in seconds, or without times if the file has no `start_timestamp` or no frequency.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a period that is not an integer.
        ValueError: for a file that is empty, damaged, too large once unpacked, or not text; a header that cannot be
            read; lines with more or fewer attributes than declared; series that share a name; and values that are
            not finite numbers within the range of float32. The error names the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "visitors.tsf"
        >>> names = "@attribute series_name string\n@attribute start_timestamp date\n"
        >>> header = names + "@frequency quarterly\n@horizon 8\n"
        >>> _ = path.write_text(header + "@data\nT1:1979-01-01 00-00-00:25,4.5,?\nT2:1980-04-01 00-00-00:7\n")
        >>> found = read_tsf(path, missing="nan")
        >>> [(one.names, one.values.ravel().tolist(), one.period) for one in found.series], found.horizon
        ([(('T1',), [25.0, 4.5, nan], 4), (('T2',), [7.0], 4)], 8)
        >>> found.series[0].times.astype("datetime64[M]")
        array(['1979-01', '1979-04', '1979-07'], dtype='datetime64[M]')

    References:
        Godahewa, Bergmeir, Webb, Hyndman and Montero-Manso, *Monash time series forecasting archive*, NeurIPS 2021.
    """
    if period is not None:
        checks.positive_integer("period", period)
    checks.choice("missing", missing, ("error", "nan", "previous"))
    with reading_text(source, encoding) as (file, text):
        header, rows = _read(file, text, missing)
    if not rows:
        raise ValueError(f"{file}: expected at least one series, got none")
    step = header.step
    season = int(period or (step.period if step else 1))
    series = []
    for name, start, values, _ in rows:
        times = None if start is None or step is None else step.times(start, len(values))
        series.append(Series(values[:, None], (name,), times, season))
    columns = {name: tuple(given[name] for *_, given in rows) for name in rows[0][3]}
    return Collection(tuple(series), header.horizon, columns)


class _Step(NamedTuple):
    """The step between the values of a series, in months or seconds, and the number of steps in a season."""

    unit: str
    length: int
    period: int

    def times(self, start: np.datetime64, count: int) -> np.ndarray:
        """Return the times of `count` steps from a given start, datetime64 in seconds `(count,)`."""
        steps = self.length * np.arange(count)
        if self.unit == "s":
            return start + steps.astype("timedelta64[s]")
        month, day = start.astype("datetime64[M]"), start.astype("datetime64[D]")
        months = month + steps.astype("timedelta64[M]")
        last = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
        days = np.minimum(months.astype("datetime64[D]") + (day - month.astype("datetime64[D]")), last)
        return days.astype("datetime64[s]") + (start - day)


_DAY = 86_400
_STEPS = {
    "yearly": _Step("M", 12, 1),
    "quarterly": _Step("M", 3, 4),
    "monthly": _Step("M", 1, 12),
    "weekly": _Step("s", 7 * _DAY, 52),
    "daily": _Step("s", _DAY, 7),
    "hourly": _Step("s", 3600, 24),
    "half_hourly": _Step("s", 1800, 48),
    "minutely": _Step("s", 60, 1440),
}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def _step(place: str, frequency: str) -> _Step:
    """Return the step of a frequency, such as `monthly` or `10_minutes`."""
    if frequency in _STEPS:
        return _STEPS[frequency]
    match = re.fullmatch(r"([1-9]\d{0,4})_(second|minute|hour)s?", frequency, re.ASCII)
    if not match:
        raise ValueError(
            f"{place}: expected a frequency such as {', '.join(_STEPS)}, 10_minutes or 4_seconds, got {frequency!r}"
        )
    length = int(match[1]) * _SECONDS[match[2]]
    return _Step("s", length, _DAY // length if _DAY % length == 0 else 1)


class _Header(NamedTuple):
    """The declarations in the header of a file."""

    types: dict[str, str]
    step: _Step | None
    horizon: int | None


_TYPES = ("string", "numeric", "date")
_Row = tuple[str, np.datetime64 | None, np.ndarray, dict[str, str | float | np.datetime64]]
"""The name of a series, its start, its values, and its other attributes."""


def _header(file: str, found: list[tuple[int, list[str]]]) -> _Header:
    types: dict[str, str] = {}
    step = horizon = None
    for line, (tag, *words) in found:
        place = f"{file}: line {line}"
        if tag == "@attribute":
            if len(words) != 2 or words[1] not in _TYPES or words[0] in types:
                raise ValueError(
                    f"{place}: expected @attribute, a new name and one of {', '.join(_TYPES)}, got {' '.join(words)!r}"
                )
            types[words[0]] = words[1]
        elif tag == "@frequency":
            step = _step(place, " ".join(words))
        elif tag == "@horizon":
            if not re.fullmatch(r"[1-9]\d{0,8}", " ".join(words), re.ASCII):
                raise ValueError(f"{place}: expected @horizon and a positive integer, got {' '.join(words)!r}")
            horizon = int(words[0])
    if types.get("start_timestamp", "date") != "date":
        raise ValueError(f"{file}: expected dates as start_timestamp, got {types['start_timestamp']}")
    return _Header(types, step, horizon)


def _read(file: str, text: TextIO, missing: Missing) -> tuple[_Header, list[_Row]]:
    lines = marked(text)
    header = _header(file, tags(file, lines))
    rows: list[_Row] = []
    names = set()
    for line, content in lines:
        place = f"{file}: line {line}"
        *fields, values = content.split(":")
        if len(fields) != len(header.types):
            raise ValueError(
                f"{place}: expected {len(header.types)} attributes and then values, separated by colons, got"
                f" {len(fields)} attributes"
            )
        given = {
            name: _attribute(place, name, kind, field.strip())
            for (name, kind), field in zip(header.types.items(), fields, strict=True)
        }
        start = given.pop("start_timestamp") if header.step and "start_timestamp" in given else None
        assert start is None or isinstance(start, np.datetime64)
        name = str(given.pop("series_name", f"T{len(rows) + 1}"))
        if not name or name in names:
            raise ValueError(f"{place}: expected a unique name for each series, got {name!r}")
        names.add(name)
        array = values_of(place, values.split(","), missing=missing != "error")
        rows.append((name, start, continued(place, array) if missing == "previous" else array, given))
    return header, rows


_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?: (\d\d)-(\d\d)-(\d\d))?", re.ASCII)


def _attribute(place: str, name: str, kind: str, field: str) -> str | float | np.datetime64:
    """Convert an attribute of a series from text."""
    if kind == "numeric":
        return float(values_of(f"{place}, attribute {name!r}", [field], missing=True)[0])
    if kind == "string":
        return field
    match = _DATE.fullmatch(field)
    try:
        if match:
            return np.datetime64(match[1] if match[2] is None else f"{match[1]}T{match[2]}:{match[3]}:{match[4]}", "s")
    except ValueError:  # such as the 32nd of a month
        pass
    raise ValueError(f"{place}, attribute {name!r}: expected a date such as 1979-01-01 00-00-00, got {field!r}")
