import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import nnfx
from nnfx.forecasting import Scaler, as_data, baselines, split, windows

RNG = np.random.default_rng(0)
PAST = RNG.normal(size=(5, 30, 3)).astype(np.float32)
LINEAR = {"linear": baselines.linear, "nlinear": baselines.nlinear, "dlinear": baselines.dlinear}


def by_default(name):
    """Test only this linear forecaster by default: the others consist of the same parts."""
    names = [pytest.param(each, marks=() if each == name else pytest.mark.slow) for each in LINEAR]
    return pytest.mark.parametrize("name", names)


def forecast(model, past, key=None):
    past = jnp.asarray(past, jnp.float32)
    return model.apply(model.init(jax.random.key(0) if key is None else key, past), past)


# Without parameters


def test_naive_repeats_the_last_value():
    np.testing.assert_array_equal(forecast(baselines.naive(4), PAST), np.repeat(PAST[:, -1:], 4, axis=1))


@pytest.mark.parametrize(("horizon", "period"), [(3, 7), (7, 7), (17, 7), (2, 30)])
def test_seasonal_naive_repeats_the_last_season(horizon, period):
    expected = np.stack([PAST[:, 30 - period + h % period] for h in range(horizon)], axis=1)
    np.testing.assert_array_equal(forecast(baselines.seasonal_naive(horizon, period), PAST), expected)


def test_drift_goes_on_along_a_line():
    line = (2 + 0.5 * np.arange(40.0)).reshape(1, 40, 1)
    np.testing.assert_allclose(forecast(baselines.drift(10), line[:, :30]), line[:, 30:], rtol=1e-6)
    slope = (PAST[:, -1] - PAST[:, 0]) / 29
    np.testing.assert_allclose(forecast(baselines.drift(4), PAST)[:, 3], PAST[:, -1] + 4 * slope, rtol=1e-5)


def m4_naive2(y, horizon, period):
    """Return Naive2 of one series, after the R code of the competition's benchmarks."""
    n = len(y)
    plain = np.full(horizon, y[-1])
    if period == 1 or n < 3 * period:
        return plain
    centred = y - y.mean()
    acf = np.array([(centred[k:] * centred[: n - k]).sum() / (centred**2).sum() for k in range(1, period + 1)])
    limits = 1.645 / np.sqrt(n) * np.sqrt(np.cumsum([1, *(2 * acf**2)]))
    if not abs(acf[period - 1]) > limits[period - 1]:
        return plain
    inner = np.ones(period - 1 + period % 2)
    weights = (inner if period % 2 else np.array([0.5, *inner, 0.5])) / period
    half = len(weights) // 2
    ratios = np.full(n, np.nan)
    for t in range(half, n - half):
        ratios[t] = y[t] / (weights @ y[t - half : t + half + 1])
    figure = np.array([np.nanmean(ratios[phase::period]) for phase in range(period)])
    season = np.resize(figure / figure.mean(), n)
    return y[-1] / season[-1] * np.resize(season[-period:], horizon)


def seasonal(length, period, strength):
    time = np.arange(length)
    noise = RNG.uniform(0.9, 1.1, size=(4, length, 2))
    return (50 + time[:, None]) * (1 + strength * np.sin(2 * np.pi * time[:, None] / period)) * noise


@pytest.mark.parametrize(
    ("length", "period"),
    [
        *[(36, 12), (41, 7), (20, 7), (30, 1), (9, 2)],
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((53, 12), (40, 4), (23, 7))),
    ],
)
@pytest.mark.parametrize("strength", [0.4, 0.02])
def test_naive2_is_that_of_the_competition(length, period, strength):
    past = seasonal(length, period, strength)
    ours = forecast(baselines.naive2(10, period), past)
    expected = [[m4_naive2(series[:, c], 10, period) for c in range(2)] for series in past]
    np.testing.assert_allclose(ours, np.swapaxes(expected, 1, 2), rtol=2e-5)


def test_naive2_of_the_airline_passengers_is_seasonal_and_better_than_naive():
    passengers = nnfx.data.airline_passengers().values
    past, future = passengers[None, :-24], passengers[None, -24:]
    ours = forecast(baselines.naive2(24, 12), past)
    np.testing.assert_allclose(ours[0, :, 0], m4_naive2(past[0, :, 0].astype(float), 24, 12), rtol=1e-5)
    error = nnfx.forecasting.scores.smape(ours, future)
    assert error < 0.7 * nnfx.forecasting.scores.smape(forecast(baselines.naive(24), past), future)


def test_naive2_looks_for_no_season_where_none_can_be():
    constant, alternating = np.full((1, 24, 1), 3.0), np.tile([1.0, -2.0], 12).reshape(1, 24, 1)
    for past in (constant, alternating, 0 * constant):
        np.testing.assert_array_equal(forecast(baselines.naive2(3, 2), past)[0, :, 0], past[0, -1, 0])


