"""Pooling: the maximum or the mean of each window.

Each position within the window gives a strided view of the inputs, and the views are combined element by element. On a
CPU this is 4 to 12 times faster than XLA's windowed reduction with its gradient (`select_and_scatter`), and it needs no
custom rules: since JAX can differentiate and map slices, derivatives of every order and mode, and `jax.vmap`, work.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnfx import checks
from nnfx.ops import windows
from nnfx.ops.elementary import largest
from nnfx.types import Array, at_least_float32

JOINT_ELEMENTS = 9
"""The largest number of elements per window to combine at once; larger windows are combined one axis at a time."""


def max_pool(
    inputs: Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: windows.Padding = "VALID",
) -> Array:
    """Return the maximum of each window: `y[n, p, c] = max_q x[n, p · strides + q, c]`.

    Here n is an example, p a position in the output, q a position in the window and c a channel. The gradient goes to a
    single element of each window; in a tie, to the first one in row-major order, as in Flax.

    Args:
        inputs: x, `(batch, width, channels)` or `(batch, height, width, channels)`.
        window: the size of the window, one number for all axes or one per axis.
        strides: the distance by which the window moves, one number for all axes or one per axis; the size of the window
            if None.
        padding: `"VALID"` (elements that no full window covers are left out), `"SAME"` (`ceil(size / stride)`
            outputs), or a pair `(before, after)` for each axis. Padding is never the maximum.

    Returns:
        `(batch, ..., channels)`, of the inputs' dtype.

    Raises:
        TypeError: for inputs that are not floats, and sizes that are not integers.
        ValueError: for inputs of the wrong rank, sizes below 1, unknown padding, padding as large as the window, or a
            window larger than the padded inputs.

    Example:
        >>> max_pool(jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(1, 5, 1), 2, padding="SAME")[0, :, 0].tolist()
        [3.0, 4.0, 5.0]
    """
    inputs = jnp.asarray(inputs)
    geometry = _geometry(inputs, window, strides, padding)
    return _combine(inputs, -math.inf, geometry, _largest)


def avg_pool(
    inputs: Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: windows.Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Return the mean of each window: `y[n, p, c] = Σ_q x[n, p · strides + q, c] / count`.

    Here n is an example, p a position in the output, q a position in the window and c a channel.

    Args:
        inputs: x, `(batch, width, channels)` or `(batch, height, width, channels)`.
        window: the size of the window, one number for all axes or one per axis.
        strides: the distance by which the window moves, one number for all axes or one per axis; the size of the window
            if None.
        padding: `"VALID"` (elements that no full window covers are left out), `"SAME"` (`ceil(size / stride)`
            outputs), or a pair `(before, after)` for each axis.
        count_include_pad: whether zeros from padding count as elements (the default in Flax and PyTorch), so that the
            count is the size of the window; if not, only elements of the inputs are counted.

    Returns:
        `(batch, ..., channels)`, of the inputs' dtype; half precision is summed in float32.

    Raises:
        TypeError: for inputs that are not floats, and sizes that are not integers.
        ValueError: for inputs of the wrong rank, sizes below 1, unknown padding, padding as large as the window, or a
            window larger than the padded inputs.

    Example:
        >>> x = jnp.array([3.0, 1.0, 4.0]).reshape(1, 3, 1)
        >>> avg_pool(x, 2, padding="SAME")[0, :, 0].tolist()
        [2.0, 2.0]
        >>> avg_pool(x, 2, padding="SAME", count_include_pad=False)[0, :, 0].tolist()
        [2.0, 4.0]
    """
    inputs = jnp.asarray(inputs)
    geometry = _geometry(inputs, window, strides, padding)
    dtype = at_least_float32(inputs.dtype)
    total = _combine(inputs.astype(dtype), 0.0, geometry, _sum)
    if count_include_pad:
        return (total / math.prod(geometry.window)).astype(inputs.dtype)
    counts = _combine(jnp.ones((1, *geometry.sizes, 1), dtype), 0.0, geometry, _sum)
    return (total / counts).astype(inputs.dtype)


