import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.insight import trajectory
from nnfx.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = Batch(*(jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((9, 3), (9, 1))), jnp.ones(9))
MODEL, OPTIMIZER = nnfx.models.mlp((4,), activation="tanh"), optax.adam(0.1)
STEP = nnfx.make_step(MODEL, nnfx.losses.mean_square_error, OPTIMIZER)


def start(key=KEY):
    return nnfx.init_state(key, MODEL, OPTIMIZER, BATCH.inputs)


def look(state):
    return {"step": state.step, "kernel": state.params["output"]["kernel"]}


def test_records_are_those_of_a_loop_in_python():
    last, seen = trajectory.follow(STEP, start(), BATCH, look, steps=6, every=2)
    state, expected, step = start(), [], jax.jit(STEP)
    for i in range(7):
        if i % 2 == 0:
            expected.append(state.params["output"]["kernel"])
        if i < 6:
            state, _ = step(state, BATCH)
    np.testing.assert_array_equal(seen["step"], [0, 2, 4, 6])
    np.testing.assert_allclose(seen["kernel"], np.stack(expected), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last.params, state.params)


def test_linear_regression_follows_its_closed_form():
    rate, steps = 0.05, 40
    model, optimizer = nnfx.models.perceptron(), optax.sgd(rate)
    step = nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer)
    begin = nnfx.init_state(KEY, model, optimizer, BATCH.inputs)
    _, seen = trajectory.follow(step, begin, BATCH, lambda state: state.params["kernel"][:, 0], steps=steps)
    x = np.column_stack([np.asarray(BATCH.inputs, float), np.ones(9)])
    y, w = np.asarray(BATCH.targets, float)[:, 0], np.append(np.asarray(begin.params["kernel"], float)[:, 0], 0.0)
    values, vectors = np.linalg.eigh(2 * x.T @ x / 9)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    expected = [
        solution + vectors @ ((1 - rate * values) ** t * (vectors.T @ (w - solution))) for t in range(steps + 1)
    ]
    np.testing.assert_allclose(seen, np.stack(expected)[:, :3], atol=1e-5)


def test_many_starts_are_followed_at_once():
    keys = jax.random.split(KEY, 3)
    _, together = jax.vmap(lambda key: trajectory.follow(STEP, start(key), BATCH, look, steps=4))(keys)
    _, alone = trajectory.follow(STEP, start(keys[1]), BATCH, look, steps=4)
    assert together["kernel"].shape == (3, 5, 4, 1)
    np.testing.assert_allclose(together["kernel"][1], alone["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": None}, TypeError, "step: expected a function, got None"),
        ({"look": 3}, TypeError, "look: expected a function, got 3"),
        ({"state": {}}, TypeError, "state: expected a TrainState, as made by nnfx.init_state, got"),
        ({"batch": BATCH.inputs}, TypeError, "batch: expected a Batch, such as data.train, got"),
        ({"batch": BATCH._replace(targets=jnp.ones(8))}, ValueError, "batch"),
        ({"steps": 0}, ValueError, "steps: expected a positive integer, got 0"),
        ({"every": 1.5}, TypeError, "every: expected a positive integer"),
        ({"every": 3}, ValueError, "every: expected a divisor of the 4 steps, got 3"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    given = {"step": STEP, "state": start(), "batch": BATCH, "look": look, "steps": 4} | change
    with pytest.raises(error, match=message):
        trajectory.follow(given.pop("step"), given.pop("state"), given.pop("batch"), given.pop("look"), **given)
