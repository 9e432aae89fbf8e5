import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def test_a_row_of_weight_zero_changes_nothing(key):
    model, optimizer = nnfx.models.mlp((4,)), optax.sgd(0.5)
    state = nnfx.init_state(key, model, optimizer, X)
    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)
    full, _ = step(state, batch())
    short, _ = step(state, jax.tree.map(lambda a: a[:5], batch()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), full.params, short.params)


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
    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)
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
    after, _ = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)(state, batch())
    np.testing.assert_allclose(after.model_state["batch_stats"]["BatchNorm_0"]["mean"], X.mean(0) / 2, rtol=1e-4)
