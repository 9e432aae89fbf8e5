"""One device's share of a batch, for those few operations that have to be the same as over the whole batch.

Where XLA splits a program over devices (`nnfx.data_parallel`'s strategy "mesh") nothing has to be known of it. Where
each device runs the program on its own rows ("pmap"), sums cross between them, and what is drawn for examples is drawn
for all of them, so that nothing depends on how many devices there are. Without a split every function here leaves
things as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nnfx.types import Array

__all__ = ["Split", "draw", "gathered", "is_left_to_xla", "is_split", "own", "split", "total", "weights"]

Tree = TypeVar("Tree")


class Split(NamedTuple):
    """How a batch is dealt out to devices: row i goes to device i mod n, as its row i div n.

    Dealt out like cards, consecutive rows of all devices together are consecutive rows of the batch, and so are
    micro-batches.

    Attributes:
        rows: of the whole batch, without the padding that makes the shares equal.
        devices: how many there are.
    """

    rows: int
    devices: int

    @property
    def axis(self) -> str:
        """The name of the mapped axis; compiled functions that are kept for one split are not used for another."""
        return f"{self.rows} rows on {self.devices} devices"

    @property
    def share(self) -> int:
        """Rows of each device, padding included."""
        return -(-self.rows // self.devices)


_SPLIT: ContextVar[Split | None] = ContextVar("split", default=None)


@contextmanager
def split(how: Split) -> Iterator[None]:
    """Say, while a function is traced over the axis `how.axis`, that it sees one device's share."""
    token = _SPLIT.set(how)
    try:
        yield
    finally:
        _SPLIT.reset(token)


def is_left_to_xla() -> bool:
    """Say whether XLA splits over a mesh what is traced here.

    >>> is_left_to_xla()
    False
    """
    return jax.sharding.AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


def is_split() -> bool:
    """Say whether what is traced here sees one device's share of a batch.

    >>> is_split()
    False
    """
    return _SPLIT.get() is not None


def total(tree: Tree) -> Tree:
    """Sum over all devices.

    >>> float(total(jnp.ones(())))
    1.0
    """
    how = _SPLIT.get()
    return tree if how is None else jax.lax.psum(tree, how.axis)


def draw(sample: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...], axis: int = 0) -> Array:
    """Draw something for each example: this device's share of what is drawn for the whole batch.

    Args:
        sample: `shape -> array`, what draws.
        shape: of the share.
        axis: which of its axes is that of the examples.

    >>> draw(lambda shape: jax.random.normal(jax.random.key(0), shape), (3, 2)).shape
    (3, 2)
    """
    how = _SPLIT.get()
    if how is None:
        return sample(shape)
    # a micro-batch is dealt out as the batch is, and has no padding
    rows = how.rows if shape[axis] == how.share else shape[axis] * how.devices
    return _own(sample((*shape[:axis], rows, *shape[axis + 1 :])), how, axis)


def gathered(tree: Tree) -> Tree:
    """Return the rows of the whole batch, `(batch, ...)`, of which each device has its share."""
    how = _SPLIT.get()
    if how is None:
        return tree

    def whole(rows: Array) -> Array:
        dealt = jax.lax.all_gather(rows, how.axis, axis=1)
        return dealt.reshape(-1, *rows.shape[1:])[: how.rows]

    return jax.tree.map(whole, tree)


def own(tree: Tree) -> Tree:
    """Return this device's share of the rows of a whole batch: the other way round than `gathered`; padding is zero."""
    how = _SPLIT.get()
    return tree if how is None else jax.tree.map(lambda rows: _own(rows, how, axis=0), tree)


def weights(given: Array | None, inputs: Array) -> Array | None:
    """Return the weights of the examples, `(batch,)`, where some are padding also if none are given."""
    how = _SPLIT.get()
    if given is not None or how is None or inputs.shape[0] != how.share:
        return given
    return _own(jnp.ones(how.rows, jnp.result_type(inputs)), how, axis=0)


def _own(rows: Array, how: Split, axis: int) -> Array:
    padding = -rows.shape[axis] % how.devices
    padded = jnp.pad(rows, [(0, padding if i == axis else 0) for i in range(rows.ndim)]) if padding else rows
    dealt = padded.reshape(*rows.shape[:axis], -1, how.devices, *rows.shape[axis + 1 :])
    return jax.lax.dynamic_index_in_dim(dealt, jax.lax.axis_index(how.axis), axis + 1, keepdims=False)
