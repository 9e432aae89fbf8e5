import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models
from nnfx.forecasting import Scaler, as_data, baselines, forecasters, heads, windows

RANDOM = np.random.default_rng(0)
PAST = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)
NETWORK = partial(models.mlp, (5,), activation="tanh")
DECILES = heads.quantiles([0.1, 0.5, 0.9])


def mlp_forecaster(horizon, channels=3, head=heads.POINT, **options):
    return forecasters.direct(lambda outputs: NETWORK(outputs, **options), horizon, channels, head)


WRAPPED = {
    "direct": mlp_forecaster(5),
    "direct, Gaussian": mlp_forecaster(5, head=heads.GAUSSIAN),
    "recursive": forecasters.recursive(mlp_forecaster(2), 5),
    "recursive, batch norm": forecasters.recursive(mlp_forecaster(1, batch_norm=True), 5),
    "recursive LSTM": forecasters.recursive(
        forecasters.direct(partial(models.lstm, hidden=(4,)), horizon=1, channels=3), 5
    ),
    "less its last value": forecasters.normalized(mlp_forecaster(5)),
    "standardised": forecasters.normalized(mlp_forecaster(5, head=DECILES), "mean_std", DECILES),
    "recursive, standardised": forecasters.recursive(forecasters.normalized(mlp_forecaster(1), "mean_std"), 5),
    "scaled": forecasters.scaled(mlp_forecaster(5), Scaler.of(PAST[0])),
    "by channel": forecasters.channel_independent(mlp_forecaster(5, channels=1, batch_norm=True)),
    "convolutions by channel": forecasters.channel_independent(
        forecasters.direct(lambda outputs: models.cnn([models.conv(4, 3)], outputs), 5)
    ),
}


# Parts of the others, or compared with their parts by another test.
SLOW = {
    "direct",
    "scaled",
    "recursive LSTM",
    "direct, Gaussian",
    "recursive",
    "recursive, standardised",
    "by channel",
    "convolutions by channel",
}


