import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.training import step as steps

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)).astype(np.float32), RNG.integers(0, 2, size=6)
W = np.array([1, 1, 1, 1, 2, 0], np.float32)


def batch(weights=W):
    return nnfx.Batch(jnp.asarray(X), jnp.asarray(Y), jnp.asarray(weights))


def test_one_step_of_a_perceptron_by_hand(key):
    model, optimizer = nnfx.models.perceptron(), optax.sgd(0.5)
    state = nnfx.init_state(key, model, optimizer, X)
    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)
    after, measured = step(state, batch())
    w = np.asarray(state.params["kernel"], np.float64)
    p = 1 / (1 + np.exp(-(X.astype(np.float64) @ w)))[:, 0]
    error = W * (p - Y) / W.sum()
    np.testing.assert_allclose(after.params["kernel"][:, 0], w[:, 0] - 0.5 * X.T @ error, rtol=1e-5)
    np.testing.assert_allclose(after.params["bias"], [-0.5 * error.sum()], rtol=1e-5)
    losses = -Y * np.log(p) - (1 - Y) * np.log(1 - p)
    np.testing.assert_allclose(measured["loss"].value, np.average(losses, weights=W), rtol=1e-5)
    assert int(after.step) == 1


@pytest.mark.slow
def test_a_row_of_weight_zero_changes_nothing(key):
    model, optimizer = nnfx.models.mlp((4,)), optax.sgd(0.5)
    state = nnfx.init_state(key, model, optimizer, X)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer))
    full, _ = step(state, batch())
    short, _ = step(state, jax.tree.map(lambda a: a[:5], batch()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), full.params, short.params)


@pytest.mark.usefixtures("nan_is_meant")  # JAX donates nothing while it checks for NaN
def test_the_step_keeps_its_arguments_and_donation_is_the_caller_s(key):
    model, optimizer = nnfx.models.mlp((4,)), optax.adam(0.1)
    state = nnfx.init_state(key, model, optimizer, X)
    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)
    kept = jax.jit(step)(state, batch())[0]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    donated = jax.jit(step, donate_argnums=0)(state, batch())[0]
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    jax.tree.map(np.testing.assert_array_equal, kept.params, donated.params)


def test_what_a_step_draws_depends_on_the_key_and_the_step_alone(key):
    model, optimizer = nnfx.models.mlp((20,), dropout=0.5), optax.sgd(0.1)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer))
    state = nnfx.init_state(key, model, optimizer, X)
    losses = [float(step(state._replace(step=jnp.int32(t)), batch())[1]["loss"].value) for t in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_evaluation_in_parts_equals_evaluation_at_once(key, monkeypatch):
    model = nnfx.models.mlp((4,))
    variables = model.init(key, X)
    measures = {"loss": nnfx.losses.binary_cross_entropy, "accuracy": nnfx.metrics.binary_accuracy}
    whole = nnfx.evaluate(model, measures, variables, batch())
    monkeypatch.setattr(steps, "EVALUATION_ROWS", 4)
    parts = nnfx.evaluate(model, measures, variables, batch())
    for name in measures:
        np.testing.assert_allclose(parts[name].value, whole[name].value, rtol=1e-6)
    losses = np.asarray(nnfx.losses.binary_cross_entropy(model.apply(variables, X), jnp.asarray(Y)))
    np.testing.assert_allclose(whole["loss"].value, np.average(losses, weights=W), rtol=1e-5)


def test_model_state_is_carried(key):
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))

    model, optimizer = nnfx.models.from_linen(Net()), optax.sgd(0.1)
    state = nnfx.init_state(key, model, optimizer, X)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer))
    after, _ = step(state, batch(np.ones(6, np.float32)))
    np.testing.assert_allclose(after.model_state["batch_stats"]["BatchNorm_0"]["mean"], X.mean(0) / 2, rtol=1e-4)


def one_step(key, optimizer=None, model=None, loss=nnfx.losses.binary_cross_entropy, **options):
    model, optimizer = model or nnfx.models.mlp((4,), activation="tanh"), optimizer or optax.sgd(0.5)
    step = jax.jit(nnfx.make_step(model, loss, optimizer, **options))
    return step(nnfx.init_state(key, model, optimizer, X), batch())


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


@pytest.fixture(scope="module")
def plain():
    return one_step(jax.random.key(0))


@pytest.mark.parametrize("micro_batches", [*(pytest.param(parts, marks=pytest.mark.slow) for parts in (2, 3)), 6])
def test_micro_batches_give_the_step_of_the_whole_batch(key, plain, micro_batches):
    (whole, expected), (parts, measured) = plain, one_step(key, micro_batches=micro_batches)
    close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    close(measured, expected, rtol=1e-5)


def test_micro_batches_that_do_not_divide_the_batch(key):
    with pytest.raises(ValueError, match="micro_batches: expected a divisor of the batch of 6, got 4"):
        one_step(key, micro_batches=4)


