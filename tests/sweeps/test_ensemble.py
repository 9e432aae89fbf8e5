import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import brier_score_loss, log_loss

import nnfx

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def passengers():
    raw = nnfx.data.titanic("fare", "age", standardize=False).train
    return np.asarray(raw.inputs), np.asarray(raw.targets).astype(int)


@pytest.fixture(scope="module")
def ensemble():
    data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
    train = nnfx.fit(
        nnfx.models.mlp((8,)), nnfx.losses.binary_cross_entropy, optax.adam, epochs=30
    )  # fmt: skip
    given = {"key": KEY, "seeds": 6, "learning_rate": [0.01, 0.1], "devices": jax.devices()[:1]}
    return nnfx.sweeps.sweep(train, data, **given).ensemble(5)


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def test_probabilities_are_the_mean_of_the_members(ensemble, passengers):
    of_members = sigmoid(np.asarray(ensemble.predict(passengers[0])))[..., 0]
    ours = ensemble.probabilities(passengers[0])
    np.testing.assert_allclose(ours[:, 1], of_members.mean(0), rtol=1e-4)
    np.testing.assert_allclose(ensemble.spread(passengers[0]).std[:, 1], of_members.std(0), rtol=1e-2, atol=1e-5)


def test_scores_are_those_of_scikit_learn(ensemble, passengers):
    score = ensemble.score(*passengers)
    survives = np.asarray(ensemble.probabilities(passengers[0]), np.float64)[:, 1]
    np.testing.assert_allclose(score["negative_log_likelihood"], log_loss(passengers[1], survives), rtol=1e-4)
    np.testing.assert_allclose(score["brier_score"], 2 * brier_score_loss(passengers[1], survives), rtol=1e-4)
    assert score["accuracy"] == pytest.approx(((survives > 0.5) == passengers[1]).mean())


def test_calibrating_finds_the_best_temperature_and_keeps_the_classes(ensemble, passengers):
    calibrated = ensemble.calibrate(*passengers)
    mean = np.asarray(ensemble.probabilities(passengers[0]), np.float64)

    def loss(temperature):
        softened = mean ** (1 / temperature)
        return -np.log(softened[np.arange(len(softened)), passengers[1]] / softened.sum(1)).mean()

    grid = np.geomspace(0.2, 5, 4001)
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    assert calibrated.temperature == pytest.approx(best, rel=2e-3)
    np.testing.assert_allclose(
        calibrated.score(*passengers)["negative_log_likelihood"], loss(calibrated.temperature), rtol=1e-4
    )
    assert calibrated.score(*passengers)["accuracy"] == ensemble.score(*passengers)["accuracy"]


def test_wrong_labels(ensemble, passengers):
    with pytest.raises(ValueError, match="labels: "):
        ensemble.score(passengers[0], passengers[1] + 1)
    with pytest.raises(ValueError, match="labels: "):
        ensemble.calibrate(passengers[0], passengers[1][:-1])


@pytest.mark.slow
@pytest.mark.usefixtures("nan_is_meant")
def test_a_class_that_every_member_rules_out_stays_so_at_every_temperature():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = np.where(x[:, 0] + rng.normal(size=40) > 0, 2, 0)

    def apply(variables, inputs, *, key=None, weights=None, train=False):
        logits = jnp.where(jnp.arange(3) == 1, -jnp.inf, inputs @ variables["params"]["kernel"])
        return (logits, {}) if train else logits

    model = nnfx.Model(lambda key, inputs: {"params": {"kernel": jax.random.normal(key, (2, 3))}}, apply)
    train = nnfx.fit(model, nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=9)
    data = nnfx.data.prepare(x, y, key=KEY, valid_fraction=0.25)
    given = {"key": KEY, "seeds": 3, "learning_rate": [1.0], "devices": jax.devices()[:1]}
    ensemble = nnfx.sweeps.sweep(train, data, **given).ensemble(3)
    assert np.isfinite(ensemble.score(x, y)["negative_log_likelihood"])
    calibrated = ensemble.calibrate(x, y)
    assert 0 < calibrated.temperature < 1e4
    for probabilities in (ensemble.probabilities(x), calibrated.probabilities(x)):
        assert (probabilities[:, 1] == 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
