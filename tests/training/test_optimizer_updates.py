import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses, models
from nnfx.training import optimizer_updates

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)) * [1, 1, 0]  # a feature that is zero in every row, like the border of images
START = RNG.normal(size=(3, 1))
Y = (X[:, 0] + 0.5 * RNG.normal(size=24) > 0).astype(int)
OPTIMIZERS = {
    "adam": optax.adam,
    "nadam": optax.nadam,
    "adabelief": optax.adabelief,
    "lamb": optax.lamb,
    "centered rmsprop": functools.partial(optax.rmsprop, centered=True, momentum=0.9, eps_in_sqrt=False),
    "adagrad": functools.partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-12),
    "sm3": optax.sm3,
    "novograd": optax.novograd,
    "rprop": optax.rprop,
    "clipped adam": lambda learning_rate: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(learning_rate)),
    "accumulated": lambda learning_rate: optax.MultiSteps(optax.adam(learning_rate), 2).gradient_transformation(),
}  # fmt: skip


def loss_after_training(optimizer, steps=2):
    """Return the loss as a function of the learning rate, after a few steps of a linear model of two columns."""

    def loss(params):
        logits = (jnp.asarray(X) @ params["kernel"])[:, 0] + params["bias"]
        return losses.binary_cross_entropy(logits, jnp.asarray(Y)).mean()

    @jax.jit
    def final(rate):
        made = optimizer(learning_rate=rate)
        params = {"kernel": jnp.asarray(START), "bias": jnp.zeros(1)}
        state = made.init(params)
        for _ in range(steps):
            value, gradient = jax.value_and_grad(loss)(params)
            changes, state = optimizer_updates.update(made, gradient, state, params, value=value, value_fn=loss)
            params = optax.apply_updates(params, changes)
        return loss(params)

    return final


# with roots, a norm and signs
DEFAULT = ("adam", "clipped adam", "rprop")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow]) for name in OPTIMIZERS]
)
def test_the_slope_of_a_run_is_that_of_finite_differences(name):
    with jax.enable_x64(True):
        final = jax.jit(jax.value_and_grad(loss_after_training(OPTIMIZERS[name])))
        _, slope = final(0.02)
        central = (final(0.02 + 1e-6)[0] - final(0.02 - 1e-6)[0]) / 2e-6
        assert float(slope) == pytest.approx(float(central), rel=1e-5)
        assert central != 0


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_slope_of_a_run_on_images_with_black_borders(activation):
    data = nnfx.data.digits()
    x, y = np.asarray(data.train.inputs, np.float64)[:200], np.asarray(data.train.targets)[:200]
    assert (x == 0).all(0).any()
    with jax.enable_x64(True):
        data = nnfx.data.prepare(x, y, standardize=False)
        model = models.mlp((4,), 10, activation=activation)
        train = nnfx.fit(model, losses.categorical_cross_entropy, optax.adam, epochs=3)

        @jax.jit
        @jax.value_and_grad
        def final(rate):
            return train(jax.random.key(0), data, learning_rate=rate).final["train_loss"]

        _, slope = final(0.01)
        central = (final(0.01 + 1e-6)[0] - final(0.01 - 1e-6)[0]) / 2e-6
        assert float(slope) == pytest.approx(float(central), rel=1e-5)


@pytest.mark.slow
def test_slopes_forwards_in_single_precision_and_over_members():
    final = loss_after_training(optax.adam)
    rates = jnp.array([0.01, 0.02])
    values_and_slopes = jax.jit(jax.vmap(jax.value_and_grad(final)))
    backwards = values_and_slopes(rates)[1]
    forwards = jax.jit(jax.vmap(lambda rate: jax.jvp(final, (rate,), (jnp.ones_like(rate),))[1]))(rates)
    central = (values_and_slopes(rates + 4e-3)[0] - values_and_slopes(rates - 4e-3)[0]) / 8e-3
    np.testing.assert_allclose(backwards, forwards, rtol=1e-4)
    np.testing.assert_allclose(backwards, central, rtol=1e-2)


def test_the_second_derivative_is_finite():
    with jax.enable_x64(True):
        slope = jax.jit(jax.value_and_grad(jax.grad(loss_after_training(optax.adam, steps=2))))
        _, curvature = slope(0.02)
        central = (slope(0.02 + 1e-6)[0] - slope(0.02 - 1e-6)[0]) / 2e-6
        assert float(curvature) == pytest.approx(float(central), rel=1e-4)


@pytest.mark.parametrize("name", ["adam", "sm3", "rprop", "clipped adam"])
def test_the_values_are_the_optimizer_s_to_the_bit(name):
    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "bias": jnp.zeros(2)}
    gradient = {"kernel": params["kernel"] * jnp.array([[1.0], [0.0], [1e-20]]), "bias": jnp.zeros(2)}
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name](learning_rate=0.1))
    options = {"value": jnp.float32(1.0), "value_fn": lambda params: params["bias"].sum()}
    ours = theirs = optimizer.init(params)
    by_us = jax.jit(lambda state: optimizer_updates.update(optimizer, gradient, state, params, **options))
    by_them = jax.jit(lambda state: optimizer.update(gradient, state, params, grad=gradient, **options))
    for _ in range(3):
        (changes, ours), (expected, theirs) = by_us(ours), by_them(theirs)
        jax.tree.map(np.testing.assert_array_equal, (changes, ours), (expected, theirs))


@pytest.mark.usefixtures("nan_is_meant")  # Optax starts with infinity
def test_a_line_search_sees_the_loss():
    """The first step of L-BFGS reaches the minimum of a parabola."""
    optimizer, params = optax.lbfgs(), jnp.array([3.0, -1.0])
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(lambda p: jnp.square(p - 2).sum())(params)
        changes, state = optimizer_updates.update(
            optimizer, gradient, state, params, value=value, value_fn=lambda p: jnp.square(p - 2).sum()
        )
        return optax.apply_updates(params, changes), state

    for _ in range(4):
        params, state = step(params, state)
    np.testing.assert_allclose(params, 2, atol=1e-4)
