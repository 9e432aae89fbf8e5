"""The binary cross-entropy of each logit, with one exponential and no logarithm."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from nnfx import checks
from nnfx.types import Array

TERMS = 7
"""The number of terms of artanh's series; the remainder is below `9⁻⁷ / 15`, a fifth of float32's rounding error."""


def logistic_loss(logits: Array, labels: Array) -> Array:
    """Return the binary cross-entropy `−y log σ(z) − (1 − y) log(1 − σ(z))` of each logit z.

    It is computed as `log(1 + exp(−|z|)) + (1 − y) max(z, 0) + y max(−z, 0)`, without overflow or cancellation. The
    loss and gradient of an infinite logit are zero for the right label (1 for +∞, 0 for −∞); otherwise, the loss is
    infinite. The gradient is `(1 − y) σ(z) − y σ(−z)`, also without cancellation. Derivatives of every order and mode,
    and `jax.vmap`, are supported.

    On a CPU, most of the time would be spent on the logarithm. In float32 and lower precision, it is replaced by a few
    terms of the series of artanh, since `log(1 + u) = 2 artanh(u / (2 + u))`, and `u / (2 + u)` is at most ⅓ for
    `u = exp(−|z|)`.

    Args:
        logits: z, of any shape.
        labels: y, of the same shape and dtype: 0, 1, or values in between.

    Returns:
        The losses in nats, of the same shape and dtype.

    Raises:
        ValueError: for labels of a different shape.

    Example:
        >>> logistic_loss(jnp.array([0.0, 2.0, -100.0]), jnp.array([1.0, 0.0, 1.0]))
        Array([  0.6931472,   2.126928 , 100.       ], dtype=float32)

    References:
        Abramowitz and Stegun, *Handbook of mathematical functions*, 4.6.22 and 4.6.33.
    """
    if logits.shape != labels.shape:
        raise ValueError(f"labels: expected the shape of the logits, {logits.shape}, got {checks.describe(labels)}")
    return _logistic_loss(logits, labels)


@jax.custom_jvp
def _logistic_loss(logits: Array, labels: Array) -> Array:
    exponential = jnp.exp(-jnp.abs(logits))
    if jnp.finfo(logits.dtype).bits > 32:
        logarithm = jnp.log1p(exponential)
    else:
        logarithm = lax.platform_dependent(exponential, cpu=_log1p, default=jnp.log1p)
    return logarithm + (_share(1 - labels, logits) + _share(labels, -logits))


def _share(weight: Array, logits: Array) -> Array:
    """Return `w max(z, 0)`, with zero times infinity taken as zero."""
    return jnp.where(weight == 0, 0, weight * jnp.maximum(logits, 0))


def _logistic_loss_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    logits, labels = primals
    tangent = jnp.zeros_like(logits)
    if not isinstance(tangents[0], SymbolicZero):
        positive, negative = _sigmoids(logits)
        tangent += ((1 - labels) * positive - labels * negative) * tangents[0]
    if not isinstance(tangents[1], SymbolicZero):  # for fixed labels, the product would be zero times an infinite logit
        tangent -= logits * tangents[1]
    return _logistic_loss(logits, labels), tangent


_logistic_loss.defjvp(_logistic_loss_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _sigmoids(logits: Array) -> tuple[Array, Array]:
    """Return `σ(z)` and `σ(−z)`, computed from `exp(−|z|)`, which the loss needs too."""
    exponential = jnp.exp(-jnp.abs(logits))
    larger = 1 / (1 + exponential)
    smaller = exponential * larger
    is_positive = logits >= 0
    return jnp.where(is_positive, larger, smaller), jnp.where(is_positive, smaller, larger)


@_sigmoids.defjvp
def _sigmoids_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    positive, negative = _sigmoids(*primals)
    slope = positive * negative * tangents[0]
    return (positive, negative), (slope, -slope)


def _log1p(x: Array) -> Array:
    """Return `log(1 + x)` for numbers between 0 and 1."""
    ratio = x / (2 + x)
    square = ratio * ratio
    series = jnp.full_like(x, 1 / (2 * TERMS - 1))
    for odd in range(2 * TERMS - 3, 0, -2):
        series = series * square + 1 / odd
    return 2 * ratio * series
