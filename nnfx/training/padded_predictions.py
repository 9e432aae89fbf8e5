"""Predictions for any number of rows with few compiled programs: rows are padded to one of a few sizes.

A program is compiled for a fixed number of rows, and compiling takes far longer than running. Without padding,
predictions for three rows, then five, then seven would each compile and keep a new program.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nnfx import checks, memo

LARGEST = 4096
"""The largest number of rows that are padded: for more rows, computing takes longer than compiling a program."""
_POWERS_UP_TO = 32
"""Up to this many rows, sizes are powers of two, since computing is cheap; above it, padding adds at most 1/4."""


def padded_size(rows: int) -> int:
    """Return the number of rows after padding.

    >>> [padded_size(rows) for rows in (1, 3, 32, 33, 100, 1000, 4097)]
    [1, 4, 32, 40, 112, 1024, 4097]
    """
    if rows > LARGEST:
        return rows
    power = 1 << max(0, rows - 1).bit_length()
    step = power if rows <= _POWERS_UP_TO else power // 8
    return -(-rows // step) * step


def apply_padded(owner: Any, apply: Callable[[Any], Any], inputs: Any, others: Any = (), axis: int = 0) -> Any:
    """Apply a function of independent rows, padding them so that only a few different numbers of rows occur.

    The added rows repeat an existing row, so they do not introduce non-finite values. The first call tries two
    different rows as padding. If the outputs of the other rows depend on this choice, for example because the model
    normalises over its batch, rows are never padded.

    Args:
        owner: the object that the function belongs to, such as a run's recipe, on which it is recorded whether rows
            are independent.
        apply: a compiled function `inputs -> outputs`.
        inputs: an array or a tree of arrays, with rows along `axis`.
        others: all other arguments of the function; if any is traced, or spread over devices, nothing is padded.
        axis: the axis of the rows, in inputs and outputs.

    Returns:
        The outputs for the given rows.
    """
    leaves = jax.tree.leaves(inputs)
    if (
        not leaves
        or not checks.is_concrete((inputs, others))
        or not all(map(_is_local, jax.tree.leaves((inputs, others))))
    ):
        return apply(inputs)
    counts = {np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0 for leaf in leaves}
    rows = counts.pop()
    size = padded_size(rows)
    if counts or rows in (0, size) or not (known := memo.held(owner, apply_padded, _Known)).is_apart:
        return apply(inputs)

    on_host = jax.tree.map(np.asarray, inputs)

    def padded(source: int) -> tuple[Any, Any]:
        places = np.minimum(np.arange(size), rows - 1)
        places[rows:] = source
        outputs = apply(jax.tree.map(lambda leaf: leaf.take(places, axis), on_host))
        return outputs, jax.tree.map(lambda leaf: np.asarray(leaf).take(np.arange(rows), axis), outputs)

    whole, outputs = padded(rows - 1)
    if not known.is_checked and _ends_differ(on_host, axis):
        known.is_checked = True
        known.is_apart = all(jax.tree.leaves(jax.tree.map(_are_close, outputs, padded(0)[1])))
        if not known.is_apart:
            return apply(inputs)
    return jax.tree.map(lambda leaf, of: jax.device_put(leaf, of.sharding), outputs, whole)


class _Known:
    """A record of whether the rows of a function have been checked, and are independent."""

    is_checked = False
    is_apart = True


def _is_local(leaf: Any) -> bool:
    """Return whether an array is entirely on one device of this process, or on the host."""
    return not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and len(leaf.sharding.device_set) == 1)


def _ends_differ(inputs: Any, axis: int) -> bool:
    """Return whether the first and the last row differ."""
    return any(not np.array_equal(leaf.take(0, axis), leaf.take(-1, axis)) for leaf in jax.tree.leaves(inputs))


def _are_close(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.allclose(first.astype(np.float64), second.astype(np.float64), rtol=1e-4, atol=1e-6, equal_nan=True))
