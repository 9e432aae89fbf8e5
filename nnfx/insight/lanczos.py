"""The Lanczos method: reduce a symmetric matrix, given by its products with vectors, to a small tridiagonal matrix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nnfx.types import Array


class Tridiagonal(NamedTuple):
    """The projection T of a symmetric matrix A onto a basis: `A Qᵀ = Qᵀ T + β r eₖᵀ`, with r orthogonal to the basis.

    Attributes:
        matrix: T, `(steps, steps)`.
        basis: Q, orthonormal rows, `(steps, size)`.
        rest: β, a scalar.
    """

    matrix: Array
    basis: Array
    rest: Array


def tridiagonal(product: Callable[[Array], Array], start: Array, steps: int, key: Array) -> Tridiagonal:
    """Reduce a symmetric matrix to tridiagonal form from a starting vector, with full reorthogonalisation.

    Once the vectors span an invariant subspace, only rounding errors remain, and a random vector is used instead.

    Args:
        product: the function that multiplies A by a vector.
        start: a vector `(size,)` other than zero; the first vector of the basis has the same direction.
        steps: the number of vectors, at most `size`.
        key: a typed key, from which random vectors are drawn.

    Example:
        >>> a = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> found = tridiagonal(lambda x: a @ x, jnp.array([1.0, 0.0]), 2, jax.random.key(0))
        >>> abs(found.matrix).round(4).tolist()
        [[2.0, 1.0], [1.0, 3.0]]
    """
    tiny = jnp.finfo(start.dtype).eps * start.size**0.5

    def orthogonal(vector: Array, basis: Array) -> Array:
        for _ in range(2):  # the second pass removes what rounding left after the first
            vector = vector - (basis @ vector) @ basis
        return vector

    def advance(carry: tuple[Array, Array, Array], step: Array) -> tuple[tuple[Array, Array, Array], Array]:
        basis, vector, largest = carry
        basis = basis.at[step].set(vector)
        image = product(vector)
        diagonal = jnp.vdot(vector, image)
        rest = orthogonal(image, basis)
        beyond = jnp.linalg.norm(rest)
        largest = jnp.maximum(largest, jnp.linalg.norm(image))
        is_closed = beyond <= tiny * largest
        drawn = jax.random.normal(jax.random.fold_in(key, step), vector.shape, vector.dtype)
        rest = jnp.where(is_closed, orthogonal(drawn, basis), rest)
        vector = rest / jnp.maximum(jnp.linalg.norm(rest), jnp.finfo(rest.dtype).tiny)
        return (basis, vector, largest), jnp.stack([diagonal, jnp.where(is_closed, 0, beyond)])

    first = start / jnp.linalg.norm(start)
    carry = (jnp.zeros((steps, start.size), start.dtype), first, jnp.zeros((), start.dtype))
    (basis, _, _), found = jax.lax.scan(advance, carry, jnp.arange(steps))
    diagonal, beside = found.T
    matrix = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    return Tridiagonal(matrix, basis, beside[-1])
