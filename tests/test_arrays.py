"""User data become arrays on the host, with every digit, or raise an error that names the argument."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import arrays, checks


class Sparse:
    shape = (3, 4)

    def tocsr(self):
        return self


def test_whole_numbers_above_32_bits_keep_their_digits():
    given = [2**40 + 1, -(2**40)]
    np.testing.assert_array_equal(arrays.as_numpy("x", given), np.array(given))
    np.testing.assert_array_equal(arrays.as_numpy("x", np.array(given, object)), np.array(given))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64, bool])
def test_an_array_keeps_its_dtype(dtype):
    assert arrays.as_numpy("x", np.ones(3, dtype)).dtype == dtype


def test_masked_values_are_missing_and_not_what_fills_them():
    masked = np.ma.array([1, 2, 999], mask=[False, False, True])
    np.testing.assert_array_equal(arrays.as_numpy("x", masked, masked_as_nan=True), [1.0, 2.0, np.nan])
    with pytest.raises(ValueError, match="x: expected no masked or missing values, got 1"):
        arrays.as_numpy("x", masked)
    unmasked = np.ma.array([1, 2, 3], mask=[False, False, False])
    np.testing.assert_array_equal(arrays.as_numpy("x", unmasked), [1, 2, 3])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (Sparse(), TypeError, r"x: expected a dense array, got a sparse Sparse \[3, 4\]"),
        ([[1.0, 2.0], [3.0]], ValueError, "x: expected an array of real numbers, got rows of different lengths"),
        (["a", "b"], TypeError, "x: expected an array of real numbers"),
        ([1.0, None], TypeError, "x: expected an array of real numbers"),
        ([1j], TypeError, "x: expected an array of real numbers"),
        ([2**70], ValueError, "x: expected integers that fit into 64 bits"),
        (jax.random.key(0), TypeError, "x: expected an array of real numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(value, error, message):
    with pytest.raises(error, match=message):
        arrays.as_numpy("x", value)


def test_traced_arrays_pass():
    assert jax.jit(lambda x: arrays.to_device("x", arrays.as_numpy("x", x)) + 1)(1.0) == 2.0


def test_pandas_columns_with_missing_values():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([1, None, 3], dtype="Int64")
    np.testing.assert_array_equal(arrays.as_numpy("x", series, masked_as_nan=True), [1.0, np.nan, 3.0])
    with pytest.raises(ValueError, match="x: expected no masked or missing values, got 1"):
        arrays.as_numpy("x", series)
    frame = pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    np.testing.assert_array_equal(arrays.as_numpy("x", frame), [[1, 0.5, 1], [2, 1.5, 0]])
    assert arrays.column_names(frame) == ("a", "b", "c")
    assert arrays.column_names(series) is None
    with pytest.raises(TypeError, match="x: expected an array of real numbers"):
        arrays.as_numpy("x", pandas.Series(["a", "b"]))
    flags = pandas.Series([True, None, False], dtype="boolean")  # which pandas does not fill with a number
    np.testing.assert_array_equal(arrays.as_numpy("x", flags, masked_as_nan=True), [1.0, np.nan, 0.0])
    both = pandas.DataFrame({"a": flags, "b": [1.5, np.nan, 2.5]})
    np.testing.assert_array_equal(
        arrays.as_numpy("x", both, masked_as_nan=True), [[1, 1.5], [np.nan, np.nan], [0, 2.5]]
    )


def test_polars_frames_with_missing_values():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1, None], "b": [0.5, 1.5]})
    np.testing.assert_array_equal(arrays.as_numpy("x", frame, masked_as_nan=True), [[1.0, 0.5], [np.nan, 1.5]])
    assert arrays.column_names(frame) == ("a", "b")
    large = polars.Series("a", [2**53 + 1, None])
    assert int(arrays.as_numpy("x", polars.Series("a", [2**53 + 1]))[0]) == 2**53 + 1
    for values, count in ((large, 1), (polars.Series("a", [True, None, None]), 2), (frame, 1)):
        with pytest.raises(ValueError, match=f"x: expected no masked or missing values, got {count}"):
            arrays.as_numpy("x", values)
        assert int(np.isnan(arrays.as_numpy("x", values, masked_as_nan=True)).sum()) == count


def test_long_doubles_become_doubles():
    for array in (np.arange(3, dtype=np.longdouble), np.ma.masked_less(np.arange(3, dtype=np.longdouble), -1)):
        assert arrays.as_numpy("x", array).dtype == np.float64
        np.testing.assert_array_equal(arrays.as_array("x", array), [0, 1, 2])


def test_dates_and_text_in_polars_frames_are_no_numbers():
    polars = pytest.importorskip("polars")
    day, hour = datetime.datetime(2024, 1, 1), datetime.timedelta(hours=1)
    for column in ([day, day + hour], [day.date()] * 2, [hour, 2 * hour], ["1", "2"]):
        with pytest.raises(TypeError, match="x: expected numbers in every column, got .* in column 't'"):
            arrays.as_numpy("x", polars.DataFrame({"a": [0.5, 1.5], "t": column}))
    frame = polars.DataFrame({"a": [0.5, 1.5], "b": [True, False], "c": [1, 2]})
    np.testing.assert_array_equal(arrays.as_numpy("x", frame), [[0.5, 1, 1], [1.5, 0, 2]])


def test_tensors_that_require_gradients_and_half_precision():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(arrays.as_numpy("x", torch.ones(2, requires_grad=True)), [1, 1])
    np.testing.assert_array_equal(arrays.as_numpy("x", torch.ones(2, dtype=torch.bfloat16)), [1, 1])
    assert checks.describe(torch.tensor(0.5)) == "torch.float32[]"  # as in errors about numbers
    assert checks.describe(jnp.float32(0.5)) == checks.describe(np.float64(0.5)) == "0.5"


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.array([2**31]), None, "x: expected integers that int32 can hold, got 2147483648"),
        (np.array([-(2**40), 3]), None, "x: expected integers that int32 can hold, got -1099511627776"),
        (np.array([2**31], np.uint64), np.int32, "x: expected integers that int32 can hold"),
        (np.array([1e39]), None, "x: expected numbers that float32 can hold, got 1e\\+39"),
        (np.array([1.0, 1e30]), np.float16, "x: expected numbers that float16 can hold, got 1e\\+30"),
        (np.array([0.5]), np.int32, "x: expected whole numbers that int32 can hold, got 0.5"),
    ],
)
def test_what_the_device_cannot_hold_is_refused(value, dtype, message):
    with pytest.raises(ValueError, match=message):
        arrays.to_device("x", value, dtype)


def test_what_the_device_can_hold_arrives():
    assert arrays.to_device("x", np.array([1.5, np.nan, np.inf])).dtype == jnp.float32
    np.testing.assert_array_equal(arrays.to_device("x", np.array([2**31 - 1])), [2**31 - 1])


HOURS = 1.7e9 + 3600 * np.arange(24.0)


@pytest.mark.parametrize(
    ("values", "axis", "is_lost"),
    [
        (HOURS, 0, True),
        (HOURS.astype(np.int64), 0, True),
        (HOURS.reshape(2, 12).T, 0, True),
        (np.stack([HOURS, np.arange(24.0)], axis=1), 0, True),
        (np.stack([HOURS, 2 * HOURS]), 1, True),
        (np.stack([HOURS, 2 * HOURS]), 0, False),
        (HOURS - HOURS.mean(), 0, False),
        (HOURS.astype(np.float32), 0, False),
        (np.full(9, 0.1), 0, False),
        (np.array([1e300]), 0, False),
        (np.arange(2**24 - 9, 2**24), 0, False),
        (np.arange(2**24, 2**24 + 9), 0, True),
        (np.array([True, False]), 0, False),
        (np.zeros((0, 2)), 0, False),
    ],
)
def test_a_spread_that_rounding_loses_is_refused(values, axis, is_lost):
    if is_lost:
        with pytest.raises(
            ValueError, match="x: expected numbers that float32 can tell apart, got .*; subtract an offset"
        ):
            arrays.check_spread("x", values, axis)
    else:
        arrays.check_spread("x", values, axis)
    with jax.enable_x64(True):  # where all of them are exact
        arrays.check_spread("x", values, axis)


@pytest.mark.parametrize(("numbers", "is_lost"), [
    ([1e39, 0.0], True), ([-1e39], True), ([1e-39, 0.0], True), ([1e38, 1e-39], False), ([0.0], False),
    ([np.inf, 1.0], False), ([np.nan], False),
])  # fmt: skip
def test_numbers_beyond_a_dtype_are_refused(numbers, is_lost):
    if is_lost:
        with pytest.raises(ValueError, match="x: expected numbers that float32 can hold, got .*; divide them by their"):
            arrays.check_range("x", np.array(numbers))
    else:
        arrays.check_range("x", np.array(numbers))


def test_a_column_of_text_is_named():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = {"age": [1, 2], "port": ["Cherbourg", "Queenstown"]}
    for frame in (pandas.DataFrame(columns), polars.DataFrame(columns)):
        with pytest.raises(TypeError, match="x: expected numbers in every column, got .* in column 'port'"):
            arrays.as_numpy("x", frame)
    dates = pandas.DataFrame({"day": pandas.date_range("2026-01-01", periods=2)})
    with pytest.raises(TypeError, match=r"x: expected numbers in every column, got datetime64\[.*\] in column 'day'"):
        arrays.as_numpy("x", dates)
