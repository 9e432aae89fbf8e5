"""Normalisation layers, for the models of this library and for your own modules."""

import flax.linen as nn
import jax.numpy as jnp
import optax

from nnfx import arrays
from nnfx.ops import normalization
from nnfx.ops.normalization import RunningStatistics
from nnfx.types import Array, at_least_float32


class BatchNorm(nn.Module):
    """Normalise each channel by batch statistics in training and by running statistics otherwise; then scale and shift.

    Unlike Flax's `BatchNorm`, this layer takes the weights of the examples into account: padding has no effect, an
    incomplete batch counts in proportion to its examples, and the running statistics do not keep their initial values.
    A batch with at most one value of non-zero weight per channel has no variance: it is normalised by the running
    statistics, which stay unchanged. The layer's variables are `scale` and `bias` among the parameters, and `mean`,
    `var` and `weight` in the collection `batch_stats`.

    Attributes:
        momentum: the factor by which the weight of the running statistics is multiplied at each batch.
        epsilon: a small number added to the variance.

    Example:
        >>> import jax, nnfx
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, *, weights=None, train=False):
        ...         return nn.Dense(1)(BatchNorm()(x, weights=weights, train=train))
        >>> model = nnfx.models.from_linen(Net())
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> sorted(variables["batch_stats"]["BatchNorm_0"])
        ['mean', 'var', 'weight']
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return normalised inputs, `(batch, ..., channels)`.

        Args:
            inputs: `(batch, ..., channels)`.
            weights: the weights of the examples, `(batch,)`, or of their steps, `(batch, time)`; all 1 if None.
            train: whether to normalise by batch statistics and update the running statistics.

        Raises:
            ValueError: in training, for a batch with a single value per channel, whose variance is zero.
        """
        channels = inputs.shape[-1:]
        dtype = at_least_float32(inputs.dtype)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        weight = self.variable("batch_stats", "weight", jnp.zeros, (), dtype)

        variables = (mean, var, weight)
        statistics = RunningStatistics(*(variable.value.astype(dtype) for variable in variables))
        if train:
            if inputs.size == inputs.shape[-1]:
                raise ValueError("inputs: expected more than one value per channel to normalise by, got a batch of 1")
            weights = _of(inputs, weights)
            latest = normalization.batch_statistics(inputs, weights)
            updated = normalization.update_statistics(statistics, latest, self.momentum)
            if weights is not None:
                is_enough = normalization.values_per_channel(inputs, weights) > 1
                latest, updated = optax.tree.where(is_enough, (latest, updated), (statistics, statistics))
            for variable, value in zip(variables, updated, strict=True):
                variable.value = value.astype(variable.value.dtype)
            statistics = latest
        return normalization.batch_norm(inputs, statistics, scale, bias, self.epsilon)


def _of(inputs: Array, weights: Array | None) -> Array | None:
    """Return weights per step if the inputs have a time axis, otherwise weights per example."""
    if weights is None or weights.ndim == 1 or (inputs.ndim > 2 and inputs.shape[:2] == weights.shape):
        return weights
    return weights.mean(1)


class LayerNorm(nn.Module):
    """Normalise each vector by its own mean and variance; then scale and shift it.

    Attributes:
        epsilon: a small number added to the variance.

    Example:
        >>> import jax
        >>> variables = LayerNorm().init(jax.random.key(0), jnp.ones((1, 2)))
        >>> LayerNorm().apply(variables, jnp.array([[1.0, 5.0]])).round(3)
        Array([[-1.,  1.]], dtype=float32)
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Return normalised inputs, `(..., features)`."""
        features = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        inputs, scale, bias = arrays.promoted(inputs, scale, bias)
        return normalization.layer_norm(inputs, scale, bias, self.epsilon)
