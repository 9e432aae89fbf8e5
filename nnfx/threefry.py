"""Threefry, the generator behind JAX's default keys, written so that it compiles quickly; and orders drawn on the host.

On CPUs JAX writes the rounds of Threefry as a loop, whose body, condition and copies XLA compiles one by one for each
draw of a program. Written out, they are a single kernel, which takes about a third of the time to compile.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from nnfx.memo import one_program
from nnfx.types import Array

_DEFAULT = "threefry2x32"
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)


def quick(key: Array) -> Array:
    """Return a typed key of the same stream, bit for bit, whose draws compile quickly on CPUs; see `plain`.

    Keys of other generators, and keys on other devices, stay unchanged.

    Example:
        >>> key = jax.random.key(0)
        >>> bool((jax.random.normal(quick(key), (3,)) == jax.random.normal(key, (3,))).all())
        True
    """
    if not _is_default(key) or jax.default_backend() != "cpu":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_QUICK)


def plain(tree: Any) -> Any:
    """Return a tree in which keys made by `quick` are those of JAX again.

    >>> plain(quick(jax.random.key(0))).dtype
    key<fry>
    """

    def restored(leaf: Any) -> Any:
        is_quick = _is_key(leaf) and jax.random.key_impl(leaf) == _QUICK
        return jax.random.wrap_key_data(jax.random.key_data(leaf), impl=_DEFAULT) if is_quick else leaf

    return jax.tree.map(restored, tree)


def order(key: Array, rows: int) -> np.ndarray:
    """Return `jax.random.permutation(key, rows)`, sorted on the host if the key allows it, so that nothing is compiled.

    >>> key = jax.random.key(0)
    >>> bool((order(key, 20) == jax.random.permutation(key, 20)).all())
    True
    """
    if not _is_default(key) or isinstance(key, jax.core.Tracer):
        return np.asarray(jax.random.permutation(key, rows))
    pair, drawn = np.asarray(jax.random.key_data(key)), np.arange(rows)
    # several sorts by random bits, as ties among 32 bits are likely for many rows
    for _ in range(math.ceil(3 * math.log(max(1, rows)) / math.log(2**32 - 1))):
        pair, chosen = np.stack(_hash(pair, np.zeros(2, np.uint32), np.arange(2, dtype=np.uint32), _Host), -1)
        first, second = _hash(chosen, np.zeros(rows, np.uint32), np.arange(rows, dtype=np.uint32), _Host)
        drawn = drawn[np.argsort(first ^ second, kind="stable")]
    return drawn


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_default(key: Array) -> bool:
    is_partitionable = jax.config.values["jax_threefry_partitionable"]  # without it, the counters are different ones
    return bool(is_partitionable and jax.random.key_impl(key) == _DEFAULT)


class _Host:
    """The operations of the hash on NumPy's arrays."""

    add, xor, either = np.add, np.bitwise_xor, np.bitwise_or
    left, right = np.left_shift, np.right_shift


class _Device:
    """The operations of the hash on JAX's arrays; those of `jax.numpy` take several times as long to trace."""

    add, xor, either = jax.lax.add, jax.lax.bitwise_xor, jax.lax.bitwise_or
    left, right = jax.lax.shift_left, jax.lax.shift_right_logical


def _hash(key: Any, first: Any, second: Any, on: Any) -> tuple[Any, Any]:
    """Hash pairs of counters: five groups of four rounds, with NumPy or JAX.

    Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011, Threefry-2×32 with 20 rounds.
    """
    keys = key[0], key[1], on.xor(on.xor(key[0], key[1]), _PARITY)
    first, second = on.add(first, keys[0]), on.add(second, keys[1])
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            first = on.add(first, second)
            rotated = on.either(on.left(second, np.uint32(distance)), on.right(second, np.uint32(32 - distance)))
            second = on.xor(first, rotated)
        first = on.add(first, keys[(group + 1) % 3])
        second = on.add(second, on.add(keys[(group + 2) % 3], np.uint32(group + 1)))
    return first, second


@jax.jit
def _hashed(key: Array, second: Array) -> tuple[Array, Array]:
    """Hash counters below 2³², `(n,)`: not inlined, so that draws of one size share what is traced and lowered."""
    return cast(tuple[Array, Array], _hash(key, jnp.zeros_like(second), second, _Device))


def _count(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Hash 0, 1, 2, …, as 64-bit counters, in an array of this shape."""
    first, second = _hashed(key, jnp.arange(math.prod(shape), dtype=jnp.uint32))
    return first.reshape(shape), second.reshape(shape)


@functools.partial(one_program, static_argnums=1)
def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_count(key, shape), -1)


@one_program
def _fold_in(key: Array, number: Array) -> Array:
    return jnp.concatenate(_hashed(key, jnp.asarray(number).astype(jnp.uint32).reshape(1)))


@functools.partial(one_program, static_argnums=(1, 2))
def _random_bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    dtype = jnp.dtype(f"uint{width}")
    if math.prod(shape) >= 2**32:
        return jax.random.bits(jax.random.wrap_key_data(key, impl=_DEFAULT), shape, dtype)
    high, low = _count(key, shape)
    if width == 64:
        return (high.astype(dtype) << dtype.type(32)) | low.astype(dtype)
    return (high ^ low).astype(dtype)


def _seed(number: Array) -> Array:
    return jax.random.key_data(jax.random.key(number, impl=_DEFAULT))


_QUICK = jax.extend.random.define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="quick_threefry2x32"
)
