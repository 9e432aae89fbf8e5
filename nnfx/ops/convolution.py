"""Convolution whose gradients are fast on every backend, even within loops and under `jax.vmap`.

A convolution is linear in its inputs and in its kernel. The convolution and its two gradients are each other's
derivatives, so three functions with `jax.custom_vjp` suffice for gradients of every order:

    forward(inputs, kernel)             inputs ⋆ kernel
    to_inputs(cotangent, kernel)        the cotangent of the inputs, from the cotangent of the outputs
    to_kernel(inputs, cotangent)        the cotangent of the kernel, from the cotangent of the outputs
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnfx import checks
from nnfx.ops import windows, winograd
from nnfx.types import Array, at_least_float32

CHUNK_POSITIONS = 2048
"""The largest number of positions (image × height × width) per chunk on a CPU; fits its cache."""


def convolution(
    inputs: Array,
    kernel: Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: windows.Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    plain: bool = False,
) -> Array:
    """Convolve over one or two axes: `y[n, p, o] = Σ_{q, i} x[n, p · strides + q · dilation, i] k[q, i, o]`.

    Here n is an example, p a position in the output, q a position in the kernel, i a channel and o a feature. As is
    customary in deep learning, this is a cross-correlation: the kernel is not flipped.

    Args:
        inputs: x, `(batch, width, channels)` or `(batch, height, width, channels)`.
        kernel: k, `(width, channels, features)` or `(height, width, channels, features)`, of the inputs' dtype.
        strides: the distance by which the window moves, one number for all axes or one per axis.
        padding: `"SAME"` (`ceil(size / stride)` outputs), `"VALID"` (no padding), or a pair `(before, after)` for each
            axis: `[(size - 1, 0)]` makes a causal convolution in one dimension.
        dilation: the distance between elements of the kernel, one number for all axes or one per axis.
        plain: whether to use XLA's own convolution, which also has forward-mode derivatives (`jax.jvp`,
            `jax.hessian`), but slow gradients within a loop on a CPU.

    Returns:
        The feature maps, `(batch, ..., features)`, of the inputs' dtype.

    Raises:
        TypeError: for arrays that are not floats, or not of the same dtype, and for sizes that are not integers.
        ValueError: for arrays of the wrong rank, a kernel whose channels differ from the inputs', strides or dilation
            below 1, unknown padding, and a kernel larger than the padded inputs.

    Example:
        >>> image = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> difference = jnp.array([-1.0, 1.0]).reshape(1, 2, 1, 1)
        >>> convolution(image, difference, padding="VALID")[0, :, :, 0].tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, Proceedings of the IEEE 1998.
        Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*, 2016.
    """
    inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
    inputs, geometry = _prepare(inputs, kernel, strides, padding, dilation)
    if plain:
        return _forward_by_xla(geometry, inputs, kernel)
    # Within shard_map, one operand may vary over the mesh and the other not, but the rules below need both to vary.
    # Adding a zero made from the other operand ensures this (XLA removes it), and the transpose of this addition is the
    # sum over the mesh that the gradient needs.
    alike = inputs + jnp.zeros_like(kernel, shape=()), kernel + jnp.zeros_like(inputs, shape=())
    return _forward(geometry, *alike)


class _Geometry(NamedTuple):
    """The static parameters of a convolution, with one number or pair per spatial axis."""

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: windows.Pairs
    dilation: tuple[int, ...]


def _prepare(
    inputs: Array,
    kernel: Array,
    strides: int | Sequence[int],
    padding: windows.Padding,
    dilation: int | Sequence[int],
) -> tuple[Array, _Geometry]:
    """Check the arguments; return the inputs, cut or padded so that windows cover them exactly, and the geometry."""
    sizes = windows.sizes(inputs)
    checks.numeric("kernel", kernel)
    axes = len(sizes)
    if kernel.ndim != axes + 2:
        layout = "(height, width, channels, features)" if axes == 2 else "(width, channels, features)"
        raise ValueError(f"kernel: expected {layout} for inputs of rank {axes + 2}, got {checks.describe(kernel)}")
    if kernel.shape[-2] != inputs.shape[-1]:
        raise ValueError(
            f"kernel: expected {inputs.shape[-1]} channels, like the inputs, got {kernel.shape[-2]} "
            f"in {checks.describe(kernel)}"
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or kernel.dtype != inputs.dtype:
        raise TypeError(
            "inputs and kernel: expected arrays of floats of the same dtype, "
            f"got {checks.describe(inputs)} and {checks.describe(kernel)}"
        )
    if 0 in kernel.shape:
        raise ValueError(f"kernel: expected no empty axis, got {checks.describe(kernel)}")
    size, stride = kernel.shape[:axes], windows.per_axis("strides", strides, axes)
    gap = windows.per_axis("dilation", dilation, axes)
    reach = tuple((k - 1) * d for k, d in zip(size, gap, strict=True))
    pads = windows.pairs(padding, sizes, tuple(r + 1 for r in reach), stride, name="kernel")
    outputs = tuple(
        (n + low + high - r - 1) // s + 1 for n, (low, high), r, s in zip(sizes, pads, reach, stride, strict=True)
    )
    # Elements that no window covers are cut off here, and padding beyond the kernel's reach is added here: otherwise,
    # gradients would have negative padding, for which XLA returns wrong results on a CPU (jaxlib 0.10.1, float32).
    highs = [(o - 1) * s + r + 1 - n - p[0] for o, s, r, n, p in zip(outputs, stride, reach, sizes, pads, strict=True)]
    kept = tuple((min(low, r), min(max(high, 0), r)) for (low, _), high, r in zip(pads, highs, reach, strict=True))
    edges = [(low - near, high - far, 0) for (low, _), high, (near, far) in zip(pads, highs, kept, strict=True)]
    if any(edge != (0, 0, 0) for edge in edges):
        inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return inputs, _Geometry(inputs.shape[1:-1], size, outputs, stride, kept, gap)


def _convolve(
    inputs: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
    spread: tuple[int, ...] | None = None,
) -> Array:
    """Call XLA's convolution with channels last, the only layout that is fast on a CPU inside a loop."""
    layouts = ("NWC", "WIO", "NWC") if inputs.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, lhs_dilation=spread, rhs_dilation=dilation, dimension_numbers=layouts
    )


