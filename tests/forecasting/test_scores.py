import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.forecasting import scores

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
HISTORY = np.cumsum(RNG.uniform(1, 3, size=(4, 30, 2)), axis=1)
TARGETS = RNG.uniform(40, 90, size=(4, 6, 2))
FORECASTS = TARGETS + RNG.normal(size=TARGETS.shape) * 20
BENCHMARK = TARGETS + RNG.normal(size=TARGETS.shape) * 20
LOWER, UPPER = FORECASTS - 15, FORECASTS + 10


def f32(*values):
    return tuple(jnp.asarray(value, jnp.float32) for value in values)


# The formulas of the M4 competition, one series at a time


def m4_smape(y, forecast):
    return np.mean([200 * abs(a - b) / (abs(a) + abs(b)) for a, b in zip(y, forecast, strict=True)])


def m4_scale(history, period):
    return np.mean([abs(history[t] - history[t - period]) for t in range(period, len(history))])


def m4_mase(history, y, forecast, period):
    return np.mean([abs(a - b) for a, b in zip(y, forecast, strict=True)]) / m4_scale(history, period)


def m4_msis(history, y, lower, upper, period, alpha=0.05):
    total = 0.0
    for value, low, high in zip(y, lower, upper, strict=True):
        total += high - low
        total += 2 / alpha * (low - value) if value < low else 0
        total += 2 / alpha * (value - high) if value > high else 0
    return total / len(y) / m4_scale(history, period)


def series_by_series(score, *arrays):
    """The score of each series, `(batch, channels)`."""
    return np.array([[score(*(a[i, :, c] for a in arrays)) for c in range(2)] for i in range(4)])


@pytest.mark.parametrize("period", [1, 4])
def test_the_scores_of_m4_are_its_formulas(period):
    history, targets, forecasts, benchmark, lower, upper = f32(HISTORY, TARGETS, FORECASTS, BENCHMARK, LOWER, UPPER)
    scale = scores.seasonal_naive_error(history, period)
    np.testing.assert_allclose(scale, series_by_series(functools.partial(m4_scale, period=period), HISTORY), rtol=1e-5)
    smapes = series_by_series(m4_smape, TARGETS, FORECASTS)
    np.testing.assert_allclose(scores.smape(forecasts, targets), smapes.mean(1), rtol=1e-5)
    mase = functools.partial(m4_mase, period=period)
    mases = series_by_series(mase, HISTORY, TARGETS, FORECASTS)
    np.testing.assert_allclose(scores.mase(forecasts, targets, scale), mases.mean(1), rtol=1e-5)
    msis = series_by_series(functools.partial(m4_msis, period=period), HISTORY, TARGETS, LOWER, UPPER)
    np.testing.assert_allclose(scores.msis(lower, upper, targets, scale), msis.mean(1), rtol=1e-5)
    owa = (
        smapes.mean() / series_by_series(m4_smape, TARGETS, BENCHMARK).mean()
        + mases.mean() / series_by_series(mase, HISTORY, TARGETS, BENCHMARK).mean()
    ) / 2
    assert float(scores.owa(forecasts, targets, scale, benchmark)) == pytest.approx(owa, rel=1e-5)


def test_closed_forms():
    forecasts, targets = f32([[[1.0], [3.0]], [[0.0], [-2.0]]], [[[2.0], [1.0]], [[0.0], [2.0]]])
    np.testing.assert_allclose(scores.mean_square_error(forecasts, targets), [2.5, 8])
    np.testing.assert_allclose(scores.mean_absolute_error(forecasts, targets), [1.5, 2])
    np.testing.assert_allclose(scores.root_mean_square_error(forecasts, targets), [2.5**0.5, 8**0.5], rtol=1e-6)
    np.testing.assert_allclose(scores.smape(forecasts, targets), [(200 / 3 + 100) / 2, 100], rtol=1e-6)
    (history,) = f32([[1.0], [4.0], [2.0], [9.0]])
    np.testing.assert_allclose(scores.seasonal_naive_error(history), [(3 + 2 + 7) / 3])
    np.testing.assert_allclose(scores.seasonal_naive_error(history, 2), [(1 + 5) / 2])
    np.testing.assert_allclose(scores.mase(forecasts, targets, *f32([4.0])), [1.5 / 4, 2 / 4])


