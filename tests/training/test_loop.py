import time

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx import stopping


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(epochs, stop):
    return nnfx.fit(
        nnfx.models.mlp((4,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=100, stop=stop
    )


def test_a_run_ends_within_its_budget_of_time(data, key):
    train = make(10**6, stopping.time_budget)
    train(key, data, learning_rate=0.1, max_seconds=0.01)
    began = time.monotonic()
    run = train(key, data, learning_rate=0.1, max_seconds=1.0)
    took = time.monotonic() - began
    assert run.reason == "time_budget"
    assert 0.9 < took < 20, "it would take minutes to its last epoch"
    assert 0 < int(run.epochs) < 10**6


def test_timed_or_not_the_same_bits(data, key):
    timed = make(250, (stopping.patience, stopping.time_budget))
    plain = make(250, stopping.patience)
    numbers = {"learning_rate": 0.5, "patience": 20}
    first, second = timed(key, data, max_seconds=1e6, **numbers), plain(key, data, **numbers)
    assert first.reason == second.reason == "patience"
    assert first.epochs == second.epochs
    for name, values in second.history.items():
        np.testing.assert_array_equal(first.history[name], values)
    jax.tree.map(np.testing.assert_array_equal, first.best.variables, second.best.variables)


def test_a_run_without_held_out_data_is_judged_by_its_last_weights(data, key):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    run = make(5, stopping.time_budget)(key, whole, learning_rate=0.1, max_seconds=1e6)
    assert (run.reason, int(run.epochs)) == ("last epoch", 5)
    jax.tree.map(np.testing.assert_array_equal, run.best.params, run.state.params)


def test_no_clock_ticks_within_a_transformation(data, key):
    train = make(5, stopping.time_budget)
    with pytest.raises(ValueError, match="stop: expected rules without a clock for a run within jit, vmap or grad"):
        jax.vmap(lambda key: train(key, data, learning_rate=0.1, max_seconds=1.0))(jax.random.split(key, 2))


def test_budgets_out_of_range():
    with pytest.raises(ValueError, match="max_seconds: expected a finite number above 0, got 0"):
        stopping.time_budget(0)
    with pytest.raises(ValueError, match="max_steps: expected a finite number at least 1, got 0"):
        stopping.step_budget(0)
