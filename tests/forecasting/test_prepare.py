"""Data that know the end of their series: what is held out, scaled and appended."""

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.data.series_files import Series
from nnfx.forecasting import Forecast, Scaler, baselines, forecast, forecasters, prepare, windows
from nnfx.forecasting.heads import GAUSSIAN, Interval
from tests.forecasting.test_forecast import Solved, X, Y, doubled


def test_windows_held_out_share_no_target_with_the_others_and_measure_nothing():
    values = np.arange(40.0)[:, None] ** 2
    data = prepare(values, lookback=5, horizon=3, valid_windows=4)
    scaler = Scaler.of(values[:34])
    np.testing.assert_allclose(data.scaler.mean, scaler.mean)
    back = np.asarray(data.scaler.inverse(np.asarray(data.valid.targets)))
    np.testing.assert_allclose(back[:, :, 0], [values[t : t + 3, 0] for t in (34, 35, 36, 37)], rtol=1e-5)
    assert len(data.train.targets) == 34 - 5 - 3 + 1
    last = np.asarray(data.scaler.inverse(np.asarray(data.train.targets[-1])))
    np.testing.assert_allclose(last[:, 0], values[31:34, 0], rtol=1e-5)


def test_a_forecaster_goes_on_after_new_observations():
    y, x = doubled(2)
    data = prepare(y, lookback=4, horizon=2, future=x)
    trained, times = Solved(data), np.datetime64("2025-01") + np.arange(3)
    longer = data.append(
        Series(np.ones((3, 1)), ("y",), times, 1), future=Series(np.full((3, 1), 0.5), ("plan",), times, 1)
    )
    found = forecast(trained, longer, 2, future=[[1.0], [2.0]])
    np.testing.assert_allclose(found.values[:, 0], [2.0, 4.0], rtol=1e-3, atol=1e-3)
    assert found.times.astype(str).tolist() == ["2025-04", "2025-05"]
    np.testing.assert_array_equal(longer.history.rows[-3:], [[1.0, 0.5]] * 3)
    assert longer.train is data.train
    twice = longer.append([[7.0]], future=[[8.0]])
    assert forecast(trained, twice, 1, future=[[1.0], [2.0]]).times.astype(str).tolist() == ["2025-05"]
    with pytest.raises(
        ValueError, match=r"future: expected \(3, 1\), the rows of 'plan' after the series, from 2025-01"
    ):
        data.append(np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"future: expected \(3, 1\), .* got float64\[2,1\]"):
        data.append(np.ones((3, 1)), future=np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"past: expected None, as in the data, got float64\[3,1\]"):
        data.append(np.ones((3, 1)), past=np.ones((3, 1)), future=np.ones((3, 1)))
    with pytest.raises(ValueError, match="values: expected the times after the series, got 2025-02 for 2025-01"):
        data.append(Series(np.ones((3, 1)), ("y",), times + np.timedelta64(1, "M"), 1), future=np.ones((3, 1)))


def test_a_run_predicts_from_windows_in_the_unit_of_the_series(tmp_path):
    rng = np.random.default_rng(0)
    y, plan = rng.normal(100, 20, (40, 2)), rng.normal(-5, 3, (40, 1))
    data = prepare(y, lookback=6, horizon=3, future=plan, valid_windows=4)
    raw = windows(y, 6, 3, future=plan)
    prepared = np.concatenate([data.train.inputs, data.valid.inputs])
    np.testing.assert_allclose(data.preprocess(raw.inputs[-4:]), prepared[-4:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.preprocess(raw.inputs[:25]), prepared[:25], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.preprocess.raw_outputs(data.valid.targets), raw.targets[-4:], rtol=1e-5)

    series = prepare(y, lookback=6, horizon=3)
    train = nnfx.fit(baselines.linear(3), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
    run = train(jax.random.key(0), series, learning_rate=0.01)
    expected = forecast(run, series, 3).values
    np.testing.assert_allclose(run.predict(y[None, -6:])[0], expected, rtol=1e-5)
    run.save(tmp_path / "model")
    np.testing.assert_allclose(nnfx.load(tmp_path / "model").predict(y[None, -6:])[0], expected, rtol=1e-5)


def test_predicting_the_parameters_of_a_distribution_from_raw_windows_is_refused():
    data = prepare(np.arange(40.0)[:, None], lookback=6, horizon=3)
    model = forecasters.direct(lambda outputs: nnfx.models.mlp((4,), outputs), horizon=3, head=GAUSSIAN)
    train = nnfx.fit(model, GAUSSIAN.loss, optax.sgd, epochs=1)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"outputs: expected \(batch, 3, 1\).*got float32\[1,3,1,2\]"):
        run.predict(np.arange(34.0, 40)[None, :, None])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lookback": 0}, ValueError, "lookback: expected a positive integer, got 0"),
        ({"horizon": 2.5}, TypeError, "horizon: expected a positive integer, got 2.5"),
        ({"valid_windows": -1}, ValueError, "valid_windows: expected a non-negative integer, got -1"),
        (
            {"valid_windows": 60},
            ValueError,
            "values: expected at least 68 steps, for one training window and the held-out windows, got float64[60,1]",
        ),
        (
            {"values": np.ones((4, 9, 1))},
            ValueError,
            "values: expected one series, (time, channels), got float64[4,9,1]",
        ),
        (
            {"past": np.ones((59, 1))},
            ValueError,
            "past: expected as many steps and series as the values, float64[60,1], got float64[59,1]",
        ),
        (
            {"future": X._replace(times=X.times + np.timedelta64(1, "M"))},
            ValueError,
            "future: expected the times of the values, got 2020-02 for 2020-01 (row 0)",
        ),
        (
            {"future": X, "lookback": 2},
            ValueError,
            "lookback: expected at least the horizon, 3, if columns are known ahead, got 2",
        ),
        ({"values": np.full((60, 1), np.nan)}, ValueError, "values: expected finite numbers"),
    ],
)
def test_wrong_data(options, error, words):
    with pytest.raises(error) as caught:
        prepare(**{"values": Y, "lookback": 3, "horizon": 3} | options)
    assert words in str(caught.value)


