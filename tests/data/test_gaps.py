import numpy as np
import pytest

from nnfx.data import read_series
from nnfx.data.gaps import continued


def steps(start, count, step=1):
    """Return times from a start, in steps of its own unit."""
    start = np.datetime64(start)
    return (start.astype(int) + step * np.arange(count)).astype(start.dtype)


def weekdays(start, count):
    days = steps(start, 2 * count)
    return days[(days.astype(int) + 3) % 7 < 5][:count]  # day 0 was a Thursday


GAPS = {
    "hours": steps("2020-02-28T22:00", 30, 60),
    "days": steps("2020-02-20", 30),
    "weeks": steps("2020-02-20", 30, 7),
    "months": steps("2019-01", 30),
    "firsts of months": steps("2019-01", 30).astype("datetime64[D]"),
    "ends of months": steps("2019-02", 30).astype("datetime64[D]") - np.timedelta64(1, "D"),
    "mid-quarters": steps("2000-02", 30, 3).astype("datetime64[D]") + np.timedelta64(14, "D"),
    "years": steps("1950", 30),
    "business days": weekdays("2020-02-20", 30),
}


@pytest.mark.parametrize("name", GAPS)
def test_gaps_are_errors_or_filled_as_asked(name):
    times = GAPS[name]

    def written(rows):
        return "\n".join(["t,a", *(f"{times[row]},{row}" for row in rows)]).encode()

    whole = read_series(written(range(30)), time="t")
    np.testing.assert_array_equal(whole.times, times)
    lost = [7, 8, 20]
    left = np.delete(np.arange(30), lost)
    message = f"column 't': expected regular times, got a gap of .* after {times[6]} .*gaps='previous'"
    with pytest.raises(ValueError, match=message):
        read_series(written(left), time="t")
    kept = read_series(written(left), time="t", gaps="keep")
    assert kept.values.ravel().tolist() == left.tolist()
    np.testing.assert_array_equal(kept.times, times[left])
    wanted = np.arange(30.0)
    for gaps, inserted in (("nan", [np.nan] * 3), ("previous", [6, 6, 19])):
        wanted[lost] = inserted
        filled = read_series(written(left), time="t", gaps=gaps)
        np.testing.assert_array_equal(filled.values.ravel(), wanted)
        np.testing.assert_array_equal(filled.times, times)
        assert filled.times.dtype == whole.times.dtype


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (["2020-01-01", "2020-01-02", "2020-01-02"], "line 4, column 't': expected a later time than 2020-01-02 "),
        (["2020-01-02", "2020-01-01", "2020-01-03"], "line 3, column 't': expected a later time than 2020-01-02 "),
        (["2020-01-01", "2020-01", "2020-01-03"], "line 3, column 't': expected a time to the day as before, got"),
        (["2020-01-01 01:00Z", "2020-01-01 02:00"], "line 3, column 't': .* to the minute with a time zone"),
        (["2020-01-01 01:00", "2020-01-01 02:00Z"], "line 3, column 't': .* the minute without a time zone as before"),
        (["2020-01-01", "", "2020-01-03"], "line 3, column 't': expected an ISO 8601 time, .* got ''"),
        (["2020-01-01", "01/02/2020"], "line 3, column 't': expected an ISO 8601 time, .* got '01/02/2020'"),
        (["2020-01-01", "2020-02-30"], "line 3, column 't': expected an ISO 8601 time, .* got '2020-02-30'"),
    ],
)  # fmt: skip
def test_times_that_cannot_be_meant_are_named_whatever_is_to_be_done_about_gaps(days, message):
    text = "\n".join(["t,a", *(f"{day},1" for day in days)]).encode()
    for gaps in ("error", "keep", "nan", "previous"):
        with pytest.raises(ValueError, match=message):
            read_series(text, time="t", gaps=gaps)


def test_gaps_that_cannot_be_filled_are_refused():
    between = b"t,a\n2020-01-01,1\n2020-01-03,2\n2020-01-05,3\n2020-01-08,4\n2020-01-10,5\n"
    with pytest.raises(
        ValueError, match="column 't': expected gaps of a whole number of steps, got 2020-01-08 between"
    ):
        read_series(between, time="t", gaps="nan")
    wrong = b"t,a\n2020-01-01,1\n2020-01-02,2\n2020-02-01,3\n"
    with pytest.raises(ValueError, match="column 't': expected at most 10 times as many rows with gaps filled, got 32"):
        read_series(wrong, time="t", gaps="previous")


@pytest.mark.parametrize("channels", [(), (2,)])
def test_values_are_carried_over_gaps_as_pandas_fills_them(channels):
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(0).normal(size=(30, *channels))
    values[1:][np.random.default_rng(1).random((29, *channels)) < 0.4] = np.nan
    wanted = pandas.DataFrame(values).ffill().to_numpy().reshape(values.shape)
    np.testing.assert_array_equal(continued("line 7", values), wanted)
    with pytest.raises(ValueError, match="^line 7: expected a number as the first value, got none"):
        continued("line 7", values[1:] * np.nan)
