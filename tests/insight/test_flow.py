import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nnfx
from nnfx import losses, models
from nnfx.insight import flow
from nnfx.types import Batch, Model

KEY = jax.random.key(4)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 3)), RNG.normal(size=24)
BATCH = Batch(jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32), jnp.ones(24))
DATA = nnfx.data.prepare(X, Y, standardize=False)
MSE = losses.mean_square_error
MODEL = models.mlp((5, 4), activation="tanh")


def length(*leaves):
    return np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in leaves))


# make_step


@pytest.mark.slow
def test_what_flows_is_what_a_loop_by_hand_sees():
    train = nnfx.fit(MODEL, MSE, optax.adam, epochs=4, make_step=flow.make_step)
    found = flow.curves(train(KEY, DATA, learning_rate=0.05).history)
    assert list(found.gradient) == list(found.update) == list(found.activation) == ["hidden_0", "hidden_1", "output"]

    optimizer = optax.adam(0.05)
    params = MODEL.init(nnfx.split_key(KEY).init, X[:1])["params"]
    state = optimizer.init(params)

    @jax.jit
    def by_hand(params, state):
        gradient = jax.grad(lambda p: MSE(MODEL.apply({"params": p}, BATCH.inputs), BATCH.targets).mean())(params)
        return gradient, *optimizer.update(gradient, state, params)

    for epoch in range(4):
        gradient, updates, state = by_hand(params, state)
        h = BATCH.inputs
        for name in found.gradient:
            layer = params[name]
            h = h @ layer["kernel"] + layer["bias"][None]
            h = h if name == "output" else jnp.tanh(h)
            expected = {
                "gradient": length(*gradient[name].values()),
                "update": length(*updates[name].values()),
                "weight": length(*layer.values()),
                "activation": np.sqrt(np.mean(np.asarray(h) ** 2)),
            }
            for quantity, value in expected.items():
                np.testing.assert_allclose(getattr(found, quantity)[name][epoch], value, rtol=1e-3, err_msg=quantity)
        params = optax.apply_updates(params, updates)


@pytest.mark.slow
def test_the_run_is_otherwise_the_same():
    options = {"epochs": 3, "batch_size": 8, "penalty": nnfx.regularizers.l2, "average": nnfx.averaging.exponential}
    hyper = {"learning_rate": 0.1, "l2": 0.01, "ema_decay": 0.9}
    model = models.mlp((5,), dropout=0.3, batch_norm=True)
    plain, measured = (
        nnfx.fit(model, MSE, optax.adam, make_step=make_step, **options)(KEY, DATA, **hyper)
        for make_step in (nnfx.make_step, flow.make_step)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        plain.state.evaluated,
        measured.state.evaluated,
    )
    np.testing.assert_allclose(plain.history["train_loss"], measured.history["train_loss"], rtol=1e-5)
    assert jax.tree.structure(plain.state) == jax.tree.structure(measured.state)


@pytest.mark.slow
def test_minibatches_are_averaged_and_runs_are_mapped():
    train = nnfx.fit(MODEL, MSE, optax.sgd, epochs=2, batch_size=8, make_step=flow.make_step)
    runs = jax.vmap(lambda rate: train(KEY, DATA, learning_rate=rate))(jnp.array([0.1, 0.2]))
    found = flow.curves(runs.history)
    assert found.update["output"].shape == (2, 2)
    # for plain gradient descent the update is the gradient times the rate, and so are their means
    for i, rate in enumerate((0.1, 0.2)):
        for layer in found.gradient:
            np.testing.assert_allclose(found.update[layer][i], rate * found.gradient[layer][i], rtol=1e-4)


@pytest.mark.slow
def test_a_skipped_step_counts_for_nothing():
    optimizer = optax.sgd(0.1)
    step = jax.jit(flow.make_step(MODEL, MSE, optimizer, skip_non_finite=True))
    state = nnfx.init_state(KEY, MODEL, optimizer, BATCH.inputs)
    after, measured = step(state, BATCH._replace(inputs=BATCH.inputs * jnp.nan))
    assert int(after.fault.skipped) == 1
    assert all(float(mean.weight) == 0 == float(mean.total) for mean in measured.values())


