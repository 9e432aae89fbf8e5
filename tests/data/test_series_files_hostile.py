"""Files of series that cost more than they hold, and files with random changes."""

import csv
import gzip
import io
import re
import time
import tracemalloc

import numpy as np
import pytest

from nnfx.data import read_series, read_series_rows, tables
from tests.data.test_series_files import M4


def seconds(function):
    best = np.inf
    for _ in range(3):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.slow
def test_the_time_is_that_of_the_fields_however_they_are_laid_out():
    wide = ",".join(f"x{i}" for i in range(40_000)) + "\n" + ",".join(["1"] * 40_000) + "\n"
    long = "a,b\n" + "1,2.5\n" * 40_000
    took = seconds(lambda: read_series(wide.encode())), seconds(lambda: read_series(long.encode()))
    assert max(took) < 1
    twice = seconds(lambda: read_series(",".join(["1"] * 80_000).encode(), names=[f"x{i}" for i in range(80_000)]))
    assert twice < 4 * took[0] + 0.1


def bomb(text, times):
    """Return a small gzip file that unpacks to many copies of a text."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(b"a,b\n")
        for _ in range(times):
            file.write(text)
    return packed.getvalue()


@pytest.mark.parametrize("read", [read_series, read_series_rows])
@pytest.mark.parametrize(
    "text",
    [
        b"0,0\n" * 2**18,
        *(pytest.param(text * 2**20, marks=pytest.mark.slow) for text in (b"0", b",", b"\n")),
        b'"' * 2**20,
    ],
)
def test_packed_text_that_unpacks_to_too_much_takes_no_memory(read, text):
    packed = bomb(text, 64 * 2**20 // len(text))
    assert len(packed) < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"expected text that unpacks to at most \d+ bytes \(100 times its size\), got"
        ):
            read(packed)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_packed_tables_of_the_usual_kind_are_read_whatever_their_size():
    text = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i % 7) for i in range(50_000))
    assert read_series(gzip.compress(text)).values.shape == (50_000, 2)
    alike = b"a,b\n" + b"0,0\n" * 200_000  # compressed to a thousandth, but small
    assert read_series(gzip.compress(alike)).values.shape == (200_000, 2)


# Mutations


LOADS = b"date,load,oil\n" + b"".join(
    b"2016-07-01 %02d:00:00,%d.5,-%de1\n" % (hour, 5 + hour, hour) for hour in range(12)
)


def plain_rows(data):
    """Return the lines of a table with their fields, split by Python's own reader, but for blank lines and comments."""
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, row))]
    return [row for i, row in enumerate(rows) if not (row[0].strip().startswith("#") and not i)]


def number(field):
    return np.nan if field.strip() in tables.MISSING else float(field)


@pytest.mark.parametrize("trials", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_tables_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    accepted, refused = 0, []
    numbers = [at for at in range(14, len(LOADS)) if b"," in LOADS[LOADS.rindex(b"\n", 0, at) : at]]
    for trial in range(trials):
        data = mutate(rng, gzip.compress(LOADS) if trial % 10 == 0 else LOADS, numbers)
        try:
            series = read_series(data, time="date", delimiter=",", missing="nan", gaps="keep")
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        heading, *rows = plain_rows(data)
        assert series.names == tuple(name.strip() for name in heading if name.strip() != "date")
        np.testing.assert_array_equal(series.values, [[number(field) for field in row[1:3]] for row in rows])
        expected = np.array([np.datetime64(row[0].strip()) for row in rows])
        np.testing.assert_array_equal(series.times, expected)
    assert 0.01 * trials < accepted < 0.9 * trials
    assert all(re.match("(the bytes given: .*|time: )expected", message, re.DOTALL) for message in refused)


@pytest.mark.parametrize("trials", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_rows_of_series_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    accepted, refused = 0, []
    for _ in range(trials):
        data = mutate(rng, M4, range(21, len(M4)))
        try:
            series = read_series_rows(data, delimiter=",")
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        rows = plain_rows(data)[1:]
        assert len(series) == len(rows)
        for one, row in zip(series, rows, strict=True):
            assert one.names == (row[0].strip(),)
            found = [field for field in row[1:] if field.strip()]
            np.testing.assert_array_equal(one.values[:, 0], list(map(float, found)))
    assert 0.05 * trials < accepted < 0.9 * trials
    assert all(re.match("the bytes given: .*expected", message, re.DOTALL) for message in refused)
