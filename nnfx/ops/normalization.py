"""Batch normalisation, independent of how the examples are divided into batches, and layer normalisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nnfx import checks, shards
from nnfx.types import Array, at_least_float32


class RunningStatistics(NamedTuple):
    """The running mean and variance of each channel, with later examples weighted more.

    Attributes:
        mean: the mean, `(channels,)`.
        var: the variance about the mean, `(channels,)`.
        weight: the total weight of the examples, a scalar.
    """

    mean: Array
    var: Array
    weight: Array


def batch_statistics(inputs: Array, weights: Array | None = None) -> RunningStatistics:
    """Return the mean and variance of each channel over examples and positions: `Σ w x / Σ w`, `Σ w (x − mean)² / Σ w`.

    Args:
        inputs: `(batch, ..., channels)`, floats.
        weights: `(batch,)`, or `(batch, time)` for inputs `(batch, time, ..., channels)`; an example or step of weight
            zero is left out, even if its values are not finite. All 1 if None.

    Returns:
        The statistics, in at least float32, with the total weight of the examples; zero if all weights are zero.

    Raises:
        ValueError: for inputs without a channel axis, or if there is not one weight per example.

    Example:
        >>> batch_statistics(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([1.0, 1.0, 0.0]))[:2]
        (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    if inputs.ndim < 2:
        raise ValueError(f"inputs: expected (batch, ..., channels), got {checks.describe(inputs)}")
    if weights is not None and weights.shape not in (inputs.shape[:1], inputs.shape[:-1][:2]):
        raise ValueError(f"weights: expected one per example, {inputs.shape[:1]}, got {checks.describe(weights)}")
    x = inputs.astype(at_least_float32(inputs.dtype))
    axes = tuple(range(x.ndim - 1))
    weights = shards.weights(weights, x)
    if weights is None:
        mean = x.mean(axes)
        return RunningStatistics(mean, _centred(x, mean, axes).mean(axes), jnp.asarray(x.shape[0], x.dtype))
    weights = weights.astype(x.dtype)
    total = shards.total(weights.sum())
    places = x.size // (weights.size * x.shape[-1])
    share = weights / (jnp.where(total > 0, total, 1) * places)
    share = share.reshape(*share.shape, *[1] * (x.ndim - share.ndim))
    x = jnp.where(share != 0, x, 0)
    mean = shards.total((x * share).sum(axes))
    return RunningStatistics(mean, shards.total((_centred(x, mean, axes) * share).sum(axes)), total)


def _centred(x: Array, mean: Array, axes: tuple[int, ...]) -> Array:
    return jnp.square(x - jnp.expand_dims(mean, axes))


def update_statistics(running: RunningStatistics, latest: RunningStatistics, momentum: float) -> RunningStatistics:
    """Update the running statistics with a batch, as if all examples had been measured at once.

    Let W₀ be the weight of the running statistics and w the weight of the batch. The new weight is `W = m W₀ + w`, to
    which the batch contributes the fraction `s = w / W`. The mean changes by `s δ`, where `δ = mean_batch − mean₀`, and
    the variance becomes `(1 − s) var₀ + s var_batch + s (1 − s) δ²`. An incomplete batch thus counts less than a full
    one, and the first batch replaces the initial values.

    Args:
        running: the statistics so far, with weight 0 at the start.
        latest: the statistics of a batch.
        momentum: m, the factor by which the previous weight is multiplied; with 1, all examples count equally.

    Example:
        >>> start = RunningStatistics(jnp.zeros(1), jnp.ones(1), jnp.zeros(()))
        >>> once = update_statistics(start, batch_statistics(jnp.array([[1.0], [3.0]])), 1.0)
        >>> update_statistics(once, batch_statistics(jnp.array([[5.0]])), 1.0).var  # the variance of 1, 3, 5
        Array([2.6666665], dtype=float32)

    References:
        Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983.
    """
    weight = jnp.where(latest.weight > 0, momentum * running.weight + latest.weight, running.weight)
    share = latest.weight / jnp.where(weight > 0, weight, 1)
    delta = latest.mean - running.mean
    return RunningStatistics(
        running.mean + share * delta,
        (1 - share) * running.var + share * latest.var + share * (1 - share) * jnp.square(delta),
        weight,
    )


def values_per_channel(inputs: Array, weights: Array | None = None) -> Array | int:
    """Return the number of values with positive weight in each channel; a variance needs at least two.

    Args:
        inputs: `(batch, ..., channels)`.
        weights: the weights of the examples, `(batch,)`, or of their steps, `(batch, time)`; all 1 if None.

    Example:
        >>> int(values_per_channel(jnp.ones((3, 2)), jnp.array([1.0, 0.0, 0.0])))
        1
    """
    weights = shards.weights(weights, inputs)
    if weights is None:
        return inputs.size // inputs.shape[-1]
    places = inputs.size // (weights.size * inputs.shape[-1])
    return places * shards.total((weights != 0).sum())


def batch_norm(inputs: Array, statistics: RunningStatistics, scale: Array, bias: Array, epsilon: float = 1e-5) -> Array:
    """Normalise each channel, then scale and shift it: `γ (x − mean) / √(var + ε) + β`.

    Args:
        inputs: `(batch, ..., channels)`.
        statistics: the batch statistics in training, otherwise the running statistics.
        scale: γ, `(channels,)`.
        bias: β, `(channels,)`.
        epsilon: ε, a small number added to the variance.

    Returns:
        An array of the shape and dtype of `inputs`.

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> batch_norm(x, batch_statistics(x), jnp.ones(1), jnp.zeros(1), epsilon=0.0).ravel()
        Array([-1.,  1.], dtype=float32)

    References:
        Ioffe and Szegedy, *Batch normalization*, ICML 2015, algorithm 1.
    """
    dtype = statistics.mean.dtype
    factor = scale.astype(dtype) * jax.lax.rsqrt(statistics.var + epsilon)
    axes = tuple(range(inputs.ndim - 1))
    mean, factor, shift = (jnp.expand_dims(a, axes) for a in (statistics.mean, factor, bias.astype(dtype)))
    return ((inputs.astype(dtype) - mean) * factor + shift).astype(inputs.dtype)


def layer_norm(inputs: Array, scale: Array, bias: Array, epsilon: float = 1e-5) -> Array:
    """Normalise each vector by its own mean and variance, then scale and shift it: `γ (x − mean) / √(var + ε) + β`.

    Args:
        inputs: `(..., features)`.
        scale: γ, `(features,)`.
        bias: β, `(features,)`.
        epsilon: ε, a small number added to the variance.

    Returns:
        An array of the shape and dtype of `inputs`; the statistics are computed in at least float32.

    Example:
        >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), jnp.array([0.0, 5.0]), epsilon=0.0)
        Array([[-1.,  6.]], dtype=float32)

    References:
        Ba, Kiros and Hinton, *Layer normalization*, 2016.
    """
    dtype = at_least_float32(inputs.dtype)
    x = inputs.astype(dtype)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    scale, bias = (jnp.broadcast_to(each.astype(dtype), x.shape) for each in (scale, bias))
    return (x * scale + bias).astype(inputs.dtype)