def test_other_modules_have_gradients_and_no_activations():
    model = models.from_nnx(lambda rngs: nnx.Linear(3, 1, rngs=rngs))
    train = nnfx.fit(model, MSE, optax.sgd, epochs=2, make_step=functools.partial(flow.make_step, micro_batches=2))
    found = flow.curves(train(KEY, DATA, learning_rate=0.1).history)
    assert list(found.gradient) == ["outputs"]
    assert found.activation == {}


# per_example_gradients


@pytest.mark.parametrize(
    "model", [MODEL, pytest.param(models.cnn([models.conv(2), models.max_pool()], 1), marks=pytest.mark.slow)]
)
def test_gradients_per_example_are_those_of_a_loop(model):
    inputs = BATCH.inputs if model is MODEL else jnp.asarray(RNG.normal(size=(6, 4, 4, 1)), jnp.float32)
    batch = Batch(inputs[:6], BATCH.targets[:6], jnp.ones(6))
    variables = model.init(KEY, inputs)
    found = flow.per_example_gradients(model, MSE, variables, batch)

    @jax.jit
    def alone(i):
        x, y = inputs[i][None], batch.targets[i][None]
        return jax.grad(lambda p: MSE(model.apply({"params": p}, x), y)[0])(variables["params"])

    for i in range(6):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), found, alone(i))


# noise_scale


def test_the_noise_scale_is_that_of_the_covariance_of_the_gradients():
    variables = MODEL.init(KEY, X)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:5]]), BATCH)
    padded = padded._replace(weights=jnp.where(jnp.arange(29) < 24, 2.0, 0.0))
    found = flow.noise_scale(MODEL, MSE, variables, padded)
    each = flow.per_example_gradients(MODEL, MSE, variables, BATCH)
    rows = np.concatenate([np.asarray(leaf, np.float64).reshape(24, -1) for leaf in jax.tree.leaves(each)], axis=1)
    noise = np.trace(np.cov(rows.T))
    gradient = (rows.mean(0) ** 2).sum() - noise / 24
    np.testing.assert_allclose(found.noise, noise, rtol=1e-4)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-3)
    np.testing.assert_allclose(found.scale, noise / gradient, rtol=1e-3)


def test_both_estimates_are_unbiased():
    constant = Model(None, lambda v, x, **_: jnp.broadcast_to(v["params"]["w"][None], (len(x), 2)))
    drawn = RNG.normal([3.0, 1.0], [2.0, 0.5], size=(4000, 5, 2))

    def one(targets):
        batch = Batch(jnp.zeros((5, 1)), targets, jnp.ones(5))
        return flow.noise_scale(constant, MSE, {"params": {"w": jnp.zeros(2)}}, batch)

    found = jax.jit(jax.vmap(one))(jnp.asarray(drawn, jnp.float32))
    # the gradient of the mean over two outputs is w − y
    for values, expected in ((found.noise, 4.25), (found.gradient, 10.0)):
        error = np.std(values) / np.sqrt(4000)
        assert abs(np.mean(values) - expected) < 4 * error
        assert error < 0.03 * expected


def test_where_noise_is_all_there_is_the_scale_is_not_a_number():
    constant = Model(None, lambda v, x, **_: jnp.broadcast_to(v["params"]["w"], (len(x),)))
    batch = Batch(jnp.zeros((4, 1)), jnp.array([-1.0, 1.0, -2.0, 2.0]), jnp.ones(4))
    found = flow.noise_scale(constant, MSE, {"params": {"w": jnp.zeros(1)}}, batch)
    assert found.gradient < 0 < found.noise
    assert jnp.isnan(found.scale)


# steps and outputs with weights of their own


def trained(model, data):
    return model.init(KEY, data.inputs)


def by_row(model, loss, variables, data):
    """Return each row's gradient of Σ wₜ ℓₜ / Σ wₜ, one entry of weight at a time; zero for rows without weight."""

    @jax.jit
    @jax.grad
    def of_entry(params, inputs, targets, i):
        return loss(model.apply({"params": params}, inputs[None])[0][i][None], targets[i][None])[0]

    length = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found = np.zeros((len(data.inputs), length))
    for row, inputs, targets, weights in zip(found, data.inputs, data.targets, np.asarray(data.weights), strict=True):
        for i in np.flatnonzero(weights):
            leaves = jax.tree.leaves(of_entry(variables["params"], inputs, targets, i))
            gradient = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
            row += weights[i] / weights.sum() * gradient
    return found


