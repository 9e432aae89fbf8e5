import gzip
import hashlib
import sys

import numpy as np
import pytest

import nnfx
from nnfx.data import read_series, read_series_rows

MODULE = sys.modules["nnfx.data.series"]
TABLE = b"date,load,oil\n2016-07-01 00:00:00,5.5,-1e1\n2016-07-01 01:00:00,6,7.25\n"
M4 = b'"V1","V2","V3","V4"\n"Y1","5172.1","5133.5",\n"Y2","2070",,\n"Y3","1","2","3"\n'


# Embedded


def test_sunspots_are_the_known_facts():
    series = nnfx.data.sunspots()
    assert (series.values.dtype, series.values.shape, series.names, series.period) == (
        np.float32, (309, 1), ("sunspots",), 1
    )  # fmt: skip
    np.testing.assert_array_equal(series.times.astype(int) + 1970, np.arange(1700, 2009))
    known = {1700: 5, 1712: 0, 1778: 154.4, 1957: 190.2, 2000: 119.6, 2008: 2.9}
    for year, number in known.items():
        assert series.values[year - 1700, 0] == np.float32(number)
    assert series.values.mean() == pytest.approx(49.7521, abs=1e-4)
    maxima = [1700 + t for t in range(1, 308) if series.values[t, 0] == series.values[max(t - 4, 0) : t + 5, 0].max()]
    assert 10.5 < np.diff(maxima).mean() < 11.5  # years of a cycle


def test_airline_passengers_are_the_known_facts():
    series = nnfx.data.airline_passengers()
    assert (series.values.dtype, series.values.shape, series.names, series.period) == (
        np.float32, (144, 1), ("passengers",), 12
    )  # fmt: skip
    assert (str(series.times[0]), str(series.times[-1])) == ("1949-01", "1960-12")
    by_year = series.values.reshape(12, 12)
    assert by_year[0].tolist() == [112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118]
    assert by_year[-1].tolist() == [417, 391, 419, 461, 472, 535, 622, 606, 508, 461, 390, 432]
    assert by_year.sum(1).tolist() == [1520, 1676, 2042, 2364, 2700, 2867, 3408, 3939, 4421, 4572, 5140, 5714]


# Any file


def test_columns_of_text_become_series(tmp_path):
    (tmp_path / "loads.csv").write_bytes(TABLE)
    (tmp_path / "loads.csv.gz").write_bytes(gzip.compress(TABLE))
    windows_text = b"\xef\xbb\xbf" + TABLE.replace(b"\n", b"\r\n") + b"\r\n"
    for source in (TABLE, tmp_path / "loads.csv", str(tmp_path / "loads.csv.gz"), windows_text):
        series = read_series(source, time="date", period=24)
        assert series.values.dtype == np.float32
        assert series.values.tolist() == [[5.5, -10], [6, 7.25]]
        assert (series.names, series.period) == (("load", "oil"), 24)
        assert np.diff(series.times)[0] == np.timedelta64(1, "h")


def test_a_file_without_names_or_times():
    series = read_series(b'1.5, 2\n"3",4\n', names=("a", "b"))
    assert series.values.tolist() == [[1.5, 2], [3, 4]]
    assert (series.names, series.times, series.period) == (("a", "b"), None, 1)


def test_the_column_of_times_may_stand_anywhere():
    series = read_series(b"a,year,b\n1,1900,2\n3,1901,4\n", time="year")
    assert (series.values.tolist(), series.names) == ([[1, 2], [3, 4]], ("a", "b"))


