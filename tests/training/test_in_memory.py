import os
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx import stopping
from nnfx.training.driver import drive
from nnfx.training.in_memory import InMemory, columns_of
from nnfx.training.rows import known


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(epochs, stop, batch_size=None):
    return nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=batch_size,
        stop=stop,
    )  # fmt: skip


def test_a_run_ends_within_its_budget_of_time(data, key):
    train = make(10**6, stopping.time_budget)
    train(key, data, learning_rate=0.1, max_seconds=0.01)
    began = time.monotonic()
    run = train(key, data, learning_rate=0.1, max_seconds=0.4)
    took = time.monotonic() - began
    assert run.reason == "time_budget"
    assert 0.36 < took < 20, "it would take minutes to its last epoch"
    assert 0 < int(run.epochs) < 10**6


def test_timed_or_not_the_same_bits(data, key):
    timed = make(250, (stopping.patience, stopping.time_budget), batch_size=100)
    plain = make(250, stopping.patience, batch_size=100)
    numbers = {"learning_rate": 0.5, "patience": 20}
    first, second = timed(key, data, max_seconds=1e6, **numbers), plain(key, data, **numbers)
    assert first.reason == second.reason == "patience"
    assert first.epochs == second.epochs
    for name, values in second.history.items():
        np.testing.assert_array_equal(first.history[name], values)
    jax.tree.map(np.testing.assert_array_equal, first.best.variables, second.best.variables)


def in_pieces(train, key, data, numbers, every):
    hyper = train.check(key, data, numbers)
    run = InMemory(train, key, known(data.train), known(data.valid), hyper)  # as the run itself receives them
    seen = list(drive(run, run.start(), pause_every=(every,)))
    assert set(range(every, train.epochs, every)) <= {each.done for each in seen}
    state, history = seen[-1].state
    return train.run_of(state, columns_of(history, train.epochs), data, hyper)


@pytest.mark.parametrize(
    ("batch_size", "stop"), [pytest.param(None, stopping.patience, marks=pytest.mark.slow), (100, ())]
)
def test_wherever_pieces_end_the_same_bits(data, key, batch_size, stop):
    train = nnfx.fit(
        nnfx.models.mlp((12,)), nnfx.losses.binary_cross_entropy, optax.adam, epochs=9, batch_size=batch_size, stop=stop
    )
    numbers = {"learning_rate": 0.1, **({"patience": 8} if stop else {})}
    whole = train(key, data, **numbers)
    for every in (1, 4):
        run = in_pieces(train, key, data, numbers, every)
        jax.tree.map(np.testing.assert_array_equal, run.best.variables, whole.best.variables)
        jax.tree.map(np.testing.assert_array_equal, run.state.opt_state, whole.state.opt_state)
        jax.tree.map(np.testing.assert_array_equal, run.history, whole.history)


OPTIMISED = """
import functools, jax, numpy as np, optax, nnfx
from tests.training.test_in_memory import in_pieces
generator = np.random.default_rng(0)
data = nnfx.data.prepare(
    generator.normal(size=(96, 128)), generator.integers(0, 3, 96), key=jax.random.key(1), valid_fraction=0.25
)
train = nnfx.fit(
    nnfx.models.mlp((32, 30), outputs=3), nnfx.losses.categorical_cross_entropy,
    functools.partial(optax.sgd, momentum=0.9), epochs=12, stop=nnfx.stopping.patience,
)
numbers = {"learning_rate": 0.01, "patience": 9}
whole = train(jax.random.key(3), data, **numbers)
run = in_pieces(train, jax.random.key(3), data, numbers, every=5)
jax.tree.map(np.testing.assert_array_equal, run.state.params, whole.state.params)
jax.tree.map(np.testing.assert_array_equal, run.history, whole.history)
"""


@pytest.mark.slow
def test_optimised_by_llvm_pieces_keep_the_bits_as_well():
    """If only one of two programs checks after each epoch whether to continue, their rounding differs."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", OPTIMISED], env=environment, check=True)


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