def test_windows_that_overlap_are_not_divided_into_folds():
    data = prepare(np.arange(60.0)[:, None], lookback=4, horizon=4)
    train = nnfx.fit(baselines.nlinear(4), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    with pytest.raises(ValueError, match="folds: expected None for windows of a series, which overlap"):
        nnfx.sweeps.sweep(train, data, key=jax.random.key(0), folds=3, learning_rate=[0.1])


# names and indexes of frames


def test_columns_of_one_name_are_refused():
    pandas = pytest.importorskip("pandas")
    twice = pandas.DataFrame(np.ones((20, 2)), columns=["a", "a"])
    for values, past in ((twice, None), (np.ones((20, 1)), twice)):
        name = "values" if past is None else "past"
        with pytest.raises(ValueError, match=f"{name}: expected columns with unique names, got 'a' twice"):
            prepare(values, 4, 2, past=past)
    with pytest.raises(ValueError, match="values: expected columns with unique names, got 'a' twice"):
        prepare(Series(np.ones((20, 2)), ("a", "a"), None, 1), 4, 2)


def test_no_bound_is_lost_to_a_column_of_its_name():
    pandas = pytest.importorskip("pandas")
    values = pandas.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "a upper", "b"])
    ones = np.ones((2, 3))
    names = prepare(values, 4, 2).history.names["values"]
    frame = Forecast(ones, Interval(0 * ones, 2 * ones), 0.9, ones, None, names).frame()
    assert len(set(frame.columns)) == 9
    assert frame["a upper"].tolist() == [1, 1]
    assert frame["a upper bound"].tolist() == frame["b upper bound"].tolist() == [2, 2]


@pytest.mark.parametrize("drop", ["hole", "twice", "reversed"])
def test_an_index_of_integers_must_be_regular_too(drop):
    pandas = pytest.importorskip("pandas")
    whole = pandas.DataFrame({"y": np.arange(40.0)})
    wrong, words = {
        "hole": (whole.drop(index=range(10, 20)), r"a gap of 11 after 9 \(row 9\) in steps of 1"),
        "twice": (pandas.concat([whole, whole]), "0 after 39"),
        "reversed": (whole[::-1], "38 after 39"),
    }[drop]
    with pytest.raises(ValueError, match=f"values: expected regular times, got {words}"):
        prepare(wrong, 8, 4)
    every_other = whole[10:40:2]
    data = prepare(every_other, 8, 4)
    assert data.history.next_times(2).tolist() == [40, 42]
    assert prepare(whole, 8, 4).history.times is None  # which only counts the rows
    np.testing.assert_array_equal(data.history.rows[:, 0], np.arange(10.0, 40, 2))


def test_forecasts_are_in_the_time_zone_of_the_series():
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2026-03-20", periods=16, freq="D", tz="Europe/Berlin")  # the clocks change on the 29th
    data = prepare(pandas.Series(np.arange(12.0), index[:12], name="y"), 4, 2)
    found = forecast(baselines.naive(2), data, 4)
    assert found.times.equals(index[12:])
    assert found.frame().index.equals(index[12:])
    assert [line.split()[0] for line in str(found).splitlines()[2:]] == [str(day) for day in index[12:].date]
    longer = data.append(pandas.Series([12.0, 13.0], index[12:14], name="y"))
    assert forecast(baselines.naive(2), longer, 2).times.equals(index[14:])
    with pytest.raises(ValueError, match="values: expected the times after the series"):
        data.append(pandas.Series([12.0, 13.0], index[12:14].tz_localize(None), name="y"))
