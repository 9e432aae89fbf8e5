import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses, models
from nnfx.forecasting import Scaler, as_data, backtest, baselines, forecasters, heads, scores, windows

LOOKBACK, HORIZON, ORIGINS = 4, 2, (20, 23, 30)
VALUES = np.random.default_rng(0).normal(size=(40, 2)).cumsum(0).astype(np.float32) + 5
SIZES = {"lookback": LOOKBACK, "horizon": HORIZON}
MODEL = baselines.linear(HORIZON)
SGD = partial(nnfx.fit, MODEL, losses.mean_square_error, optax.sgd, epochs=5)
RATE = {"learning_rate": 0.1}
FULL, MINIBATCHES, STOPPED = SGD(), SGD(batch_size=4), SGD(stop=partial(nnfx.stopping.patience, patience=1), epochs=30)
TWO_CHANNELS = nnfx.fit(
    forecasters.direct(partial(models.mlp, (5,)), HORIZON, channels=2), losses.mean_square_error, optax.sgd, epochs=5
)
ZERO = jax.random.key(0)


def refitted(train=FULL, values=VALUES, origins=ORIGINS, key=ZERO, **options):
    return backtest.refitted(train, values, key=key, origins=origins, **SIZES, **RATE, **options)


def by_hand(train, make_data, head=heads.POINT, member=0):
    """Fit in a Python loop, each time to the series up to the origin."""
    found = []
    for origin in ORIGINS:
        past = VALUES[:origin]
        scaler = Scaler.of(past)
        key = jax.random.fold_in(jax.random.fold_in(ZERO, origin), member)
        run = train(key, make_data(scaler(past)), **RATE)
        outputs = run.apply(scaler(past[None, -LOOKBACK:]))
        found.append(head.affine(outputs, scaler.mean[None], scaler.scale[None])[0])
    return np.stack(found)


def cut(past):
    return as_data(windows(past, LOOKBACK, HORIZON))


def padded(data):
    """Return the same data with equally many rows at every origin, so that their fits are one program."""
    lacking = ORIGINS[-1] - LOOKBACK - HORIZON + 1 - len(data.train.weights)
    inputs, targets = (np.concatenate([a, np.repeat(a[:1], lacking, 0)]) for a in map(np.asarray, data.train[:2]))
    weights = np.concatenate([data.train.weights, np.zeros(lacking, np.float32)])
    return dataclasses.replace(data, train=nnfx.Batch(*map(jnp.asarray, (inputs, targets, weights))))


def test_full_batches_are_a_loop_of_fits_to_series_cut_off():
    found = refitted()
    np.testing.assert_allclose(found.forecasts, by_hand(FULL, cut), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.targets, [VALUES[t : t + 2] for t in ORIGINS])
    np.testing.assert_array_equal(found.origins, ORIGINS)
    assert found.members.shape == (1, 3, 2, 2)
    untrained = backtest.refitted(FULL, VALUES, key=ZERO, origins=ORIGINS, **SIZES, learning_rate=1e-9)
    assert np.abs(found.forecasts - untrained.forecasts).max() > 0.1, "training matters here"