def test_rematerialising_changes_nothing_but_memory(key, plain):
    close(one_step(key, rematerialize=True)[0].params, plain[0].params, rtol=1e-6)


def test_bfloat16_computes_in_few_bits_and_keeps_float32_weights(key, plain):
    seen = []

    def spy(outputs, targets):
        seen.append(outputs.dtype)
        return nnfx.losses.binary_cross_entropy(outputs, targets)

    low, full = one_step(key, loss=spy, compute_dtype=jnp.bfloat16)[0], plain[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((low.params, low.opt_state)))
    assert set(seen) == {jnp.dtype(jnp.float32)}, "the loss is taken in float32"
    close(low.params, full.params, rtol=0.05, atol=0.02)
    assert not np.array_equal(low.params["output"]["kernel"], full.params["output"]["kernel"])


def test_the_penalty_adds_its_gradient(key, plain):
    state = nnfx.init_state(key, nnfx.models.mlp((4,), activation="tanh"), optax.sgd(0.5), X)
    after = one_step(key, penalty=lambda params: 0.05 * optax.tree.norm(params, squared=True))[0]
    expected = jax.tree.map(lambda p, w: p - 0.5 * 0.1 * w, plain[0].params, state.params)
    close(after.params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("nan_is_meant")
def test_a_bad_step_is_not_taken_and_is_reported(key):
    model, optimizer = nnfx.models.mlp((4,)), optax.adam(0.1)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer, skip_non_finite=True))
    state = nnfx.init_state(key, model, optimizer, X)
    good, measured = step(state, batch())
    plain, _ = jax.jit(nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer))(state, batch())
    close(good.params, plain.params, rtol=1e-6)
    assert [int(number) for number in good.fault] == [0, -1, -1]

    bad = batch()._replace(inputs=jnp.full_like(batch().inputs, jnp.nan))
    skipped, measured = step(good, bad)
    close((skipped.params, skipped.opt_state), (good.params, good.opt_state), rtol=0)
    assert [int(number) for number in skipped.fault] == [1, 1, 0]
    assert measured["loss"].weight == 0
    again, _ = step(skipped, bad)
    assert [int(number) for number in again.fault] == [2, 1, 0]
    assert int(again.step) == 3


def test_the_leaf_whose_gradient_is_not_finite_is_named(key):
    penalty = lambda params: jnp.sqrt(params["output"]["bias"]).sum()  # noqa: E731
    after, _ = one_step(key, penalty=penalty, skip_non_finite=True)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.params)]
    assert paths[int(after.fault.where) - 1] == "['output']['bias']"


MODEL, MSE, SGD = nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd(0.1)
WRONG_PARTS = {
    "model": (TypeError, "model: expected a Model", (nnfx.models.perceptron, MSE, SGD), {}),
    "loss": (TypeError, "loss: expected a function", (MODEL, "mse", SGD), {}),
    "metrics": (TypeError, "metrics: expected functions by name", (MODEL, MSE, SGD, [MSE]), {}),
    "metric": (TypeError, "mae: expected a function", (MODEL, MSE, SGD, {"mae": 1}), {}),
    "name": (ValueError, "metrics: expected names other than 'loss'", (MODEL, MSE, SGD, {"loss": MSE}), {}),
    "penalty": (TypeError, "penalty: expected a function", (MODEL, MSE, SGD), {"penalty": 0.1}),
    "augment": (TypeError, "augment: expected a function", (MODEL, MSE, SGD), {"augment": [nnfx.augment.mixup]}),
    "unknown": (
        TypeError,
        "penalise: expected an option of make_step or one of penalty, augment, average",
        (MODEL, MSE, SGD),
        {"penalise": abs},
    ),
    "average": (TypeError, "average: expected a function", (MODEL, MSE, SGD), {"average": 0.9}),
    "dtype": (TypeError, "compute_dtype: expected a float dtype", (MODEL, MSE, SGD), {"compute_dtype": "float7"}),
    "integers": (TypeError, "compute_dtype: expected a float dtype", (MODEL, MSE, SGD), {"compute_dtype": jnp.int8}),
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_parts_that_make_no_step(name):
    error, message, parts, others = WRONG_PARTS[name]
    with pytest.raises(error, match=f"^{message}"):
        nnfx.make_step(*parts, **others)


def test_what_is_no_model_is_named(key):
    with pytest.raises(TypeError, match="^model: expected a Model"):
        nnfx.init_state(key, nnfx.models.perceptron, SGD, X)
    state = nnfx.init_state(key, MODEL, SGD, X)
    with pytest.raises(TypeError, match="^model: expected a Model"):
        nnfx.evaluate(nnfx.models.perceptron, {"loss": MSE}, state.variables, batch())
    with pytest.raises(TypeError, match="^measures: expected functions by name"):
        nnfx.evaluate(MODEL, [MSE], state.variables, batch())
