"""Optimizers that are evaluated with weights other than those they update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import optimizers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
DATA = nnfx.data.prepare(X, X @ [1.0, -2.0], key=jax.random.key(1), valid_fraction=0.25)
MODEL, MSE = nnfx.models.perceptron(), nnfx.losses.mean_square_error


def schedule_free(learning_rate):
    return optax.contrib.schedule_free_sgd(learning_rate, b1=0.9)


OPTIMIZERS = {
    "schedule-free": schedule_free,
    "schedule-free in a chain": lambda learning_rate: optax.chain(
        optax.clip_by_global_norm(1.0), schedule_free(learning_rate)
    ),
    "schedule-free of some": lambda learning_rate: optax.multi_transform(
        {"free": schedule_free(learning_rate), "plain": optax.sgd(learning_rate)}, {"kernel": "free", "bias": "plain"}
    ),
}


def state_of(opt_state):
    """Return the state of the schedule-free optimizer, wherever it is nested."""
    is_it = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
    return next(node for node in jax.tree.leaves(opt_state, is_leaf=is_it) if is_it(node))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_judged_by_the_schedule_free_average(key, name):
    run = nnfx.fit(MODEL, MSE, OPTIMIZERS[name], epochs=3, batch_size=8)(key, DATA, learning_rate=0.2)
    inner = state_of(run.state.opt_state)
    expected = dict(run.state.params)
    for part in ("kernel", "bias") if name != "schedule-free of some" else ("kernel",):
        expected[part] = (run.state.params[part] - (1 - 0.9) * inner.z[part]) / 0.9
    assert not np.allclose(expected["kernel"], run.state.params["kernel"], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), run.state.evaluated["params"], expected)
    by_hand = nnfx.evaluate(MODEL, {"loss": MSE}, {"params": expected}, DATA.valid)["loss"].value
    np.testing.assert_allclose(run.final["valid_loss"], by_hand, rtol=1e-4)
    best = int(run.best.epoch)
    np.testing.assert_allclose(run.evaluate(DATA.valid)["loss"], run.history["valid_loss"][best - 1], rtol=1e-4)


@pytest.mark.slow
def test_lookahead_is_evaluated_with_its_slow_weights(key):
    optimizer = optax.lookahead(optax.sgd(0.1), sync_period=3, slow_step_size=0.5)
    batch, step = DATA.train, nnfx.make_step(MODEL, MSE, optimizer)
    state = nnfx.init_state(key, MODEL, optimizer, batch.inputs)

    def slope(params):
        return jax.grad(lambda p: MSE(MODEL.apply({"params": p}, batch.inputs), batch.targets).mean())(params)

    fast = slow = state.params
    for i in range(1, 8):
        state, _ = step(state, batch)
        fast = jax.tree.map(lambda w, g: w - 0.1 * g, fast, slope(fast))
        if i % 3 == 0:
            slow = jax.tree.map(lambda a, b: a + 0.5 * (b - a), slow, fast)
            fast = slow
        for found, expected in ((state.params, fast), (state.evaluated["params"], slow)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_sam_is_evaluated_where_it_steps_from():
    optimizer = optimizers.as_optimizer("optimizer", optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.5)))
    params = jnp.array([1.0])
    state = optimizer.init(params)
    seen = []
    for _ in range(4):
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(optimizers.evaluation_params(state, params)[0]))
    # of w²: uphill to w + 0.5 · 2w = 2w, whose slope 4w takes w to 0.6 w
    np.testing.assert_allclose(seen, [1.0, 0.6, 0.6, 0.36], rtol=1e-5)


def test_multi_steps_move_once_in_so_many(key):
    plain, several = optax.sgd(0.1), optax.MultiSteps(optax.sgd(0.1), 2)
    state = nnfx.init_state(key, MODEL, several, DATA.train.inputs)
    step = nnfx.make_step(MODEL, MSE, several)
    once, _ = nnfx.make_step(MODEL, MSE, plain)(nnfx.init_state(key, MODEL, plain, DATA.train.inputs), DATA.train)
    first, _ = step(state, DATA.train)
    second, _ = step(first, DATA.train)
    np.testing.assert_array_equal(first.params["kernel"], state.params["kernel"])
    np.testing.assert_allclose(second.params["kernel"], once.params["kernel"], rtol=1e-5)
    train = nnfx.fit(MODEL, MSE, lambda learning_rate: optax.MultiSteps(optax.sgd(learning_rate), 2), epochs=2)
    run = train(key, DATA, learning_rate=0.1)
    np.testing.assert_allclose(run.state.params["kernel"], once.params["kernel"], rtol=1e-5)
    assert nnfx.fit(MODEL, MSE, several, epochs=1).hyper_names == ()


def test_an_average_beside_evaluation_weights_is_refused(key):
    train = nnfx.fit(MODEL, MSE, schedule_free, epochs=1, average=nnfx.averaging.uniform)
    with pytest.raises(
        ValueError, match="average: expected no average for an optimizer that is evaluated with weights"
    ):
        train(key, DATA, learning_rate=0.1)


@pytest.mark.parametrize("made", [nnfx.make_step, nnfx.init_state])
def test_a_factory_in_place_of_an_optimizer(key, made):
    arguments = (MODEL, MSE, optax.adam) if made is nnfx.make_step else (key, MODEL, optax.adam, X)
    with pytest.raises(TypeError, match="optimizer: expected an instance of an Optax optimizer.*call the factory"):
        made(*arguments)


@pytest.mark.slow
def test_members_of_a_sweep_are_judged_by_their_evaluation_weights(key):
    data = nnfx.data.Data(DATA.train, None, DATA.preprocess)
    train = nnfx.fit(MODEL, MSE, schedule_free, epochs=2)
    result = nnfx.sweeps.sweep(train, data, key=key, learning_rate=[0.1, 0.3])
    for number, rate in enumerate((0.1, 0.3)):
        alone = train(jax.random.fold_in(key, 0), data, learning_rate=rate)
        mine = jax.tree.map(lambda stack, number=number: stack[number], result.variables)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, alone.state.evaluated)
