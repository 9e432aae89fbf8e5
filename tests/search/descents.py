"""Runs and spaces for the tests of hyper-gradient descent."""

import functools

import jax.numpy as jnp
import optax

import nnfx
from nnfx.search import Choice, LogUniform, Uniform

SPACE = {
    "width": Choice(2),
    "learning_rate": LogUniform(0.01, 1.0),
    "l2": LogUniform(1e-4, 0.1),
    "noise": Uniform(0.0, 1.0),
}


@functools.cache
def make(width=2, stop=None, model=None):
    return nnfx.fit(
        model or nnfx.models.mlp(hidden=(width,), activation="tanh"),
        nnfx.losses.binary_cross_entropy,
        optax.sgd,
        epochs=2,
        batch_size=200,
        penalty=nnfx.regularizers.l2,
        augment=nnfx.augment.gaussian_noise,
        stop=stop,
    )


def quadratic(x):
    """Return a model whose squared output is `(x − 1)² + 0.1`, whatever its weight."""

    def apply(variables, inputs, train=False, **_):
        outputs = jnp.sqrt((x - 1) ** 2 + 0.1) * jnp.ones(len(inputs)) + 0 * variables["params"]["w"]
        return (outputs, {}) if train else outputs

    return nnfx.Model(lambda key, inputs: {"params": {"w": jnp.zeros(())}}, apply)


@functools.cache
def of_quadratic():
    return nnfx.fit(quadratic, nnfx.losses.mean_square_error, functools.partial(optax.sgd, 0.1), epochs=1)
