"""Tokens beyond the table of a model are refused by all that predict or measure, rather than turned to NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.types import Sequences

TOKENS = np.random.default_rng(0).integers(0, 7, size=(4, 9)).astype(np.int32)
MSE = nnfx.losses.mean_square_error


@pytest.fixture(scope="module")
def trained():
    data = nnfx.data.prepare(TOKENS, np.zeros((len(TOKENS), 1)), keep_integers=True)
    model = nnfx.models.embedding(7, 2, nnfx.models.gru(1, hidden=(2,)))
    train = nnfx.fit(model, MSE, optax.sgd, epochs=1)
    return data, nnfx.sweeps.sweep(train, data, key=jax.random.key(0), seeds=2, learning_rate=[0.1])


def test_tokens_beyond_the_table_are_refused_after_training_too(trained):
    data, sweep = trained
    known, beyond = np.asarray(TOKENS), np.asarray(TOKENS) + 1
    run, batch = sweep.member(0), data.train
    of_run = batch._replace(inputs=jnp.asarray(beyond))
    calls = [
        (run.predict, known, beyond),
        (run.apply, jnp.asarray(known), jnp.asarray(beyond)),
        (run.evaluate, batch, of_run),
        (sweep.ensemble(2).predict, known, beyond),
        (
            lambda rows: nnfx.evaluate(run.model, {"loss": MSE}, run.best.variables, rows),
            batch,
            of_run,
        ),
    ]
    for call, good, bad in calls:
        for _ in range(2):  # a range that was seen before is not checked again
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(call(good)))
            with pytest.raises(ValueError, match="inputs: expected tokens from 0 to 6, got tokens from 1 to 7"):
                call(bad)
    masked = of_run._replace(weights=batch.weights.at[:].set((beyond < 7).all(1)))
    assert np.isfinite(run.evaluate(masked)["loss"])
    padded = Sequences(jnp.asarray(beyond), jnp.asarray((np.cumsum(beyond > 6, axis=1) == 0).sum(1)))
    assert np.isfinite(run.apply(padded)).all()
