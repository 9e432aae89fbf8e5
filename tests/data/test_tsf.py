import gzip
import re
import time

import numpy as np
import pytest

from nnfx.data.tsf import read_tsf

MONASH = b"""# Dataset Information
# Demand of electricity.
#
@relation demand
@attribute series_name string
@attribute state string
@attribute start_timestamp date
@attribute peak numeric
@frequency half_hourly
@horizon 4
@missing true
@equallength false
@data
T1:NSW:2002-01-01 00-00-00:1.5:5714.045,?,-3e1
T2:VIC:2002-12-31 23-30-00:2:1,2
"""


def change(old, new):
    assert old in MONASH
    return MONASH.replace(old, new)


def test_a_file_as_the_archive_publishes_them(tmp_path):
    path = tmp_path / "demand.tsf"
    path.write_bytes(MONASH)
    for source in (path, str(path), gzip.compress(MONASH), MONASH.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + MONASH):
        found = read_tsf(source, missing="nan")
        assert [one.names for one in found.series] == [("T1",), ("T2",)]
        np.testing.assert_array_equal(found.series[0].values, [[5714.045], [np.nan], [-30]])
        np.testing.assert_array_equal(found.series[1].values, [[1], [2]])
        assert {one.period for one in found.series} == {48}
        assert (found.horizon, found.attributes) == (4, {"state": ("NSW", "VIC"), "peak": (1.5, 2.0)})
        assert (
            found.series[1].times.tolist() == np.array(["2002-12-31T23:30:00", "2003-01-01T00:00:00"], "M8[s]").tolist()
        )


@pytest.mark.parametrize(
    ("frequency", "start", "period", "offset"),
    [
        ("yearly", "1979-01-01 12-00-00", 1, {"years": 1}),
        ("quarterly", "1979-02-28 00-00-01", 4, {"months": 3}),
        ("quarterly", "2019-11-30 00-00-00", 4, {"months": 3}),
        ("monthly", "1990-01-31 00-00-00", 12, {"months": 1}),
        ("monthly", "2019-12-29 06-30-05", 12, {"months": 1}),
        ("yearly", "2020-02-29 00-00-00", 1, {"years": 1}),
        ("weekly", "2020-02-24 00-00-00", 52, {"weeks": 1}),
        ("daily", "2020-02-28 00-00-00", 7, {"days": 1}),
        ("hourly", "2020-02-28 22-00-00", 24, {"hours": 1}),
        ("half_hourly", "2012-10-13 00-00-01", 48, {"minutes": 30}),
        ("minutely", "2020-02-28 23-58-00", 1440, {"minutes": 1}),
        ("10_minutes", "2020-02-28 23-50-00", 144, {"minutes": 10}),
        ("4_seconds", "2019-08-01 00-00-01", 21_600, {"seconds": 4}),
        ("7_hours", "2019-08-01", 1, {"hours": 7}),
    ],
)
def test_times_follow_from_the_frequency_as_pandas_counts(frequency, start, period, offset):
    pandas = pytest.importorskip("pandas")
    header = f"@attribute series_name string\n@attribute start_timestamp date\n@frequency {frequency}\n@data\n"
    found = read_tsf(f"{header}T1:{start}:{','.join('0' * 30)}\n".encode()).series[0]
    day, _, time = start.partition(" ")
    first = pandas.Timestamp(f"{day} {time.replace('-', ':')}")
    wanted = [first + pandas.DateOffset(**{unit: k * number for unit, number in offset.items()}) for k in range(30)]
    np.testing.assert_array_equal(found.times, np.array([each.to_datetime64() for each in wanted]))
    assert found.period == period


def test_what_is_not_there_is_not_made_up():
    bare = read_tsf(b"@data\n1,2\n3\n")
    assert [one.names for one in bare.series] == [("T1",), ("T2",)]
    assert {(one.times, one.period) for one in bare.series} == {(None, 1)}
    assert (bare.horizon, bare.attributes) == (None, {})
    weekly = read_tsf(b"@frequency weekly\n@data\n1,2\n", period=53).series[0]
    assert (weekly.times, weekly.period) == (None, 53)
    dated = read_tsf(b"@attribute start_timestamp date\n@data\n2020-01-01 10-00-00:1,2\n")
    assert (dated.series[0].times, dated.attributes) == (
        None,
        {"start_timestamp": (np.datetime64("2020-01-01T10:00:00"),)},
    )