def drawn(model, inputs=PAST):
    """Return variables of a model drawn with NumPy, so that nothing is compiled; statistics are ones."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), inputs)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), {**shapes, "params": {}}) | {"params": params}


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in WRAPPED])
def test_every_wrapper_is_a_model(name, key, strict_dtypes):
    model = WRAPPED[name]
    variables = jax.jit(model.init)(key, PAST[:1])

    def train(variables):
        return model.apply(variables, PAST, key=key, weights=jnp.ones(4), train=True)

    def total(params):
        return (train({**variables, "params": params})[0] ** 2).sum()

    @jax.jit
    def everything(variables):
        one_by_one = jax.vmap(lambda x: model.apply(variables, x[None])[0])(jnp.asarray(PAST))
        return model.apply(variables, PAST), one_by_one, *train(variables), jax.grad(total)(variables["params"])

    outputs, one_by_one, trained, state, gradient = everything(variables)
    assert outputs.shape[:3] == trained.shape[:3] == (4, 5, 3)
    assert jax.tree.structure(dict(state)) == jax.tree.structure({k: v for k, v in variables.items() if k != "params"})
    close(one_by_one, outputs, rtol=1e-4, atol=1e-5)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf) != 0).any()
    halves = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), (variables, PAST))
    assert jax.eval_shape(model.apply, *halves).dtype == jnp.bfloat16


def test_a_direct_forecaster_lays_its_outputs_out_step_by_step():
    past = jnp.arange(4.0).reshape(2, 2, 1)
    network = nnfx.Model(
        lambda key, x: {"params": {}}, lambda variables, x, **_: jnp.tile(jnp.arange(12.0), (len(x), 1))
    )
    outputs = forecasters.direct(network, horizon=2, channels=3, head=heads.GAUSSIAN).apply({}, past)
    np.testing.assert_array_equal(outputs[0, 0, :, 0], [0, 2, 4])
    np.testing.assert_array_equal(outputs[1, 1, :, 0], [6, 8, 10])
    np.testing.assert_allclose(outputs[0, 0, 0, 1], np.log1p(np.exp(1)) + 1e-4, rtol=1e-6)


@pytest.mark.parametrize(("own", "horizon"), [(1, 5), (2, 5), (2, 4), (7, 5), (8, 20)])
def test_a_recursive_forecaster_is_a_loop(own, horizon):
    model = mlp_forecaster(own)
    variables, apply = drawn(model), jax.jit(model.apply)
    series = PAST
    while series.shape[1] < 6 + horizon:
        series = np.concatenate([series, apply(variables, series[:, -6:])], 1)
    found = jax.jit(forecasters.recursive(model, horizon).apply)(variables, PAST)
    np.testing.assert_allclose(found, series[:, 6 : 6 + horizon], rtol=1e-5, atol=1e-6)


def test_a_recursive_forecaster_carries_its_state_and_draws_anew_at_each_step(key):
    model = mlp_forecaster(1, batch_norm=True, dropout=0.5)
    variables, weights = drawn(model), np.array([1, 1, 0, 2], np.float32)
    series, state = PAST, {k: v for k, v in variables.items() if k != "params"}

    def trained(model):
        return jax.jit(lambda v, x, key: model.apply(v, x, key=key, weights=weights, train=True))

    one_step = trained(model)
    for step in range(3):
        given = {"params": variables["params"], **state}
        outputs, state = one_step(given, series[:, -6:], jax.random.fold_in(key, step))
        series = np.concatenate([series, outputs], 1)
    found, last = trained(forecasters.recursive(model, 3))(variables, PAST, key)
    np.testing.assert_allclose(found, series[:, 6:], rtol=1e-5, atol=1e-6)
    close(dict(last), dict(state), rtol=1e-5, atol=1e-6)


def test_a_linear_network_less_its_last_value_is_nlinear():
    model = forecasters.normalized(baselines.linear(5))
    variables = drawn(model)
    nlinear = baselines.nlinear(5)
    same = jax.tree.unflatten(jax.tree.structure(drawn(nlinear)), jax.tree.leaves(variables))
    found, expected = jax.jit(lambda v, w: (model.apply(v, PAST), nlinear.apply(w, PAST)))(variables, same)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_standardised_windows_are_those_of_the_paper():
    network = mlp_forecaster(5)
    model = forecasters.normalized(network, "mean_std")
    variables = drawn(model)
    past = np.asarray(PAST, float)
    mean, deviation = past.mean(1, keepdims=True), np.sqrt(past.var(1, keepdims=True) + 1e-5)
    inner = np.asarray(jax.jit(network.apply)(variables, ((past - mean) / deviation).astype(np.float32)))
    found = jax.jit(model.apply)(variables, PAST)
    np.testing.assert_allclose(found, inner * deviation + mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by", ["last", "mean_std"])
def test_level_and_size_of_a_window_are_passed_on(by):
    model = forecasters.normalized(mlp_forecaster(5, head=heads.GAUSSIAN), by, heads.GAUSSIAN)
    variables, apply = drawn(model), jax.jit(model.apply)
    scale = np.float32(7 if by == "mean_std" else 1)
    outputs, changed = (np.asarray(apply(variables, past)) for past in (PAST, scale * PAST + 11))
    np.testing.assert_allclose(changed[..., 0], scale * outputs[..., 0] + 11, rtol=1e-4)
    np.testing.assert_allclose(changed[..., 1], scale * outputs[..., 1], rtol=1e-4)


def test_constant_windows_are_finite():
    for by in ("last", "mean_std"):
        model = forecasters.normalized(mlp_forecaster(5), by)
        outputs = jax.jit(model.apply)(drawn(model), np.full((2, 6, 3), 3, np.float32))
        assert np.isfinite(outputs).all()


def test_exogenous_channels_pass_as_they_are(key):
    seen = []

    def apply(variables, inputs, *, key=None, weights=None, train=False):
        seen.append(inputs)
        return jnp.zeros((len(inputs), 2, 1))

    model = forecasters.normalized(nnfx.Model(lambda key, x: {"params": {}}, apply), channels=1)
    np.testing.assert_array_equal(model.apply({}, PAST)[:, :, 0], jnp.tile(PAST[:, -1:, 0], (1, 2)))
    np.testing.assert_array_equal(seen[0][:, :, 1:], PAST[:, :, 1:])
    np.testing.assert_array_equal(seen[0][:, :, 0], PAST[:, :, 0] - PAST[:, -1:, 0])


def test_a_scaled_forecaster_forecasts_in_the_unit_of_the_series():
    scaler, network = Scaler.of(100 + 7 * PAST[0]), mlp_forecaster(5)
    variables = drawn(network)
    found = jax.jit(forecasters.scaled(network, scaler).apply)(variables, PAST)
    expected = scaler.inverse(jax.jit(network.apply)(variables, scaler(PAST)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_scaled_forecaster_restores_the_channels_that_are_forecast():
    scaler, network = Scaler.of(100 + 7 * PAST[0]), mlp_forecaster(5, channels=1)
    variables = drawn(network)
    found = jax.jit(forecasters.scaled(network, scaler, channels=1).apply)(variables, PAST)
    inner = np.asarray(jax.jit(network.apply)(variables, scaler(PAST)))
    expected = inner * np.asarray(scaler.scale)[:, :1] + np.asarray(scaler.mean)[:, :1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_channels_are_forecast_one_by_one_with_the_same_weights(key):
    network = mlp_forecaster(5, channels=1, head=DECILES, batch_norm=True)
    model = forecasters.channel_independent(network)
    variables, apply = drawn(model), jax.jit(network.apply)
    expected = np.concatenate([apply(variables, PAST[:, :, i : i + 1]) for i in range(3)], axis=2)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, PAST), expected, rtol=1e-5, atol=1e-6)
    # batch statistics are taken over all channels, each with the weight of its window
    weights = np.array([1, 0, 2, 1], np.float32)

    def trained(model, x, weights):
        return jax.jit(lambda v: model.apply(v, x, key=key, weights=weights, train=True))(variables)

    outputs, state = trained(model, PAST, weights)
    stacked = np.concatenate([PAST[:, :, i : i + 1] for i in range(3)])
    expected, expected_state = trained(network, stacked, np.tile(weights, 3))
    close(dict(state), dict(expected_state), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs[:, :, 2], expected[8:, :, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_forecaster_trains_with_a_traced_dropout_and_a_head(key):
    values = jnp.sin(jnp.arange(60.0) / 3)[:, None]
    data = as_data(windows(values, lookback=6, horizon=3))

    def build(dropout):
        network = forecasters.direct(partial(models.mlp, (8,), dropout=dropout), 3, head=heads.GAUSSIAN)
        return forecasters.normalized(network, head=heads.GAUSSIAN)

    train = nnfx.fit(build, heads.GAUSSIAN.loss, optax.adam, epochs=60, batch_size=16)
    runs = jax.vmap(lambda rate: train(key, data, learning_rate=0.02, dropout=rate))(jnp.array([0.0, 0.3]))
    assert (runs.history["train_loss"][:, -1] < runs.history["train_loss"][:, 0] - 0.5).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: forecasters.direct("mlp", 3),
            TypeError,
            "network: expected a Model or a function that makes one, got 'mlp'",
        ),
        (lambda: forecasters.direct(lambda outputs: outputs, 3), TypeError, "network: expected a Model, got 3"),
        (lambda: forecasters.direct(NETWORK, 0), ValueError, "horizon: expected a positive integer, got 0"),
        (lambda: forecasters.direct(NETWORK, 3, 1.0), TypeError, "channels: expected a positive integer, got 1.0"),
        (lambda: forecasters.recursive(models.mlp, 3), TypeError, "model: expected a Model, got <function mlp"),
        (
            lambda: forecasters.recursive(mlp_forecaster(1), 0),
            ValueError,
            "horizon: expected a positive integer, got 0",
        ),
        (
            lambda: forecasters.normalized(mlp_forecaster(1), "first"),
            ValueError,
            "by: expected one of 'last', 'mean_std'",
        ),
        (lambda: forecasters.normalized(mlp_forecaster(1), channels=0), ValueError, "channels: expected a positive"),
        (
            lambda: forecasters.scaled(mlp_forecaster(1), 2.0),
            TypeError,
            "scaler: expected the Scaler of a single series, got 2",
        ),
        (
            lambda: forecasters.scaled(mlp_forecaster(1), Scaler.of(PAST)),
            TypeError,
            "scaler: expected the Scaler of a single",
        ),
        (lambda: forecasters.channel_independent(None), TypeError, "model: expected a Model, got None"),
    ],
)
def test_wrong_parts(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            forecasters.direct(models.mlp((5,), 4), 3),
            "network: expected 3 × 1 = 3 outputs, (batch, 3), got float32[4,4]",
        ),
        (forecasters.recursive(mlp_forecaster(1, channels=1), 3), "model: expected point forecasts of all 3 channels"),
        (
            forecasters.recursive(mlp_forecaster(1, head=DECILES), 3),
            "model: expected point forecasts of all 3 channels",
        ),
        (
            forecasters.normalized(mlp_forecaster(2, head=DECILES)),
            "model: expected outputs (batch, horizon, 3) for this",
        ),
        (forecasters.normalized(mlp_forecaster(2, channels=1)), "model: expected outputs (batch, horizon, 3) for this"),
        (
            forecasters.normalized(mlp_forecaster(2), channels=4),
            "channels: expected at most the 3 channels of the windows, got 4",
        ),
        (
            forecasters.normalized(mlp_forecaster(2), head=DECILES),
            "model: expected outputs (batch, horizon, 3, 3) for this head, got float32[4,2,3]",
        ),
        (
            forecasters.channel_independent(mlp_forecaster(2)),
            "model: expected forecasts of one channel, (batch, horizon, 1)",
        ),
    ],
)
def test_outputs_that_do_not_fit(model, words, key):
    with pytest.raises(ValueError, match=re.escape(words)):
        jax.eval_shape(lambda key: model.apply(model.init(key, PAST), PAST), key)


@pytest.mark.parametrize("name", WRAPPED)
def test_windows_are_asked_for(name, key):
    for wrong in (PAST[0], PAST.astype(int)):
        with pytest.raises(ValueError, match=r"inputs: expected windows of floats, \(batch, lookback, channels\), got"):
            WRAPPED[name].init(key, wrong)
