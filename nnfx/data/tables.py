"""Numbers in text files, read in bounded memory: tables, and data below a header of tags; errors name the line."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from nnfx import checks

__all__ = ["MISSING", "Dialect", "Lines", "is_no_name", "marked", "numbers", "tags", "times", "values_of"]

MISSING = frozenset({"", "-", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>"})
"""The fields that stand for a missing number."""

_LARGEST = float(np.finfo(np.float32).max)
_DELIMITERS = (",", ";", "\t", "|")


class Dialect(NamedTuple):
    """The format in which numbers are written in a file.

    Attributes:
        delimiter: the character between fields; None for a comma, a semicolon, a tab or a bar, detected in the file.
        decimal: the decimal point or comma.
        comment: the prefix of lines to skip; None skips lines that begin with `#`, but only at the start of the file.
    """

    delimiter: str | None = None
    decimal: str = "."
    comment: str | None = None

    def check(self) -> None:
        """Raise an error for an invalid dialect.

        Raises:
            TypeError, ValueError: for a delimiter that is not one character or equals the decimal separator, a decimal
            separator other than `.` and `,`, or an empty comment prefix.
        """
        checks.choice("decimal", self.decimal, (".", ","))
        for name, value in (("delimiter", self.delimiter), ("comment", self.comment)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: expected text or None, got {checks.describe(value)}")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter: expected one character, got {self.delimiter!r}")
        if self.delimiter == self.decimal:
            raise ValueError(
                f"delimiter: expected a character other than the decimal separator, got {self.delimiter!r}"
            )
        if self.comment == "":
            raise ValueError("comment: expected the prefix of lines to skip, or None, got ''")


class Lines:
    """The lines of a text, split into fields.

    Args:
        file: the name of the file, for error messages.
        text: the text, open for reading.
        dialect: the format of its numbers.
        same_length: whether all lines should have the same number of fields, which helps to detect the delimiter.

    Attributes:
        file: the name of the file, for error messages.
        decimal: the decimal point or comma.
    """

    def __init__(self, file: str, text: TextIO, dialect: Dialect, same_length: bool = True) -> None:
        self.file, self.decimal = file, dialect.decimal
        self._number = 0
        plain = self._plain(text, dialect.comment)
        first = next(plain, None)
        if first is None:
            raise ValueError(f"{file}: expected lines of text, got an empty file")
        second = next(plain, None)
        known = [line for _, line in (first, second) if line.strip()] if second else [first[1]]
        self.delimiter = dialect.delimiter or _delimiter(file, known, dialect.decimal, same_length)
        given = itertools.chain([first] if second is None else [first, second], plain)
        self._reader = csv.reader(self._counted(given), delimiter=self.delimiter, skipinitialspace=True, strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the fields of each line; a blank line has one empty field.

        Raises:
            ValueError: for quotes that are not closed, and fields that are too long.
        """
        try:
            for fields in self._reader:
                yield self._number, fields or [""]
        except csv.Error as error:
            raise ValueError(
                f"{self.file}: line {self._number}: expected fields separated by commas, quoted or plain, got {error}"
                if self.delimiter == ","
                else f"{self.file}: line {self._number}: expected fields separated by {self.delimiter!r}, got {error}"
            ) from error

    def _plain(self, text: TextIO, comment: str | None) -> Iterator[tuple[int, str]]:
        """Yield all lines with their line numbers, except comments and trailing blank lines."""
        waiting: list[tuple[int, str]] = []
        has_begun = False
        for number, line in enumerate(text, start=1):
            # further down, # may begin a field such as #N/A
            if line.startswith(comment) if comment is not None else not has_begun and line.startswith("#"):
                continue
            if line.isspace():
                waiting.append((number, line))
                continue
            if waiting:
                yield from waiting
                waiting.clear()
            has_begun = True
            yield number, line

    def _counted(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for self._number, line in lines:
            yield line


def _delimiter(file: str, known: Sequence[str], decimal: str, same_length: bool) -> str:
    """Detect the delimiter from the first line or two: the one that splits both into the same number of fields."""
    counts = {each: [_count(line, each) for line in known] for each in _DELIMITERS if each != decimal}
    splitting = [delimiter for delimiter, found in counts.items() if found and found[0] > 1]
    if same_length and len(splitting) > 1:
        splitting = [delimiter for delimiter in splitting if len(set(counts[delimiter])) == 1] or splitting
    if len(splitting) > 1:
        raise ValueError(
            f"{file}: expected fields separated by {' or '.join(map(repr, splitting))}, got several of them;"
            " choose one with delimiter="
        )
    return splitting[0] if splitting else next(iter(counts))


def _count(line: str, delimiter: str) -> int:
    if delimiter not in line:
        return 1
    try:
        return len(next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [""]))
    except csv.Error:  # such as a field that is too long, if this is not the delimiter
        return 1