def test_missing_values_are_errors_or_nan_or_carried():
    with pytest.raises(ValueError, match=r"line 14, value 2: expected a finite number, got '\?'; missing='nan' or"):
        read_tsf(MONASH)
    carried = read_tsf(MONASH, missing="previous").series[0].values
    np.testing.assert_array_equal(carried, [[5714.045], [5714.045], [-30]])
    with pytest.raises(ValueError, match="line 14: expected a number as the first value, got none"):
        read_tsf(change(b"5714.045", b"?"), missing="previous")
    assert np.isnan(read_tsf(change(b":1.5:", b":?:"), missing="nan").attributes["peak"][0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a header that ends with @data, got none"),
        (MONASH[:90], "expected a header that ends with @data, got none"),
        (b"1,2\n3,4\n", "line 1: expected a header of lines that begin with @, got '1,2'"),
        (MONASH[: MONASH.index(b"T1:")], "expected at least one series, got none"),
        (change(b"state string", b"state text"), "line 6: expected @attribute, .* date, got 'state text'"),
        (change(b"state string", b"state"), "line 6: expected @attribute, a new name and one of .*, got 'state'"),
        (change(b"state string", b"series_name string"), "line 6: expected @attribute, a new name .* 'series_name st"),
        (change(b"timestamp date", b"timestamp string"), "expected dates as start_timestamp, got string"),
        (change(b"half_hourly", b"fortnightly"), "line 9: expected a frequency such as yearly, .* got 'fortnightly'"),
        (change(b"half_hourly", b"0_minutes"), "line 9: expected a frequency such as .* got '0_minutes'"),
        (change(b"@frequency half_hourly", b"@frequency"), "line 9: expected a frequency such as .* got ''"),
        (change(b"horizon 4", b"horizon -4"), "line 10: expected @horizon and a positive integer, got '-4'"),
        (change(b"horizon 4", b"horizon"), "line 10: expected @horizon and a positive integer, got ''"),
        (change(b"NSW:", b""), "line 14: expected 4 attributes and then values, separated by colons, got 3"),
        (change(b"NSW:", b"N:W:"), "line 14: expected 4 attributes and then values, .*, got 5 attributes"),
        (change(b"T2", b"T1"), "line 15: expected a unique name for each series, got 'T1'"),
        (change(b"T2", b""), "line 15: expected a unique name for each series, got ''"),
        (change(b"2002-01-01", b"2002-02-30"), "line 14, attribute 'start_timestamp': expected a date .* '2002-02-30"),
        (change(b"00-00-00", b"00.00.00"), "line 14, attribute 'start_timestamp': expected a date such as 1979"),
        (change(b"23-30-00", b"24-30-00"), "line 15, attribute 'start_timestamp': expected a date such as 1979"),
        (change(b":2:", b":two:"), "line 15, attribute 'peak', value 1: expected a finite number, got 'two'"),
        (change(b"1,2", b"1,"), "line 15, value 2: expected a finite number, got ''"),
        (change(b"1,2", b"1,1_0"), "line 15, value 2: expected a finite number, got '1_0'"),
        (change(b"1,2", b"inf,2"), "line 15, value 1: expected a finite number, got 'inf'"),
        (change(b"1,2", b"1,1e39"), "line 15, value 2: expected a finite number, got '1e39'"),
        (change(b"NSW", b"\xff"), "expected text in UTF-8, got invalid bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data, message, tmp_path):
    path = tmp_path / "demand.tsf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_tsf(path, missing="nan")


def test_options_that_cannot_be_meant_are_refused():
    with pytest.raises(TypeError, match="period: expected a positive integer, got 1.5"):
        read_tsf(MONASH, period=1.5)
    with pytest.raises(ValueError, match="missing: expected one of 'error', 'nan', 'previous', got 'drop'"):
        read_tsf(MONASH, missing="drop")
    assert read_tsf(change(b"NSW", b"\xe4"), encoding="latin-1", missing="nan").attributes["state"][0] == "ä"


@pytest.mark.slow
def test_the_time_is_linear_in_the_size():
    def seconds(values):
        text = b"@frequency daily\n@data\n" + b",".join([b"1.5"] * values) + b"\n" + b"1,2\n" * (values // 20)
        began = time.perf_counter()
        assert len(read_tsf(text).series) == values // 20 + 1
        return time.perf_counter() - began

    seconds(100)
    assert seconds(400_000) < 8 * min(seconds(100_000) for _ in range(3)) + 0.2


# Mutations


def reference(data):
    """Return the names and values in a file that was accepted, split in the plainest way."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", data.decode())]
    at = next(number for number, line in enumerate(lines) if line.split()[:1] and line.split()[0].lower() == "@data")
    rows = [line.split(":") for line in lines[at + 1 :] if line and line[0] not in "#%"]
    missing = ("?", "nan", "NaN")
    return [[np.nan if v.strip() in missing else float(v) for v in row[-1].split(",")] for row in rows]


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    accepted, refused = 0, []
    for trial in range(trials):
        data = mutate(rng, gzip.compress(MONASH) if trial % 10 == 0 else MONASH, range(80, len(MONASH)))
        try:
            found = read_tsf(data, missing="nan")
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        wanted = reference(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        for one, values in zip(found.series, wanted, strict=True):
            np.testing.assert_array_equal(one.values[:, 0], values)
    assert 0.05 * trials < accepted < 0.9 * trials
    assert all(re.match("the bytes given: .*expected", message) for message in refused)
