"""The product of inputs and weights in a dense layer, in a formulation that depends on the number of inputs."""

from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

from nnfx import checks
from nnfx.types import Array

FEW = 4
"""For this many inputs or fewer, a CPU is faster with sums of scaled columns than with a matrix product."""


def dot_product(inputs: Array, kernel: Array) -> Array:
    """Multiply inputs by weights and sum the products: `yₙⱼ = Σᵢ xₙᵢ wᵢⱼ`.

    With few inputs, such as fare and age, a matrix product makes poor use of a CPU. It is then written as a sum of
    input columns multiplied by their weights, which XLA fuses with the bias and the activation that follow. Gradients
    are matrix products as usual. Derivatives of every order and mode, and `jax.vmap`, are supported.

    Args:
        inputs: x, `(..., features)`.
        kernel: w, `(features, outputs)`, of the same dtype.

    Returns:
        `(..., outputs)`, of the same dtype.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> dot_product(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0, 1.0], [4.0, 1.0, 1.0]]))
        Array([[11.,  2.,  3.]], dtype=float32)

    References:
        Rosenblatt, *The perceptron*, Psychological Review 1958.
    """
    if inputs.ndim < 1 or kernel.ndim != 2 or inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"kernel: expected ({inputs.shape[-1] if inputs.ndim else 'features'}, outputs) for inputs "
            f"{checks.describe(inputs)}, got {checks.describe(kernel)}"
        )
    # in half precision, a matrix product accumulates in float32, which a sum of columns would not
    is_thin = 0 < len(kernel) <= FEW and inputs.dtype == kernel.dtype and inputs.dtype.itemsize >= 4
    return _thin(inputs, kernel) if is_thin else inputs @ kernel


@jax.custom_jvp
def _thin(inputs: Array, kernel: Array) -> Array:
    """Multiply a few inputs by weights, as a sum of columns on CPUs."""
    return lax.platform_dependent(inputs, kernel, cpu=_columns, default=jnp.matmul)


def _columns(inputs: Array, kernel: Array) -> Array:
    shape = (*inputs.shape[:-1], kernel.shape[1])
    scaled = [inputs[..., i, None] * jnp.broadcast_to(row, shape) for i, row in enumerate(kernel)]
    return reduce(jnp.add, scaled)


@_thin.defjvp
def _thin_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (inputs, kernel), (inputs_tangent, kernel_tangent) = primals, tangents
    return _thin(inputs, kernel), inputs_tangent @ kernel + inputs @ kernel_tangent
