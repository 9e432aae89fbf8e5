import csv
import datetime
import gzip
import io
import re

import numpy as np
import pytest

from nnfx.data import read_series, read_series_rows, tables

TABLE = b"date,load,oil\n2016-07-01 00:00:00,5.5,-1e1\n2016-07-01 01:00:00,6,7.25\n"
M4 = b'"V1","V2","V3","V4"\n"Y1","5172.1","5133.5",\n"Y2","2070",,\n"Y3","1","2","3"\n'


# Any file


def test_columns_of_text_become_series(tmp_path):
    (tmp_path / "loads.csv").write_bytes(TABLE)
    (tmp_path / "loads.csv.gz").write_bytes(gzip.compress(TABLE))
    windows_text = b"\xef\xbb\xbf" + TABLE.replace(b"\n", b"\r\n") + b"\r\n"
    for source in (TABLE, tmp_path / "loads.csv", str(tmp_path / "loads.csv.gz"), windows_text):
        series = read_series(source, time="date", period=24)
        assert series.values.dtype == np.float64
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
    np.testing.assert_array_equal(series[0].values[:, 0], [5172.1, 5133.5])
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
        (lambda: read_series(b"a\n1\n", time="a"), ValueError, "expected at least one column besides 'a'"),
        (lambda: read_series(b"1,2\n", names=("a",)), ValueError, "line 1: expected 1 fields, one per column, got 2"),
        (lambda: read_series(b"1,2\n", names=("a", "a")), ValueError, "names: .*unique .* got 'a' for column 2"),
        (lambda: read_series(b"1,2\n", names="ab"), TypeError, "names: expected a sequence of names, got 'ab'"),
        (lambda: read_series(TABLE, time="date", period=0), ValueError, "period: expected a positive integer, got 0"),
        (table(b"load", b"oil"), ValueError, "line 1: expected a unique name .* got 'oil' for column 3"),
        (table(b"load", b""), ValueError, "line 1: expected a unique name .* got '' for column 2"),
        (table(b",7.25", b""), ValueError, "line 3: expected 3 fields, one per column, got 2"),
        (table(b"7.25", b"7,25"), ValueError, "line 3: expected 3 fields, one per column, got 4"),
        (table(b"6,7.25", b"6,"), ValueError, "line 3, column 'oil': expected a finite number, got ''"),
        (table(b"5.5", b"nan"), ValueError, "line 2, column 'load': expected a finite number, got 'nan'"),
        (table(b"5.5", b"-inf"), ValueError, "line 2, column 'load': .*got '-inf'"),
        (table(b"5.5", b"1e39"), ValueError, "line 2, column 'load': .*got '1e39'"),
        (table(b"5.5", b"5_5"), ValueError, "line 2, column 'load': .*got '5_5'"),
        (table(b"5.5", b"n/a"), ValueError, "line 2, column 'load': .*got 'n/a'"),
        (table(b"5.5", b'"5.5'), ValueError, "line 3: .* separated by commas, .*got unexpected end of data"),
        (table(b"5.5", b"5\xff"), ValueError, "expected text in UTF-8, got invalid bytes from byte 35 on"),
        (table(b"\n2016-07-01 01", b"\n\n2016-07-01 01"), ValueError, "line 3: expected 3 fields, .* column, got 1"),
        (table(b"01:00:00", b"00:00:00"), ValueError, "line 3, column 'date': expected a later time than 2016"),
        (table(b"2016-07-01 01", b"2016-07-32 01"), ValueError, "line 3, column 'date': expected an ISO 8601 time"),
        (table(b"2016-07-01 01:00:00", b"1/7/2016"), ValueError, "line 3, column 'date': .*got '1/7/2016'"),
        (lambda: read_series(gzip.compress(TABLE)[:-9]), ValueError, "a complete gzip file, got a damaged one"),
        (lambda: read_series_rows(b'"V1"\n"Y1"\n'), ValueError, "line 1: expected a heading of .* or more, got V1"),
        (lambda: read_series_rows(b"Y1,1,2\nY2,3,4\n"), ValueError, "line 1: expected a heading .* got Y1,1,2"),
        (lambda: read_series_rows(b"V1,V2\n"), ValueError, "expected at least one series, got none"),
        (lambda: read_series_rows(M4, period=1.0), TypeError, "period: expected a positive integer, got 1.0"),
        (rows(b"Y2", b"Y1"), ValueError, "line 3: expected a unique name for each series, got 'Y1'"),
        (rows(b'"Y2"', b""), ValueError, "line 3: expected a unique name for each series, got ''"),
        (rows(b"2070", b""), ValueError, "line 3: expected 1 to 3 values for 'Y2', got 0"),
        (rows(b'"3"', b'"3","4"'), ValueError, "line 4: expected 1 to 3 values for 'Y3', got 4"),
        (rows(b'"1","2"', b'"1",""'), ValueError, "line 4, column 'V3': expected a finite number, got ''"),
        (rows(b"5133.5", b"NA"), ValueError, "line 2, column 'V3': expected a finite number, got 'NA'"),
        (rows(b'"3"\n', b'"3'), ValueError, "line 4: expected fields separated by commas"),
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


