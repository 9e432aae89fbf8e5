"""Seeded minibatches: which rows make up which batch, as a pure function of a key and an epoch."""

from typing import Any

import jax
import jax.numpy as jnp

from nnfx.types import Array, Batch


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many batches cover the rows once, the last one perhaps incomplete.

    >>> steps_per_epoch(714, 32)
    23
    """
    return -(-rows // batch_size)


def shuffled(key: Array, epoch: Array, rows: int, batch_size: int) -> Array:
    """Return the rows of each batch of one epoch, every row once: integers `(steps, batch_size)`.

    The order depends on `(key, epoch)` alone. The places that an incomplete last batch leaves over
    hold the number `rows`, which is no row.

    Example:
        >>> order = shuffled(jax.random.key(0), jnp.int32(0), rows=5, batch_size=2)
        >>> order.shape, sorted(order.ravel().tolist())
        ((3, 2), [0, 1, 2, 3, 4, 5])
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
    return _in_batches(order, rows, batch_size)


def in_order(rows: int, batch_size: int) -> Array:
    """Return the rows of each batch in their own order; as `shuffled`, without the key."""
    return _in_batches(jnp.arange(rows), rows, batch_size)


def _in_batches(order: Array, rows: int, batch_size: int) -> Array:
    steps = steps_per_epoch(rows, batch_size)
    return jnp.pad(order, (0, steps * batch_size - rows), constant_values=rows).reshape(steps, batch_size)


def take(data: Batch, rows: Array) -> Batch:
    """Return the batch of these rows `(batch,)`; a row number past the end gives an example of weight zero.

    Example:
        >>> data = Batch(jnp.ones((3, 2)), jnp.arange(3), jnp.ones(3))
        >>> take(data, jnp.array([2, 3])).weights
        Array([1., 0.], dtype=float32)
    """

    def gather(array: Any) -> Array:
        return array.at[rows].get(mode="clip")

    inputs, targets = jax.tree.map(gather, (data.inputs, data.targets))
    return Batch(inputs, targets, data.weights.at[rows].get(mode="fill", fill_value=0))
