"""A healthy run passes with the debug flags for NaN: no program uses NaN to mark missing values."""

import jax
import numpy as np
import optax
import pytest

import nnfx

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 2)), RNG.normal(size=30)
MODEL, MSE = nnfx.models.perceptron(), nnfx.losses.mean_square_error
PATIENT = nnfx.fit(MODEL, MSE, optax.sgd, epochs=12, batch_size=8, stop=nnfx.stopping.patience)
PLAIN = nnfx.fit(MODEL, MSE, optax.sgd, epochs=3)


@pytest.fixture(autouse=True)
def flags():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def held_out():
    return nnfx.data.prepare(X, Y, key=jax.random.key(1), valid_fraction=0.3)


def test_a_run_that_stops_early(key):
    # with so small a rate, the first update improves the loss by less than the minimum
    run = PATIENT(key, held_out(), learning_rate=1e-3, patience=2, min_improvement=1.0)
    assert int(run.epochs) == 3
    history = np.asarray(run.history["valid_loss"])
    assert np.isfinite(history[:3]).all()
    assert np.isnan(history[3:]).all()
    assert np.isfinite(run.final["train_loss"])
    assert run.best_metrics["valid_loss"] == run.best.loss


def test_a_run_without_held_out_data(key):
    data = nnfx.data.prepare(X, Y)
    run = PLAIN(key, data, learning_rate=0.1)
    assert np.isnan(run.best.loss)
    assert np.isfinite(run.history["train_loss"]).all()
    runs = jax.jit(jax.vmap(lambda key: PLAIN(key, data, learning_rate=0.1)))(jax.random.split(key, 2))
    assert runs.best.loss.shape == (2,)


@pytest.mark.slow
def test_a_sweep_whose_members_stop_apart(key):
    result = nnfx.sweeps.sweep(
        PATIENT, held_out(), key=key, epochs_per_chunk=4, learning_rate=[1e-3, 0.1], patience=2, min_improvement=0.01,
        devices=jax.devices()[:1],
    )  # fmt: skip
    for row in result.rows:
        history = result.histories["valid_loss"][row["member"]]
        assert np.isfinite(history[: row["epochs"]]).all()
        assert np.isnan(history[row["epochs"] :]).all()


def test_a_session(key, tmp_path):
    session = nnfx.session(PLAIN, tmp_path, progress=False)
    assert np.isfinite(session(key, held_out(), learning_rate=0.1).history["valid_loss"]).all()
