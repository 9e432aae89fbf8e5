"""Which times are regular, the description of irregular ones, and the times that come next."""

import numpy as np
import pytest

from nnfx.data.times import difference, following, irregularity, times_of

START = np.datetime64("2024-01-29")


@pytest.mark.parametrize(
    "times",
    [
        np.arange(1700, 1720),
        np.arange(20) / 12,
        np.arange("1949-01", "1960-12", dtype="datetime64[M]"),
        np.arange("1949-01", "1960-12", dtype="datetime64[M]").astype("datetime64[ns]"),
        np.arange("2000", "2030", dtype="datetime64[Y]").astype("datetime64[s]"),
        START + np.arange(50),
        START + np.array([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 14]),
        np.datetime64("2024-03-30T22") + np.arange(48),
        ["2024-02-28", "2024-02-29", "2024-03-01"],
        [START],
        [],
        np.arange(5).astype("timedelta64[h]"),
    ],
    ids=str,
)
def test_regular_times_are(times):
    assert irregularity(times) is None


@pytest.mark.parametrize(
    ("times", "what"),
    [
        ([1700, 1701, 1703, 1704], "a gap of 2 after 1701 (row 1) in steps of 1"),
        (np.array([0, 0.5, 1, 2, 2.5]), "a gap of 1 after 1.0 (row 2) in steps of 0.5"),
        (START + np.array([0, 1, 2, 4, 5]), "a gap of 2 days after 2024-01-31 (row 2) in steps of 1 day"),
        (np.datetime64("2024-01-01T00", "s") + 3600 * np.array([0, 1, 2, 26, 27]), "a gap of 1 day after"),
        (np.datetime64("2024-01-01T00:00", "ms") + 1800000 * np.array([0, 2, 4, 5, 6, 8]), "a step of 30 minutes"),
        (START + np.array([0, 1, 1, 2]), "2024-01-30 twice (rows 1 and 2)"),
        (START + np.array([0, 1, 3, 2]), "2024-01-31 after 2024-02-01 (row 3)"),
        (np.array(["2024-01", "NaT", "2024-03"], "datetime64[M]"), "no time in row 1"),
        (np.array([0, np.nan]), "no time in row 1"),
        # a holiday on a Wednesday
        (START + np.array([0, 1, 3, 4, 7, 8]), "a gap of 2 days after 2024-01-30 (row 1)"),
    ],
)
def test_the_first_irregular_time_is_described(times, what):
    found = irregularity(times)
    assert found is not None
    assert found.startswith(what)


@pytest.mark.parametrize("missing", range(1, 23))
def test_a_step_left_out_anywhere_is_a_gap(missing):
    for unit in ("h", "D", "M", "Y"):
        times = np.delete(np.datetime64("2023-06-30" if unit in "hD" else "2023-06", unit) + np.arange(24), missing)
        for dtype in (f"datetime64[{unit}]", "datetime64[s]"):
            assert "gap" in str(irregularity(times.astype(dtype)))


def test_indices_of_pandas():
    pandas = pytest.importorskip("pandas")
    for frequency in ("h", "D", "B", "W", "MS", "ME", "QE", "YE", "15min"):
        index = pandas.date_range("2024-01-31", periods=40, freq=frequency)
        assert irregularity(index) is None
        assert irregularity(index._with_freq(None)) is None
        assert "gap" in str(irregularity(index.delete(20)))
    summer = pandas.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    assert irregularity(summer._with_freq(None)) is None
    twice = str(irregularity(summer[[0, 1, 1, 2]]))  # in UTC, an hour behind
    assert twice.startswith("2024-03-30T00:00:00")
    assert twice.endswith(" twice (rows 1 and 2)")
    months = pandas.period_range("2024-01", periods=9, freq="M")
    assert irregularity(months) is None
    assert "gap" in str(irregularity(months.delete(3)))


def test_times_that_cannot_be_read():
    for times in (["yesterday"], np.zeros((2, 2)), [object()]):
        with pytest.raises(ValueError, match="times: expected"):
            irregularity(times)


def test_what_has_times():
    pandas = pytest.importorskip("pandas")
    from nnfx.data.series import sunspots

    assert len(times_of(sunspots())) == 309
    dates = pandas.date_range("2024-01-01", periods=3)
    assert times_of(pandas.DataFrame({"x": [1, 2, 3]}, index=dates)) is not None
    assert times_of(pandas.Series([1, 2, 3], index=dates)) is not None
    assert times_of(pandas.DataFrame({"x": [1, 2, 3]}, index=[0, 2, 5])) is None
    assert times_of(np.zeros(3)) is None


def test_a_reversed_index_is_out_of_order():
    pandas = pytest.importorskip("pandas")
    for frequency in ("h", "D", "B", "MS"):
        index = pandas.date_range("2024-01-01", periods=9, freq=frequency)[::-1]  # with a negative frequency
        assert " after " in str(irregularity(index))


def test_a_gap_between_weekdays_is_no_weekend():
    days = np.busday_offset("2024-01-01", np.delete(np.arange(20), 12))  # the Wednesday of the third week
    assert str(irregularity(days)).startswith("a gap of 2 days after 2024-01-16 (row 11)")


