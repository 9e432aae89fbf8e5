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
    """Return the score of each series, `(batch, channels)`."""
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
    assert scores.coverage(lower, lower, lower).tolist() == [1.0] * 4  # the bounds are part of the interval
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


# One score of errors, one with levels and one with bounds; the others are slow tests.
A_FEW = {"smape", "pinball", "coverage"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in A_FEW else pytest.mark.slow) for n in SCORES])
def test_each_score_is_one_per_example_compiled_mapped_and_in_half_precision(name):
    score, arrays = SCORES[name]
    arrays = f32(*arrays)
    expected = score(*arrays)
    assert expected.shape == (4,)
    np.testing.assert_allclose(jax.jit(score)(*arrays), expected, rtol=1e-5)
    mapped = jax.vmap(score)(*(a[:, None] for a in arrays))
    np.testing.assert_allclose(mapped[:, 0], expected, rtol=1e-5)
    assert score(*(a.astype(jnp.bfloat16) for a in arrays)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(3, 4, 2)])
def test_what_lies_on_the_host_is_scored_in_float64(shape):
    """Integers of 64 bits and numbers far from zero, against NumPy."""
    rng = np.random.default_rng(3)
    targets = 3_000_000_000 + rng.integers(0, 50, size=shape)
    forecasts = targets + rng.integers(-9, 10, size=shape)
    error = (forecasts - targets).astype(np.float64)
    np.testing.assert_allclose(
        scores.root_mean_square_error(forecasts, targets), np.sqrt((error**2).mean((1, 2))), rtol=1e-6
    )
    np.testing.assert_allclose(scores.mean_absolute_error(forecasts, targets), np.abs(error).mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores.mean_square_error(forecasts, targets), (error**2).mean((1, 2)), rtol=1e-6)
    history = 3_000_000_000 + rng.integers(0, 50, size=(9, 2))
    scale = np.abs(np.diff(history, axis=0)).mean(0)
    np.testing.assert_allclose(scores.seasonal_naive_error(history), scale, rtol=1e-6)
    expected = (np.abs(error).mean(1) / scale).mean(1)
    np.testing.assert_allclose(scores.mase(forecasts, targets, scale), expected, rtol=1e-6)
    level = 0.8
    lower, upper = forecasts - 2.0, forecasts + 2.0
    outside = np.maximum(lower - targets, 0) + np.maximum(targets - upper, 0)
    interval = 4 + 2 / (1 - level) * outside
    np.testing.assert_allclose(scores.interval_score(lower, upper, targets, level), interval.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        scores.msis(lower, upper, targets, scale, level), (interval.mean(1) / scale).mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(scores.coverage(lower, upper, targets), (np.abs(error) <= 2).mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores.interval_width(lower, upper), 4)
    quantiles = np.stack([lower, upper], -1)
    e = targets[..., None] - quantiles
    q = np.array([0.1, 0.9])
    np.testing.assert_allclose(
        scores.pinball(quantiles, targets, [0.1, 0.9]), np.maximum(q * e, (q - 1) * e).mean((1, 2, 3)), rtol=1e-5
    )


def test_scores_take_lists_frames_and_tensors():
    forecasts, targets = [[1.0, 3.0]], [[3, 3]]
    pandas, polars, torch = map(pytest.importorskip, ("pandas", "polars", "torch"))
    for door in (list, np.array, pandas.DataFrame, lambda rows: polars.DataFrame(rows, orient="row"), torch.tensor):
        assert scores.smape(door(forecasts), door(targets)).tolist() == [50.0]
        assert scores.root_mean_square_error(door(forecasts), jnp.array(targets)).tolist() == pytest.approx([2**0.5])


EXACT = {
    "root_mean_square_error": (lambda f, t: scores.root_mean_square_error(f, t), 0),
    "mean_absolute_error": (lambda f, t: scores.mean_absolute_error(f, t), 0),
    "smape": (lambda f, t: scores.smape(f, t), 0),
    "mase": (lambda f, t: scores.mase(f, t, jnp.ones(1)), 0),
    "pinball": (lambda f, t: scores.pinball(f[..., None], t, jnp.array([0.5])), 0),
    "interval_score": (lambda f, t: scores.interval_score(f, f, t, 0.8), 0),
}


@pytest.mark.parametrize("level", [0.0, 7.0])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_forecast_has_no_error_and_no_gradient(name, level):
    """The gradient is the mean of the one-sided slopes, as in PyTorch for the absolute error."""
    score, expected = EXACT[name]
    y = jnp.full((1, 2, 1), level)
    value, gradient = jax.jit(jax.value_and_grad(lambda f: score(f, y).sum()))(y)
    assert value == expected
    np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_of_the_root_beside_an_exact_fit():
    targets = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    forecasts = targets + jnp.array([[3.0, 4.0], [0.0, 0.0]])
    gradient = jax.grad(lambda f: scores.root_mean_square_error(f, targets).sum())(forecasts)
    np.testing.assert_allclose(gradient, [[3 / 50**0.5, 4 / 50**0.5], [0, 0]], rtol=1e-6)


def test_traced_scales_and_levels_out_of_range_are_no_numbers():
    f, t = jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1))
    for scale in (0.0, -1.0):
        assert jnp.isnan(jax.jit(scores.mase)(f, t, jnp.full(1, scale))).all()
        assert jnp.isnan(jax.jit(scores.msis)(f, f, t, jnp.full(1, scale))).all()
    for level in (0.0, 1.0, 1.5):
        assert jnp.isnan(jax.jit(scores.interval_score)(f, f, t, level)).all()
        assert jnp.isnan(jax.jit(scores.pinball)(f[..., None], t, jnp.full(1, level))).all()


def test_percentages_of_half_precision_do_not_overflow():
    f, t = jnp.full((1, 1), 60_000, jnp.float16), jnp.full((1, 1), 30_000, jnp.float16)
    assert scores.smape(f, t).tolist() == pytest.approx([200 * 30 / 90], rel=1e-3)


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
        (lambda: scores.seasonal_naive_error(jnp.ones((9, 1))), ValueError, "history: .*a series that repeats itself"),
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
        (lambda: scores.mase([1.0], [1.0], 1.0), ValueError, r"forecasts: expected \(batch, horizon, channels\), got"),
        (lambda: scores.smape([[1.0], [2.0, 3.0]], T), ValueError, "forecasts: .*rows of different lengths"),
        (lambda: scores.smape(F, np.ma.masked_less(TARGETS, 50)), ValueError, "targets: expected no masked"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("where", [np.asarray, jnp.asarray])
def test_swapped_bounds_are_refused(where):
    low, high, y = (where(np.array([[[each], [each + 1.0]]])) for each in (0.0, 2.0, 1.0))
    measures = {
        "coverage": lambda low, high: scores.coverage(low, high, y),
        "interval_width": lambda low, high: scores.interval_width(low, high),
        "interval_score": lambda low, high: scores.interval_score(low, high, y, 0.9),
        "msis": lambda low, high: scores.msis(low, high, y, jnp.ones(1)),
    }
    for measure in measures.values():
        assert measure(low, high).shape == (1,)
        assert measure(low, low).shape == (1,)
        with pytest.raises(ValueError, match="upper: expected bounds above the lower ones, .*; are they swapped?"):
            measure(high, low)
    crossing = where(np.array([[[1.0], [0.5]]]))  # bounds of a model may cross, and the score says what that costs
    expected = np.mean([1.0, -0.5 + 2 / 0.1 * 1.5])  # y = 1 within the first; y = 2 above the second
    np.testing.assert_allclose(scores.interval_score(low, crossing, y, 0.9), [expected], rtol=1e-5)