@pytest.mark.slow
def test_minibatches_are_a_loop_of_fits_to_the_same_rows():
    expected = by_hand(MINIBATCHES, lambda past: padded(cut(past)))
    np.testing.assert_allclose(refitted(MINIBATCHES).forecasts, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_latest_windows_alone_are_a_loop_with_minibatches_too():
    expected = by_hand(MINIBATCHES, lambda past: cut(past[-(10 + LOOKBACK + HORIZON - 1) :]))
    np.testing.assert_allclose(refitted(MINIBATCHES, train_windows=10).forecasts, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_windows_held_out_stop_the_runs_and_share_no_target_with_the_others():
    def parted(past):
        first = past[: len(past) - 5]  # four windows of two steps each have five targets
        held_out = windows(past[-(LOOKBACK + 5) :], LOOKBACK, HORIZON)
        return padded(as_data(windows(first, LOOKBACK, HORIZON), held_out))

    expected = by_hand(STOPPED, parted)
    np.testing.assert_allclose(refitted(STOPPED, valid_windows=4).forecasts, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_members_differ_by_their_keys_and_are_pooled():
    train = nnfx.fit(
        forecasters.direct(partial(models.mlp, (5,)), HORIZON, 2, heads.GAUSSIAN),
        heads.GAUSSIAN.loss,
        optax.sgd,
        epochs=5,
    )
    found = refitted(train, members=3, head=heads.GAUSSIAN)
    assert found.members.shape == (3, 3, 2, 2, 2)
    for member in range(3):
        expected = by_hand(train, lambda past: padded(cut(past)), heads.GAUSSIAN, member)
        np.testing.assert_allclose(found.members[member], expected, rtol=1e-4, atol=1e-4)
    mean, deviation = np.moveaxis(np.asarray(found.members, float), -1, 0)
    np.testing.assert_allclose(found.forecasts, mean.mean(0), rtol=1e-5)
    mixture = np.sqrt((deviation**2 + mean**2).mean(0) - mean.mean(0) ** 2)
    np.testing.assert_allclose(found.outputs[..., 1], mixture, rtol=1e-3)


@pytest.mark.parametrize(
    ("devices", "at_once"),
    [(2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (1, 2), (1, 5), (2, 2), (2, 5)))],
)
def test_origins_side_by_side_or_one_after_the_other_on_any_devices(at_once, devices):
    found = refitted(at_once=at_once, devices=jax.devices()[:devices])
    np.testing.assert_allclose(found.forecasts, refitted().forecasts, rtol=1e-5, atol=1e-5)


def test_within_a_compiled_function():
    found = jax.jit(
        lambda rate: backtest.refitted(FULL, VALUES, key=ZERO, origins=ORIGINS, **SIZES, learning_rate=rate)
    )
    np.testing.assert_allclose(found(0.1).forecasts, refitted().forecasts, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_gradient_goes_through_all_origins():
    def error(rate):
        test = backtest.refitted(FULL, VALUES, key=ZERO, origins=ORIGINS, **SIZES, learning_rate=rate)
        return losses.mean_square_error(test.forecasts, test.targets).mean()

    slope = jax.grad(error)(0.1)
    step = 0.01
    difference = (error(0.1 + step) - error(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=0.02)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in ({"train_windows": 10}, {"valid_windows": 4}))],
)
def test_no_forecast_knows_what_comes_after_its_origin(options):
    train = STOPPED if "valid_windows" in options else MINIBATCHES
    before = refitted(train, **options)
    changed = VALUES.copy()
    changed[ORIGINS[1] :] = 1e4 * np.random.default_rng(1).normal(size=changed[ORIGINS[1] :].shape)
    after = refitted(train, changed, **options)
    np.testing.assert_array_equal(before.forecasts[:2], after.forecasts[:2])
    assert (before.forecasts[2] != after.forecasts[2]).all()
    changed = VALUES.copy()
    changed[ORIGINS[1] - 1] += 1  # the last known value
    after = refitted(train, changed, **options)
    np.testing.assert_array_equal(before.forecasts[0], after.forecasts[0])
    assert (before.forecasts[1] != after.forecasts[1]).all()


@pytest.mark.slow
def test_an_origin_is_forecast_alike_among_others():
    alone = refitted(origins=[30])
    np.testing.assert_allclose(alone.forecasts[0], refitted().forecasts[2], rtol=1e-5, atol=1e-5)


def test_other_numbers_compile_nothing_and_map():
    traces = []

    class LeastSquares:
        def __init__(self, data, ridge):
            traces.append(1)
            x, y = (a.reshape(len(a), -1) for a in data.train[:2])
            w = data.train.weights[:, None]
            self.kernel = jnp.linalg.solve(x.T @ (w * x) + ridge * jnp.eye(x.shape[1]), x.T @ (w * y))

        def apply(self, inputs):
            return (inputs.reshape(len(inputs), -1) @ self.kernel).reshape(-1, HORIZON, 2)

    def train(key, data, ridge):
        return LeastSquares(data, ridge)

    def at(ridge):
        return backtest.refitted(train, VALUES, key=ZERO, origins=ORIGINS, **SIZES, ridge=ridge).forecasts

    one, other = at(0.1), at(2.0)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(at)(jnp.array([0.1, 2.0])), jnp.stack([one, other]), rtol=1e-4, atol=1e-4)
    for i, origin in enumerate(ORIGINS):  # in double precision
        past = VALUES[:origin].astype(float)
        mean, scale = past.mean(0), past.std(0)
        past = (past - mean) / scale
        rows = np.stack([past[s : s + 6].ravel() for s in range(origin - 5)])
        kernel = np.linalg.solve(rows[:, :8].T @ rows[:, :8] + 2 * np.eye(8), rows[:, :8].T @ rows[:, 8:])
        expected = (past[-4:].ravel() @ kernel).reshape(2, 2) * scale + mean
        np.testing.assert_allclose(other[i], expected, rtol=1e-4, atol=1e-4)