def _forward_by_xla(geometry: _Geometry, inputs: Array, kernel: Array) -> Array:
    return _convolve(inputs, kernel, geometry.strides, geometry.padding, geometry.dilation)


def _to_inputs_by_xla(geometry: _Geometry, cotangent: Array, kernel: Array) -> Array:
    """Convolve the cotangent, dilated by the strides, with the flipped kernel.

    This equals XLA's own gradient, except that the kernel is flipped as an array, not by a convolution with reversed
    windows, which is many times slower inside a loop on a CPU.
    """
    ones = (1,) * len(geometry.inputs)
    padding = _padding_of_gradient(geometry)
    return _convolve(cotangent, _turned(kernel), ones, padding, geometry.dilation, spread=geometry.strides)


def _turned(kernel: Array) -> Array:
    """Flip a kernel along its spatial axes, and swap inputs and outputs."""
    return jnp.swapaxes(jnp.flip(kernel, range(kernel.ndim - 2)), -1, -2)


def _padding_of_gradient(geometry: _Geometry) -> list[tuple[int, int]]:
    """Return how much to pad the cotangent, dilated by the strides, so that its convolution has the inputs' size."""
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    before = [r - low for r, (low, _) in zip(reach, geometry.padding, strict=True)]
    spread = [(o - 1) * s + 1 for o, s in zip(geometry.outputs, geometry.strides, strict=True)]
    after = [n + r - b - s for n, r, b, s in zip(geometry.inputs, reach, before, spread, strict=True)]
    return list(zip(before, after, strict=True))


