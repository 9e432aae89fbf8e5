"""Time series files: text tables with one series per column, or one per line."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.data.gaps import carried, filled
from nnfx.data.reading import Source, reading_text
from nnfx.data.tables import Dialect, Lines, is_no_name, numbers, times
from nnfx.data.times import irregularity

__all__ = ["Series", "read_series", "read_series_rows"]

Missing = Literal["error", "nan", "previous"]
Gaps = Literal["error", "keep", "nan", "previous"]


class Series(NamedTuple):
    """One or more series that share their times, on the host; `nnfx.forecasting.windows` cuts them into examples.

    Attributes:
        values: float64 `(time, channels)`, in the order of time.
        names: the names of the channels.
        times: datetime64 `(time,)`, ascending; None if unknown.
        period: the number of steps in a season; 1 if no season is known.
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray | None
    period: int

    def select(self, *names: str) -> "Series":
        """Return the series with only the named channels, in the given order.

        Raises:
            ValueError: for an unknown or repeated name, or if no name is given.

        Example:
            >>> series = Series(np.array([[4.0, 30.0], [6.0, 47.2]]), ("lynx", "hare"), None, period=1)
            >>> series.select("hare").values.ravel().tolist()
            [30.0, 47.2]
        """
        for place, name in enumerate(names):
            checks.choice(f"names[{place}]", name, self.names)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names: expected one or more distinct names, got {names}")
        return self._replace(values=self.values[:, [self.names.index(name) for name in names]], names=names)


