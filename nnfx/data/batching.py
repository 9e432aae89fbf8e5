"""Seeded minibatches: which rows make up which batch, as a pure function of a key and an epoch."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.types import Array, Batch


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many batches cover all rows once; the last one may be incomplete.

    >>> steps_per_epoch(714, 32)
    23
    """
    return -(-rows // batch_size)


class Order(NamedTuple):
    """Which rows make up which batch.

    Attributes:
        rows: int32 `(steps, batch)`, or `(batch,)` for one batch.
        is_real: boolean, of the same shape; false for the unused places of an incomplete last batch, which repeat
            earlier rows of the order and must be given no weight.
    """

    rows: Array
    is_real: Array


def shuffled(key: Array, epoch: Array | int, rows: int, batch_size: int) -> Order:
    """Return the batches of one epoch, each row once, in an order that depends only on `(key, epoch)`.

    Example:
        >>> order = shuffled(jax.random.key(0), epoch=0, rows=5, batch_size=2)
        >>> order.rows.shape, sorted(order.rows[order.is_real].tolist())
        ((3, 2), [0, 1, 2, 3, 4])
    """
    return _in_batches(permutation(jax.random.fold_in(key, epoch), rows), rows, batch_size)


def permutation(key: Array, rows: int) -> Array:
    """Draw a random order of `rows` rows, several times faster than `jax.random.permutation`, which sorts.

    A number i < rows is written as (l, r) in Z_a × Z_b with a and b near √rows, and each digit in turn is shifted by a
    keyed hash of the other: `l ← l + F(r) mod a`, `r ← r + G(l) mod b`. Every round is invertible, so the whole is a
    bijection, and each place is computed independently. If no such a · b equals rows, the few numbers that land between
    the two are encrypted again until none does; this ends because each is on a cycle that leaves that range.

    Args:
        key: a typed key.
        rows: how many; fewer than 16 are ordered by sorting, since so small a cipher is not uniform.

    Returns:
        Every number from 0 to rows − 1 once, int32 `(rows,)`.

    Example:
        >>> sorted(permutation(jax.random.key(0), 20).tolist()) == list(range(20))
        True

    References:
        Black and Rogaway, *Ciphers with arbitrary finite domains*, CT-RSA 2002, the generalised Feistel cipher.
    """
    if rows < _SMALLEST_CIPHER:
        return jax.random.permutation(key, rows)
    a, b = _sides(rows)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    numbers = _encrypt(jnp.arange(rows, dtype=jnp.uint32), round_keys, rows)
    if a * b > rows:
        numbers = jax.lax.while_loop(
            lambda numbers: (numbers >= rows).any(),
            lambda numbers: jnp.where(numbers >= rows, _encrypt(numbers, round_keys, rows), numbers),
            numbers,
        )
    return numbers.astype(jnp.int32)


def _sides(rows: int) -> tuple[int, int]:
    """Return two numbers within a factor of two of each other whose product is rows if possible, else just above.

    >>> _sides(714), _sides(719)
    ((21, 34), (27, 27))
    """
    root = math.isqrt(rows - 1) + 1
    # a cipher on 3 × 6 is visibly less uniform than one on 5 × 4, so small sides are as equal as possible
    divisors = (a for a in range(root, _SMALLEST_SIDE - 1, -1) if rows % a == 0 and 2 * a * a >= rows)
    a = next(divisors, root)
    return a, -(-rows // a)


_SMALLEST_CIPHER = 16
_SMALLEST_SIDE = 8
_ROUNDS = 8


def _encrypt(numbers: Any, round_keys: Any, rows: int) -> Any:
    """Map each number below a·b to another; the arrays may be NumPy's or JAX's."""
    a, b = _sides(rows)
    left, right = numbers // np.uint32(b), numbers % np.uint32(b)
    for i in range(0, _ROUNDS, 2):
        left = _add_below(left, _hash(right ^ round_keys[i]), a)
        right = _add_below(right, _hash(left ^ round_keys[i + 1]), b)
    return left * np.uint32(b) + right


def _hash(x: Any) -> Any:
    """Mix the bits of 32-bit numbers: a finaliser of multiplications and shifts."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _add_below(digit: Any, hashed: Any, base: int) -> Any:
    """Add a hash, reduced below the base, to a digit, modulo the base."""
    # no division if 16 bits are plenty for the base
    scaled = ((hashed >> 16) * np.uint32(base)) >> 16 if base <= 256 else hashed % np.uint32(base)
    total = digit + scaled
    library = np if isinstance(total, np.ndarray) else jnp
    return library.where(total >= base, total - np.uint32(base), total)


class Orders:
    """The batches of `shuffled`, one at a time and on the host, for data that are read on demand.

    Args:
        key: the key of the order.
        rows: how many rows there are.
        batch_size: rows per batch.
        epochs: how many epochs there are.

    Example:
        >>> whole = shuffled(jax.random.key(0), epoch=1, rows=50, batch_size=20)
        >>> last = Orders(jax.random.key(0), rows=50, batch_size=20, epochs=2).batch(epoch=1, number=2)
        >>> bool((whole.rows[2] == last.rows).all()), int(last.is_real.sum())
        (True, 10)
    """

    def __init__(self, key: Array, rows: int, batch_size: int, epochs: int) -> None:
        self._rows, self._batch_size = rows, batch_size

        def drawn(epoch: Array) -> Array:
            epoch_key = jax.random.fold_in(key, epoch)
            if rows < _SMALLEST_CIPHER:
                return permutation(epoch_key, rows)
            return jax.random.bits(epoch_key, (_ROUNDS,), jnp.uint32)

        self._drawn = np.asarray(jax.vmap(drawn)(jnp.arange(epochs)))

    def batch(self, epoch: int, number: int) -> Order:
        """Return one batch of an epoch, as NumPy arrays."""
        places: Any = number * self._batch_size + np.arange(self._batch_size)
        numbers, drawn = (places % self._rows).astype(np.uint32), self._drawn[epoch]
        if self._rows < _SMALLEST_CIPHER:
            rows = drawn[numbers]
        else:
            rows = _encrypt(numbers, drawn, self._rows)
            while (is_beyond := rows >= self._rows).any():
                rows[is_beyond] = _encrypt(rows[is_beyond], drawn, self._rows)
        return Order(rows.astype(np.int32), places < self._rows)


def in_order(rows: int, batch_size: int) -> Order:
    """Return the batches of all rows in their original order."""
    return _in_batches(jnp.arange(rows, dtype=jnp.int32), rows, batch_size)


def _in_batches(order: Array, rows: int, batch_size: int) -> Order:
    shape = steps_per_epoch(rows, batch_size), batch_size
    places = jnp.arange(shape[0] * shape[1])
    return Order(jnp.resize(order, shape), (places < rows).reshape(shape))


def take(data: Batch, order: Order) -> Batch:
    """Return the batch of these rows; places that are not real become examples of weight zero.

    Example:
        >>> data = Batch(jnp.ones((3, 2)), jnp.arange(3), jnp.ones(3))
        >>> take(data, Order(jnp.array([2, 0]), jnp.array([True, False]))).weights
        Array([1., 0.], dtype=float32)
    """
    batch = jax.tree.map(lambda array: jnp.asarray(array).at[order.rows].get(mode="promise_in_bounds"), data)
    is_real = order.is_real.reshape(order.is_real.shape + (1,) * (data.weights.ndim - 1))
    return batch._replace(weights=jnp.where(is_real, batch.weights, 0))
