"""Time series: sunspots and airline passengers, transformers and exchange rates from the web, and any file of text."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnfx import checks
from nnfx.data.download import File, fetch
from nnfx.data.formats import Source


class Series(NamedTuple):
    """Series at common times, on the host; `nnfx.forecasting.windows` cuts their values into examples.

    Attributes:
        values: float32 `(time, channels)`, in the order of time.
        names: of the channels.
        times: datetime64 `(time,)`, ascending; None where they are not known.
        period: how many steps make a season; 1 where none is known.
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray | None
    period: int


def read_series(
    source: Source, *, time: str | None = None, names: Sequence[str] | None = None, period: int = 1
) -> Series:
    r"""Read a file of comma-separated text with one series a column and one time a line.

    Args:
        source: the file, by its path or as its bytes, plain or packed by gzip.
        time: the name of the column of times, in ISO 8601, such as 1949-01 or 2016-07-01 13:00:00; None for no such.
        names: of all columns, for a file whose first line does not name them.
        period: how many steps make a season, to be kept with the values.

    Returns:
        The other columns, in their order.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a period that is not a whole number, or names in one string.
        ValueError: for a file that is empty, damaged or not text; columns without a name or with one that is taken;
            lines of more or fewer fields than there are columns; fields that are not finite numbers; and times that
            cannot be read or do not ascend. The error names the file, the line and the column.

    Example:
        >>> series = read_series(b"year,lynx,hare\n1900,4,30\n1901,6,47.2\n", time="year")
        >>> series.names, series.values.tolist(), str(series.times[0])
        (('lynx', 'hare'), [[4.0, 30.0], [6.0, 47.20000076293945]], '1900')
    """
    checks.positive_integer("period", period)
    if isinstance(names, str):
        raise TypeError(f"names: expected a sequence of names, got {names!r}")
    file, rows = _rows(source)
    if names is None:
        line, columns = next(rows)
        if all(map(_is_number, columns)):
            raise ValueError(
                f"{file}: line {line}: expected the names of the columns, got numbers; pass names for a file without"
            )
    else:
        columns = list(names)
    _check_names(f"{file}: line 1" if names is None else "names", columns)
    if time is not None:
        checks.choice("time", time, columns)
    at = None if time is None else columns.index(time)
    channels = [column for column in columns if column != time]
    if not channels:
        raise ValueError(f"{file}: expected at least one column beside {time!r}, got none")
    values: list[np.ndarray] = []
    times: list[np.datetime64] = []
    for line, fields in rows:
        if len(fields) != len(columns):
            raise ValueError(f"{file}: line {line}: expected {len(columns)} fields, one a column, got {len(fields)}")
        if at is not None:
            place = f"{file}: line {line}, column {time!r}"
            times.append(_time(place, fields.pop(at), times[-1] if times else None))
        values.append(_numbers(f"{file}: line {line}", channels, fields))
    if not values:
        raise ValueError(f"{file}: expected at least one line of numbers, got none")
    return Series(np.stack(values), tuple(channels), np.array(times) if times else None, int(period))


def read_series_rows(source: Source, *, period: int = 1) -> tuple[Series, ...]:
    r"""Read a file of comma-separated text with one series a line, of any lengths, as those of the M4 competition are.

    The first line is a heading. In each of the others the first field names the series, its values follow in the order
    of time, and the fields that its length leaves over are empty or missing.

    Args:
        source: the file, by its path or as its bytes, plain or packed by gzip.
        period: how many steps make a season, to be kept with the values.

    Returns:
        The series in their order, each of one channel.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a period that is not a whole number.
        ValueError: for a file that is empty, damaged or not text; series without a name, with one that is taken, or
            without values; lines longer than the heading; gaps; and fields that are not finite numbers. The error names
            the file, the line and the column.

    Example:
        >>> series = read_series_rows(b'"V1","V2","V3","V4"\n"Y1","5.5","7","6"\n"Y2","1",,\n')
        >>> [(one.names[0], one.values[:, 0].tolist()) for one in series]
        [('Y1', [5.5, 7.0, 6.0]), ('Y2', [1.0])]

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020.
    """
    checks.positive_integer("period", period)
    file, rows = _rows(source)
    line, heading = next(rows)
    if len(heading) < 2 or all(map(_is_number, heading[1:])):
        raise ValueError(f"{file}: line {line}: expected a heading of two columns or more, got {_described(heading)}")
    found: dict[str, Series] = {}
    for line, (name, *fields) in rows:
        if not name or name in found:
            raise ValueError(f"{file}: line {line}: expected a name of its own for each series, got {name!r}")
        while fields and not fields[-1]:
            fields.pop()
        if not 0 < len(fields) < len(heading):
            raise ValueError(
                f"{file}: line {line}: expected 1 to {len(heading) - 1} values of {name!r}, got {len(fields)}"
            )
        values = _numbers(f"{file}: line {line}", heading[1:], fields)
        found[name] = Series(values[:, None], (name,), None, int(period))
    if not found:
        raise ValueError(f"{file}: expected at least one series, got none")
    return tuple(found.values())