def _to_kernel_by_xla(geometry: _Geometry, inputs: Array, cotangent: Array) -> Array:
    """Convolve the inputs with the cotangent as the kernel, with batch and channel axes exchanged.

    In this layout, the compilers for GPUs and TPUs recognise the operation as a kernel gradient.
    """
    layouts = ("CWN", "IWO", "WNC") if inputs.ndim == 3 else ("CHWN", "IHWO", "HWNC")
    return lax.conv_general_dilated(
        inputs,
        cotangent,
        window_strides=geometry.dilation,
        padding=geometry.padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=layouts,
    )


def _forward_on_cpu(geometry: _Geometry, inputs: Array, kernel: Array) -> Array:
    """Convolve by tiles where that is faster, a few images at a time."""
    if not (_is_dense(geometry) and winograd.suits(kernel.shape, geometry.outputs, kernel.dtype)):
        return _forward_by_xla(geometry, inputs, kernel)
    return _by_tiles(inputs, kernel, geometry.outputs, geometry.padding)


def _to_inputs_on_cpu(geometry: _Geometry, cotangent: Array, kernel: Array) -> Array:
    """Convolve the cotangent with the flipped kernel, by tiles where that is faster."""
    if not (_is_dense(geometry) and winograd.suits(kernel.shape, geometry.inputs, kernel.dtype)):
        return _to_inputs_by_xla(geometry, cotangent, kernel)
    return _by_tiles(cotangent, _turned(kernel), geometry.inputs, _padding_of_gradient(geometry))


def _is_dense(geometry: _Geometry) -> bool:
    """Return whether all strides and dilations are 1."""
    return {*geometry.strides, *geometry.dilation} == {1}


def _by_tiles(inputs: Array, kernel: Array, outputs: tuple[int, ...], padding: Sequence[tuple[int, int]]) -> Array:
    """Convolve by tiles, one chunk of images after the other."""
    chunks = _chunks(math.prod(outputs), inputs)[0]

    def turn(_: None, chunk: Array) -> tuple[None, Array]:
        return None, winograd.convolve(chunk, kernel, outputs, padding)

    # two chunks per iteration use two cores, as in `_to_kernel_in_chunks`
    _, found = lax.scan(turn, None, chunks, unroll=2)
    return found.reshape(-1, *found.shape[2:])[: len(inputs)]


def _chunks(positions: int, *images: Array) -> list[Array]:
    """Divide arrays `(batch, ...)` into chunks of a few images, `(chunks, images, ...)`, filled up with zeros."""
    batch, size = len(images[0]), 1
    while 2 * size * positions <= CHUNK_POSITIONS and size < batch:
        size *= 2
    padded = [jnp.pad(each, [(0, -batch % size), *[(0, 0)] * (each.ndim - 1)]) for each in images]
    return [each.reshape(-1, size, *each.shape[1:]) for each in padded]


def _to_kernel_in_chunks(geometry: _Geometry, inputs: Array, cotangent: Array) -> Array:
    """Compute the kernel gradient as a sum over chunks of a few images, with each chunk's axes in the fastest order.

    Whole batches overflow a CPU's cache, and XLA's layout for whole batches is 25 times slower inside a loop.
    """
    edge = [(low, high, 0) for low, high in geometry.padding]
    shape = (inputs.shape[-1], *geometry.kernel, cotangent.shape[-1])
    start = jnp.zeros_like(cotangent, at_least_float32(inputs.dtype), shape=shape)
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *edge, (0, 0, 0)])

    def add(total: Array, chunk: list[Array]) -> tuple[Array, None]:
        x, g = jnp.swapaxes(chunk[0], 0, -1), jnp.moveaxis(chunk[1], 0, -2)
        part = _convolve(x, g, geometry.dilation, [(0, 0)] * len(edge), geometry.strides)
        return total + part.astype(total.dtype), None

    # The two chunks of an iteration are independent of each other, so XLA runs them on separate cores.
    total, _ = lax.scan(add, start, _chunks(math.prod(geometry.outputs), inputs, cotangent), unroll=2)
    return jnp.moveaxis(total, 0, -2).astype(inputs.dtype)


