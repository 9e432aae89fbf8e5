import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.forecasting import conformal, heads


@pytest.mark.parametrize("kind", ["residuals", "quantiles"])
def test_marginal_coverage_is_what_the_rank_says(kind):
    """For continuous exchangeable scores, the coverage is exactly k / (n + 1), however wrong the model is."""
    repetitions, windows, level = 5000, 20, 0.8
    noise = np.random.default_rng(0).standard_t(2, size=(repetitions, windows + 1, 2, 1))  # heavy tails
    targets = jnp.asarray(noise * np.array([1.0, 7.0]).reshape(1, 1, 2, 1) + 3, jnp.float32)

    def covered(targets):
        forecasts = jnp.zeros_like(targets)  # biased by 3
        if kind == "quantiles":
            forecasts = heads.Interval(forecasts - 4, forecasts + 5)
        known, new = (
            jax.tree.map(lambda a, part=part: a[part], forecasts) for part in (slice(windows), slice(windows, None))
        )
        lower, upper = conformal.widen(new, conformal.margins(known, targets[:-1], level))
        return (lower <= targets[-1:]) & (targets[-1:] <= upper)

    share = np.asarray(jax.jit(jax.vmap(covered))(targets)).mean((0, 1, 3))
    expected = conformal.rank(windows, level) / (windows + 1)  # 17 / 21
    four_deviations = 4 * math.sqrt(expected * (1 - expected) / repetitions)
    assert (np.abs(share - expected) < four_deviations).all()


@pytest.fixture
def backtest():
    targets = np.random.default_rng(0).normal(size=(30, 3, 2)).astype(np.float32)
    return jnp.zeros_like(targets), jnp.asarray(targets), 100 + 2 * np.arange(30)


def test_rolling_margins_are_those_of_what_was_known(backtest):
    forecasts, targets, origins = backtest
    lower, upper = conformal.rolling(forecasts, targets, origins, 0.8, calibration=8)
    assert lower.shape == upper.shape == (22, 3, 2)
    for i in range(8, 30):
        for step in range(3):
            known = origins + step < origins[i]
            margin = np.sort(np.abs(targets)[known, step], axis=0)[math.ceil(0.8 * (known.sum() + 1)) - 1]
            np.testing.assert_array_equal(upper[i - 8, step], margin)
            np.testing.assert_array_equal(lower[i - 8, step], -margin)


def test_rolling_margins_do_not_know_the_future(backtest):
    forecasts, targets, origins = backtest
    before = conformal.rolling(forecasts, targets, origins, 0.8, calibration=8)
    time = 121  # the targets change from this time on
    changed = jnp.where((origins[:, None] + np.arange(3) >= time)[..., None], 1e6, targets)
    after = conformal.rolling(forecasts, changed, origins, 0.8, calibration=8)
    same = origins[8:] <= time
    assert 0 < same.sum() < len(same)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[same], other[same])
        assert not np.array_equal(one[~same], other[~same])


def test_wrong_input(backtest):
    forecasts, targets, origins = backtest
    with pytest.raises(ValueError, match=r"targets: expected \(origins, horizon, channels\), got float32\[30,3\]"):
        conformal.rolling(forecasts[..., 0], targets[..., 0], origins, 0.5, calibration=3)
    with pytest.raises(ValueError, match="origins: expected 30 ascending times, one for each forecast"):
        conformal.rolling(forecasts, targets, origins[::-1], 0.5, calibration=3)
    with pytest.raises(ValueError, match="origins: expected 30 ascending times, one for each forecast"):
        conformal.rolling(forecasts, targets, origins[::-1].astype(np.uint8), 0.5, calibration=3)
    with pytest.raises(TypeError, match="origins: expected integers"):
        conformal.rolling(forecasts, targets, origins / 2, 0.5, calibration=3)
    with pytest.raises(ValueError, match="calibration: expected fewer than the 30 origins, got 30"):
        conformal.rolling(forecasts, targets, origins, 0.5, calibration=30)
    with pytest.raises(
        ValueError, match="calibration: expected enough origins to give at least 9 errors per step .* 9 origins and 8"
    ):
        conformal.rolling(forecasts, targets, origins, 0.9, calibration=9)


def test_margins_of_large_integers_and_of_lists():
    targets = 3_000_000_000 + np.array([3, -1, 4, 2]).reshape(4, 1, 1)
    forecasts = np.full((4, 1, 1), 3_000_000_000)
    assert conformal.margins(forecasts, targets, level=0.6).tolist() == [[3.0]]
    assert conformal.margins([[[0.0]]] * 4, [[[3]], [[-1]], [[4]], [[2]]], level=0.6).tolist() == [[3.0]]
    assert conformal.widen([[1.0]], [[2.0]]).upper.tolist() == [[3.0]]


@pytest.mark.slow
def test_rolling_intervals_under_the_search_for_infinities():
    targets = np.array([1.0, -2.0, 0.0, 9.0]).reshape(4, 1, 1)
    with jax.debug_infs(True):
        found = conformal.rolling(np.zeros((4, 1, 1)), targets, [10, 11, 12, 13], level=0.5, calibration=2)
    assert found.upper.ravel().tolist() == [2.0, 1.0]