def test_rows_of_text_become_series_of_their_own_lengths():
    series = read_series_rows(M4, period=4)
    assert [one.names for one in series] == [("Y1",), ("Y2",), ("Y3",)]
    assert [one.values.shape for one in series] == [(2, 1), (1, 1), (3, 1)]
    np.testing.assert_array_equal(series[0].values[:, 0], np.float32([5172.1, 5133.5]))
    assert {(one.times, one.period) for one in series} == {(None, 4)}
    short = read_series_rows(M4.replace(b",,", b"").replace(b',\n"Y2', b'\n"Y2'))
    for one, other in zip(series, short, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def table(old, new):
    return lambda: read_series(TABLE.replace(old, new), time="date")


def rows(old, new):
    return lambda: read_series_rows(M4.replace(old, new))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: read_series(b""), ValueError, "the bytes given: expected lines of text, got an empty file"),
        (lambda: read_series(b"\n \n"), ValueError, "got an empty file"),
        (lambda: read_series(b"a,b\n"), ValueError, "expected at least one line of numbers, got none"),
        (lambda: read_series(b"1,2\n3,4"), ValueError, "line 1: expected the names of the columns, got num"),
        (lambda: read_series(TABLE, time="time"), ValueError, "time: expected one of 'date', 'load', 'oil', got"),
        (lambda: read_series(TABLE), ValueError, "line 2, column 'date': expected a finite number, got '2016"),
        (lambda: read_series(b"a\n1\n", time="a"), ValueError, "expected at least one column beside 'a'"),
        (lambda: read_series(b"1,2\n", names=("a",)), ValueError, "line 1: expected 1 fields, one a column, got 2"),
        (lambda: read_series(b"1,2\n", names=("a", "a")), ValueError, "names: .*its own .* got 'a' for column 2"),
        (lambda: read_series(b"1,2\n", names="ab"), TypeError, "names: expected a sequence of names, got 'ab'"),
        (lambda: read_series(TABLE, time="date", period=0), ValueError, "period: expected a positive integer, got 0"),
        (table(b"load", b"oil"), ValueError, "line 1: expected a name of its own .* got 'oil' for column 3"),
        (table(b"load", b""), ValueError, "line 1: expected a name of its own .* got '' for column 2"),
        (table(b",7.25", b""), ValueError, "line 3: expected 3 fields, one a column, got 2"),
        (table(b"7.25", b"7,25"), ValueError, "line 3: expected 3 fields, one a column, got 4"),
        (table(b"6,7.25", b"6,"), ValueError, "line 3, column 'oil': expected a finite number, got ''"),
        (table(b"5.5", b"nan"), ValueError, "line 2, column 'load': expected a finite number, got 'nan'"),
        (table(b"5.5", b"-inf"), ValueError, "line 2, column 'load': .*got '-inf'"),
        (table(b"5.5", b"1e39"), ValueError, "line 2, column 'load': .*got '1e39'"),
        (table(b"5.5", b"5_5"), ValueError, "line 2, column 'load': .*got '5_5'"),
        (table(b"5.5", b"n/a"), ValueError, "line 2, column 'load': .*got 'n/a'"),
        (table(b"5.5", b'"5.5'), ValueError, "line 3: expected fields between commas, .*got unexpected end of data"),
        (table(b"5.5", b"5\xff"), ValueError, "expected text in UTF-8, got other bytes from 35 on"),
        (table(b"\n2016-07-01 01", b"\n\n2016-07-01 01"), ValueError, "line 3: expected 3 fields, one a column, got 1"),
        (table(b"01:00:00", b"00:00:00"), ValueError, "line 3, column 'date': expected a later time than 2016"),
        (table(b"2016-07-01 01", b"2016-07-32 01"), ValueError, "line 3, column 'date': expected a time in ISO 8601"),
        (table(b"2016-07-01 01:00:00", b"1/7/2016"), ValueError, "line 3, column 'date': .*got '1/7/2016'"),
        (lambda: read_series(gzip.compress(TABLE)[:-9]), ValueError, "expected a whole gzip file, got a damaged one"),
        (lambda: read_series_rows(b'"V1"\n"Y1"\n'), ValueError, "line 1: expected a heading of .* or more, got V1"),
        (lambda: read_series_rows(b"Y1,1,2\nY2,3,4\n"), ValueError, "line 1: expected a heading .* got Y1,1,2"),
        (lambda: read_series_rows(b"V1,V2\n"), ValueError, "expected at least one series, got none"),
        (lambda: read_series_rows(M4, period=1.0), TypeError, "period: expected a positive integer, got 1.0"),
        (rows(b"Y2", b"Y1"), ValueError, "line 3: expected a name of its own for each series, got 'Y1'"),
        (rows(b'"Y2"', b""), ValueError, "line 3: expected a name of its own for each series, got ''"),
        (rows(b"2070", b""), ValueError, "line 3: expected 1 to 3 values of 'Y2', got 0"),
        (rows(b'"3"', b'"3","4"'), ValueError, "line 4: expected 1 to 3 values of 'Y3', got 4"),
        (rows(b'"1","2"', b'"1",""'), ValueError, "line 4, column 'V3': expected a finite number, got ''"),
        (rows(b"5133.5", b"NA"), ValueError, "line 2, column 'V3': expected a finite number, got 'NA'"),
        (rows(b'"3"\n', b'"3'), ValueError, "line 4: expected fields between commas"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "loads.csv"
    with pytest.raises(FileNotFoundError, match="loads.csv"):
        read_series(path)
    path.write_bytes(TABLE[:-3])
    with pytest.raises(ValueError, match=f"^{path}: line 2, column 'date'"):
        read_series(path)


# From the web


def install(monkeypatch, folder, name, content):
    """Put this content in the place of a file from the web."""
    path = folder / name
    path.parent.mkdir()
    path.write_bytes(content)
    monkeypatch.setenv("NNFX_DATA", str(folder))
    return hashlib.sha256(content).hexdigest()


def test_transformers_and_exchange_rates_are_read_from_their_files(tmp_path, monkeypatch):
    sha256 = install(monkeypatch, tmp_path, "ett/ETTh2.csv", TABLE)
    monkeypatch.setitem(MODULE._ETT, "ETTh2", MODULE._ETT["ETTh2"]._replace(sha256=sha256))
    series = nnfx.data.ett("ETTh2")
    assert (series.names, series.period, str(series.times[1])) == (("load", "oil"), 24, "2016-07-01T01:00:00")
    content = gzip.compress(b"0.7855,1.611,0.861698,0.634196,0.211242,0.006838,0.525486,0.593\n")
    sha256 = install(monkeypatch, tmp_path, "exchange-rate/exchange_rate.txt.gz", content)
    monkeypatch.setattr(MODULE, "_EXCHANGE_RATE", MODULE._EXCHANGE_RATE._replace(sha256=sha256))
    rates = nnfx.data.exchange_rate()
    assert (rates.values.shape, rates.times, rates.period) == ((1, 8), None, 1)
    assert rates.values[0, rates.names.index("Japan")] == np.float32(0.006838)


def test_another_file_than_the_known_one_is_refused(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "ett/ETTh1.csv", TABLE)
    with pytest.raises(ValueError, match="ETTh1.csv: expected a file with the SHA-256 checksum f18de3ad"):
        nnfx.data.ett("ETTh1")
    with pytest.raises(ValueError, match="name: expected one of 'ETTh1', 'ETTh2', got 'ETTm1'"):
        nnfx.data.ett("ETTm1")


@pytest.mark.usefixtures("etth1_file")
def test_the_transformer_is_as_published():
    series = nnfx.data.ett("ETTh1")
    assert series.values.shape == (17420, 7)
    assert series.names == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert (np.diff(series.times) == np.timedelta64(1, "h")).all()
    assert (str(series.times[0]), str(series.times[-1])) == ("2016-07-01T00:00:00", "2018-06-26T19:00:00")
    assert series.values[0, -1] == np.float32(30.531)
