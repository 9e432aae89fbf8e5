"""Optimizers that are evaluated with weights other than those they update, and those that leave some as they are."""

import functools

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


@pytest.mark.usefixtures("nan_is_meant")  # Optax starts with infinity
def test_a_line_search_moves_only_the_parameters_that_are_not_frozen(key):
    run = nnfx.fit(MODEL, MSE, optimizers.freeze(optax.lbfgs(), "bias"), epochs=12)(key, DATA)
    start = nnfx.init_state(key, MODEL, optax.sgd(0.1), DATA.train.inputs).params
    np.testing.assert_array_equal(run.state.params["bias"], start["bias"])
    x, y = np.float64(DATA.train.inputs), np.float64(DATA.train.targets) - float(start["bias"][0])
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(run.state.params["kernel"][:, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("is_chained", [False, True])
def test_a_run_with_sam_follows_the_slope_uphill(key, is_chained):
    """Every second epoch, the slope at `w + ρ ∇ℓ(w)` is followed from w."""

    def sam(learning_rate):
        made = optax.contrib.sam(optax.sgd(learning_rate), optax.sgd(0.5))
        return optax.chain(optax.clip_by_global_norm(1e3), made) if is_chained else made

    run = nnfx.fit(MODEL, MSE, sam, epochs=6)(key, DATA, learning_rate=0.1)
    weights = nnfx.init_state(key, MODEL, optax.sgd(0.1), DATA.train.inputs).params
    x, y = np.float64(DATA.train.inputs), np.float64(DATA.train.targets)
    w, b = np.float64(weights["kernel"])[:, 0], float(weights["bias"][0])
    for _ in range(3):
        at = [w, b]
        for size in (0.5, -0.1):  # uphill, then down from where it began
            residual = 2 * (x @ at[0] + at[1] - y) / len(y)
            at = [w + size * x.T @ residual, b + size * residual.sum()]
        w, b = at
    np.testing.assert_allclose(run.state.evaluated["params"]["kernel"][:, 0], w, rtol=1e-4)
    np.testing.assert_allclose(run.state.evaluated["params"]["bias"][0], b, rtol=1e-4, atol=1e-6)


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
        ValueError, match="average: expected no average for an optimizer that provides its own evaluation weights"
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


MLP = nnfx.models.mlp((4,), activation="tanh")


def trained(optimizer, model=MLP, epochs=3, **hyper):
    return nnfx.fit(model, MSE, optimizer, epochs=epochs, batch_size=10)(jax.random.key(0), DATA, **hyper)


def start_of(model):
    """Return what a run with the first key starts from."""
    return nnfx.init_state(jax.random.key(0), model, optax.sgd(0.1), DATA.train.inputs).params


FACTORIES = {
    "adamw": functools.partial(optax.adamw, weight_decay=0.5),
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "clipped": lambda learning_rate: optax.chain(optax.clip_by_global_norm(0.01), optax.adam(learning_rate)),
    "lookahead": lambda learning_rate: optax.lookahead(optax.adam(learning_rate), sync_period=2, slow_step_size=0.5),
}
SLOW = "momentum", "clipped"


@pytest.mark.parametrize("name", ["adamw", "lookahead", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_frozen_parameters_stay_and_the_others_train_as_if_alone(name):
    start, hidden = start_of(MLP), start_of(MLP)["hidden_0"]
    frozen = trained(optimizers.freeze(FACTORIES[name], "hidden_*"), learning_rate=0.05).state.params
    jax.tree.map(np.testing.assert_array_equal, frozen["hidden_0"], hidden)

    def output_alone(key, inputs):
        return {"params": {"output": MLP.init(key, inputs)["params"]["output"]}}

    def apply(variables, inputs, **options):
        return MLP.apply({"params": {"hidden_0": hidden, **variables["params"]}}, inputs, **options)

    alone = trained(FACTORIES[name], nnfx.Model(output_alone, apply), learning_rate=0.05).state.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), frozen["output"], alone["output"])
    assert not np.allclose(frozen["output"]["kernel"], start["output"]["kernel"])


def test_frozen_parameters_keep_every_bit_and_have_no_state():
    odd = jnp.array([-0.0, 0.0, 1e-30, jnp.inf, -jnp.inf, 1.0])
    params = {"frozen": {"a": odd, "b": odd.astype(jnp.bfloat16)}, "free": odd}
    optimizer = optimizers.freeze(optax.adamw(0.1), "frozen")
    state = optimizer.init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert len(moments) == 2  # those of the one free parameter

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    after, _ = step(params, state)
    for name in ("a", "b"):
        assert np.asarray(after["frozen"][name]).tobytes() == np.asarray(params["frozen"][name]).tobytes()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer_1"], {"layer_1.kernel", "layer_1.bias"}),
        (["layer_?"], {"layer_1.kernel", "layer_1.bias"}),
        (["layer_1*"], {"layer_1.kernel", "layer_1.bias", "layer_10.kernel"}),
        (["*.kernel"], {"layer_1.kernel", "layer_10.kernel"}),
        (["layer_10", "*bias"], {"layer_10.kernel", "layer_1.bias"}),
        ([lambda name: name.endswith("0.kernel")], {"layer_10.kernel"}),
    ],
)
def test_which_parameters_a_pattern_freezes(patterns, expected):
    params = {"layer_1": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "layer_10": {"kernel": jnp.ones(1)}}
    optimizer = optimizers.freeze(optax.sgd(1.0), *patterns)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    changes = {nnfx.trees.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    assert {name for name, change in changes.items() if change == 0} == expected


def test_the_numbers_of_a_frozen_factory_are_swept_as_one_program(compilations):
    train = nnfx.fit(MLP, MSE, optimizers.freeze(functools.partial(optax.adamw, b1=0.5), "output"), epochs=1)
    assert "b1" in train.hyper_names
    swept = jax.jit(jax.vmap(lambda rate: train(jax.random.key(0), DATA, learning_rate=rate, weight_decay=0.1)))
    runs = swept(jnp.array([0.01, 0.1]))
    before = compilations()
    swept(jnp.array([0.2, 0.3]))
    assert compilations() == before
    kernels = runs.state.params
    assert not np.allclose(*kernels["hidden_0"]["kernel"])
    np.testing.assert_array_equal(*kernels["output"]["kernel"])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: optimizers.freeze(optax.sgd), TypeError, "patterns: expected at least one.*got none"),
        (lambda: optimizers.freeze(optax.sgd, 3), TypeError, "patterns: expected at least one.*got 3"),
        (lambda: optimizers.freeze(0.1, "a"), TypeError, "optimizer: expected an Optax factory or optimizer, got 0.1"),
        (
            lambda: trained(optimizers.freeze(optax.sgd(0.1), "hidden_0", "conv_*")),
            ValueError,
            "got no match for 'conv_",
        ),
        (
            lambda: trained(optimizers.freeze(functools.partial(optax.sgd, learning_rate=-1), "output")),
            ValueError,
            "learning_rate: expected a finite number above 0",
        ),
    ],
)
def test_what_cannot_be_frozen(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