# Other conventions, compared with pandas


@pytest.mark.parametrize(
    ("write", "read", "options"),
    [
        ({}, {}, {}),
        ({"sep": ";", "decimal": ","}, {"decimal": ","}, {"sep": ";", "decimal": ","}),
        ({"sep": "\t", "decimal": ","}, {"decimal": ","}, {"sep": "\t", "decimal": ","}),
        ({"sep": "|"}, {}, {"sep": "|"}),
        ({"sep": ":"}, {"delimiter": ":"}, {"sep": ":"}),
        ({"quoting": csv.QUOTE_ALL}, {}, {}),
        ({"lineterminator": "\r\n"}, {}, {}),
        ({"decimal": ",", "quoting": csv.QUOTE_ALL}, {"delimiter": ",", "decimal": "."}, None),
    ],
)
def test_what_pandas_writes_is_read_as_pandas_reads_it(write, read, options):
    pandas = pytest.importorskip("pandas")
    columns = {"a b": [1.5, -2e-3, 123456789.0], "c": [16777217.0, 0.1, 1e6]}
    frame = pandas.DataFrame(columns, pandas.date_range("2020-02-28", periods=3, name="day"))
    text = frame.to_csv(**write).encode()
    if options is None:
        with pytest.raises(ValueError, match="line 2, column 'a b': .* got '1,5'; pass decimal=',' for decimal commas"):
            read_series(text, time="day", **read)
        return
    series = read_series(text, time="day", **read)
    wanted = pandas.read_csv(io.BytesIO(text), index_col="day", parse_dates=True, **options)
    np.testing.assert_allclose(series.values, wanted.to_numpy(), rtol=1e-15)
    np.testing.assert_array_equal(series.values, frame.to_numpy())
    assert series.names == tuple(wanted.columns)
    np.testing.assert_array_equal(series.times, wanted.index.to_numpy().astype("datetime64[D]"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "cp1252"])
def test_encodings_are_named(encoding):
    text = "Jahr;Größe\n1900;1,5\n1901;2\n".encode(encoding)
    asked = "utf-8" if encoding.startswith("utf-8") else encoding
    series = read_series(text, time="Jahr", decimal=",", encoding=asked)
    assert (series.names, series.values.ravel().tolist()) == (("Größe",), [1.5, 2])
    if asked != "utf-8":
        at = next(i for i in range(len(text)) if not is_utf8(text[: i + 1] + b"xxx"))
        with pytest.raises(
            ValueError,
            match=f"expected text in UTF-8, got invalid bytes from byte {at} on; pass the encoding of the file",
        ):
            read_series(text, time="Jahr", decimal=",")


def is_utf8(text):
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("shift", ["Z", "z", "+00:00", "+01:00", "-0330", "+05"])
def test_times_with_a_zone_become_utc(shift):
    fields = [f"2020-01-01{'T' if hour % 2 else ' '}0{hour}:30:00{shift}" for hour in range(3)]
    series = read_series("\n".join(["t,a", *(f"{field},1" for field in fields)]).encode(), time="t")
    utc = [datetime.datetime.fromisoformat(field.upper()).astimezone(datetime.UTC) for field in fields]
    assert series.times.tolist() == [time.replace(tzinfo=None) for time in utc]


