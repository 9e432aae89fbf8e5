"""One device's part of a batch, for the few operations that must give the same result as on the whole batch.

If XLA splits a program over devices (strategy "mesh" of `nnfx.data_parallel`), the program needs no changes. If
each device runs the program on its own rows ("pmap"), sums are taken across devices, and random draws are made for all
examples of the batch, so that nothing depends on the number of devices. Without a split, every function here leaves its
input unchanged.
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
    """How the rows of a batch are distributed over devices: row i goes to device i mod n, as its row i div n.

    Since rows are assigned to the devices in turn, the same range of rows on all devices makes up consecutive rows of
    the batch. Micro-batches are therefore consecutive rows too.

    Attributes:
        rows: the number of rows of the whole batch, without the padding that gives every device the same number.
        devices: the number of devices.
    """

    rows: int
    devices: int

    @property
    def axis(self) -> str:
        """The name of the mapped axis; functions compiled for one split are not reused for another."""
        return f"{self.rows} rows on {self.devices} devices"

    @property
    def share(self) -> int:
        """The number of rows on each device, including padding."""
        return -(-self.rows // self.devices)


_SPLIT: ContextVar[Split | None] = ContextVar("split", default=None)


@contextmanager
def split(how: Split) -> Iterator[None]:
    """Mark code traced in this context, mapped over the axis `how.axis`, as seeing only one device's rows."""
    token = _SPLIT.set(how)
    try:
        yield
    finally:
        _SPLIT.reset(token)


def is_left_to_xla() -> bool:
    """Return whether XLA splits the current computation over a mesh.

    >>> is_left_to_xla()
    False
    """
    return jax.sharding.AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


def is_split() -> bool:
    """Return whether the current computation sees only one device's rows of a batch.

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
    """Draw values for each example of this device, as a part of the values for the whole batch.

    Args:
        sample: `shape -> array`, a function that draws values.
        shape: the shape of this device's values.
        axis: the axis of the examples.

    >>> draw(lambda shape: jax.random.normal(jax.random.key(0), shape), (3, 2)).shape
    (3, 2)
    """
    how = _SPLIT.get()
    if how is None:
        return sample(shape)
    # a micro-batch is distributed like the whole batch, and has no padding
    rows = how.rows if shape[axis] == how.share else shape[axis] * how.devices
    return _own(sample((*shape[:axis], rows, *shape[axis + 1 :])), how, axis)


def gathered(tree: Tree) -> Tree:
    """Return the rows of the whole batch, `(batch, ...)`, gathered from all devices."""
    how = _SPLIT.get()
    if how is None:
        return tree

    def whole(rows: Array) -> Array:
        dealt = jax.lax.all_gather(rows, how.axis, axis=1)
        return dealt.reshape(-1, *rows.shape[1:])[: how.rows]

    return jax.tree.map(whole, tree)


def own(tree: Tree) -> Tree:
    """Return this device's rows of a whole batch; padding is zero. This is the inverse of `gathered`."""
    how = _SPLIT.get()
    return tree if how is None else jax.tree.map(lambda rows: _own(rows, how, axis=0), tree)


def weights(given: Array | None, inputs: Array) -> Array | None:
    """Return the weights of a device's examples, `(batch,)`; None stands for weights of 1, and of 0 for padding."""
    how = _SPLIT.get()
    if given is not None or how is None or inputs.shape[0] != how.share:
        return given
    return _own(jnp.ones(how.rows, jnp.result_type(inputs)), how, axis=0)


def _own(rows: Array, how: Split, axis: int) -> Array:
    padding = -rows.shape[axis] % how.devices
    padded = jnp.pad(rows, [(0, padding if i == axis else 0) for i in range(rows.ndim)]) if padding else rows
    dealt = padded.reshape(*rows.shape[:axis], -1, how.devices, *rows.shape[axis + 1 :])
    return jax.lax.dynamic_index_in_dim(dealt, jax.lax.axis_index(how.axis), axis + 1, keepdims=False)