def test_one_model_at_every_origin_is_a_loop(key):
    model = forecasters.scaled(MODEL, Scaler.of(VALUES[:20]))
    variables = jax.jit(model.init)(key, jnp.zeros((1, LOOKBACK, 2)))
    apply = jax.jit(model.apply)
    found = backtest.fixed(model, variables, VALUES, origins=range(4, 39), **SIZES)
    for i, origin in enumerate(range(4, 39)):
        expected = apply(variables, VALUES[None, origin - 4 : origin])[0]
        np.testing.assert_allclose(found.forecasts[i], expected, rtol=1e-4, atol=1e-5)
    last = backtest.fixed(baselines.naive(HORIZON), {"params": {}}, VALUES, origins=ORIGINS, **SIZES)
    np.testing.assert_array_equal(last.forecasts[:, 1], [VALUES[t - 1] for t in ORIGINS])
    np.testing.assert_array_equal(last.targets, [VALUES[t : t + 2] for t in ORIGINS])


def test_forecasters_side_by_side():
    found = {"network": refitted()}
    for name, model in {"naive": baselines.naive(HORIZON), "drift": baselines.drift(HORIZON)}.items():
        found[name] = backtest.fixed(model, {"params": {}}, VALUES, origins=ORIGINS, **SIZES)
    scale = scores.seasonal_naive_error(VALUES[:20])
    table = backtest.compare(found, {"MASE": partial(scores.mase, scale=scale), "MAE": losses.mean_absolute_error})
    assert [row["MASE"] for row in table.rows] == sorted(row["MASE"] for row in table.rows)
    naive = table.by_origin["naive"]
    errors = np.abs([VALUES[t : t + 2] - VALUES[t - 1] for t in ORIGINS]).astype(float)
    np.testing.assert_allclose(naive["MAE"], errors.mean((1, 2)), rtol=1e-5)
    expected = (errors.mean(1) / np.abs(np.diff(VALUES[:20].astype(float), axis=0)).mean(0)).mean()
    assert next(row for row in table.rows if row["forecaster"] == "naive")["MASE"] == pytest.approx(expected, rel=1e-5)
    lines = str(table).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["forecaster", "MASE", "MAE"]
    assert len({len(line) for line in lines}) == 1
    other = backtest.fixed(baselines.naive(HORIZON), {"params": {}}, VALUES, origins=(19, 23, 30), **SIZES)
    with pytest.raises(ValueError, match=r"backtests\['other'\]: expected the same origins as 'network', got differ"):
        backtest.compare({**found, "other": other}, {"MAE": losses.mean_absolute_error})
    with pytest.raises(ValueError, match=r"scores\['MAE'\]: expected one number per origin, got "):
        backtest.compare(found, {"MAE": lambda forecasts, targets: jnp.abs(forecasts - targets).mean()})
    with pytest.raises(ValueError, match="backtests, scores: expected at least one of each, got 0 and 1"):
        backtest.compare({}, {"MAE": losses.mean_absolute_error})
    with pytest.raises(TypeError, match=r"backtests\['x'\]: expected a Backtest, got 3"):
        backtest.compare({"x": 3}, {"MAE": losses.mean_absolute_error})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train": MODEL}, TypeError, "train: expected a function, as returned by nnfx.fit, got a Model"),
        ({"key": np.zeros(2, np.uint32)}, TypeError, "key: expected a typed key"),
        ({"members": 0}, ValueError, "members: expected a positive integer, got 0"),
        ({"at_once": 0}, ValueError, "at_once: expected a positive integer, got 0"),
        ({"train_windows": 1.5}, TypeError, "train_windows: expected a positive integer, got 1.5"),
        ({"valid_windows": -1}, ValueError, "valid_windows: expected a non-negative integer, got -1"),
        ({"dropout": 0.5}, TypeError, "dropout: expected one of the hyper-parameters"),
        ({"values": VALUES[:, 0]}, ValueError, "values: expected one series, (time, channels), got float32[40]"),
        ({"values": VALUES.astype(complex)}, TypeError, "values: expected an array of real numbers"),
        ({"values": np.where(VALUES > 5, np.nan, VALUES)}, ValueError, "values: expected finite numbers"),
        ({"origins": [5, 20]}, ValueError, "origins: expected times from 6, the first after a whole window, to 38"),
        ({"origins": [8], "valid_windows": 2}, ValueError, "origins: expected times from 9"),
        ({"origins": [20, 39]}, ValueError, "to 38, the last before a whole horizon, got 20 to 39"),
        ({"origins": [23, 20]}, ValueError, "origins: expected one or more ascending times, (origins,), got"),
        ({"origins": np.array([23, 20], np.uint8)}, ValueError, "origins: expected one or more ascending times"),
        ({"origins": []}, TypeError, "origins: expected integer times, got float64[0]"),
        ({"origins": np.arange(0)}, ValueError, "origins: expected one or more ascending times, (origins,)"),
        ({"origins": [20.5]}, TypeError, "origins: expected integer times, got float64[1]"),
        ({"head": heads.GAUSSIAN}, ValueError, "train: expected forecasts (batch, 2, 2, 2) for this horizon and head"),
        ({"train": TWO_CHANNELS, "values": VALUES[:, :1]}, ValueError, "targets: expected the shape of the outputs"),
    ],
)
def test_wrong_input(options, error, words):
    with pytest.raises(error) as caught:
        refitted(**options)
    assert words in str(caught.value)


def test_wrong_input_to_a_fixed_forecaster():
    with pytest.raises(TypeError, match="model: expected a Model"):
        backtest.fixed(baselines.naive, {}, VALUES, origins=ORIGINS, **SIZES)
    with pytest.raises(ValueError, match="origins: expected times from 4, the first after a whole window, to 38"):
        backtest.fixed(baselines.naive(2), {"params": {}}, VALUES, origins=[3], **SIZES)
    with pytest.raises(ValueError, match=r"model: expected forecasts \(batch, 2, 2\) for this horizon and head"):
        backtest.fixed(baselines.naive(3), {"params": {}}, VALUES, origins=ORIGINS, **SIZES)
    with pytest.raises(TypeError, match="origins: expected concrete times when the backtest is compiled"):
        jax.jit(lambda origins: refitted(origins=origins))(jnp.array(ORIGINS))
    with pytest.raises(ValueError, match="learning_rate: expected a finite number above 0, got -1"):
        backtest.refitted(FULL, VALUES, key=ZERO, origins=ORIGINS, **SIZES, learning_rate=-1.0)