def global_max_pool(inputs: Array) -> Array:
    """Return the maximum of each channel over all positions; in a tie, the first position gets the gradient.

    Args:
        inputs: `(batch, width, channels)` or `(batch, height, width, channels)`.

    Returns:
        `(batch, channels)`, of the inputs' dtype.

    Raises:
        ValueError: for inputs of the wrong rank.

    Example:
        >>> global_max_pool(jnp.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[6.0, 7.0]]
    """
    inputs = jnp.asarray(inputs)
    windows.sizes(inputs)  # raises for inputs of the wrong rank
    return largest(inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]), axis=1)


def global_avg_pool(inputs: Array) -> Array:
    """Return the mean of each channel over all positions.

    Args:
        inputs: `(batch, width, channels)` or `(batch, height, width, channels)`.

    Returns:
        `(batch, channels)`, of the inputs' dtype; half precision is summed in float32.

    Raises:
        ValueError: for inputs of the wrong rank.

    Example:
        >>> global_avg_pool(jnp.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[3.0, 4.0]]

    References:
        Lin, Chen and Yan, *Network in network*, ICLR 2014.
    """
    inputs = jnp.asarray(inputs)
    return inputs.mean(range(1, 1 + len(windows.sizes(inputs))))


class _Geometry(NamedTuple):
    """The sizes of the inputs and the window, the strides and the padding, for each spatial axis."""

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: windows.Pairs


def _geometry(
    inputs: Array, window: int | Sequence[int], strides: int | Sequence[int] | None, padding: windows.Padding
) -> _Geometry:
    """Return the geometry of a pooling operation, after checking the arguments."""
    sizes = windows.sizes(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"inputs: expected an array of floats, got {checks.describe(inputs)}")
    covered = windows.per_axis("window", window, len(sizes))
    steps = covered if strides is None else windows.per_axis("strides", strides, len(sizes))
    pads = windows.pairs(padding, sizes, covered, steps)
    if any(max(pair) >= size for pair, size in zip(pads, covered, strict=True)):
        raise ValueError(
            f"padding: expected less than the window, {covered}, got {pads}; some windows would hold only padding"
        )
    return _Geometry(sizes, covered, steps, pads)


@partial(jax.jit, static_argnums=(1, 2, 3))  # a window takes many small operations, which are slow if each is a program
def _combine(inputs: Array, filling: float, geometry: _Geometry, combine: Callable[[Sequence[Array]], Array]) -> Array:
    """Combine the elements of each window, in row-major order."""
    edges = [(low, high, 0) for low, high in geometry.padding]
    x = lax.pad(inputs, jnp.asarray(filling, inputs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    if math.prod(geometry.window) <= JOINT_ELEMENTS:
        return combine(_views(x, geometry.window, geometry.strides))
    # The last axis is reduced first, so that the first maximum in row-major order gets the gradient.
    for axis in reversed(range(len(geometry.window))):
        window, strides = (
            tuple(size if i == axis else 1 for i, size in enumerate(sizes))
            for sizes in (geometry.window, geometry.strides)
        )
        x = combine(_views(x, window, strides))
    return x


def _views(x: Array, window: Sequence[int], strides: Sequence[int]) -> list[Array]:
    """Return a view for each position within the window, in row-major order, with that element of every window."""
    reach = [(size - w) // s * s + 1 for size, w, s in zip(x.shape[1:-1], window, strides, strict=True)]
    return [
        lax.slice(
            x,
            (0, *start, 0),
            (x.shape[0], *(first + length for first, length in zip(start, reach, strict=True)), x.shape[-1]),
            (1, *strides, 1),
        )
        for start in itertools.product(*map(range, window))
    ]


def _largest(views: Sequence[Array]) -> Array:
    """Return the element-wise maximum of the views; NaN counts as larger than any number.

    The index of the maximum is found first, separately from the values, so that the gradient is one mask per view
    rather than a chain of selections as long as the list of views.
    """
    highest, winner = lax.stop_gradient(views[0]), jnp.zeros(views[0].shape, jnp.int32)
    for number, view in enumerate(map(lax.stop_gradient, views[1:]), start=1):
        better = (view > highest) | (jnp.isnan(view) & ~jnp.isnan(highest))
        highest, winner = jnp.where(better, view, highest), jnp.where(better, number, winner)
    return _sum([jnp.where(winner == number, view, 0) for number, view in enumerate(views)])


def _sum(views: Sequence[Array]) -> Array:
    return reduce(jnp.add, views)
