"""A table of members trained block by block, each block side by side and in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnfx.mapping import blocks
from nnfx.types import Array


class Groups(NamedTuple):
    """The values that the members of a group share.

    Attributes:
        seeds: `(groups,)`, which determine the members' initial weights and the order of their data.
        folds: `(groups,)`, the parts of the data that are held out from them.
    """

    seeds: Any
    folds: Any


InGroup = Callable[[Groups, Any], Callable[[Any], Any]]
"""`(group, shared) -> (member -> result)`: what all members of a group need is computed once."""
Map = Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
"""Maps a function of an element over the first axis of all arrays, as `jax.vmap` does."""


def update_table(
    in_group: InGroup, members: tuple[Any, Any], groups: Groups, shared: Any, at_once: int, side_by_side: Map = jax.vmap
) -> tuple[tuple[Any, Any], Any]:
    """Map a function of a member's state over a table, block by block, and replace the states in place.

    A block consists of members of one group, or, if a group is smaller than a block and `jax.vmap` maps, of groups.

    The function is a long loop. It keeps its state in the memory of the results of the previous block, called `room`.
    If the program also returns `room`, XLA gives it separate buffers. In XLA's temporary memory, operations would wait
    for each other needlessly, and a step of a convolutional network would take a sixth longer on two cores.

    Args:
        in_group: the function `(state, values) -> (state, other results)` of a member, given its group.
        members: the states and the values of the members, `(groups, points, ...)`. If the program may overwrite the
            states, it needs memory for them once.
        groups: the values of the groups, `(groups, ...)`.
        shared: the values that all members share.
        at_once: the largest number of members in a block.
        side_by_side: maps a function of an element over the first axis of all arrays, as `jax.vmap` does.

    Returns:
        The results, `(groups, points, ...)`, and `room`, the results of the last block again.

    Example:
        >>> members = jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)
        >>> groups = Groups(jnp.array([10, 20]), jnp.zeros(2))
        >>> def in_group(group, slope):
        ...     return lambda of: (of[0] + slope * of[1], group.seeds)
        >>> (states, seeds), _ = update_table(in_group, members, groups, 2.0, at_once=2)
        >>> states.tolist(), seeds.tolist()
        ([[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]], [[10, 10, 10], [20, 20, 20]])
    """
    height, width = jax.tree.leaves(members)[0].shape[:2]
    groups_at_once = at_once if width == 1 else at_once // width if side_by_side is jax.vmap else 1
    rows, columns = blocks(height, max(1, groups_at_once)), blocks(width, at_once)
    tall, wide = rows.shape[1], columns.shape[1]

    def each(function: Callable[[Any], Any], over: Any) -> Any:
        """Map over the first axis; an axis of one element is removed instead, since some products are faster then."""
        if jax.tree.leaves(over)[0].shape[0] > 1:
            return side_by_side(function)(over)
        return jax.tree.map(lambda leaf: leaf[None], function(jax.tree.map(lambda leaf: leaf[0], over)))

    def of_block(groups: Groups) -> Callable[[Any], Any]:
        if tall > 1:
            return lambda members: each(lambda of: each(in_group(of[0], shared), of[1]), (groups, members))
        of_member = in_group(jax.tree.map(lambda leaf: leaf[0], groups), shared)
        return lambda members: each(lambda of: each(of_member, of), members)

    def of_groups(carry: tuple[Any, Any], row: Any) -> tuple[Any, None]:
        train = of_block(jax.tree.map(lambda leaf: leaf[row], groups))

        def of_members(carry: tuple[Any, Any], column: Any) -> tuple[Any, None]:
            results, _ = carry
            place = Place(row, column, is_whole=height % tall == 0 and width % wide == 0)
            block = train(jax.tree.map(place.taken, (results[0], members[1])))
            return (jax.tree.map(place.replaced, results, block), block), None

        return jax.lax.scan(of_members, carry, jnp.asarray(columns))

    first = jax.tree.map(lambda leaf: leaf[0], groups), jax.tree.map(lambda leaf: leaf[0, 0], members)
    result = jax.eval_shape(lambda group, member: in_group(group, shared)(member), *first)
    room, empty = (
        jax.tree.map(lambda leaf, size=size: jnp.zeros((*size, *leaf.shape), leaf.dtype), result)
        for size in ((tall, wide), (height, width))
    )
    carry, _ = jax.lax.scan(of_groups, ((members[0], empty[1]), room), jnp.asarray(rows))
    return carry


class Place(NamedTuple):
    """The place of a block in a table.

    Attributes:
        rows: `(groups,)`, the numbers of the block's groups.
        columns: `(points,)`, the numbers of its points.
        is_whole: whether the numbers are consecutive, as they are if blocks divide the table without a remainder;
            slices take a fraction of the time to compile that gathering takes.
    """

    rows: Array
    columns: Array
    is_whole: bool

    def taken(self, leaf: Array) -> Array:
        """Return the block's part of an array."""
        if not self.is_whole:
            return leaf[self.rows[:, None], self.columns]
        sizes = len(self.rows), len(self.columns), *leaf.shape[2:]
        return jax.lax.dynamic_slice(leaf, self._begin(leaf), sizes)

    def replaced(self, leaf: Array, block: Array) -> Array:
        """Return an array with the block's part replaced."""
        if not self.is_whole:
            return leaf.at[self.rows[:, None], self.columns].set(block)
        return jax.lax.dynamic_update_slice(leaf, block, self._begin(leaf))

    def _begin(self, leaf: Array) -> list[Any]:
        return [self.rows[0], self.columns[0], *[0] * (leaf.ndim - 2)]
