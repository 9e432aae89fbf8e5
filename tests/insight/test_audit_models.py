"""Audits of the gradients of every model, activation, loss and op of this library."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nnfx import activations, losses, models, ops
from nnfx.insight import audit
from nnfx.models.dense import Perceptron
from nnfx.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class EveryActivation(nn.Module):
    """One layer for each activation, and maxout with three pieces."""

    @nn.compact
    def __call__(self, x):
        every = [*map(activations.get, activations.names()), functools.partial(activations.maxout, pieces=3)]
        for activation in every:
            x = Perceptron(5, activation, nn.initializers.orthogonal(1.5))(x)
        return x


class Pools(nn.Module):
    """Convolutions with strides, dilation and explicit padding, between pools of every kind, overlapping and padded."""

    @nn.compact
    def __call__(self, x):
        def convolution(name, x, size, **options):
            kernel = self.param(name, nn.initializers.he_normal(), (size, size, x.shape[-1], 3))
            return ops.convolution(x, kernel, **options)

        x = convolution("first", x, 3, strides=2, padding=[(2, 1), (0, 1)])
        x = ops.max_pool(x, 3, strides=1, padding="SAME")
        x = convolution("second", x, 2, dilation=2)
        x = ops.avg_pool(x, 2, padding="SAME", count_include_pad=False)
        return jnp.concatenate([ops.global_max_pool(x), ops.global_avg_pool(x)], axis=1)


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.last = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(nnx.tanh(self.first(x))))


MODELS = {
    "every activation": (models.from_linen(EveryActivation()), (4,), {}),
    "batch norm and dropout": (models.mlp((5,), 2, batch_norm=True, dropout=0.4), (4,), {"train": True}),
    "batch norm after training": (models.mlp((5,), 2, batch_norm=True), (4,), {}),
    "pruned": (models.masked(models.mlp((5,), 2), lambda params: models.magnitude_masks(params, 0.7)), (4,), {}),
    "cnn": (
        models.cnn([models.conv(3), models.max_pool(), models.conv(2)], 2, batch_norm=True),
        (6, 6, 2),
        {"train": True},
    ),
    "cnn of sequences": (models.cnn([models.conv(3, 2, dilation=2), models.avg_pool(2, 1)], 2), (7, 2), {}),
    "lenet": (models.lenet(2), (12, 12, 1), {"share": 0.0005}),
    "residual network": (models.resnet(8, 2, 2), (6, 6, 1), {"train": True, "share": 0.02}),
    "lstm of tokens": (models.embedding(5, 3, models.lstm(2, (3,), returns="all"), dropout=0.2), "tokens", {}),
    "gru of tokens": (models.embedding(5, 3, models.gru(2, (3,), returns="all")), "tokens", {}),
    "transformer of tokens": (models.embedding(5, 4, models.transformer(2, 4, 1, 2, returns="all")), "tokens", {}),
    "transformer": (models.transformer(2, 4, 2, 2, context=3, dropout=0.2), (5, 2), {"train": True}),
    "convolutions of a time series": (models.time_series_fcn(2, (3, 4, 3)), (9, 2), {"train": True}),
    "residual network of a time series": (models.time_series_resnet(2, (3, 4, 4)), (9, 2), {"train": True}),
    "pools": (models.from_linen(Pools()), (9, 9, 2), {}),
    "nnx": (models.from_nnx(lambda rngs: Nnx(rngs=rngs)), (4,), {"train": True}),
}


SLOW = {
    "lenet",
    "batch norm after training",
    "residual network",
    "every activation",
    "pools",
    "pruned",
    "cnn",
    "cnn of sequences",
    "lstm of tokens",
    "gru of tokens",
    "transformer",
    "convolutions of a time series",
    "residual network of a time series",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS])
def test_the_gradient_of_every_model_is_right(name):
    model, shape, options = MODELS[name]
    inputs = jnp.asarray(RNG.integers(0, 5, (6, 4))) if shape == "tokens" else normal(6, *shape).at[0].set(0)
    variables = jax.jit(model.init)(KEY, inputs)
    outputs = jax.eval_shape(model.apply, variables, inputs)
    batch = Batch(inputs, normal(*outputs.shape), jnp.array([1.0, 2.0, 0.5, 1.0, 0.0, 1.0]))
    found = audit.gradient(KEY, model, losses.mean_square_error, variables, batch, **options)
    assert found.passed, f"\n{found}"
    assert max(leaf.error for leaf in found.leaves.values()) < 1e-6
    assert sum(leaf.verdict == "right" for leaf in found.leaves.values()) > len(found.leaves) / 2, f"\n{found}"


LABELS, CLASSES = jnp.arange(9) % 2, jnp.arange(9) % 3
LOSSES = {
    "binary_cross_entropy": (1, LABELS),
    "binary_cross_entropy_from_probabilities": (1, LABELS),
    "categorical_cross_entropy": (3, CLASSES),
    "huber": (1, 3 * normal(9)),
    "mean_absolute_error": (1, normal(9)),
    "mean_square_error": (3, normal(9, 3)),
}


def test_every_loss_is_audited():
    assert LOSSES.keys() == set(losses.__all__) - {"check", "empirical"}


# The loss that every model above is audited with, and two whose gradients are tested in tests/ops/test_logistic.py.
SLOW_LOSSES = {"mean_square_error", "binary_cross_entropy", "binary_cross_entropy_from_probabilities"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW_LOSSES else ()) for n in LOSSES])
def test_the_gradient_of_every_loss_is_right(name):
    outputs, targets = LOSSES[name]
    activation = "sigmoid" if "probabilities" in name else "identity"
    model, inputs = models.perceptron(outputs, activation), normal(9, 4)
    smoothed = "cross_entropy" in name
    loss = functools.partial(getattr(losses, name), label_smoothing=0.1) if smoothed else getattr(losses, name)
    variables = jax.jit(model.init)(KEY, inputs)
    found = audit.gradient(KEY, model, loss, variables, Batch(inputs, targets, jnp.ones(9)))
    assert {leaf.verdict for leaf in found.leaves.values()} == {"right"}, f"\n{found}"
    assert max(leaf.error for leaf in found.leaves.values()) < 1e-7
