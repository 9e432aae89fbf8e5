"""Dropout whose rate may be traced, so that it can be swept."""

import jax
import jax.numpy as jnp

from nnfx import checks, shards
from nnfx.bounds import BelowOne
from nnfx.types import Array


def dropout(key: Array, x: Array, rate: BelowOne) -> Array:
    """Set a random fraction p of activations to zero and scale up the rest: `m x / (1 − p)`, `m ~ Bernoulli(1 − p)`.

    Args:
        key: a typed random key.
        x: activations of any shape, with the examples on the first axis.
        rate: p, at least 0 and below 1, the fraction to drop; may be traced.

    Returns:
        An array of the shape and dtype of `x`, whose expectation is `x`.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for a rate outside `[0, 1)`; if it is traced, the result is NaN instead.

    Example:
        >>> dropped = dropout(jax.random.key(0), jnp.ones(1000), 0.5)
        >>> sorted(set(dropped.tolist()))
        [0.0, 2.0]

    References:
        Srivastava et al., *Dropout: a simple way to prevent neural networks from overfitting*, JMLR 2014.
    """
    checks.key("key", key)
    checks.number("rate", rate, minimum=0, below=1)
    keep = 1 - jnp.asarray(rate, x.dtype)
    mask = shards.draw(lambda shape: jax.random.bernoulli(key, keep.astype(jnp.float32), shape), x.shape)
    kept = jnp.where(mask, x / keep, jnp.zeros_like(x))
    if checks.is_concrete(rate):
        return kept
    is_rate = (jnp.asarray(rate, jnp.float32) >= 0) & (jnp.asarray(rate, jnp.float32) < 1)
    return kept * jnp.where(is_rate, 1.0, jnp.nan).astype(x.dtype)
