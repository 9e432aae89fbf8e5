from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses
from nnfx.data.series_files import Series
from nnfx.forecasting import backtest, baselines, conformal, forecast, forecasters, heads, prepare

pandas = pytest.importorskip("pandas")
AIRLINE = nnfx.data.airline_passengers()


class Linear:
    """A trained forecaster of given weights, in NumPy: ŷ = Wᵀ · window + b for a window (lookback, channels)."""

    def __init__(self, kernel, bias=0.0):
        self.kernel, self.bias = np.asarray(kernel), np.asarray(bias)

    def apply(self, inputs):
        return jnp.asarray(np.einsum("blc,lchk->bhk", np.asarray(inputs, np.float64), self.kernel) + self.bias)


class Solved:
    """A linear forecaster solved by least squares on the windows of data, so that it is exact where the data are."""

    def __init__(self, data):
        x, y = (np.asarray(part, np.float64).reshape(len(part), -1) for part in data.train[:2])
        ones = np.ones((len(x), 1))
        self.weights, *_ = np.linalg.lstsq(np.concatenate([x, ones], 1), y, rcond=1e-8)
        self.shape = data.train.targets.shape[1:]

    def apply(self, inputs):
        x = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
        return jnp.asarray((x @ self.weights[:-1] + self.weights[-1]).reshape(len(x), *self.shape), jnp.float32)


def autoregressive(steps, values, lags=(0.6, -0.3, 0.5), constant=2.0):
    """The forecasts of an AR(3) model, by its recursion in float64; the last value has the first lag."""
    known = list(values)
    for _ in range(steps):
        known.append(constant + sum(lag * known[-1 - i] for i, lag in enumerate(lags)))
    return np.array(known[len(values) :])


# Recursion


