"""The loop over epochs: incomplete batches, padding, and the best weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx
from nnfx.training import epochs


def test_an_incomplete_batch_is_weighted_and_not_dropped(key):
    train = nnfx.fit(
        nnfx.models.perceptron(initializer="zeros"), nnfx.losses.mean_square_error, optax.sgd, epochs=1, batch_size=2
    )
    still = train(key, nnfx.data.prepare(np.ones((5, 1)), np.arange(5), standardize=False), learning_rate=1e-30)
    np.testing.assert_allclose(still.final["train_loss"], np.mean(np.arange(5) ** 2), rtol=1e-6)
    assert int(still.state.step) == 3

    # A step with this rate halves the error 1 − w − b for any number of rows, unless padded rows count.
    run = train(key, nnfx.data.prepare(np.ones((5, 1)), np.ones(5), standardize=False), learning_rate=0.125)
    np.testing.assert_allclose(run.state.params["kernel"][0] + run.state.params["bias"], 1 - 0.5**3, rtol=1e-6)


def test_the_best_held_out_loss_is_finite():
    def best_of(*values):
        found = [epochs.Best(jnp.asarray(i + 1), jnp.float32(value), {}, {}) for i, value in enumerate(values)]
        start = epochs.Best(jnp.asarray(0), jnp.zeros(()), {}, {})
        return int(functools.reduce(epochs.Best.or_better, found, start).epoch)

    assert best_of(3.0, 2.0, 2.0, jnp.nan, jnp.inf, -jnp.inf) == 2
    assert best_of(-jnp.inf, jnp.nan, jnp.inf, 5.0, -jnp.inf) == 4
    assert best_of(jnp.inf, jnp.nan) == best_of(-jnp.inf, jnp.inf) == 2


def test_padding_leaves_batch_statistics_alone(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, training):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not training, momentum=0.0)(x))

    x = np.r_[np.zeros(100), 30.0][:, None]
    rows = nnfx.data.prepare(x, np.zeros(101), standardize=False)
    train = nnfx.fit(nnfx.models.from_linen(Net()), nnfx.losses.mean_square_error, optax.sgd, epochs=1, batch_size=50)
    means = [
        float(
            train(jax.random.key(i), rows, learning_rate=0.1).state.model_state["batch_stats"]["BatchNorm_0"]["mean"][0]
        )
        for i in range(10)
    ]
    assert max(means) <= 2 * 30 / 50 + 1e-5, "the last row may come twice in a batch of 50, not 50 times"