def test_the_seasonal_naive_s_own_error_in_its_history_is_one():
    (history,) = f32(HISTORY)
    error = scores.mase(history[:, :-4], history[:, 4:], scores.seasonal_naive_error(history, 4))
    np.testing.assert_allclose(error, 1, rtol=1e-6)


def test_the_benchmark_s_own_owa_is_one():
    targets, benchmark = f32(TARGETS, BENCHMARK)
    assert float(scores.owa(benchmark, targets, jnp.ones(2), benchmark)) == pytest.approx(1)


def test_the_scale_of_a_history_in_unsigned_numbers():
    counts = np.array([[5], [1], [4], [1]], np.uint8)
    assert scores.seasonal_naive_error(counts).tolist() == pytest.approx([10 / 3])


def test_pinball_is_least_at_the_quantile():
    sample = np.sort(RNG.normal(size=201))
    candidates, levels = f32(sample, [0.1, 0.5, 0.85])

    def loss(candidate, levels):
        return scores.pinball(jnp.broadcast_to(candidate, (201, levels.size)), candidates, levels).mean()

    alone = np.array([jax.vmap(loss, (0, None))(candidates, levels[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(sample[alone.argmin(1)], np.quantile(sample, levels), rtol=1e-4)
    together = jax.vmap(loss, (0, None))(candidates, levels)
    np.testing.assert_allclose(together, alone.mean(0), rtol=1e-5)


def test_the_interval_score_is_that_of_its_two_quantiles():
    level = 0.8
    alpha = 1 - level
    quantiles = np.stack([LOWER, UPPER], axis=-1)
    pinball = scores.pinball(*f32(quantiles, TARGETS, [alpha / 2, 1 - alpha / 2]))  # the mean of both
    ours = scores.interval_score(*f32(LOWER, UPPER, TARGETS), level)
    np.testing.assert_allclose(ours, 2 * 2 / alpha * pinball, rtol=1e-5)


def test_coverage_and_width():
    lower, upper, targets = f32(LOWER, UPPER, TARGETS)
    inside = (LOWER <= TARGETS) & (TARGETS <= UPPER)
    np.testing.assert_allclose(scores.coverage(lower, upper, targets), inside.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores.interval_width(lower, upper), 25, rtol=1e-6)
    assert scores.coverage(lower, lower, lower).tolist() == [1.0] * 4  # the bounds are within
    unknown = scores.coverage(lower.at[0, 0, 0].set(jnp.nan), upper, targets)
    assert jnp.isnan(unknown).tolist() == [True, False, False, False]


SCORES = {
    "root_mean_square_error": (scores.root_mean_square_error, (FORECASTS, TARGETS)),
    "smape": (scores.smape, (FORECASTS, TARGETS)),
    "mase": (lambda f, t: scores.mase(f, t, jnp.ones(2, f.dtype)), (FORECASTS, TARGETS)),
    "pinball": (lambda f, t: scores.pinball(f[..., None], t, jnp.array([0.3], f.dtype)), (FORECASTS, TARGETS)),
    "coverage": (scores.coverage, (LOWER, UPPER, TARGETS)),
    "interval_width": (scores.interval_width, (LOWER, UPPER)),
    "interval_score": (lambda low, up, t: scores.interval_score(low, up, t, 0.9), (LOWER, UPPER, TARGETS)),
    "msis": (lambda low, up, t: scores.msis(low, up, t, jnp.ones(2, low.dtype)), (LOWER, UPPER, TARGETS)),
}


@pytest.mark.parametrize("name", SCORES)
def test_each_score_is_one_per_example_compiled_mapped_and_in_half_precision(name):
    score, arrays = SCORES[name]
    arrays = f32(*arrays)
    expected = score(*arrays)
    assert expected.shape == (4,)
    np.testing.assert_allclose(jax.jit(score)(*arrays), expected, rtol=1e-5)
    mapped = jax.vmap(score)(*(a[:, None] for a in arrays))
    np.testing.assert_allclose(mapped[:, 0], expected, rtol=1e-5)
    assert score(*(a.astype(jnp.bfloat16) for a in arrays)).dtype == jnp.bfloat16


def test_gradients_are_finite_where_forecast_and_target_are_zero():
    zero = jnp.zeros((1, 2, 1))
    assert scores.smape(zero, zero).tolist() == [0]
    assert jnp.isfinite(jax.grad(lambda f: scores.smape(f, zero).sum())(zero)).all()


def test_one_program_serves_every_level():
    traces = []

    @jax.jit
    def score(level):
        traces.append(1)
        return scores.interval_score(*f32(LOWER, UPPER, TARGETS), level)

    narrow, wide = score(0.5), score(0.95)
    assert len(traces) == 1
    assert (narrow != wide).any()


F, T = f32(FORECASTS, TARGETS)
Q = jnp.stack([F, F], axis=-1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scores.smape(F, T[:, :5]), ValueError, r"targets: expected the shape .*got float32\[4,5,2\]"),
        (lambda: scores.smape(F, T.at[1, 2, 0].set(jnp.nan)), ValueError, r"targets: expected finite.*\(1, 2, 0\)"),
        (lambda: scores.smape(F[0, 0, 0], T[0, 0, 0]), ValueError, r"forecasts: expected \(batch, \.\.\.\)"),
        (lambda: scores.mase(F[0], T[0], jnp.ones(2)), ValueError, r"forecasts: expected \(batch, horizon, channels\)"),
        (lambda: scores.mase(F, T, jnp.ones(3)), ValueError, r"scale: expected \(2,\) or \(4, 2\), got float32\[3\]"),
        (lambda: scores.mase(F, T, jnp.zeros(2)), ValueError, "scale: expected positive numbers"),
        (lambda: scores.mase(F, T, jnp.full(2, jnp.nan)), ValueError, "scale: expected positive numbers"),
        (lambda: scores.seasonal_naive_error(T, 6), ValueError, "history: expected more steps than one season of 6"),
        (lambda: scores.seasonal_naive_error(T, 0), ValueError, "period: expected a positive integer, got 0"),
        (lambda: scores.seasonal_naive_error(T[0, 0]), ValueError, r"history: expected \(time, channels\) or"),
        (lambda: scores.seasonal_naive_error(T * jnp.nan), ValueError, "history: expected finite"),
        (lambda: scores.seasonal_naive_error(jnp.ones((9, 1))), ValueError, "history: .*got one that repeats itself"),
        (lambda: scores.pinball(Q, T, jnp.array([0.5])), ValueError, r"levels: .*\[4,6,2,2\], got float32\[1\]"),
        (lambda: scores.pinball(Q, T, jnp.array([0.5, 1.0])), ValueError, r"levels: .*above 0 and below 1"),
        (lambda: scores.pinball(Q, T[1:], jnp.array([0.5, 0.9])), ValueError, "targets: expected the shape"),
        (lambda: scores.coverage(F, F[1:], T), ValueError, "upper: expected the shape of the lower bounds"),
        (lambda: scores.interval_width(F, F[1:]), ValueError, "upper: expected the shape of the lower bounds"),
        (lambda: scores.interval_score(F, F, T, 95), ValueError, "level: .*below 1, got 95"),
        (lambda: scores.msis(F, F, T, jnp.ones((4, 1))), ValueError, "scale: expected"),
        (lambda: scores.owa(F, T, jnp.ones(2), F[1:]), ValueError, "targets: expected the shape"),
        (lambda: scores.smape(F.astype(int), T), TypeError, "forecasts: expected an array of floats, got int"),
        (lambda: scores.pinball(Q.astype(int), T, [0.1, 0.9]), TypeError, "forecasts: expected an array of floats"),
        (lambda: scores.coverage(F.astype(int), F, T), TypeError, "forecasts: expected an array of floats"),
        (lambda: scores.mase([1.0], [1.0], 1.0), TypeError, r"forecasts: expected an array of floats, got \[1.0\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
