"""The probability that a learning curve gets below a loss, against Monte Carlo and simulated curves."""

import numpy as np
import pytest

from nnfx.search.extrapolation import EXPONENTS, chance_below

RNG = np.random.default_rng(0)


def by_sampling(losses, epochs, target, draws=40_000):
    """Return the probability for one curve, from draws of the exponent, the noise and the coefficients in turn."""
    rng, count = np.random.default_rng(1), len(losses)
    seen, ahead = np.arange(1.0, count + 1), np.arange(count + 1.0, epochs + 1)
    logs, fits = [], []
    for exponent in EXPONENTS:
        design = np.vander(seen**-exponent, 2, increasing=True)
        covariance = np.linalg.inv(design.T @ design)
        mean, squares, *_ = np.linalg.lstsq(design, losses, rcond=None)
        logs.append(0.5 * np.log(np.linalg.det(covariance)) - 0.5 * (count - 2) * np.log(squares[0]))
        fits.append((mean, squares[0], covariance))
    shares = np.exp(np.array(logs) - max(logs))
    chances = []
    for exponent, (mean, squares, covariance) in zip(EXPONENTS, fits, strict=True):
        variance = squares / rng.chisquare(count - 2, draws)
        drawn = rng.multivariate_normal(np.zeros(2), covariance, draws) * np.sqrt(variance)[:, None] + mean
        later = drawn @ np.vander(ahead**-exponent, 2, increasing=True).T
        later += rng.normal(size=later.shape) * np.sqrt(variance)[:, None]
        chances.append(1 - np.prod(1 - (later < target).mean(0)))
    return float(shares @ chances / shares.sum())


@pytest.mark.parametrize("target", [0.25, 0.3, 0.35])
def test_the_probability_is_that_of_the_model(target):
    time = np.arange(1.0, 9)
    losses = 0.2 + 0.8 * time**-0.7 + 0.03 * np.random.default_rng(2).normal(size=8)
    found = chance_below(losses[None], 16, target)
    np.testing.assert_allclose(found, by_sampling(losses, 16, target), atol=0.01)
    assert 0.02 < found[0] < 0.98 or target != 0.3


def test_a_better_target_and_a_longer_run_are_less_and_more_probable():
    curves = 0.5 + np.arange(1.0, 7) ** -0.5 + 0.02 * RNG.normal(size=(20, 6))
    chances = [chance_below(curves, 12, target) for target in (0.6, 0.7, 0.8)]
    assert (np.diff(chances, axis=0) >= 0).all()
    assert (chance_below(curves, 24, 0.7) >= chances[1]).all()


def test_few_curves_of_the_model_get_below_what_they_are_unlikely_to():
    """Of power laws with noise whose probability is below 5 %, fewer than 5 % get there."""
    rng = np.random.default_rng(3)
    time = np.arange(1.0, 25)
    a, b, c = rng.uniform(0, 0.3, (4000, 1)), rng.uniform(0.2, 1, (4000, 1)), rng.uniform(0.2, 1.5, (4000, 1))
    curves = a + b * time**-c + 0.02 * rng.normal(size=(4000, 24))
    chances = chance_below(curves[:, :8], 24, 0.3)
    is_below = (curves[:, 8:] < 0.3).any(1)
    for level in (0.05, 0.2):
        unlikely = chances < level
        assert unlikely.sum() > 200
        assert is_below[unlikely].mean() < level


def test_curves_that_are_not_finite_have_no_chance():
    curves = np.array([[1.0, 0.5, 0.4], [1.0, np.nan, 0.4], [1.0, np.inf, np.inf]])
    assert chance_below(curves, 9, 10.0)[0] > 0.9
    assert (chance_below(curves, 9, 10.0)[1:] == 0).all()
    for count in (2, 9):
        with pytest.raises(ValueError, match=f"losses: expected 3 to 8 epochs, got {count}"):
            chance_below(np.ones((1, count)), 9, 0.0)
