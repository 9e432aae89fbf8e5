"""Elementary functions with correct gradients where JAX's are wrong: at zero, at infinity, and for a maximum."""

import jax
import jax.numpy as jnp
from jax import lax

from nnfx.types import Array


def absolute(x: Array) -> Array:
    """Return `|x|`, with gradient 0 at zero, midway between the slopes on either side.

    The gradient of `jnp.abs` at zero is 1.

    Args:
        x: floats, of any shape.

    Example:
        >>> absolute(jnp.array([-2.0, 0.0])), jax.grad(absolute)(0.0).item()
        (Array([2., 0.], dtype=float32), 0.0)
    """
    return x * jnp.sign(x)


def square_root(x: Array) -> Array:
    """Return `√x`, with gradient 0 at zero.

    At zero, the gradient of `jnp.sqrt(x)` is infinite, and the gradient of `jnp.sqrt(x**2)` is NaN.

    Args:
        x: floats, of any shape.

    Example:
        >>> square_root(jnp.array([4.0, 0.0])), jax.grad(square_root)(0.0).item()
        (Array([2., 0.], dtype=float32), 0.0)
    """
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, x)))


def largest(x: Array, axis: int) -> Array:
    """Return the maximum over an axis; the gradient goes to a single entry, or to the first one in a tie.

    `jnp.max` finds the entries that get the gradient by comparing all entries with the maximum. Where XLA recomputes
    the entries for the gradient, with different rounding, none may equal the maximum, and the gradient is lost. Here
    the gradient goes to the index of the maximum, which always exists.

    Args:
        x: `(..., n, ...)`; NaN counts as larger than any number.
        axis: the axis to reduce.

    Example:
        >>> largest(jnp.array([[1.0, 3.0], [2.0, 2.0]]), axis=1)
        Array([3., 2.], dtype=float32)
        >>> jax.grad(lambda x: largest(x, axis=0))(jnp.array([2.0, 2.0, 1.0]))
        Array([1., 0., 0.], dtype=float32)
    """
    winner = jnp.argmax(lax.stop_gradient(x), axis, keepdims=True)
    places = lax.broadcasted_iota(winner.dtype, x.shape, axis % x.ndim)
    return jnp.where(places == winner, x, jnp.zeros((), x.dtype)).sum(axis)


def log_softmax(logits: Array) -> Array:
    """Return the logarithm of the softmax over the last axis, `z − log Σ exp z`.

    A logit of −∞ gives its class zero probability, and a logit of +∞ gives all other classes zero probability. Rows in
    which all logits are −∞ are NaN.

    Args:
        logits: `(..., classes)`.

    Example:
        >>> log_softmax(jnp.array([[0.0, 0.0, -jnp.inf], [1.0, jnp.inf, 1.0]])).round(3).tolist()
        [[-0.693..., -0.693..., -inf], [-inf, 0.0, -inf]]
    """
    highest = lax.stop_gradient(logits.max(-1, keepdims=True))
    is_certain = (logits == highest) & (highest == jnp.inf)
    shifted = jnp.where(is_certain, 0, logits - highest)
    return shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis, with infinite logits treated as in `log_softmax`.

    Example:
        >>> softmax(jnp.array([0.0, jnp.inf])).tolist()
        [0.0, 1.0]
    """
    is_certain = logits == jnp.inf
    others = jnp.where(is_certain.any(-1, keepdims=True), -jnp.inf, logits)
    return jax.nn.softmax(jnp.where(is_certain, 0, others), -1)
