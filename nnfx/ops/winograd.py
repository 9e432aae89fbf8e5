"""Convolutions with 3 × 3 kernels on CPUs, with fewer multiplications.

Winograd's minimal filtering F(2 × 2, 3 × 3) computes 2 × 2 outputs from 4 × 4 inputs d and a 3 × 3 kernel g as

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

with 16 multiplications instead of 36. The transformations by A, B and G only add and halve. With many channels, each of
the 16 positions of a tile takes one matrix product, `(tiles, channels) @ (channels, features)`. The gradient of the
kernel is the transpose of the same computation. Larger tiles would take fewer multiplications, but lose accuracy: the
errors of F(2 × 2, 3 × 3) are about as large as the errors of a direct convolution, and those of F(4 × 4, 3 × 3) are ten
times larger.

Lavin and Gray, *Fast algorithms for convolutional neural networks*, CVPR 2016.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from nnfx.types import Array

TILE = 2
"""The number of outputs of a tile along each axis; a tile has two more inputs than outputs along each axis."""
FEWEST_CHANNELS = 64
"""With fewer input or output channels, the transformations take longer than the multiplications saved."""
FEWEST_PRODUCTS = 64 * 128
"""The smallest product of input and output channels for which the gradient of the kernel is faster by tiles, too."""
_LEAST_SIZE = 12
"""The smallest width and height of the outputs: for smaller outputs, incomplete tiles cost more than is saved."""


def suits(kernel: Sequence[int], outputs: Sequence[int], dtype: DTypeLike) -> bool:
    """Return whether a convolution of stride 1 without dilation is faster by tiles.

    Args:
        kernel: the shape of the kernel, `(height, width, channels, features)`.
        outputs: the height and width of the outputs.
        dtype: the dtype of all arrays.

    Example:
        >>> suits((3, 3, 64, 64), (28, 28), jnp.float32), suits((3, 3, 1, 64), (28, 28), jnp.float32)
        (True, False)
    """
    is_large = min(kernel[-2:]) >= FEWEST_CHANNELS and min(outputs) >= _LEAST_SIZE
    return is_large and tuple(kernel[:-2]) == (3, 3) and dtype == jnp.float32


def convolve(inputs: Array, kernel: Array, outputs: Sequence[int], padding: Sequence[tuple[int, int]]) -> Array:
    """Convolve images `(batch, height, width, channels)` with a kernel `(3, 3, channels, features)`.

    Args:
        inputs: the images.
        kernel: the kernel.
        outputs: the height and width of the outputs.
        padding: the zeros before and after the images, for each of the two axes.

    Returns:
        The outputs, `(batch, height, width, features)`.
    """
    count = [-(-size // TILE) for size in outputs]
    products = _flat(_tiles(inputs, count, padding)) @ _flat(_weights(kernel))
    rows = _apart(jnp.stack(_of_products(products.reshape(4, 4, -1, *count, kernel.shape[-1]))))
    found = jnp.stack(_of_products(jnp.swapaxes(rows, 0, 1)))  # (2, 2, batch, height, width, features)
    whole = found.transpose(2, 3, 0, 4, 1, 5).reshape(-1, TILE * count[0], TILE * count[1], kernel.shape[-1])
    return whole[:, : outputs[0], : outputs[1]]


def kernel_gradient(inputs: Array, cotangent: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Return the cotangent of the kernel of `convolve`, `(3, 3, channels, features)`."""
    outputs = cotangent.shape[1:3]
    count = [-(-size // TILE) for size in outputs]
    ends = [(0, TILE * tiles - size) for tiles, size in zip(count, outputs, strict=True)]
    split = jnp.pad(cotangent, [(0, 0), *ends, (0, 0)])
    split = split.reshape(-1, count[0], TILE, count[1], TILE, cotangent.shape[-1])
    rows = _apart(jnp.stack(_of_cotangent(jnp.moveaxis(split, 2, 0))))
    of_tiles = jnp.stack(_of_cotangent(jnp.moveaxis(rows, 4, 0)))
    tiles = _flat(_tiles(inputs, count, padding))
    products = lax.dot_general(tiles, _flat(of_tiles), (((1,), (1,)), ((0,), (0,))))
    rows = jnp.stack(_of_weights(products.reshape(4, 4, *products.shape[1:])))
    return jnp.stack(_of_weights(jnp.swapaxes(rows, 0, 1)))


def _tiles(inputs: Array, count: Sequence[int], padding: Sequence[tuple[int, int]]) -> Array:
    """Return the transformed inputs of all tiles, `(4 columns, 4 rows, batch, height, width, channels)`."""
    edges = [
        (low, TILE * (tiles + 1) - size - low, 0)
        for tiles, size, (low, _) in zip(count, inputs.shape[1:3], padding, strict=True)
    ]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    split = padded.reshape(-1, count[0] + 1, TILE, count[1] + 1, TILE, inputs.shape[-1])
    steps = [divmod(place, TILE) for place in range(TILE + 2)]
    rows = _apart(jnp.stack(_of_inputs([split[:, step : step + count[0], place] for step, place in steps])))
    return jnp.stack(_of_inputs([rows[:, :, :, step : step + count[1], place] for step, place in steps]))


def _weights(kernel: Array) -> Array:
    """Return the transformed kernel, `(4 columns, 4 rows, channels, features)`."""
    rows = jnp.stack(_of_kernel(kernel))
    return jnp.stack(_of_kernel(jnp.swapaxes(rows, 0, 1)))


def _flat(tiles: Array) -> Array:
    """Return a matrix for each of the 16 places, `(16, tiles, channels)`: XLA's products of other shapes are slow."""
    return tiles.reshape(16, -1, tiles.shape[-1])


def _apart(rows: Array) -> Array:
    """Keep the two halves of a transformation apart: fused into one loop, XLA computes the first one repeatedly."""
    return lax.optimization_barrier(rows)


def _of_inputs(d: Array | Sequence[Array]) -> list[Array]:
    """Return `Bᵀ d`."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_kernel(g: Array | Sequence[Array]) -> list[Array]:
    """Return `G g`."""
    outer, inner = 0.5 * (g[0] + g[2]), 0.5 * g[1]
    return [g[0], outer + inner, outer - inner, g[2]]


def _of_products(m: Array | Sequence[Array]) -> list[Array]:
    """Return `Aᵀ m`."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _of_cotangent(y: Array | Sequence[Array]) -> list[Array]:
    """Return `A y`."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _of_weights(u: Array | Sequence[Array]) -> list[Array]:
    """Return `Gᵀ u`."""
    total, difference = 0.5 * (u[1] + u[2]), 0.5 * (u[1] - u[2])
    return [u[0] + total, difference, total + u[3]]
