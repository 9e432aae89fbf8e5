"""Helpers for the tests of searches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx
from nnfx.search.extrapolation import chance_below
from tests.sessions.sessions import CutError, bits

KEY = jax.random.key(0)
FAST = {"key": KEY, "devices": jax.devices()[:1]}


def same(first, second):
    assert [list(map(str, row.values())) for row in first.rows] == [list(map(str, row.values())) for row in second.rows]
    for one, other in zip(first.sweeps, second.sweeps, strict=True):
        assert bits((one.variables, one.histories)) == bits((other.variables, other.histories))


def cut_at(call):
    """Return a function that ends a search like a kill when it is called for this time."""
    calls = []

    def look(progress):
        calls.append(progress)
        if len(calls) == call:
            raise CutError

    return look


@functools.cache
def of_table(epochs, points):
    """Return a run whose held-out loss at each epoch is that of a fixed table, `(points, epochs)`, and the table."""
    rng = np.random.default_rng(epochs)
    limits, rates = rng.uniform(0, 1, (points, 1)), rng.uniform(0.2, 2, (points, 1))
    table = limits + np.arange(1.0, epochs + 1) ** -rates + 0.02 * rng.normal(size=(points, epochs))
    padded = jnp.asarray(np.pad(table, ((0, 0), (1, 0)), mode="edge"), jnp.float32)

    def of_row(row):
        def apply(variables, inputs, train=False, **_):
            epoch = variables["params"]["epoch"]  # each update adds 1, since the gradient is −1
            place = jax.lax.stop_gradient(jnp.round(jnp.stack([row, epoch]))).astype(int)
            loss = padded[place[0], place[1]] + jax.lax.stop_gradient(epoch) - epoch
            outputs = loss * jnp.ones(len(inputs))
            return (outputs, {}) if train else outputs

        return nnfx.Model(lambda key, inputs: {"params": {"epoch": jnp.zeros(())}}, apply)

    def loss(outputs, targets):
        return outputs + 0 * targets

    return nnfx.fit(of_row, loss, functools.partial(optax.sgd, 1.0), epochs=epochs), table


def one_row():
    """Return data of one row, which the runs of `of_table` do not look at."""
    one = np.zeros((1, 1)), np.zeros(1)
    return nnfx.data.prepare(*one, valid=one, standardize=False)


def stopped_by_hand(losses, rungs, level, best=np.inf):
    """Return after how many epochs each curve ends."""
    ends = np.full(len(losses), losses.shape[1])
    for rung in rungs:
        running = ends > rung
        target = min(best, losses[:, :rung].min())
        for i in np.flatnonzero(running):
            is_best = losses[i, :rung].min() == losses[:, :rung].min()
            if not is_best and chance_below(losses[i : i + 1, :rung], losses.shape[1], target)[0] < level:
                ends[i] = rung
    return ends