def test_an_hour_that_local_time_has_twice_is_regular_in_utc():
    text = (
        b"t,a\n2021-10-31T01:00+02:00,1\n2021-10-31T02:00+02:00,2\n2021-10-31T02:00+01:00,3\n2021-10-31T03:00+01:00,4\n"
    )
    series = read_series(text, time="t")
    assert str(series.times[0]) == "2021-10-30T23:00"
    assert (np.diff(series.times) == np.timedelta64(1, "h")).all()


def test_fractions_of_seconds_may_be_written_as_far_as_they_go():
    text = b"t,a\n2020-01-01 00:00:00,1\n2020-01-01 00:00:00.5,2\n2020-01-01 00:00:01.000,3\n"
    series = read_series(text, time="t")
    np.testing.assert_array_equal(np.diff(series.times), np.timedelta64(500, "ms"))


def test_columns_without_a_name():
    for counted in (b",a,b\n0,1.0,3\n1,2.0,4\n", b",a,b\n1,1.0,3\n2,2.0,4\n"):
        series = read_series(counted)
        assert (series.names, series.values.tolist()) == (("a", "b"), [[1, 3], [2, 4]])
    assert read_series(b",0,1\n0,1.0,3\n1,2.0,4\n", heading=True).names == ("0", "1")
    dated = b",a,b\n2020-01-01,1.0,3\n2020-01-02,2.0,4\n"
    assert read_series(dated, time="").names == ("a", "b")
    with pytest.raises(ValueError, match="line 2: expected line numbers in column 1, which has no name, got '2020"):
        read_series(dated)
    assert read_series(b"date,a,\n2020,1,\n2021,2,\n", time="date").names == ("a",)
    with pytest.raises(ValueError, match="line 3: expected an empty field in column 3, which has no name, got '7'"):
        read_series(b"date,a,\n2020,1,\n2021,2,7\n", time="date")
    with pytest.raises(ValueError, match="line 3: expected line numbers in column 1, .* got '5'"):
        read_series(b",a\n3,1\n5,2\n".replace(b"3", b"0"))


@pytest.mark.parametrize(
    "first",
    [
        "NA,2",
        "-,2",
        "inf,2",
        "-inf,2",
        "nan,2",
        "1,x",
        "1e3,2",
        "1.5,x",
        "5,x,3",
        ",2",
        "2020-01-01,2",
        "NA",
        "0x1,1",
        ".,2",
        "--,2",
    ],
)
def test_a_first_line_of_values_is_no_heading(first):
    fields = first.count(",") + 1
    text = f"{first}\n{','.join(['3'] * fields)}\n".encode()
    if first in ("1,x", "0x1,1"):  # names may be consecutive numbers
        names = ("1", "x") if first == "1,x" else ("0x1", "1")
        assert read_series(text).names == names
        return
    with pytest.raises(
        ValueError, match="line 1: expected the names of the columns, got numbers; pass names= for a file"
    ):
        read_series(text)
    names = [f"x{i}" for i in range(fields)]
    if first in ("NA,2", "-,2", "nan,2", ",2"):
        values = read_series(text, names=names, missing="nan").values
        np.testing.assert_array_equal(values, [[np.nan, 2], [3, 3]])


def test_names_may_be_years_and_headings_are_replaced():
    series = read_series(b"day,1990,1991\n2020-01-01,1,2\n2020-01-02,3,4\n", time="day")
    assert series.names == ("1990", "1991")
    assert read_series(b"1,2\n3,4\n", heading=True).names == ("1", "2")
    replaced = read_series(b"1,2\n3,4\n", heading=True, names=("a", "b"))
    assert (replaced.names, replaced.values.tolist()) == (("a", "b"), [[3, 4]])
    with pytest.raises(ValueError, match="names: expected the names of the columns for a file without a heading"):
        read_series(b"1,2\n3,4\n", heading=False)


@pytest.mark.parametrize("field", sorted(tables.MISSING))
def test_missing_fields_are_errors_or_nan_or_carried(field):
    text = f"day,a,b\n2020-01-01,1,2\n2020-01-02,{field},3\n2020-01-03,4,{field}\n".encode()
    with pytest.raises(ValueError, match=r"line 3, column 'a': expected a finite number, got .*missing='nan' or"):
        read_series(text, time="day")
    np.testing.assert_array_equal(
        read_series(text, time="day", missing="nan").values, [[1, 2], [np.nan, 3], [4, np.nan]]
    )
    np.testing.assert_array_equal(read_series(text, time="day", missing="previous").values, [[1, 2], [1, 3], [4, 3]])
    with pytest.raises(ValueError, match="line 2, column 'a': expected a number in the first row, got none"):
        read_series(f"a\n{field or '-'}\n1\n".encode(), missing="previous", heading=True)