# Linear forecasters


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    past = torch.from_numpy(PAST)

    def affine(params):
        layer = torch.nn.Linear(30, 6)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(params["kernel"]).T))
            layer.bias.copy_(torch.from_numpy(np.array(params["bias"])))
        return layer

    def map_past(layers, parts):
        return sum(layer(part.permute(0, 2, 1)).permute(0, 2, 1) for layer, part in zip(layers, parts, strict=True))

    def decomposed(x):
        ends = [x[:, :1].repeat(1, 12, 1), x, x[:, -1:].repeat(1, 12, 1)]
        trend = torch.nn.AvgPool1d(25, stride=1)(torch.cat(ends, dim=1).permute(0, 2, 1)).permute(0, 2, 1)
        return x - trend, trend

    def theirs(name, layers):
        if name == "linear":
            return map_past(layers, [past])
        if name == "nlinear":
            return map_past(layers, [past - past[:, -1:]]) + past[:, -1:]
        return map_past(layers, decomposed(past))

    for name, make in LINEAR.items():
        model = make(6)
        params = model.init(jax.random.key(1), PAST)["params"]

        @jax.jit
        def ours(params, model=model):
            outputs, pull_back = jax.vjp(lambda p: model.apply({"params": p}, PAST), params)
            return outputs, *pull_back(2 * outputs)

        outputs, gradients = ours(params)
        layers = [affine(params[part]) for part in sorted(params)]  # dlinear's seasonal part, then its trend
        expected = theirs(name, layers)
        np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-5, atol=2e-6)
        expected.square().sum().backward()
        for part, layer in zip(sorted(params), layers, strict=True):
            np.testing.assert_allclose(gradients[part]["kernel"], layer.weight.grad.numpy().T, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(gradients[part]["bias"], layer.bias.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("lookback", "kernel"),
    [
        (30, 25),
        (30, 59),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((30, 1), (8, 25), (1, 3), (12, 5))),
    ],
)
def test_the_trend_is_a_moving_average_between_repeated_ends(lookback, kernel):
    past = PAST[:, :lookback]
    model = baselines.dlinear(4, kernel)
    params = jax.tree.map(np.float64, model.init(jax.random.key(2), past)["params"])
    reach = kernel // 2
    around = np.clip(np.arange(-reach, reach + 1) + np.arange(lookback)[:, None], 0, lookback - 1)
    trend = past[:, around].astype(np.float64).mean(2)
    expected = sum(
        np.einsum("blc,lh->bhc", part, params[name]["kernel"]) + params[name]["bias"][:, None]
        for name, part in (("seasonal", past - trend), ("trend", trend))
    )
    np.testing.assert_allclose(forecast(model, past, jax.random.key(2)), expected, rtol=1e-4, atol=2e-6)


@by_default("dlinear")
def test_weights_are_drawn_as_pytorch_draws_them(name):
    params = LINEAR[name](200).init(jax.random.key(0), jnp.zeros((1, 100, 2)))["params"]
    for part in params.values():
        assert (part["kernel"].shape, part["bias"].shape) == ((100, 200), (200,))
        for leaf in part.values():
            uniform = scipy.stats.uniform(-0.1, 0.2)
            assert scipy.stats.kstest(np.ravel(leaf), uniform.cdf).pvalue > 1e-3
            assert (abs(leaf) <= 0.1).all()
    draws = [np.ravel(leaf)[:200] for leaf in jax.tree.leaves(params)]
    assert len(np.unique(np.stack(draws), axis=0)) == len(draws)


@by_default("nlinear")
def test_channels_share_their_weights_or_have_their_own(name):
    shared, individual = LINEAR[name](4), LINEAR[name](4, individual=True)
    variables = shared.init(jax.random.key(0), PAST)
    swapped = shared.apply(variables, PAST[..., ::-1])
    np.testing.assert_allclose(swapped[..., ::-1], shared.apply(variables, PAST), rtol=1e-5, atol=1e-6)
    own = individual.init(jax.random.key(0), PAST)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(own))
    for channel in range(3):
        one = jax.tree.map(lambda leaf, channel=channel: leaf[channel], own)
        expected = shared.apply(one, PAST[..., channel : channel + 1])
        np.testing.assert_allclose(individual.apply(own, PAST)[..., channel], expected[..., 0], rtol=1e-5, atol=1e-6)


# As models


@pytest.mark.slow
@pytest.mark.parametrize("model", [baselines.linear(5), baselines.naive(5)], ids=["linear", "naive"])
def test_training_is_fit_on_windows(model):
    waves = np.sin(np.arange(300)[:, None] * [0.3, 0.2])
    data = as_data(windows(waves[:200], 16, 5), windows(waves[184:], 16, 5))
    train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.adam, epochs=60, batch_size=20)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    outputs = run.predict(data.valid.inputs)
    assert outputs.shape == data.valid.targets.shape
    error = nnfx.losses.mean_square_error(outputs, data.valid.targets).mean()
    naive = nnfx.losses.mean_square_error(forecast(baselines.naive(5), data.valid.inputs), data.valid.targets).mean()
    assert error < 1e-3 if jax.tree.leaves(run.state.params) else error == pytest.approx(naive)


