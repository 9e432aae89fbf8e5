"""Seeded minibatches: the rows of each batch, as a pure function of a key and an epoch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.data import permutation
from nnfx.types import Array, Batch


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches that cover all rows once; the last one may be incomplete.

    >>> steps_per_epoch(714, 32)
    23
    """
    return -(-rows // batch_size)


class Order(NamedTuple):
    """The rows of each batch.

    Attributes:
        rows: the positions of the rows, int32 `(steps, batch)`, or `(batch,)` for one batch.
        is_real: boolean, of the same shape; false for the unused positions of an incomplete last batch, which repeat
            earlier rows of the order and must have weight zero.
    """

    rows: Array
    is_real: Array


def shuffled(key: Array, epoch: Array | int, rows: int, batch_size: int) -> Order:
    """Return the batches of one epoch, which contain each row once, in an order that depends only on `(key, epoch)`.

    Raises:
        TypeError: for a key that is not typed, or sizes that are not integers.
        ValueError: for sizes that are not positive.

    Example:
        >>> order = shuffled(jax.random.key(0), epoch=0, rows=5, batch_size=2)
        >>> order.rows.shape, sorted(order.rows[order.is_real].tolist())
        ((3, 2), [0, 1, 2, 3, 4])
    """
    checks.key("key", key)
    _check_sizes(rows, batch_size)
    return _in_batches(permutation.permutation(jax.random.fold_in(key, epoch), rows), rows, batch_size)


class Orders:
    """The batches of `shuffled`, computed one at a time on the host, for data read on demand.

    Args:
        key: the key that determines the order of each epoch.
        rows: the number of rows.
        batch_size: rows per batch.
        epochs: the number of epochs.

    Example:
        >>> whole = shuffled(jax.random.key(0), epoch=1, rows=50, batch_size=20)
        >>> last = Orders(jax.random.key(0), rows=50, batch_size=20, epochs=2).batch(epoch=1, number=2)
        >>> bool((whole.rows[2] == last.rows).all()), int(last.is_real.sum())
        (True, 10)
    """

    def __init__(self, key: Array, rows: int, batch_size: int, epochs: int) -> None:
        self._rows, self._batch_size = rows, batch_size

        keys = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(jnp.arange(epochs))
        self._drawn = np.asarray(jax.vmap(lambda key: permutation.draw(key, rows))(keys))

    def batch(self, epoch: int, number: int) -> Order:
        """Return one batch of an epoch, as NumPy arrays."""
        places: Any = number * self._batch_size + np.arange(self._batch_size)
        rows: Any = permutation.at(self._drawn[epoch], places % self._rows, self._rows)
        return Order(rows.astype(np.int32), places < self._rows)


def in_order(rows: int, batch_size: int) -> Order:
    """Return the batches of all rows in their original order; sizes are checked in the same way as by `shuffled`."""
    _check_sizes(rows, batch_size)
    return _in_batches(jnp.arange(rows, dtype=jnp.int32), rows, batch_size)


def _check_sizes(rows: int, batch_size: int) -> None:
    checks.positive_integer("rows", rows)
    checks.positive_integer("batch_size", batch_size)


def _in_batches(order: Array, rows: int, batch_size: int) -> Order:
    shape = steps_per_epoch(rows, batch_size), batch_size
    places = jnp.arange(shape[0] * shape[1])
    return Order(jnp.resize(order, shape), (places < rows).reshape(shape))


def take(data: Batch, order: Order) -> Batch:
    """Return the batch of the given rows; positions that are not real become examples of weight zero.

    Raises:
        TypeError: for data that are not a batch, or an order that was not made by `shuffled` or `in_order`.
        ValueError: for concrete row positions that are out of range.

    Example:
        >>> data = Batch(jnp.ones((3, 2)), jnp.arange(3), jnp.ones(3))
        >>> take(data, Order(jnp.array([2, 0]), jnp.array([True, False]))).weights
        Array([1., 0.], dtype=float32)
    """
    if not isinstance(data, Batch):
        raise TypeError(f"data: expected a Batch, such as data.train, got a {type(data).__name__}")
    if not isinstance(order, Order):
        raise TypeError(f"order: expected an Order, as returned by shuffled or in_order, got {checks.describe(order)}")
    if checks.is_concrete(order.rows):
        checks.class_labels("order.rows", np.asarray(order.rows), len(data.weights), what="rows")
    batch = jax.tree.map(lambda array: jnp.asarray(array).at[order.rows].get(mode="promise_in_bounds"), data)
    is_real = order.is_real.reshape(order.is_real.shape + (1,) * (data.weights.ndim - 1))
    return batch._replace(weights=jnp.where(is_real, batch.weights, 0))