def test_dates_as_text_and_as_objects_are_times():
    pandas = pytest.importorskip("pandas")
    dates = pandas.date_range("2024-01-01", periods=9)
    texts, stamps = dates.strftime("%Y-%m-%d"), dates.strftime("%Y-%m-%d 00:00:00+01:00")
    for index in (texts, stamps, pandas.Index(list(dates.date), dtype=object)):
        times = times_of(pandas.DataFrame({"x": range(9)}, index=index))
        assert irregularity(times) is None
        assert "gap" in str(irregularity(times_of(pandas.Series(range(8), index=index.delete(4)))))
        assert "after" in str(irregularity(times_of(pandas.Series(range(9), index=index[::-1]))))
    for names in (["a", "b"], ["2024-01-01", "total"], ["1", "3"], [1, 3]):
        assert times_of(pandas.Series([1, 2], index=names)) is None


def test_several_series_below_each_other_are_out_of_order():
    pandas = pytest.importorskip("pandas")
    dates = pandas.date_range("2024-01-01", periods=3)
    stacked = pandas.MultiIndex.from_product([["a", "b"], dates])
    assert "after" in str(irregularity(times_of(pandas.Series(range(6), index=stacked))))
    assert times_of(pandas.Series(range(2), index=pandas.MultiIndex.from_product([["a"], [1, 3]]))) is None


def test_other_times_are_described():
    days = START + np.arange(4)
    assert difference(days, days.astype("datetime64[s]")) is None
    assert str(difference(days, days + np.timedelta64(1, "D"))).startswith("2024-01-30 for 2024-01-29 (row 0)")
    assert difference(days, np.arange(4)) is None


# What comes next


@pytest.mark.parametrize(
    "frequency",
    ["D", "h", "min", "3h", "W-SUN", "W-WED", "MS", "ME", "2MS", "QE-DEC", "QE-NOV", "QS-OCT", "YE-DEC", "YS-JAN", "B"],
)
def test_the_times_that_follow_are_those_of_pandas(frequency):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range(
        "2019-01-01", periods=60, freq=frequency
    )  # over the leap day of 2020 and, for years, 2024
    known, expected = index[:47], index[47:].to_numpy()
    np.testing.assert_array_equal(following(known, 13), expected)
    np.testing.assert_array_equal(following(pandas.DatetimeIndex(known.to_numpy()), 13), expected)
    np.testing.assert_array_equal(following(known.to_numpy(), 13), expected)
    seconds = following(known.to_numpy().astype("datetime64[s]"), 13)
    assert seconds.dtype == "datetime64[s]"
    np.testing.assert_array_equal(seconds, expected)


def test_a_pandas_index_knows_its_own_calendar():
    pandas = pytest.importorskip("pandas")
    holidays = pandas.offsets.CustomBusinessDay(holidays=["2026-12-25"])
    index = pandas.date_range("2026-12-21", periods=4, freq=holidays)
    assert following(index, 2).astype("datetime64[D]").astype(str).tolist() == ["2026-12-28", "2026-12-29"]
    ends = pandas.date_range("2026-01-01", periods=9, freq="BME")
    np.testing.assert_array_equal(following(pandas.DatetimeIndex(ends[:7].to_numpy()), 2), ends[7:].to_numpy())
    quarters = pandas.period_range("2026Q1", periods=5, freq="Q")
    np.testing.assert_array_equal(following(quarters, 2).astype("datetime64[M]").astype(str), ["2027-04", "2027-07"])
    berlin = pandas.date_range("2026-03-27", periods=4, freq="D", tz="Europe/Berlin")[:2]  # before the change of clocks
    assert following(berlin, 2).equals(pandas.date_range("2026-03-29", periods=2, freq="D", tz="Europe/Berlin"))
    uneven = pandas.DatetimeIndex(["2026-01-31", "2026-02-28", "2026-03-31"], tz="UTC")[:2]  # of no frequency in pandas
    assert following(uneven, 1).equals(pandas.DatetimeIndex(["2026-03-31"], tz="UTC"))


def test_the_times_that_follow_others():
    months = np.array(["2023-12-30", "2024-01-30"], "datetime64")
    assert following(months, 3).astype(str).tolist() == ["2024-02-29", "2024-03-30", "2024-04-30"]
    assert following(np.array(["2026-11", "2026-12"], "datetime64"), 1).astype(str).tolist() == ["2027-01"]
    assert following([1990, 1992], 2).tolist() == [1994, 1996]
    assert following([0.0, 0.25, 0.5], 2).tolist() == [0.75, 1.0]
    with pytest.raises(ValueError, match="times: expected two or more, to tell which times come next, got 1"):
        following([1990], 1)
    ends = np.array(["2026-01-30", "2026-02-27", "2026-03-31", "2026-04-30", "2026-05-29"], "datetime64")
    with pytest.raises(ValueError, match="got steps of 28 days to 32 days; use a pandas index with a frequency"):
        following(ends, 1)