@pytest.mark.parametrize("steps", [1, 5, 23])
def test_one_step_at_a_time_is_the_recursion_of_an_ar_model(steps):
    """Also in closed form, by powers of the companion matrix."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=40).cumsum() + 100
    data = prepare(values[:, None], lookback=3, horizon=1)
    mean, scale = (np.asarray(part, np.float64).item() for part in data.scaler)
    kernel = np.array([0.5, -0.3, 0.6]).reshape(3, 1, 1, 1)
    found = forecast(Linear(kernel, (2.0 + 0.8 * mean - mean) / scale), data, steps)
    np.testing.assert_allclose(found.values[:, 0], autoregressive(steps, values), rtol=1e-5)
    companion = np.array([[0.6, -0.3, 0.5, 2.0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    last = np.linalg.matrix_power(companion, steps) @ [*values[:-4:-1], 1.0]
    np.testing.assert_allclose(found.values[-1, 0], last[0], rtol=1e-5)


def test_blocks_beyond_the_horizon_are_those_of_the_recursive_model():
    values = np.random.default_rng(0).normal(size=(40, 2))
    data = prepare(values, lookback=6, horizon=4)
    model = forecasters.direct(partial(nnfx.models.mlp, (5,)), 4, channels=2)
    run = nnfx.fit(model, losses.mean_square_error, optax.adam, epochs=2)(jax.random.key(0), data, learning_rate=0.01)
    whole = jax.jit(forecasters.recursive(model, 11).apply)(run.best.variables, data.scaler(values[None, -6:]))
    expected = data.scaler.inverse(whole[0])
    for steps in (2, 4, 8, 11):
        found = forecast(run, data, steps).values
        np.testing.assert_allclose(found, expected[:steps], rtol=1e-4, atol=1e-5)


def test_the_seasonal_naive_forecast_repeats_the_last_year_beyond_the_horizon():
    data = prepare(AIRLINE, lookback=12, horizon=5)
    found = forecast(baselines.seasonal_naive(5, period=12), data, 29)
    np.testing.assert_array_equal(found.values[:, 0], np.tile(AIRLINE.values[-12:, 0], 3)[:29])
    assert found.interval is None
    np.testing.assert_array_equal(found.times, pandas.date_range("1961-01", periods=29, freq="MS").to_numpy())
    assert found.times.dtype == AIRLINE.times.dtype
    assert str(found.frame().index[0].date()) == "1961-01-01"


# Columns known ahead


def doubled(horizon, time=60, names=("plan",)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(time, 1)) * 3 + 7
    times = np.datetime64("2020-01") + np.arange(time)
    return Series(2 * x, ("y",), times, 1), Series(x, names, times, 1)


@pytest.mark.parametrize(("horizon", "steps"), [(1, 1), (1, 7), (4, 2), (4, 4), (4, 8), (4, 10), (4, 3)])
def test_twice_a_column_known_ahead_is_recovered_on_new_numbers(horizon, steps):
    rng = np.random.default_rng(0)
    y, x = doubled(horizon)
    data = prepare(y, lookback=4, horizon=horizon, future=x)
    new = rng.normal(size=(max(steps, horizon), 1)) * 10
    found = forecast(Solved(data), data, steps, future=new)
    assert found.values.shape == (steps, 1)
    np.testing.assert_allclose(found.values, 2 * new[:steps], rtol=2e-4, atol=2e-3)


def test_a_network_trained_on_such_a_column_recovers_it_too():
    y, x = doubled(2)
    data = prepare(y, lookback=2, horizon=2, future=x)
    model = forecasters.direct(nnfx.models.mlp((), outputs=2), 2)
    run = nnfx.fit(model, losses.mean_square_error, optax.adam, epochs=400)(jax.random.key(0), data, learning_rate=0.05)
    new = np.array([[1.0], [20.0], [4.0]])
    np.testing.assert_allclose(forecast(run, data, 3, future=new).values, 2 * new, rtol=1e-3)


def test_columns_are_found_by_name_in_frames_and_series():
    rng = np.random.default_rng(0)
    y, x = doubled(2)
    index = pandas.date_range("2020-01", periods=60, freq="MS")
    frame = pandas.DataFrame({"plan": x.values[:, 0], "price": rng.normal(size=60)}, index=index)
    data = prepare(pandas.Series(y.values[:, 0], index, name="y"), lookback=2, horizon=2, future=frame)
    later = pandas.DataFrame(
        {"price": [9.0, 9.0], "plan": [3.0, 5.0]}, pandas.date_range("2025-01", periods=2, freq="MS")
    )
    trained = Solved(data)
    found = forecast(trained, data, 2, future=later)
    np.testing.assert_allclose(found.values[:, 0], [6.0, 10.0], rtol=1e-3)
    np.testing.assert_array_equal(found.frame().index, later.index)
    assert found.frame().columns.tolist() == ["y"]
    assert [line.split()[0] for line in str(found).splitlines()] == ["time", "----------", "2025-01-01", "2025-02-01"]
    polars = pytest.importorskip("polars")
    in_polars = polars.DataFrame({"price": [9.0, 9.0], "plan": [3.0, 5.0]})
    np.testing.assert_array_equal(forecast(trained, data, 2, future=in_polars).values, found.values)
    times = np.array(["2025-01", "2025-02"], "datetime64")
    as_series = Series(later.to_numpy(), ("price", "plan"), times, 1)
    np.testing.assert_array_equal(forecast(trained, data, 2, future=as_series).values, found.values)


def test_the_whole_window_of_past_and_future_columns_is_seen_as_in_training():
    """At the last origin but one horizon, a forecast sees what the last training window shows."""
    rng = np.random.default_rng(0)
    y, past, future = (rng.normal(size=(30, each)) for each in (2, 1, 3))
    whole = prepare(y, lookback=5, horizon=3, past=past, future=future)
    data = prepare(y[:-3], lookback=5, horizon=3, past=past[:-3], future=future[:-3])
    seen = []

    class Spy:
        def apply(self, inputs):
            seen.append(inputs)
            return jnp.zeros((1, 3, 2))

    zero = forecast(Spy(), data, 2, future=future[-3:])
    scale, mean = (np.asarray(part) for part in (data.scaler.scale, data.scaler.mean))
    expected = np.concatenate([y[22:27], past[22:27], future[25:30]], axis=1)
    np.testing.assert_allclose(seen[0][0], (expected - mean) / scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(zero.values, np.tile(mean[:, :2], (2, 1)), rtol=1e-6)
    last = np.asarray(whole.train.inputs[-1]) * np.asarray(whole.scaler.scale) + np.asarray(whole.scaler.mean)
    np.testing.assert_allclose(last, expected, rtol=1e-5, atol=1e-5)


# Intervals


def test_a_gaussian_head_gives_its_normal_quantiles_in_the_unit_of_the_series():
    rng = np.random.default_rng(0)
    from scipy.stats import norm

    values = rng.normal(size=(40, 1)) * 5 + 50
    data = prepare(values, lookback=3, horizon=4)

    class Trained:
        def apply(self, inputs):
            return jnp.tile(jnp.array([0.5, 2.0]), (len(inputs), 4, 1, 1))

    found = forecast(Trained(), data, 3, head=heads.GAUSSIAN, level=0.9)
    mean, deviation = values.mean() + 0.5 * values.std(), 2 * values.std()
    np.testing.assert_allclose(found.values, np.full((3, 1), mean), rtol=1e-5)
    for bound, share in zip(found.interval, (0.05, 0.95), strict=True):
        np.testing.assert_allclose(bound, np.full((3, 1), norm(mean, deviation).ppf(share)), rtol=1e-5)
    median = heads.GAUSSIAN.quantiles(found.outputs, (0.5,))
    np.testing.assert_allclose(median[..., 0], found.values)
    assert str(found).splitlines()[0].split() == ["step", "value", "value", "lower", "value", "upper"]


def test_a_backtest_widens_points_by_its_errors_beyond_the_horizon_too():
    data = prepare(AIRLINE, lookback=12, horizon=6)
    naive = partial(backtest.fixed, variables={"params": {}}, values=AIRLINE, lookback=12, origins=range(20, 133))
    test = naive(baselines.seasonal_naive(12, 12), horizon=12)
    found = forecast(baselines.seasonal_naive(6, 12), data, 10, level=0.9, calibration=test)
    y = AIRLINE.values[:, 0]
    for step in range(10):
        errors = np.sort([abs(y[origin + step] - y[origin + step - 12]) for origin in range(20, 133)])
        margin = errors[int(np.ceil(0.9 * 114)) - 1]
        assert found.interval.upper[step, 0] - found.values[step, 0] == margin
        assert found.values[step, 0] - found.interval.lower[step, 0] == margin


def test_a_backtest_calibrates_the_interval_of_a_head():
    rng = np.random.default_rng(0)
    head, origins = heads.quantiles([0.1, 0.5, 0.9]), np.arange(9)
    outputs = jnp.tile(jnp.array([-1.0, 0.0, 2.0]), (9, 1, 1, 1))
    targets = jnp.arange(1.0, 10.0).reshape(9, 1, 1)
    test = backtest.Backtest(outputs[..., 1], targets, origins, outputs, outputs[None])
    data = prepare(rng.normal(size=(20, 1)), lookback=2, horizon=1)

    class Trained:
        def apply(self, inputs):
            scaled = data.scaler(np.array([[10.0], [11.0], [13.0]]))
            return scaled.reshape(1, 1, 1, 3)

    found = forecast(Trained(), data, 1, head=head, level=0.8, calibration=test)
    margin = np.sort(np.maximum(-1 - targets.ravel(), targets.ravel() - 2))[conformal.rank(9, 0.8) - 1]
    np.testing.assert_allclose(found.interval, [[[10 - margin]], [[13 + margin]]], rtol=1e-5)


def test_a_saved_model_forecasts_the_same(tmp_path):
    pytest.importorskip("flatbuffers")
    data = prepare(AIRLINE, lookback=12, horizon=6)
    train = nnfx.fit(baselines.linear(6), losses.mean_square_error, optax.adam, epochs=2)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    run.save(tmp_path / "saved")
    found = forecast(nnfx.load(tmp_path / "saved"), data, 12)
    np.testing.assert_allclose(found.values, forecast(run, data, 12).values, rtol=1e-5)


def test_data_are_a_tree_and_go_through_sweeps():
    data = prepare(AIRLINE, lookback=12, horizon=6)
    leaves, structure = jax.tree.flatten(data)
    assert jax.tree.unflatten(structure, leaves).history is data.history
    train = nnfx.fit(baselines.linear(6), losses.mean_square_error, optax.sgd, epochs=1)
    runs = jax.vmap(lambda rate: train(jax.random.key(0), data, learning_rate=rate))(jnp.array([0.01, 0.1]))
    assert runs.best.loss.shape == (2,)
    with pytest.raises(ValueError, match="run: expected a single run"):
        forecast(runs, data, 3)


# Errors

Y, X = doubled(2)
DATA = prepare(Y, lookback=3, horizon=2, future=X)
PLAIN = prepare(Y, lookback=3, horizon=2)
TIMES = np.array(["2025-01", "2025-02"], "datetime64")
NAIVE = baselines.naive(2)
BACKTEST = backtest.fixed(NAIVE, {"params": {}}, Y, lookback=3, horizon=2, origins=range(10, 40))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"trained": 3}, TypeError, "trained: expected a run, or a Model without parameters, got 3"),
        ({"trained": baselines.linear(2)}, TypeError, "without parameters, got a Model with parameters"),
        (
            {"trained": baselines.naive(3)},
            ValueError,
            "trained: expected forecasts [1, 2, 1] for this horizon and head",
        ),
        (
            {"data": nnfx.data.prepare(np.ones((4, 1)), np.ones(4), standardize=False)},
            TypeError,
            "data: expected data returned by nnfx.forecasting.prepare",
        ),
        ({"steps": 0}, ValueError, "steps: expected a positive integer, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected a positive integer, got 1.5"),
        (
            {"data": prepare(Y, lookback=3, horizon=2, past=X), "steps": 3},
            ValueError,
            "steps: expected at most 2 (the horizon), since some columns are known only in the past, got 3",
        ),
        ({"level": 0.9}, ValueError, "head: expected a head with quantiles"),
        (
            {"level": 1.0, "head": heads.GAUSSIAN},
            ValueError,
            "trained: expected forecasts [1, 2, 1, 2] for this horizon and head",
        ),
        (
            {"calibration": BACKTEST},
            ValueError,
            "level: expected the fraction of values to cover, for a calibration, got None",
        ),
        ({"calibration": 3, "level": 0.9}, TypeError, "calibration: expected a Backtest, got 3"),
        (
            {"calibration": BACKTEST, "level": 0.9, "steps": 3},
            ValueError,
            "calibration: expected outputs (origins, 3 steps or more, 1) for this head, got float32[30,2,1]",
        ),
        (
            {"calibration": BACKTEST, "level": 0.99},
            ValueError,
            "calibration: expected at least 99 origins for a level of 0.99, got 30",
        ),
        ({"future": np.ones((2, 1))}, ValueError, "future: expected None, as in the data, got float64[2,1]"),
        (
            {"data": DATA},
            ValueError,
            "future: expected (2, 1), the rows of 'plan' after the series, from 2025-01 on, got None",
        ),
        (
            {"data": DATA, "future": np.ones((1, 1)), "steps": 1},
            ValueError,
            "future: expected (2, 1), the rows of 'plan' after",
        ),
        (
            {"data": DATA, "future": np.ones((2, 1)), "steps": 3},
            ValueError,
            "future: expected (3, 1), the rows of 'plan'",
        ),
        ({"data": DATA, "future": np.ones((2, 2))}, ValueError, "got float64[2,2]"),
        ({"data": DATA, "future": np.ones(2)}, ValueError, "future: expected (time, channels)"),
        ({"data": DATA, "future": [[1.0], [np.nan]]}, ValueError, "future: expected finite numbers"),
        (
            {"data": DATA, "future": pandas.DataFrame({"sales": [1.0, 2.0]})},
            ValueError,
            "future: expected the 1 columns used in training, got columns without 'plan' and with 'sales'",
        ),
        (
            {"data": DATA, "future": Series(np.ones((2, 2)), ("plan", "sales"), None, 1)},
            ValueError,
            "future: expected the 1 columns used in training, got columns with 'sales'",
        ),
        (
            {"data": DATA, "future": Series(np.ones((2, 1)), ("plan",), TIMES + np.timedelta64(1, "M"), 1)},
            ValueError,
            "future: expected the times after the series, got 2025-02 for 2025-01 (row 0)",
        ),
        (
            {"data": DATA, "future": Series(np.ones((2, 1)), ("plan",), TIMES[::-1], 1)},
            ValueError,
            "future: expected regular times, got 2025-01 after 2025-02 (row 1)",
        ),
    ],
)
def test_wrong_input(options, error, words):
    arguments = {"trained": NAIVE, "data": PLAIN, "steps": 2} | options
    with pytest.raises(error) as caught:
        forecast(**arguments)
    assert words in str(caught.value)


def test_intervals_of_a_head_end_with_the_horizon():
    class Trained:
        def apply(self, inputs):
            return jnp.ones((1, 2, 1, 2))

    forecast(Trained(), PLAIN, 3, head=heads.GAUSSIAN)
    with pytest.raises(ValueError, match="level: expected None beyond the horizon, 2 steps, since the intervals"):
        forecast(Trained(), PLAIN, 3, head=heads.GAUSSIAN, level=0.9)


@pytest.mark.parametrize(("first", "step"), [(1990, 1), (10, 5), (-0.5, 0.1)])
def test_an_index_of_numbers_goes_on(first, step):
    numbers = first + step * np.arange(43)
    values = pandas.DataFrame({"y": np.sin(np.arange(40.0))}, index=numbers[:40])
    data = prepare(values, 6, 2)
    trained = Solved(data)
    found = forecast(trained, data, 3)
    np.testing.assert_allclose(found.times, numbers[40:])
    np.testing.assert_allclose(found.frame().index, numbers[40:])
    later = pandas.DataFrame({"y": [1.0, 2.0]}, index=numbers[40:42])
    assert data.append(later).history.rows[-2:].ravel().tolist() == [1.0, 2.0]
    np.testing.assert_allclose(forecast(trained, data.append(later), 1).times, numbers[42:])
    assert data.append(later.reset_index(drop=True)).history.rows.shape == (42, 1)  # numbered anew
    for wrong in (numbers[38:40], numbers[41:43]):
        with pytest.raises(ValueError, match=r"values: expected the times after the series, got .* \(row 0\)"):
            data.append(later.set_axis(wrong))