@pytest.mark.parametrize(
    "field",
    ["1,234", "1'234", "1 234", "1_000", "0x10", "1e", "--1", "1e39", "1e400", "infinity", "-Inf", "true", "$1", "1%"],
)
def test_what_is_no_number_is_refused_by_name(field):
    for rows in (f'"{field}",1\n', f'2,3\n"{field}",1\n'):
        line = rows.count("\n") + 1
        for missing in ("error", "nan"):
            with pytest.raises(
                ValueError, match=f"line {line}, column 'a': expected a finite number, got '?.?{re.escape(field)}"
            ):
                read_series(f"a,b\n{rows}".encode(), missing=missing)
    with pytest.raises(ValueError, match="line 2, column 'a': expected a finite number, got '1.234'"):
        read_series(b"a;b\n1.234;1\n", decimal=",")


def test_comments_stand_before_the_table_or_where_they_are_asked_for():
    text = b"# made by hand\n# in 2020\n\xc3\xa4,b\n1,2\n#N/A,3\n"
    series = read_series(text, missing="nan")
    np.testing.assert_array_equal(series.values, [[1, 2], [np.nan, 3]])
    with pytest.raises(ValueError, match="line 2: expected 2 fields, one per column, got 1"):
        read_series(b"a,b\n# units\n1,2\n")
    for comment, mark in (("#", b"#"), ("//", b"//"), ("%", b"%")):
        text = mark + b" made\na,b\n" + mark + b" units\n1,2\n" + mark + b"end\n"
        assert read_series(text, comment=comment).values.tolist() == [[1, 2]]
        with pytest.raises(ValueError, match="line 4, column 'a': expected a finite number, got ''"):
            read_series(text.replace(b"1,2", b",2"), comment=comment)


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        (b"a,b;c,d\n1;2\n", ";"),
        (b"a;b\tc;d\n1\t2\n", "\t"),
        (b'"a;b","c"\n1,2\n', ","),
        (b"a|b\n1|2\n", "|"),
    ],
)
def test_the_delimiter_is_what_splits_the_first_lines_alike(text, delimiter):
    series = read_series(text)
    assert series.values.tolist() == [[1, 2]]
    assert read_series(text, delimiter=delimiter).names == series.names


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"delimiter": ";;"}, ValueError, "delimiter: expected one character, got ';;'"),
        ({"delimiter": ","}, ValueError, "delimiter: expected a character other than the decimal separator, got ','"),
        ({"delimiter": 3}, TypeError, "delimiter: expected text or None, got 3"),
        ({"decimal": ";"}, ValueError, "decimal: expected one of '.', ',', got ';'"),
        ({"comment": ""}, ValueError, "comment: expected the prefix of lines"),
        ({"encoding": "klingon"}, ValueError, "encoding: expected an encoding that Python knows, .* got 'klingon'"),
        ({"missing": "drop"}, ValueError, "missing: expected one of 'error', 'nan', 'previous', got 'drop'"),
        ({"gaps": "fill"}, ValueError, "gaps: expected one of 'error', 'keep', 'nan', 'previous', got 'fill'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        read_series(b"a;b\n1;2\n", **{"decimal": ",", **options})


def test_text_that_two_delimiters_split_alike_is_refused():
    with pytest.raises(
        ValueError, match="expected fields separated by ',' or ';', got several of them; choose one with delimiter="
    ):
        read_series(b"a,b;c\n1,5;2\n")


def test_times_that_were_not_named_are_said_to_be_times():
    table = b"date,a\n2020-01-01,1\n2020-01-02,2\n"
    with pytest.raises(
        ValueError, match="expected a finite number, got '2020-01-01'; pass time='date' if these are times"
    ):
        read_series(table)
    assert read_series(table, time="date").names == ("a",)
    with pytest.raises(ValueError, match="expected a finite number, got 'x'$"):
        read_series(b"date,a\n1,x\n2,2\n")