def is_no_name(field: str) -> bool:
    """Return whether a field cannot be a column name: it is a number, a time, missing, or only punctuation.

    Example:
        >>> [is_no_name(field) for field in ("load", "1.5", "-inf", "NA", "--", "2016-07-01")]
        [False, True, True, True, True, True]
    """
    field = field.strip()
    try:
        float(field.replace(",", "."))
    except ValueError:
        return field in MISSING or _ISO.fullmatch(field) is not None or not any(map(str.isalnum, field))
    return True


def numbers(
    lines: Lines, at: Sequence[int], names: Sequence[str], rows: Sequence[Sequence[str]], *, missing: bool
) -> np.ndarray:
    """Convert the fields of rows of equal length to numbers.

    Args:
        lines: the lines that the rows come from.
        at: the line number of each row.
        names: the names of the columns.
        rows: the fields of each row.
        missing: whether numbers may be missing.

    Returns:
        float64 `(rows, columns)`, NaN where a number is missing.

    Raises:
        ValueError: for fields that are neither missing nor a finite number; the error names the line and the column.
    """
    fields = list(itertools.chain.from_iterable(rows))
    if lines.decimal == "." and (plain := _plain_numbers(fields)) is not None:
        return plain.reshape(len(rows), len(names))
    values = np.array([_number(field.strip(), lines.decimal) for field in fields])
    values = values.reshape(len(rows), len(names))
    is_wrong = np.isinf(values) if missing else ~np.isfinite(values)
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0].tolist()
        field = rows[row][column].strip()
        raise ValueError(
            f"{lines.file}: line {at[row]}, column {names[column]!r}: expected a finite number, got {field!r}"
            f"{_hint(field, lines.decimal)}"
        )
    return values


def _plain_numbers(fields: Sequence[str]) -> np.ndarray | None:
    """Convert fields to numbers quickly; return None if any of them is not a finite number."""
    try:
        if "_" not in "".join(fields):
            values = np.fromiter(map(float, fields), np.float64, len(fields))
            return values if (np.abs(values) <= _LARGEST).all() else None
    except ValueError:
        pass
    return None


_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _number(field: str, decimal: str) -> float:
    """Return the number in a field, NaN if it is missing, and infinity for anything else."""
    if field in MISSING:
        return np.nan
    if decimal == ",":
        field = "." if "." in field else field.replace(",", ".")
    if not _PLAIN.fullmatch(field):
        return np.inf
    number = float(field)
    return number if abs(number) <= _LARGEST else np.inf


def _hint(field: str, decimal: str) -> str:
    """Return the text of a hint on how to read a field that is not a number; "" if there is none."""
    if field in MISSING:
        return "; missing='nan' or 'previous' accepts missing numbers"
    if re.fullmatch(r"[+-]?\d+,\d+", field) and decimal == ".":
        return "; pass decimal=',' for decimal commas, and remove thousands separators"
    if re.fullmatch(r"[+-]?\d{1,3}([,._' ]\d{3})+([.,]\d*)?", field):
        return "; remove thousands separators"
    return ""


_NO_NUMBERS = MISSING - {"?", "NaN", "nan"}


def values_of(place: str, fields: Sequence[str], *, missing: bool) -> np.ndarray:
    """Convert the fields of one series to numbers.

    Args:
        place: the file and the line, for error messages.
        fields: the fields; `?` and `NaN` stand for missing numbers.
        missing: whether numbers may be missing.

    Returns:
        float64 `(time,)`, NaN where a number is missing.

    Raises:
        ValueError: for fields that are neither missing nor a finite number; the error counts the fields from 1.

    Example:
        >>> values_of("line 7", ["1.5", "?"], missing=True)
        array([1.5, nan])
    """
    if (plain := _plain_numbers(fields)) is not None:
        return plain
    fields = [field.strip() for field in fields]
    values = np.array([np.inf if field in _NO_NUMBERS else _number(field, ".") for field in fields])
    is_wrong = np.isinf(values) if missing else ~np.isfinite(values)
    if is_wrong.any():
        first = int(is_wrong.argmax())
        field = fields[first]
        hint = "" if field in _NO_NUMBERS else _hint(field, ".")
        raise ValueError(f"{place}, value {first + 1}: expected a finite number, got {field!r}{hint}")
    return values


def marked(text: TextIO) -> Iterator[tuple[int, str]]:
    r"""Yield the lines of a text with their line numbers, except blank lines and lines that begin with `#` or `%`.

    >>> import io
    >>> list(marked(io.StringIO("% made by hand\n@data\n\n1,2\n")))
    [(2, '@data'), (4, '1,2')]
    """
    for number, line in enumerate(text, start=1):
        content = line.strip()
        if content and not content.startswith(("#", "%")):
            yield number, content