@pytest.mark.usefixtures("etth1_file")
@pytest.mark.parametrize(
    ("horizon", "square", "absolute"), [(96, 1.295, 0.713), pytest.param(336, 1.323, 0.744, marks=pytest.mark.slow)]
)
def test_repeating_the_last_value_scores_as_published(horizon, square, absolute):
    """Zeng et al. 2023, table 2, Repeat on ETTh1; their loader dropped the windows left over after batches of 32."""
    train, _, test = split(nnfx.data.ett("ETTh1").values, 1, (8640, 2880, 2880))
    inputs, targets = windows(Scaler.of(train)(test), 1, horizon)
    used = len(inputs) // 32 * 32
    outputs, targets = forecast(baselines.naive(horizon), inputs[:used]), targets[:used]
    assert nnfx.losses.mean_square_error(outputs, targets).mean() == pytest.approx(square, abs=6e-4)
    assert nnfx.losses.mean_absolute_error(outputs, targets).mean() == pytest.approx(absolute, abs=6e-4)


WITHOUT_PARAMETERS = {
    "naive": baselines.naive(4),
    "seasonal naive": baselines.seasonal_naive(4, 7),
    "drift": baselines.drift(4),
    "naive2": baselines.naive2(4, 7),
}


@pytest.mark.parametrize("name", ["naive", "seasonal naive", "drift", pytest.param("naive2", marks=pytest.mark.slow)])
def test_models_without_parameters_keep_the_contracts_that_apply(name):
    model = WITHOUT_PARAMETERS[name]
    past = jnp.asarray(abs(PAST))
    variables = model.init(jax.random.key(0), past)
    assert variables == {"params": {}}
    outputs = model.apply(variables, past)
    assert outputs.shape == (5, 4, 3)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, past), outputs, rtol=1e-5)
    one_by_one = jax.vmap(lambda x: model.apply(variables, x[None])[0])(past)
    np.testing.assert_allclose(one_by_one, outputs, rtol=1e-5)
    trained, state = model.apply(variables, past, key=jax.random.key(0), weights=jnp.ones(5), train=True)
    np.testing.assert_array_equal(trained, outputs)
    assert state == {}
    with jax.numpy_dtype_promotion("strict"):
        assert model.apply(variables, past.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_exogenous_channels_are_not_seen():
    model = baselines.without_exogenous(baselines.dlinear(4), channels=2)
    variables = model.init(jax.random.key(0), PAST)
    outputs, _ = model.apply(variables, PAST, key=jax.random.key(0), weights=jnp.ones(5), train=True)
    np.testing.assert_array_equal(outputs, baselines.dlinear(4).apply(variables, PAST[..., :2]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: baselines.naive(0), ValueError, "horizon: expected a positive integer, got 0"),
        (lambda: baselines.drift(1.5), TypeError, "horizon: expected a positive integer, got 1.5"),
        (lambda: baselines.seasonal_naive(4, -1), ValueError, "period: expected a positive integer, got -1"),
        (lambda: baselines.naive2(4, True), TypeError, "period: expected a positive integer, got True"),
        (lambda: baselines.linear(None), TypeError, "horizon: expected a positive integer, got None"),
        (lambda: baselines.nlinear(-3), ValueError, "horizon: expected a positive integer, got -3"),
        (lambda: baselines.dlinear(4, kernel=24), ValueError, "kernel: expected an odd number of steps, got 24"),
        (lambda: baselines.dlinear(4, kernel=0), ValueError, "kernel: expected a positive integer, got 0"),
        (lambda: forecast(baselines.seasonal_naive(4, 31), PAST), ValueError, "inputs: .* lookback of at least 31"),
        (lambda: forecast(baselines.drift(4), PAST[:, :1]), ValueError, "inputs: expected a lookback of at least 2"),
        (lambda: forecast(baselines.naive(4), PAST[0]), ValueError, r"inputs: expected windows of floats, \(batch"),
        (lambda: baselines.drift(4).apply({}, PAST.astype(int)), ValueError, "inputs: .* of floats.*got int"),
        (lambda: baselines.naive(4).apply({}, PAST.tolist()), ValueError, "inputs: .* of floats.*got a list"),
        (lambda: forecast(baselines.nlinear(4), PAST[0]), ValueError, r"inputs: .*channels\), got float32\[30,3\]"),
        (lambda: forecast(baselines.dlinear(4), PAST[0]), ValueError, r"inputs: .*channels\), got float32\[30,3\]"),
        (lambda: baselines.naive(4).init(0, PAST), TypeError, "key: expected a typed key"),
        (lambda: baselines.without_exogenous(baselines.naive, 2), TypeError, "model: expected a Model"),
        (lambda: baselines.without_exogenous(baselines.naive(4), 0), ValueError, "channels: expected a positive"),
        (
            lambda: forecast(baselines.without_exogenous(baselines.naive(4), 4), PAST),
            ValueError,
            "inputs: expected at least 4 channels",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
