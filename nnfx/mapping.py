"""Map a function over many points, divided among devices, with several at a time on each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

POINTS = "points"
"""The axis of a mesh over which points are spread."""


def side_by_side(function: Callable[[Any], Any], over: Any, at_once: int | None, unroll: int = 1) -> Any:
    """Map a function over the first axis of all arrays, `at_once` elements side by side at a time (None for all).

    Elements that are taken one by one may be unrolled, `unroll` per iteration of the loop, so that XLA can use a
    second core.

    >>> side_by_side(lambda x: x**2, jnp.arange(5.0), at_once=2).tolist()
    [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    size = jax.tree.leaves(over)[0].shape[0]
    if at_once is None or at_once >= size:
        return jax.vmap(function)(over)
    if at_once == 1:
        return jax.lax.scan(lambda _, element: (None, function(element)), None, over, unroll=unroll)[1]
    rows = jnp.asarray(blocks(size, at_once))
    results = jax.lax.map(lambda of: jax.vmap(function)(jax.tree.map(lambda leaf: leaf[of], over)), rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], results)


def blocks(count: int, at_once: int) -> np.ndarray:
    """Divide numbers below `count` into blocks of equal size, at most `at_once`, and return them, `(blocks, size)`.

    If no size above half of `at_once` divides the count, the last number is repeated: a smaller last block would be
    compiled separately.

    >>> blocks(6, at_once=4).tolist(), blocks(5, at_once=2).tolist()
    ([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 4]])
    """
    number = -(-count // at_once)
    size = next((size for size in range(at_once, at_once // 2, -1) if count % size == 0), -(-count // number))
    number = -(-count // size)
    return np.minimum(np.arange(number * size), count - 1).reshape(number, size)


def map_points(
    function: Callable[[Any, Any], Any],
    shared: Any,
    points: Any,
    *,
    at_once: int | None,
    devices: Sequence[jax.Device],
    unroll: int = 1,
) -> Any:
    """Map a function over points: each device takes a share of the points, and processes `at_once` of them at a time.

    Args:
        function: `(shared, point) -> result`.
        shared: the arguments that all points have in common.
        points: arrays `(points, ...)`.
        at_once: the number of points to take side by side, under `jax.vmap`; None for a device's whole share.
        devices: the devices among which the points are divided; they do not communicate.
        unroll: the number of points to take per iteration of the loop if they are taken one by one.

    Returns:
        The results, `(points or more, ...)`; the last one is repeated so that all shares are equal. The repeats are not
        removed here, since devices would have to communicate for that.

    Example:
        >>> map_points(lambda a, x: a * x, 2.0, jnp.arange(3.0), at_once=2, devices=jax.local_devices()[:1]).tolist()
        [0.0, 2.0, 4.0, 4.0]
    """
    count, shares = len(jax.tree.leaves(points)[0]), len(devices)
    each = -(-count // shares)
    size = each if at_once is None else min(at_once, each)
    turn = min(unroll, each) if size == 1 else size

    def through(shared: Any, points: Any) -> Any:
        return side_by_side(lambda point: function(shared, point), points, size, turn)

    # Repeat the last point to get equal shares of whole iterations: a remainder would be compiled separately.
    rows = np.minimum(np.arange(count + -count % (shares * turn)), count - 1)
    points = jax.tree.map(lambda values: jnp.asarray(values)[rows], points)
    if list(devices) != jax.local_devices()[:1]:
        mesh = Mesh(devices, POINTS)
        specs: Any = {"in_specs": (P(), P(POINTS)), "out_specs": P(POINTS)}
        through = jax.shard_map(through, mesh=mesh, check_vma=False, **specs)
    return through(shared, points)


def on_devices(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy arrays to all of these devices, so that one program can read them on each."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return jax.device_put(tree, NamedSharding(Mesh(devices, POINTS), P()))