def _rows(source: Source) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Return what errors call a file, and its lines by their numbers, split into fields; there is at least one."""
    file = "the bytes given" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: expected a whole gzip file, got a damaged one: {error}") from error
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, got other bytes from {error.start} on") from error
    if not text:
        raise ValueError(f"{file}: expected lines of text, got an empty file")
    return file, _split(file, text)


def _split(file: str, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise ValueError(
            f"{file}: line {reader.line_num}: expected fields between commas, in quotes or plain, got {error}"
        ) from error


def _check_names(place: str, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise ValueError(f"{place}: expected a name of its own for each column, got {name!r} for column {i + 1}")


_LARGEST = float(np.finfo(np.float32).max)


def _is_number(field: str) -> bool:
    """Say whether a field is a finite number that a float32 can hold."""
    try:
        return -_LARGEST <= float(field) <= _LARGEST and "_" not in field
    except ValueError:
        return False


def _numbers(place: str, columns: Sequence[str], fields: Sequence[str]) -> np.ndarray:
    for column, field in zip(columns, fields, strict=False):
        if not _is_number(field):
            raise ValueError(f"{place}, column {column!r}: expected a finite number, got {field!r}")
    return np.array([float(field) for field in fields], np.float32)


_ISO = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?)?)?")


def _time(place: str, field: str, previous: np.datetime64 | None) -> np.datetime64:
    try:
        time = np.datetime64(field) if _ISO.fullmatch(field) else None
    except ValueError:  # such as the 32nd of a month
        time = None
    if time is None:
        raise ValueError(f"{place}: expected a time in ISO 8601, such as 2016-07-01 13:00:00, got {field!r}")
    if previous is not None and time <= previous:
        raise ValueError(f"{place}: expected a later time than {previous} on the line before, got {field!r}")
    return time


def _described(fields: Sequence[str]) -> str:
    return ",".join(fields[:4]) + (",…" if len(fields) > 4 else "")


def sunspots() -> Series:
    """The yearly mean number of sunspots from 1700 to 2008; their cycle takes about 11 years, but no fixed number.

    Example:
        >>> series = sunspots()
        >>> series.values.shape, str(series.times[-1]), series.values.argmax().item()
        ((309, 1), '2008', 257)

    References:
        `sunspots.md` beside the table tells where it comes from.
    """
    return _packaged("sunspots.csv", "year", period=1)


def airline_passengers() -> Series:
    """The passengers of international airlines in thousands, each month from 1949 to 1960; the period is 12.

    Example:
        >>> series = airline_passengers()
        >>> series.values.shape, str(series.times[-1]), series.values[-1, 0].item()
        ((144, 1), '1960-12', 432.0)

    References:
        `airline_passengers.md` beside the table tells where it comes from.
    """
    return _packaged("airline_passengers.csv", "month", period=12)


def _packaged(name: str, time: str, period: int) -> Series:
    return read_series(resources.files("nnfx.data").joinpath(name).read_bytes(), time=time, period=period)


_ETT = {
    name: File(
        f"ett/{name}.csv", f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/{name}.csv", sha256
    )
    for name, sha256 in {
        "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    }.items()
}
_EXCHANGE_RATE = File(
    "exchange-rate/exchange_rate.txt.gz",
    "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/master/exchange_rate/exchange_rate.txt.gz",
    "6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d",
)


def ett(name: str) -> Series:
    """An electricity transformer, each hour from July 2016 to June 2018: six loads, and the oil's temperature, `OT`.

    The file is downloaded once into the folder that the environment variable `NNFX_DATA` names, else the platform's
    cache, and known there by its checksum.

    Args:
        name: `"ETTh1"` or `"ETTh2"`, one transformer each.

    Returns:
        17,420 hours of 7 channels; the period is 24.

    Raises:
        ValueError: for an unknown name, or a file with another checksum than it should have.
        OSError: for a file that is not there and cannot be downloaded either.

    References:
        Zhou et al., *Informer: beyond efficient transformer for long sequence time-series forecasting*, AAAI 2021.
    """
    checks.choice("name", name, _ETT)
    return read_series(fetch(_ETT[name]), time="date", period=24)


def exchange_rate() -> Series:
    """The exchange rates of eight countries, each day from 1990 to 2016.

    The file is downloaded once, as those of `ett` are.

    Returns:
        7,588 days of 8 channels, without times; no period is known.

    Raises:
        ValueError, OSError: as `ett`.

    References:
        Lai, Chang, Yang and Liu, *Modeling long- and short-term temporal patterns with deep neural networks*,
        SIGIR 2018.
    """
    countries = ("Australia", "Britain", "Canada", "Switzerland", "China", "Japan", "New Zealand", "Singapore")
    return read_series(fetch(_EXCHANGE_RATE), names=countries)