def tags(file: str, lines: Iterator[tuple[int, str]]) -> list[tuple[int, list[str]]]:
    """Read the header of a file, which consists of lines that begin with `@`, up to `@data`.

    Args:
        file: the name of the file, for error messages.
        lines: the numbered lines, as yielded by `marked`; the lines after `@data` are left unread.

    Returns:
        For each line before `@data`, its line number and its words; the first word, the tag, is in lower case.

    Raises:
        ValueError: for lines that do not begin with `@`, and a header without `@data`.

    Example:
        >>> tags("a.ts", iter([(1, "@equalLength true"), (2, "@data")]))
        [(1, ['@equallength', 'true'])]
    """
    found: list[tuple[int, list[str]]] = []
    for number, line in lines:
        if not line.startswith("@"):
            raise ValueError(f"{file}: line {number}: expected a header of lines that begin with @, got {line[:60]!r}")
        tag, *words = line.split()
        if tag.lower() == "@data":
            return found
        found.append((number, [tag.lower(), *words]))
    raise ValueError(f"{file}: expected a header that ends with @data, got none")


_ZONE = r"(Z|z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_ISO = re.compile(
    rf"(\d{{4}})(-\d\d(?:(-\d\d)(?:[T ](\d\d)(?:(:\d\d)(?:(:\d\d)(\.\d{{1,9}})?)?)?\s?{_ZONE}?)?)?)?", re.ASCII
)
_PARTS = (("Y", "year"), ("M", "month"), ("D", "day"), ("h", "hour"), ("m", "minute"), ("s", "second"))
_FRACTIONS = ("s", "ms", "ms", "ms", "us", "us", "us", "ns", "ns", "ns")


def times(file: str, at: Sequence[int], name: str, fields: Sequence[str]) -> np.ndarray:
    """Parse the fields of a column of ISO 8601 times.

    Times with a time zone, `Z` or an offset from UTC, are converted to UTC.

    Args:
        file: the name of the file, for error messages.
        at: the line number of each field.
        name: the name of the column.
        fields: the fields of the column.

    Returns:
        datetime64 `(time,)`, ascending, at the resolution at which the times are written.

    Raises:
        ValueError: for fields that are not times, that mix resolutions or times with and without a time zone, or that
            are not in ascending order; the error names the line and the column.
    """

    def place(row: int) -> str:
        return f"{file}: line {at[row]}, column {name!r}"

    bare, offsets, digits, first = [], [], 0, None
    for row, given in enumerate(fields):
        field = given.strip()
        match = _ISO.fullmatch(field)
        if not match:
            raise ValueError(f"{place(row)}: expected an ISO 8601 time, such as 2016-07-01 13:00:00, got {field!r}")
        groups = match.groups()
        fraction, zone = groups[-2:]
        kind = len(_PARTS) - groups[: len(_PARTS)].count(None), zone is not None
        first = first or kind
        if kind != first:
            unit = _PARTS[first[0] - 1][1]
            zoned = " with a time zone" if first[1] else " without a time zone" if kind[1] else ""
            raise ValueError(f"{place(row)}: expected a time to the {unit}{zoned} as before, got {field!r}")
        digits = max(digits, len(fraction or ".") - 1)
        bare.append(field if zone is None else field[: match.start(8)].rstrip())
        if zone is not None:
            offsets.append(_minutes(zone))
    assert first is not None
    unit = _FRACTIONS[digits] if digits else _PARTS[first[0] - 1][0]
    try:
        found = np.array(bare, f"datetime64[{unit}]")
    except ValueError:  # such as the 32nd of a month
        row = next(row for row, field in enumerate(bare) if not _is_time(field))
        raise ValueError(
            f"{place(row)}: expected an ISO 8601 time, such as 2016-07-01 13:00:00, got {fields[row].strip()!r}"
        ) from None
    if any(offsets):
        found = found - np.array(offsets, "timedelta64[m]")
    wrong = np.flatnonzero(found[1:] <= found[:-1])
    if len(wrong):
        row = int(wrong[0]) + 1
        raise ValueError(
            f"{place(row)}: expected a later time than {found[row - 1]} on the line before, got {fields[row].strip()!r}"
        )
    return found


def _is_time(field: str) -> bool:
    try:
        np.datetime64(field)
    except ValueError:
        return False
    return True


def _minutes(zone: str) -> int:
    """Return the offset of a time zone from UTC, in minutes.

    >>> _minutes("Z"), _minutes("-03:30"), _minutes("+01")
    (0, -210, 60)
    """
    if zone in "Zz":
        return 0
    minutes = 60 * int(zone[1:3]) + int(zone[3:].lstrip(":") or 0)
    return -minutes if zone[0] == "-" else minutes
