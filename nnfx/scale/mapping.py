"""Map a function over many points: shared out between devices, and on each so many side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

POINTS = "points"
"""The axis of a mesh between whose devices points are shared out."""


def side_by_side(function: Callable[[Any], Any], over: Any, at_once: int | None, unroll: int = 1) -> Any:
    """Map a function over the first axis of all arrays: so many elements side by side, then the next; None for all.

    Elements that are taken one by one may be unrolled, so many to a turn of the loop: XLA then finds work for a second
    core among them.

    >>> side_by_side(lambda x: x**2, jnp.arange(5.0), at_once=2).tolist()
    [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    size = jax.tree.leaves(over)[0].shape[0]
    if at_once is None or at_once >= size:
        return jax.vmap(function)(over)
    if at_once > 1:
        return jax.lax.map(function, over, batch_size=at_once)
    return jax.lax.scan(lambda _, element: (None, function(element)), None, over, unroll=unroll)[1]


def one_by_one(function: Callable[[Any], Any], over: Any, room: Any) -> tuple[Any, Any]:
    """Map a function that is a long loop itself over the first axis of all arrays, one element after the other.

    Its own loop keeps its state where the last result stood: in `room`. Where the program returns that too, XLA gives
    it buffers of its own; among its temporary memory, operations wait for each other that need not, and a step of a
    network of convolutions takes a sixth longer on two cores.

    Args:
        function: of an element.
        over: arrays `(elements, ...)`.
        room: arrays like a result, of any numbers, such as an outer loop's room.

    Returns:
        The results, `(elements, ...)`, and the last one once more: the room, to be returned from the program.

    Example:
        >>> squares, room = one_by_one(lambda x: x**2, jnp.arange(3.0), room=jnp.zeros(()))
        >>> squares.tolist(), room.item()
        ([0.0, 1.0, 4.0], 4.0)
    """

    def turn(_: Any, element: Any) -> tuple[Any, Any]:
        result = function(element)
        return result, result

    room, results = jax.lax.scan(turn, room, over)
    return results, room


def map_points(
    function: Callable[[Any, Any], Any],
    shared: Any,
    points: Any,
    *,
    at_once: int | None,
    devices: Sequence[jax.Device],
    unroll: int = 1,
) -> Any:
    """Map over points: each device has its share of them, and goes through it, so many at a time.

    Args:
        function: `(shared, point) -> result`.
        shared: what all have in common.
        points: arrays `(points, ...)`.
        at_once: how many to take side by side, under `jax.vmap`; None for all of a device's.
        devices: among which the points are shared out; nothing crosses between them.
        unroll: of points that are taken one by one, how many to a turn of the loop.

    Returns:
        The results, `(points or more, ...)`: the last is repeated to make the shares equal. To leave it out within the
        same program, devices would have to talk to each other.

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

    # The last point again, for equal shares of whole turns: a remainder would be compiled apart.
    rows = np.minimum(np.arange(count + -count % (shares * turn)), count - 1)
    points = jax.tree.map(lambda values: jnp.asarray(values)[rows], points)
    if list(devices) != jax.local_devices()[:1]:
        mesh = Mesh(devices, POINTS)
        specs: Any = {"in_specs": (P(), P(POINTS)), "out_specs": P(POINTS)}
        through = jax.shard_map(through, mesh=mesh, check_vma=False, **specs)
    return through(shared, points)


def on_devices(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy to all of these devices, so that one program can read it on each."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return jax.device_put(tree, NamedSharding(Mesh(devices, POINTS), P()))
