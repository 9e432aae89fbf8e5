"""Series as users have them: of any precision, in frames, with times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx.data import Series
from nnfx.forecasting import Scaler, as_data, backtest, baselines, split, windows
from nnfx.forecasting.scores import seasonal_naive_error

WHOLE = (2_000_000_000 + 50_000_000 * np.arange(40)).astype(np.int64)[:, None]
SECONDS = 1e9 + np.arange(40.0)[:, None]
SIZES = {"lookback": 4, "horizon": 2, "origins": [10, 37]}


def fixed(values):
    return backtest.fixed(baselines.naive(2), {"params": {}}, values, **SIZES)


@pytest.mark.parametrize("values", [WHOLE, WHOLE.astype(np.uint64), WHOLE.tolist(), WHOLE.astype(object)])
def test_whole_numbers_above_32_bits_do_not_wrap(values):
    exact = WHOLE[:, 0].astype(float)
    inputs, targets = windows(values, 4, 2)
    np.testing.assert_allclose(inputs[:, 0, 0], exact[:-5], rtol=1e-7)
    np.testing.assert_allclose(targets[:, 1, 0], exact[5:], rtol=1e-7)
    scaler = Scaler.of(values)
    np.testing.assert_allclose([scaler.mean.item(), scaler.scale.item()], [exact.mean(), exact.std()], rtol=1e-7)
    np.testing.assert_allclose(scaler(values)[:, 0], (exact - exact.mean()) / exact.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaler.inverse(scaler(values))[:, 0], exact, rtol=1e-6)
    test = fixed(values)
    np.testing.assert_allclose(test.targets[:, :, 0], [exact[10:12], exact[37:39]], rtol=1e-7)
    np.testing.assert_allclose(test.forecasts[:, 0, 0], exact[[9, 36]], rtol=1e-7)
    np.testing.assert_array_equal(
        np.concatenate([part[4 * (i > 0) :] for i, part in enumerate(split(values, 4, (20, 20)))]), WHOLE
    )
    data = as_data((np.reshape(values, (20, 2, 1)).astype(np.int64), np.reshape(values, (20, 2, 1)).astype(np.int64)))
    np.testing.assert_allclose(data.train.targets[:, 0, 0], exact[::2], rtol=1e-7)
    np.testing.assert_allclose(data.preprocess(WHOLE[:2][None]).ravel(), exact[:2], rtol=1e-7)


@pytest.mark.parametrize(
    "values", [SECONDS, SECONDS.astype(np.int64), np.stack([SECONDS, SECONDS])], ids=["floats", "integers", "panel"]
)
def test_a_spread_that_float32_loses_is_refused(values):
    for call in (lambda: windows(values, 4, 2), lambda: windows(np.zeros(values.shape), 4, 2, past=values)):
        with pytest.raises(
            ValueError, match=r"(values|past): expected numbers that float32 can tell apart, got 1e\+09"
        ):
            call()
    with pytest.raises(ValueError, match="values: expected channels that float32 can tell apart, .*subtract an offset"):
        Scaler.of(values)
    with pytest.raises(ValueError, match=r"values: expected numbers that float32 can hold, got 1e\+40"):
        windows(np.full((9, 1), 1e40), 4, 2)
    if values.ndim == 2:
        with pytest.raises(ValueError, match="values: expected numbers that float32 can tell apart"):
            fixed(values)
        with pytest.raises(ValueError, match="train.targets: expected numbers that float32 can tell apart"):
            as_data((np.zeros((20, 2, 1)), values.reshape(20, 2, 1)))


def test_a_scale_is_measured_and_applied_in_float64():
    values = 5e3 + np.random.default_rng(0).normal(size=(200, 2)) * [1, 3]
    scaler = Scaler.of(values)
    exact = (values - np.asarray(scaler.mean, float)) / np.asarray(scaler.scale, float)
    np.testing.assert_allclose(scaler.mean, values.mean(0, keepdims=True), rtol=1e-7)
    np.testing.assert_allclose(scaler.scale, values.std(0, keepdims=True), rtol=1e-7)
    np.testing.assert_allclose(scaler(values), exact, rtol=1e-7)
    where = np.arange(200) < 50
    np.testing.assert_allclose(Scaler.of(values, where).scale, values[:50].std(0, keepdims=True), rtol=1e-7)
    np.testing.assert_allclose(jax.jit(lambda values: scaler(values))(values), exact, atol=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        np.ma.masked_values(np.array([1.0, 2.0, 1e20, 4.0, 5.0])[:, None], 1e20),
        np.array([[1.0], [np.nan], [3.0], [4.0], [5.0]]),
    ],
)
def test_missing_values_are_no_values(values):
    calls = (
        lambda: windows(values, 2, 1),
        lambda: Scaler.of(values),
        lambda: split(values, 2, (3, 2)),
        lambda: fixed(values),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"values: expected (no masked or missing values|finite numbers), got 1"):
            call()


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        ((0.29, 0.71), (29, 71)),
        ((0.57, 0.14, 0.29), (57, 14, 29)),
        ((1 - 0.3, 0.3), (70, 30)),
        ((np.float32(0.29), np.float32(0.71)), (29, 71)),
        (np.array([0.1 + 0.2, 0.7]), (30, 70)),
        ((0.58, 0.42), (58, 42)),
        (np.array([60, 40]), (60, 40)),
    ],
)
def test_fractions_are_of_whole_steps(sizes, steps):
    parts = split(np.arange(100)[:, None], 1, sizes)
    assert [len(part) - (i > 0) for i, part in enumerate(parts)] == list(steps)


# Frames and times


DAYS = np.datetime64("2026-01-01") + np.arange(40)
Y = np.random.default_rng(1).normal(size=(40, 2))


def of_kinds(times=DAYS):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(Y, columns=["a", "b"], index=pandas.DatetimeIndex(times))
    return frame, Series(Y.astype(np.float32), ("a", "b"), times, 1)


def test_series_and_frames_are_their_values():
    polars = pytest.importorskip("polars")
    expected = windows(Y, 4, 2)
    frame, series = of_kinds()
    for values in (frame, series, polars.DataFrame(Y), Y.tolist(), series._replace(times=None)):
        jax.tree.map(np.testing.assert_array_equal, windows(values, 4, 2), expected)
        np.testing.assert_allclose(Scaler.of(values).mean, Scaler.of(Y).mean, rtol=1e-6)
        np.testing.assert_array_equal(fixed(values).targets, fixed(Y).targets)
        for part, plain in zip(split(values, 4, (0.5, 0.5)), split(Y, 4, (0.5, 0.5)), strict=True):
            jax.tree.map(np.testing.assert_array_equal, windows(part, 4, 2), windows(plain, 4, 2))
    first, second = split(series, 4, (20, 20))
    assert (first.times[-1], second.times[0]) == (DAYS[19], DAYS[16])
    np.testing.assert_array_equal(split(frame, 4, (20, 20))[1].index, DAYS[16:])
    one = windows(frame["a"], 4, 2)
    jax.tree.map(np.testing.assert_array_equal, one, windows(Y[:, :1], 4, 2))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (np.delete(np.arange(41), 9), "a gap of 2 days after 2026-01-09.* in steps of 1 day"),
        (np.sort(np.append(np.arange(39), 5)), "2026-01-06.* twice"),
        (np.arange(40)[::-1], "2026-02-08.* after 2026-02-09"),
    ],
    ids=["gap", "repeat", "disorder"],
)
def test_times_that_are_not_regular_are_named(rows, what):
    for values in of_kinds(np.datetime64("2026-01-01") + rows):
        for call in (
            windows,
            lambda values, *_: split(values, 4, (20, 20)),
            lambda values, *_: fixed(values),
            lambda values, *_: Scaler.of(values),
        ):
            with pytest.raises(ValueError, match=f"values: expected regular times, got {what}"):
                call(values, 4, 2)


def test_what_is_no_series_is_named():
    for wrong, error, message in [
        ([[1.0, 2.0], [3.0]], ValueError, "values: .* got rows of different lengths"),
        (Y[:, 0], ValueError, r"for a single channel, pass values\[:, None\]"),
        (None, TypeError, "values: expected an array of real numbers"),
    ]:
        for call in (lambda: windows(wrong, 4, 2), lambda: split(wrong, 4, (20, 20)), lambda: Scaler.of(wrong)):  # noqa: B023
            with pytest.raises(error, match=message):
                call()
    with pytest.raises(TypeError, match=r"train: expected Windows, as returned by windows\(...\)"):
        as_data(Y)


def test_windows_of_a_sequence_within_jit_are_the_same():
    assert jax.jit(lambda y: as_data(windows(y, 4, 2)).train.inputs)(jnp.asarray(Y)).shape == (35, 4, 2)
    assert nnfx.forecasting.values.floating(jnp.ones(1, jnp.bfloat16)) == jnp.bfloat16


def test_covariates_of_other_times_are_named():
    frame, series = of_kinds()
    later = frame.set_axis(frame.index + np.timedelta64(1, "D"))
    for columns in (later, later["a"], series._replace(times=series.times + np.timedelta64(1, "D"))):
        for name in ("past", "future"):
            for values in (frame, series):
                with pytest.raises(
                    ValueError, match=rf"{name}: expected the times of the values, got 2026-01-02.* \(row 0\)"
                ):
                    windows(values, 4, 2, **{name: columns})
    assert windows(frame, 4, 2, past=series, future=Y).inputs.shape[-1] == 6


def test_the_scale_of_a_history_takes_what_windows_take():
    polars = pytest.importorskip("polars")
    frame, series = of_kinds()
    expected = np.abs(np.diff(Y.astype(np.float64), axis=0)).mean(0)
    for history in (frame, series, polars.DataFrame(Y)):
        np.testing.assert_allclose(seasonal_naive_error(history), expected, rtol=1e-6)
    np.testing.assert_allclose(seasonal_naive_error(frame["a"]), expected[:1], rtol=1e-6)
    with pytest.raises(ValueError, match="history: expected regular times, got a gap of 2 days"):
        seasonal_naive_error(frame.drop(frame.index[7]))


@pytest.mark.parametrize("index", [[1.5, 0.5, 2.5], [0.5, 0.5, 1.0], [0.5, 1.0, 2.0], [0.5, np.nan, 1.5]])
def test_an_index_of_numbers_is_regular_too(index):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 4.0]}, index=index)
    with pytest.raises(ValueError, match="values: expected regular times, got"):
        windows(frame, 1, 1)
    assert windows(frame.set_axis([0.5, 1.0, 1.5]), 1, 1).inputs.shape == (2, 1, 1)
