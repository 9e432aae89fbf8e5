"""The geometry shared by convolution and pooling: a window that slides over the axes between batch and channels."""

from collections.abc import Sequence

import numpy as np
from jax import lax

from nnfx import checks
from nnfx.types import Array

Pairs = tuple[tuple[int, int], ...]
"""The padding before and after, for each axis."""
Padding = str | Sequence[tuple[int, int]]
"""`"SAME"`, `"VALID"`, or one pair `(before, after)` for each axis."""


def sizes(inputs: Array) -> tuple[int, ...]:
    """Return the sizes of the one or two axes that a window slides over, after checking the inputs."""
    checks.numeric("inputs", inputs)
    if inputs.ndim not in (3, 4):
        raise ValueError(
            "inputs: expected (batch, width, channels) or (batch, height, width, channels), "
            f"got {checks.describe(inputs)}"
        )
    return inputs.shape[1:-1]


def per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one positive integer per axis; a single integer applies to all axes.

    >>> per_axis("strides", 2, 2), per_axis("strides", (2, 1), 2)
    ((2, 2), (2, 1))
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        checks.positive_integer(name, value)
        return (int(value),) * axes
    if len(value) != axes:
        raise ValueError(f"{name}: expected a positive integer, or {axes} of them, got {checks.describe(value)}")
    for one in value:
        checks.positive_integer(name, one)
    return tuple(int(one) for one in value)


def pairs(
    padding: Padding, sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], name: str = "window"
) -> Pairs:
    """Return the padding before and after each axis; `"SAME"` gives `ceil(size / stride)` outputs, as in TensorFlow.

    Args:
        padding: the padding as the user passed it.
        sizes: the sizes of the axes.
        window: the extent of the window on each axis, including its gaps.
        strides: the strides of the window.
        name: the argument that determines the window, for error messages.

    Raises:
        TypeError: for padding of the wrong type.
        ValueError: for padding that is unknown or negative, or a window larger than the padded inputs.

    Example:
        >>> pairs("SAME", (7, 8), (2, 3), (2, 1))
        ((0, 1), (1, 1))
    """
    if isinstance(padding, str):
        checks.choice("padding", padding, ("SAME", "VALID"))
        found = tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(sizes, window, strides, padding))
    else:
        found = _explicit(padding, len(sizes))
    padded = tuple(size + low + high for size, (low, high) in zip(sizes, found, strict=True))
    if any(covered > size for covered, size in zip(window, padded, strict=True)):
        raise ValueError(f"{name}: expected at most the size of the padded inputs, {padded}, got {window}")
    return found


def _explicit(padding: Sequence[tuple[int, int]], axes: int) -> Pairs:
    """Return explicit padding as pairs of integers, after checking it."""
    wanted = f"padding: expected 'SAME', 'VALID' or {axes} pairs of non-negative integers"
    try:
        table = np.asarray(padding)
    except ValueError:
        raise ValueError(f"{wanted}, got {checks.describe(padding)}") from None
    if not np.issubdtype(table.dtype, np.integer):
        raise TypeError(f"{wanted}, got {checks.describe(padding)}")
    if table.shape != (axes, 2) or table.min() < 0:
        raise ValueError(f"{wanted}, got {checks.describe(padding)}")
    return tuple((int(low), int(high)) for low, high in table)
