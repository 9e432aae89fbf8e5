import jax.numpy as jnp
import numpy as np
import pytest

from experiments import losses


def test_derivatives_by_the_logit_are_those_of_the_formulas():
    logits = jnp.linspace(-6, 6, 25)
    z = np.asarray(logits, float)
    p = 1 / (1 + np.exp(-z))
    for label in (0, 1):
        found = losses.by_logit(logits, label)
        np.testing.assert_allclose(found["cross-entropy"]["loss"], np.log1p(np.exp(z)) - label * z, rtol=1e-5)
        np.testing.assert_allclose(found["cross-entropy"]["derivative"], p - label, atol=1e-6)
        np.testing.assert_allclose(found["square error"]["loss"], (p - label) ** 2, rtol=1e-4)
        np.testing.assert_allclose(found["square error"]["derivative"], 2 * (p - label) * p * (1 - p), atol=1e-6)


def test_the_line_is_that_of_numpy():
    line = losses.fit_line(losses.jax.random.key(0))
    assert line.years.tolist() == list(range(1949, 1961))
    centred = line.years - line.years.mean()
    expected = np.polyval(np.polyfit(centred, line.values.astype(float), 1), centred)
    np.testing.assert_allclose(losses.least_squares(line), expected, rtol=1e-9)
    np.testing.assert_allclose(line.predictions, expected, rtol=1e-4)


@pytest.mark.slow
def test_every_passenger_s_loss_is_on_one_of_two_curves():
    scored = losses.score_passengers()
    z, survived = np.asarray(scored.logits, float), np.asarray(scored.survived)
    assert len(z) == 714
    np.testing.assert_allclose(scored.losses, np.log1p(np.exp(np.where(survived == 1, -z, z))), rtol=1e-4, atol=1e-6)