def _to_kernel_on_cpu(geometry: _Geometry, inputs: Array, cotangent: Array) -> Array:
    """Compute the kernel gradient by tiles where that is faster, else as a sum of convolutions."""
    shape = (*geometry.kernel, inputs.shape[-1], cotangent.shape[-1])
    is_wide = math.prod(shape[-2:]) >= winograd.FEWEST_PRODUCTS
    if not (is_wide and _is_dense(geometry) and winograd.suits(shape, geometry.outputs, inputs.dtype)):
        return _to_kernel_in_chunks(geometry, inputs, cotangent)

    def add(total: Array, chunk: list[Array]) -> tuple[Array, None]:
        return total + winograd.kernel_gradient(chunk[0], chunk[1], geometry.padding), None

    start = jnp.zeros_like(cotangent, shape=shape)
    return lax.scan(add, start, _chunks(math.prod(geometry.outputs), inputs, cotangent), unroll=2)[0]


def _one_by_one(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return the function with `jax.vmap` over the right operand replaced by a loop over members.

    Mapped over both operands, it would be a grouped convolution, for which XLA has only a naive loop on a CPU; mapped
    over the right operand only, it would be a convolution with the features of all members, which is no faster than the
    loop. If the right operand is shared, the members of the left operand become additional examples, as intended.
    """
    looped = jax.custom_batching.custom_vmap(function)

    @looped.def_vmap
    def rule(size: int, batched: Sequence[bool], left: Array, right: Array) -> tuple[Array, bool]:
        del size
        if not batched[1]:
            return _one_by_one(jax.vmap(function, (0, None)))(left, right), True
        if not batched[0]:
            return lax.map(lambda one: looped(left, one), right), True
        return lax.map(lambda pair: looped(*pair), (left, right)), True

    return looped


Rule = Callable[[_Geometry, Array, Array], Array]


@partial(jax.jit, static_argnums=(0, 1, 2))  # otherwise, each call outside jit would compile again
def _by_backend(cpu: Rule, default: Rule, geometry: _Geometry, left: Array, right: Array) -> Array:
    # Chosen at lowering, not by jax.default_backend() at tracing: a machine with a GPU may still compile for its CPU
    # (jit's device, jax.export), and the target is known only at lowering. Each branch has its own vmap rule.
    return lax.platform_dependent(
        left, right, cpu=_one_by_one(partial(cpu, geometry)), default=partial(default, geometry)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(geometry: _Geometry, inputs: Array, kernel: Array) -> Array:
    return _by_backend(_forward_on_cpu, _forward_by_xla, geometry, inputs, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_inputs(geometry: _Geometry, cotangent: Array, kernel: Array) -> Array:
    return _by_backend(_to_inputs_on_cpu, _to_inputs_by_xla, geometry, cotangent, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_kernel(geometry: _Geometry, inputs: Array, cotangent: Array) -> Array:
    return _by_backend(_to_kernel_on_cpu, _to_kernel_by_xla, geometry, inputs, cotangent)


def _differentiate(function: jax.custom_vjp[Array], left: Rule, right: Rule) -> None:
    """Define the gradient of a bilinear function; for each operand, it is bilinear in the other and the cotangent."""

    def forward(geometry: _Geometry, *operands: Array) -> tuple[Array, tuple[Array, ...]]:
        return function(geometry, *operands), operands

    def backward(geometry: _Geometry, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        return left(geometry, cotangent, operands[1]), right(geometry, operands[0], cotangent)

    function.defvjp(forward, backward)


_differentiate(_forward, left=_to_inputs, right=_to_kernel)
# The operands are (cotangent, kernel); h is a cotangent of the inputs' shape.
_differentiate(_to_inputs, left=_forward, right=lambda geometry, cotangent, h: _to_kernel(geometry, h, cotangent))
# The operands are (inputs, cotangent); h is a cotangent of the kernel's shape.
_differentiate(_to_kernel, left=lambda geometry, h, cotangent: _to_inputs(geometry, cotangent, h), right=_forward)
