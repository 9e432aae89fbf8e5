"""Backtests with exogenous columns: what a forecaster may see at an origin, and nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses
from nnfx.forecasting import Scaler, backtest, baselines, forecasters, prepare, windows
from nnfx.forecasting.known import Channels, seen, to_come

LOOKBACK, HORIZON, ORIGINS = 4, 2, (20, 23, 30)
SIZES = {"lookback": LOOKBACK, "horizon": HORIZON, "origins": ORIGINS}
DRAWS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
VALUES, PAST, FUTURE = DRAWS[:, :2], DRAWS[:, 2:3] + 5, 3 * DRAWS[:, 3:]
NETWORK = forecasters.direct(partial(nnfx.models.mlp, (3,)), HORIZON, channels=2)
TRAIN = nnfx.fit(NETWORK, losses.mean_square_error, optax.sgd, epochs=3)
ZERO = jax.random.key(0)


def refitted(values=VALUES, past=PAST, future=FUTURE, train=TRAIN, **options):
    return backtest.refitted(
        train, values, key=ZERO, past=past, future=future, **SIZES, learning_rate=0.1, **options
    ).forecasts


def fixed(values=VALUES, past=PAST, future=FUTURE):
    """Forecast with a network of fixed weights that mixes all that it sees."""
    variables = jax.jit(NETWORK.init)(ZERO, jnp.zeros((1, LOOKBACK, 5)))
    return backtest.fixed(NETWORK, variables, values, past=past, future=future, **SIZES).forecasts


def from_time(columns, time):
    """Change all numbers from a time on."""
    changed = columns.copy()
    changed[time:] = 1e3 * np.random.default_rng(1).normal(size=changed[time:].shape)
    return changed


def test_cuts_at_origins_are_the_windows():
    rows = jnp.concatenate([VALUES, PAST, FUTURE], axis=1)
    expected = windows(VALUES, LOOKBACK, HORIZON, past=PAST, future=FUTURE)
    origins = jnp.arange(LOOKBACK, 39)
    np.testing.assert_array_equal(seen(rows, Channels(2, 1, 2), origins, LOOKBACK, HORIZON), expected.inputs)
    np.testing.assert_array_equal(to_come(rows, Channels(2, 1, 2), origins, HORIZON), expected.targets)


@pytest.mark.parametrize(
    "backtested", [fixed, refitted, pytest.param(partial(refitted, valid_windows=3), marks=pytest.mark.slow)]
)
def test_no_forecast_depends_on_what_it_may_not_see_bit_for_bit(backtested):
    before, origin = backtested(), ORIGINS[1]
    hidden = {
        "values": from_time(VALUES, origin),
        "past": from_time(PAST, origin),
        "future": from_time(FUTURE, origin + HORIZON),
    }
    after = backtested(**hidden)
    np.testing.assert_array_equal(before[:2], after[:2])
    assert (before[2] != after[2]).all()
    for name, columns in {"values": VALUES, "past": PAST, "future": FUTURE}.items():  # one step earlier is seen
        last = origin - 1 if name != "future" else origin + HORIZON - 1
        changed = backtested(**{name: from_time(columns, last)})
        np.testing.assert_array_equal(before[0], changed[0])
        assert (before[1] != changed[1]).all()


def test_a_refit_is_a_fit_to_data_cut_off_at_the_origin():
    origin, found = ORIGINS[1], refitted()
    data = prepare(VALUES[:origin], LOOKBACK, HORIZON, past=PAST[:origin], future=FUTURE[:origin])
    run = TRAIN(jax.random.fold_in(jax.random.fold_in(ZERO, origin), 0), data, learning_rate=0.1)
    expected = nnfx.forecasting.forecast(run, data, HORIZON, future=FUTURE[origin : origin + HORIZON])
    np.testing.assert_allclose(found[1], expected.values, rtol=1e-4, atol=1e-5)


def test_a_run_is_backtested_in_the_unit_of_the_series():
    data = prepare(VALUES[:20], LOOKBACK, HORIZON, past=PAST[:20], future=FUTURE[:20])
    run = TRAIN(ZERO, data, learning_rate=0.1)
    model = forecasters.scaled(run.model, data.scaler, channels=2)
    test = backtest.fixed(model, run.best.variables, VALUES, past=PAST, future=FUTURE, **SIZES)
    expected = nnfx.forecasting.forecast(run, data, HORIZON, future=FUTURE[20:22])
    np.testing.assert_allclose(test.forecasts[0], expected.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(test.targets, [VALUES[t : t + HORIZON] for t in ORIGINS])


def test_twice_a_column_known_ahead_is_recovered_in_a_backtest():
    def train(key, data, ridge):
        return Solved(data, ridge)

    class Solved:
        def __init__(self, data, ridge):
            x, y = (part.reshape(len(part), -1) for part in data.train[:2])
            w = data.train.weights[:, None]
            self.kernel = jnp.linalg.solve(x.T @ (w * x) + ridge * jnp.eye(x.shape[1]), x.T @ (w * y))

        def apply(self, inputs):
            return (inputs.reshape(len(inputs), -1) @ self.kernel).reshape(-1, HORIZON, 2)

    test = backtest.refitted(train, 2 * FUTURE, key=ZERO, future=FUTURE, **SIZES, ridge=1e-3)
    np.testing.assert_allclose(test.forecasts, [2 * FUTURE[t : t + HORIZON] for t in ORIGINS], rtol=1e-2, atol=1e-2)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"past: expected .* steps and series as the values, float32\[40,2\], got"):
        fixed(past=PAST[1:])
    with pytest.raises(ValueError, match="future: expected finite numbers"):
        refitted(future=np.full_like(FUTURE, np.nan))
    sizes = SIZES | {"horizon": 5}
    with pytest.raises(ValueError, match="lookback: expected at least the horizon, 5, if columns are known ahead"):
        backtest.fixed(baselines.naive(5), {"params": {}}, VALUES, future=FUTURE, **sizes)
    with pytest.raises(ValueError, match="channels: expected at most the 2 channels of the scaler, got 3"):
        forecasters.scaled(NETWORK, Scaler.of(VALUES), channels=3)
    with pytest.raises(ValueError, match="channels: expected a positive integer, got 0"):
        forecasters.scaled(NETWORK, Scaler.of(VALUES), channels=0)


@pytest.mark.parametrize("kind", ["past", "future"])
@pytest.mark.parametrize("index", [range(1990, 2030), np.arange(40) / 4, np.arange(5, 45)])
def test_columns_of_other_numbers_are_refused(kind, index):
    pandas = pytest.importorskip("pandas")
    values, columns = (pandas.Series(np.arange(40.0), index=pandas.Index(index)) for _ in range(2))
    shifted = columns.set_axis([*columns.index[1:], 2 * columns.index[-1] - columns.index[-2]])
    assert windows(values, 4, 2, **{kind: columns}).inputs.shape == (35, 4, 2)
    with pytest.raises(ValueError, match=f"{kind}: expected the times of the values, got .* \\(row 0\\)"):
        windows(values, 4, 2, **{kind: shifted})
    with pytest.raises(ValueError, match=f"{kind}: expected the times of the values, got .* \\(row 0\\)"):
        prepare(values, 4, 2, **{kind: shifted})
    windows(values, 4, 2, **{kind: columns.set_axis(range(-40, 0))})  # years beside row numbers cannot be compared