def read_series(
    source: Source,
    *,
    time: str | None = None,
    names: Sequence[str] | None = None,
    period: int = 1,
    heading: bool | None = None,
    delimiter: str | None = None,
    decimal: str = ".",
    comment: str | None = None,
    encoding: str = "utf-8",
    missing: Missing = "error",
    gaps: Gaps = "error",
) -> Series:
    r"""Read a text table with one series per column and one time per line, such as a CSV file.

    An unnamed first column that counts the lines, as written by pandas, is left out, and so is an unnamed last column
    that is empty.

    Args:
        source: the path or the bytes of the file, plain or compressed with gzip.
        time: the name of the column of ISO 8601 times, such as 1949-01 or 2016-07-01 13:00:00; `""` for an unnamed
            first column; None for a file without times. Times with `Z` or an offset from UTC are converted to UTC.
        names: the names of all columns, for a file without a heading.
        period: the number of steps in a season, kept with the values.
        heading: whether the first line contains the column names; by default, it does if `names` is not given, and its
            fields must then look like names.
        delimiter: the character between fields; by default, a comma, a semicolon, a tab or a bar, detected in the
            file.
        decimal: the decimal separator, `"."` or `","`.
        comment: the prefix of lines to skip; None skips lines that begin with `#`, but only at the start of the file.
        encoding: the encoding of the text.
        missing: what to do about fields that are empty, `NA`, `NaN` and the like: raise an `"error"`; use NaN
            (`"nan"`); or repeat the previous value (`"previous"`).
        gaps: what to do about irregular times, which differ from the previous time by an unusual step: raise an
            `"error"` that names the first; `"keep"` them; or insert the missing times, with NaN (`"nan"`) or with the
            previous values (`"previous"`). Months, quarters, years and weekdays count as regular.

    Returns:
        The columns other than the times, in the order of the file.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a period that is not an integer, or names given as a single string.
        ValueError: for a file that is empty, damaged, too large once unpacked, or not text; columns that have no name
            or share one; lines with more or fewer fields than columns; fields that are not finite numbers
            within the range of float32; and times that cannot be parsed, are not in ascending order, or have gaps. The
            error names the file, the line and the column.

    Example:
        >>> series = read_series(b"year,lynx,hare\n1900,4,30\n1901,6,47.2\n", time="year")
        >>> series.names, series.values.tolist(), str(series.times[0])
        (('lynx', 'hare'), [[4.0, 30.0], [6.0, 47.2]], '1900')
        >>> read_series(b"day;load\n2016-07-01;1,5\n2016-07-02;\n", time="day", decimal=",", missing="nan").values
        array([[1.5],
               [nan]])
    """
    checks.positive_integer("period", period)
    checks.choice("missing", missing, ("error", "nan", "previous"))
    checks.choice("gaps", gaps, ("error", "keep", "nan", "previous"))
    dialect = Dialect(delimiter, decimal, comment)
    dialect.check()
    if isinstance(names, str):
        raise TypeError(f"names: expected a sequence of names, got {names!r}")
    values: list[np.ndarray] = []
    at: list[int] = []
    stamps: list[str] = []
    with reading_text(source, encoding) as (file, text):
        lines = Lines(file, text, dialect)
        rows = iter(lines)
        place, columns = _columns(file, rows, names, heading)
        kept = _kept(place, columns, time)
        for block in _blocks(rows, max(1, _FIELDS_AT_ONCE // len(columns))):
            at += (of_block := [number for number, _ in block])
            for number, row in block:
                kept.check(file, number, row)
            fields = [kept.of(row) for _, row in block]
            try:
                values.append(numbers(lines, of_block, kept.names, fields, missing=missing != "error"))
            except ValueError as error:
                dates = [name for name, field in zip(kept.names, fields[0], strict=True) if _DATE.match(field.strip())]
                if time is not None or not dates:
                    raise
                raise ValueError(f"{error}; pass time={dates[0]!r} if these are times") from error
            if kept.time is not None:
                stamps += [row[kept.time].strip() for _, row in block]
    if not values:
        raise ValueError(f"{file}: expected at least one line of numbers, got none")
    whole = np.concatenate(values)
    if missing == "previous":
        if (is_missing := np.isnan(whole[0])).any():
            first = kept.names[int(is_missing.argmax())]
            raise ValueError(f"{file}: line {at[0]}, column {first!r}: expected a number in the first row, got none")
        whole = carried(whole, np.isnan(whole))
    if kept.time is None:
        return Series(whole, kept.names, None, int(period))
    found = times(file, at, columns[kept.time], stamps)
    if gaps != "keep" and (wrong := irregularity(found)):
        label = f"{file}: column {columns[kept.time]!r}"
        if gaps == "error":
            raise ValueError(
                f"{label}: expected regular times, got {wrong}; gaps='previous' or 'nan' inserts missing rows, and"
                " gaps='keep' keeps the times unchanged"
            )
        found, whole, is_inserted = filled(label, found, whole)
        if gaps == "previous":
            whole = carried(whole, np.broadcast_to(is_inserted[:, None], whole.shape))
    return Series(whole, kept.names, found, int(period))


_FIELDS_AT_ONCE = 1 << 16
_DATE = re.compile(r"\d{4}-\d\d")


def _blocks(rows: Iterator[tuple[int, list[str]]], size: int) -> Iterator[list[tuple[int, list[str]]]]:
    while block := list(itertools.islice(rows, size)):
        yield block


def _columns(
    file: str, rows: Iterator[tuple[int, list[str]]], names: Sequence[str] | None, heading: bool | None
) -> tuple[str, list[str]]:
    """Return the place that the column names come from, for error messages, and the names."""
    if names is not None:
        if heading:
            next(rows, None)
        return "names", list(names)
    if heading is False:
        raise ValueError("names: expected the names of the columns for a file without a heading, got None")
    line, columns = next(rows)
    columns = [column.strip() for column in columns]
    if heading is None and not _are_names(columns):
        raise ValueError(
            f"{file}: line {line}: expected the names of the columns, got numbers; pass names= for a file without a"
            " heading, or heading=True if these are names"
        )
    return f"{file}: line {line}", columns


def _are_names(columns: Sequence[str]) -> bool:
    """Return whether a line contains column names: no fields that look like values, except for ascending integers."""
    given = [column for column in columns if column]
    others = [column for column in given if is_no_name(column)]
    if len(others) == len(given):
        return not any(columns)  # the error for a blank line is raised elsewhere
    are_whole = all(re.fullmatch(r"\d{1,9}", column, re.ASCII) for column in others)
    return are_whole and all(int(a) < int(b) for a, b in itertools.pairwise(others))


class _Kept(NamedTuple):
    """The columns to keep, by position.

    Attributes:
        columns: the number of columns.
        time: the position of the column of times; None if there is none.
        places: the positions of the channels.
        names: the names of the channels.
        counter: the position of an unnamed column that counts the lines; None if there is none.
        empty: the position of an unnamed column that is empty; None if there is none.
        counted: a list that contains the last number in `counter`; empty at first.
    """

    columns: int
    time: int | None
    places: list[int]
    names: tuple[str, ...]
    counter: int | None
    empty: int | None
    counted: list[int]

    def of(self, row: list[str]) -> list[str]:
        """Return the fields of the channels in a row."""
        return row if len(self.places) == self.columns else [row[i] for i in self.places]

    def check(self, file: str, line: int, row: list[str]) -> None:
        """Raise an error for a row with the wrong number of fields, or unexpected content in an unnamed column."""
        if len(row) != self.columns:
            raise ValueError(f"{file}: line {line}: expected {self.columns} fields, one per column, got {len(row)}")
        if self.empty is not None and row[self.empty].strip():
            raise ValueError(
                f"{file}: line {line}: expected an empty field in column {self.columns}, which has no name, got"
                f" {row[self.empty].strip()!r}"
            )
        if self.counter is not None:
            field = row[self.counter].strip()
            if field not in ([str(self.counted[0] + 1)] if self.counted else ["0", "1"]):
                raise ValueError(
                    f"{file}: line {line}: expected line numbers in column 1, which has no name, got {field!r};"
                    " pass time='' for a column of times"
                )
            self.counted[:] = [int(field)]


def _kept(place: str, columns: Sequence[str], time: str | None) -> _Kept:
    """Check the column names, and choose the columns to keep."""
    last = len(columns) - 1
    index = 0 if last > 0 and not columns[0] and time != "" else None
    empty = last if last > 0 and not columns[last] else None
    taken = set()
    for i, name in enumerate(columns):
        is_unnamed = not name and not (i in (index, empty) or (i == 0 and time == ""))
        if is_unnamed or name in taken:
            raise ValueError(f"{place}: expected a unique name for each column, got {name!r} for column {i + 1}")
        if name:
            taken.add(name)
    if time is not None:
        checks.choice("time", time, [name for i, name in enumerate(columns) if i not in (index, empty)])
    at = None if time is None else columns.index(time)
    places = [i for i in range(len(columns)) if i not in (at, index, empty)]
    if not places:
        raise ValueError(f"{place}: expected at least one column besides {time!r}, got none")
    return _Kept(len(columns), at, places, tuple(columns[i] for i in places), index, empty, [])


def read_series_rows(
    source: Source,
    *,
    period: int = 1,
    delimiter: str | None = None,
    decimal: str = ".",
    comment: str | None = None,
    encoding: str = "utf-8",
) -> tuple[Series, ...]:
    r"""Read a text table with one series per line, each of any length, as in the M4 competition.

    The first line is a heading. On every other line, the first field names the series, its values follow in time
    order, and any remaining fields are empty or absent.

    Args:
        source: the path or the bytes of the file, plain or compressed with gzip.
        period: the number of steps in a season, kept with the values.
        delimiter: the character between fields; see `read_series` for this and the next three arguments.
        decimal: the decimal separator, `"."` or `","`.
        comment: the prefix of lines to skip.
        encoding: the encoding of the text.

    Returns:
        The series in the order of the file, each with one channel.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a period that is not an integer.
        ValueError: for a file that is empty, damaged, too large once unpacked, or not text; series that have no name,
            share one, or have no values; lines longer than the heading; gaps; and fields that are not finite numbers
            within the range of float32. The error names the file, the line and the column.

    Example:
        >>> series = read_series_rows(b'"V1","V2","V3","V4"\n"Y1","5.5","7","6"\n"Y2","1",,\n')
        >>> [(one.names[0], one.values[:, 0].tolist()) for one in series]
        [('Y1', [5.5, 7.0, 6.0]), ('Y2', [1.0])]

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020.
    """
    checks.positive_integer("period", period)
    dialect = Dialect(delimiter, decimal, comment)
    dialect.check()
    found: dict[str, Series] = {}
    with reading_text(source, encoding) as (file, text):
        lines = Lines(file, text, dialect, same_length=False)
        rows = iter(lines)
        line, heading = next(rows)
        heading = [column.strip() for column in heading]
        if len(heading) < 2 or all(map(is_no_name, heading[1:])):
            raise ValueError(
                f"{file}: line {line}: expected a heading of two columns or more, got {_described(heading)}"
            )
        for line, (name, *fields) in rows:
            name = name.strip()
            if not name or name in found:
                raise ValueError(f"{file}: line {line}: expected a unique name for each series, got {name!r}")
            while fields and not fields[-1].strip():
                fields.pop()
            if not 0 < len(fields) < len(heading):
                raise ValueError(
                    f"{file}: line {line}: expected 1 to {len(heading) - 1} values for {name!r}, got {len(fields)}"
                )
            values = numbers(lines, [line], heading[1 : len(fields) + 1], [fields], missing=False)
            found[name] = Series(values[0][:, None], (name,), None, int(period))
    if not found:
        raise ValueError(f"{file}: expected at least one series, got none")
    return tuple(found.values())


def _described(fields: Sequence[str]) -> str:
    return ",".join(fields[:4]) + (",…" if len(fields) > 4 else "")