def of_steps():
    """Tokens, some masked with labels that are no tokens, in a row all of them."""
    tokens = RNG.integers(0, 7, (6, 5))
    weights = np.ones((6, 5))
    weights[:, 1], weights[:, 3], weights[4] = 0, 2, 0
    targets = np.where(weights > 0, RNG.integers(0, 7, (6, 5)), -9)
    model = models.embedding(7, 3, models.rnn(7, (4,), returns="all"))
    batch = Batch(jnp.asarray(tokens), jnp.asarray(targets), jnp.asarray(weights, jnp.float32))
    return model, losses.categorical_cross_entropy, batch


def of_outputs():
    """Two outputs, one of which is missing in each row."""
    weights = np.tile([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], (3, 1))
    targets = np.where(weights > 0, RNG.normal(size=(9, 2)), np.nan)
    inputs = jnp.asarray(np.where(weights.any(1, keepdims=True), X[:9], np.nan), jnp.float32)
    batch = Batch(inputs, jnp.asarray(targets, jnp.float32), jnp.asarray(weights, jnp.float32))
    return models.mlp((4,), 2, activation="tanh"), losses.mean_square_error, batch


@pytest.mark.parametrize("case", [of_steps, of_outputs])
def test_what_has_no_weight_within_an_example_is_left_out_of_its_gradient_and_of_the_noise(case):
    model, loss, batch = case()
    variables = trained(model, batch)
    expected = by_row(model, loss, variables, batch)
    each = flow.per_example_gradients(model, loss, variables, batch)
    rows = np.concatenate([np.asarray(leaf).reshape(len(expected), -1) for leaf in jax.tree.leaves(each)], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)

    used = expected[np.asarray(batch.weights).any(1)]
    noise = np.trace(np.cov(used.T))
    found = flow.noise_scale(model, loss, variables, batch)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-4)
    np.testing.assert_allclose(found.gradient, (used.mean(0) ** 2).sum() - noise / len(used), rtol=1e-3, atol=1e-6)


def test_the_gradient_of_an_example_of_weight_zero_is_zero():
    variables = MODEL.init(KEY, X)
    masked = BATCH._replace(weights=jnp.ones(24).at[3].set(0), inputs=BATCH.inputs.at[3].set(jnp.nan))
    found = flow.per_example_gradients(MODEL, MSE, variables, masked)
    expected = flow.per_example_gradients(MODEL, MSE, variables, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.at[3].set(0)), found, expected)


def test_examples_with_different_sums_of_weights_are_refused():
    model, loss, _ = of_steps()
    batch = nnfx.data.next_tokens(RNG.integers(0, 7, 23), 5)
    with pytest.raises(ValueError, match=r"batch.weights: expected two or more equal sums of the weights.*from 2 to 5"):
        flow.noise_scale(model, loss, trained(model, batch), batch)


# errors


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda b: flow.noise_scale(MODEL, MSE, MODEL.init(KEY, X), b._replace(weights=b.weights.at[0].set(2))),
            ValueError,
            "batch.weights: .*from 1 to 2",
        ),
        (
            lambda b: flow.noise_scale(MODEL, MSE, MODEL.init(KEY, X), b._replace(weights=jnp.eye(24)[0])),
            ValueError,
            "batch.weights: expected two or more",
        ),
        (
            lambda b: flow.per_example_gradients(MODEL, MSE, {}, b),
            ValueError,
            "variables: expected variables of a model",
        ),
        (
            lambda b: flow.noise_scale(MODEL, MSE, MODEL.init(KEY, X), b._replace(inputs=jnp.nan * b.inputs)),
            ValueError,
            "batch.inputs: expected finite",
        ),
        (
            lambda b: flow.curves({"train_loss": jnp.ones(3)}),
            ValueError,
            "history: expected one of a run with make_step",
        ),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call(BATCH)
