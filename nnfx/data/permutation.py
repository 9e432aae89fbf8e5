"""A random order of rows as a keyed bijection, so that each position is computed independently of the others."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.types import Array

_SMALLEST_CIPHER = 16
_SMALLEST_SIDE = 8
_ROUNDS = 8


def permutation(key: Array, rows: int) -> Array:
    """Draw a random order of `rows` rows, several times faster than `jax.random.permutation`, which sorts.

    A number i < rows is written as (l, r) in Z_a × Z_b with a and b near √rows, and each digit in turn is shifted by a
    keyed hash of the other: `l ← l + F(r) mod a`, `r ← r + G(l) mod b`. Every round is invertible, so the map is a
    bijection, and each position is computed independently. If a · b exceeds `rows`, the few numbers that are mapped to
    `rows` or above are mapped again until none is; this terminates because each number lies on a cycle that starts
    below `rows`.

    Args:
        key: a typed key.
        rows: the number of rows; fewer than 16 are ordered by sorting, since so small a cipher is not uniform.

    Returns:
        The numbers from 0 to rows − 1, each once, int32 `(rows,)`.

    Example:
        >>> sorted(permutation(jax.random.key(0), 20).tolist()) == list(range(20))
        True

    References:
        Black and Rogaway, *Ciphers with arbitrary finite domains*, CT-RSA 2002, the generalised Feistel cipher.
    """
    drawn = draw(key, rows)
    if rows < _SMALLEST_CIPHER:
        return drawn
    a, b = _sides(rows)
    numbers = jnp.arange(rows, dtype=jnp.uint32)
    if a * b == rows:
        return _encrypt(numbers, drawn, rows).astype(jnp.int32)

    def encrypt_some(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        numbers, is_beyond = carry
        numbers = jnp.where(is_beyond, _encrypt(numbers, drawn, rows), numbers)
        return numbers, numbers >= rows

    # the first iteration maps all numbers, so that the program contains only one copy of the cipher
    numbers, _ = jax.lax.while_loop(lambda carry: carry[1].any(), encrypt_some, (numbers, jnp.full(rows, True)))
    return numbers.astype(jnp.int32)


def draw(key: Array, rows: int) -> Array:
    """Draw the numbers that determine an order: the round keys or, if there are only a few rows, the order itself."""
    if rows < _SMALLEST_CIPHER:
        return jax.random.permutation(key, rows)
    return jax.random.bits(key, (_ROUNDS,), jnp.uint32)


def at(drawn: np.ndarray, places: np.ndarray, rows: int) -> np.ndarray:
    """Return the rows at the given positions of an order, on the host, without computing the other positions.

    >>> key = jax.random.key(0)
    >>> at(np.asarray(draw(key, 20)), np.array([3, 5]), 20) == permutation(key, 20)[np.array([3, 5])]
    Array([ True,  True], dtype=bool)
    """
    if rows < _SMALLEST_CIPHER:
        return drawn[places]
    found = _encrypt(places.astype(np.uint32), drawn, rows)
    while (is_beyond := found >= rows).any():
        found[is_beyond] = _encrypt(found[is_beyond], drawn, rows)
    return found


def _sides(rows: int) -> tuple[int, int]:
    """Return two numbers within a factor of two of each other whose product is `rows` if possible, else slightly more.

    >>> _sides(714), _sides(719)
    ((21, 34), (27, 27))
    """
    root = math.isqrt(rows - 1) + 1
    # a cipher on 3 × 6 is visibly less uniform than one on 5 × 4, so the sides of a small number are as equal as
    # possible
    divisors = (a for a in range(root, _SMALLEST_SIDE - 1, -1) if rows % a == 0 and 2 * a * a >= rows)
    a = next(divisors, root)
    return a, -(-rows // a)


def _encrypt(numbers: Any, round_keys: Any, rows: int) -> Any:
    """Apply the cipher to each number, a bijection of the numbers below a·b; arrays may be NumPy's or JAX's."""
    a, b = _sides(rows)
    left, right = numbers // np.uint32(b), numbers % np.uint32(b)
    for i in range(0, _ROUNDS, 2):
        left = _add_below(left, _hash(right ^ round_keys[i]), a)
        right = _add_below(right, _hash(left ^ round_keys[i + 1]), b)
    return left * np.uint32(b) + right


def _hash(x: Any) -> Any:
    """Hash 32-bit numbers by multiplications and shifts."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _add_below(digit: Any, hashed: Any, base: int) -> Any:
    """Add a hash, reduced below the base, to a digit, modulo the base."""
    # avoid a division if 16 bits are more than enough for the base
    scaled = ((hashed >> 16) * np.uint32(base)) >> 16 if base <= 256 else hashed % np.uint32(base)
    total = digit + scaled
    library = np if isinstance(total, np.ndarray) else jnp
    return library.where(total >= base, total - np.uint32(base), total)
