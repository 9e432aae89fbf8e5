"""Predictions for any number of rows by few programs: rows are padded to one of few sizes.

A program is compiled for one number of rows, which takes far longer than to run it. Predictions for three rows, then
for five, then for seven should neither wait each time nor leave a program each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, memo

LARGEST = 4096
"""More rows than these are not padded: they take longer to compute than a program to compile."""
_POWERS_UP_TO = 32
"""Up to so many rows, the computation costs next to nothing; above, no more than a quarter of the rows are added."""


def padded_size(rows: int) -> int:
    """Return the number of rows to which so many are padded.

    >>> [padded_size(rows) for rows in (1, 3, 32, 33, 100, 1000, 4097)]
    [1, 4, 32, 40, 112, 1024, 4097]
    """
    if rows > LARGEST:
        return rows
    power = 1 << max(0, rows - 1).bit_length()
    step = power if rows <= _POWERS_UP_TO else power // 8
    return -(-rows // step) * step


def apply_padded(owner: Any, apply: Callable[[Any], Any], inputs: Any, others: Any = (), axis: int = 0) -> Any:
    """Apply a function of rows that do not depend on each other, with few different numbers of rows.

    The rows that are added repeat one that is there, so that they bring in nothing that is not finite. The function is
    asked with two different ones at first: where the outputs of the other rows hang on them, as those of a model that
    normalises by its batch do, rows are never padded.

    Args:
        owner: whose function it is, such as a run's; it remembers whether rows depend on each other.
        apply: `inputs -> outputs`, compiled.
        inputs: an array or a tree of them, the rows along `axis`.
        others: what else the function is made of; where anything is traced, nothing is padded.
        axis: that of the rows, of inputs and outputs.

    Returns:
        The outputs for these rows.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves or not checks.is_concrete((inputs, others)) or not all(map(_is_local, leaves)):
        return apply(inputs)
    counts = {np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0 for leaf in leaves}
    rows = counts.pop()
    size = padded_size(rows)
    if counts or rows in (0, size) or not (known := memo.held(owner, apply_padded, _Known)).is_apart:
        return apply(inputs)

    on_host = jax.tree.map(np.asarray, inputs)

    def padded(source: int) -> Any:
        places = np.minimum(np.arange(size), rows - 1)
        places[rows:] = source
        outputs = apply(jax.tree.map(lambda leaf: leaf.take(places, axis), on_host))
        return jax.tree.map(lambda leaf: np.asarray(leaf).take(np.arange(rows), axis), outputs)

    outputs = padded(rows - 1)
    if not known.is_checked and _ends_differ(on_host, axis):
        known.is_checked = True
        known.is_apart = all(jax.tree.leaves(jax.tree.map(_are_close, outputs, padded(0))))
        if not known.is_apart:
            return apply(inputs)
    return jax.tree.map(jnp.asarray, outputs)


class _Known:
    """Whether the rows of a function are known not to depend on each other."""

    is_checked = False
    is_apart = True


def _is_local(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _ends_differ(inputs: Any, axis: int) -> bool:
    """Say whether the first row and the last are different ones."""
    return any(not np.array_equal(leaf.take(0, axis), leaf.take(-1, axis)) for leaf in jax.tree.leaves(inputs))


def _are_close(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.allclose(first.astype(np.float64), second.astype(np.float64), rtol=1e-4, atol=1e-6, equal_nan=True))
