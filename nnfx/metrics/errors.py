"""Regression metrics that are computed from all rows together."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, losses, trees
from nnfx.metrics.marks import overall
from nnfx.metrics.ranks import with_weights
from nnfx.types import Array, at_least_float32

__all__ = ["r2", "root_mean_square_error"]

_check = partial(losses.check, losses.mean_square_error)


@overall
@losses.with_check(_check)
def root_mean_square_error(outputs: Array, targets: Array, weights: Array | None = None) -> Array:
    """Root mean square error, `√(Σ wᵢ (f(xᵢ) − yᵢ)² / Σ wᵢ)`, averaged over the outputs.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

    Returns:
        A scalar in the units of the targets; NaN if there are no rows.

    Raises:
        ValueError: for targets that are not finite, weights that are negative or not finite, or shapes that do not
            match.

    Example:
        >>> root_mean_square_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
        Array(1.4142135, dtype=float32)
    """
    return _root(*_checked(outputs, targets, weights))


@overall
@losses.with_check(_check)
def r2(outputs: Array, targets: Array, weights: Array | None = None) -> Array:
    """The coefficient of determination, `R² = 1 − Σ wᵢ (f(xᵢ) − yᵢ)² / Σ wᵢ (yᵢ − ȳ)²`, averaged over the outputs.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

    Returns:
        A scalar, at most 1; NaN if there are no rows. For constant targets it is 1 if there are no errors, else 0, as
        in scikit-learn.

    Raises:
        ValueError: for targets that are not finite, weights that are negative or not finite, or shapes that do not
            match.

    Example:
        >>> r2(jnp.array([2.5, 0.0, 2.0, 8.0]), jnp.array([3.0, -0.5, 2.0, 7.0]))
        Array(0.94860816, dtype=float32)
    """
    return _explained(*_checked(outputs, targets, weights))


@jax.jit
def _root(outputs: Array, targets: Array, weights: Array) -> Array:
    errors, _, weights = _aligned(outputs, targets, weights)
    return jnp.sqrt(_mean(errors**2, weights)).mean()


@jax.jit
def _explained(outputs: Array, targets: Array, weights: Array) -> Array:
    errors, targets, weights = _aligned(outputs, targets, weights)
    left, spread = _mean(errors**2, weights), _mean((targets - _mean(targets, weights)[None]) ** 2, weights)
    explained = 1 - left / jnp.where(spread > 0, spread, 1)
    return jnp.where(spread > 0, explained, jnp.where(left > 0, 0, 1 + 0 * left)).mean()


def _checked(outputs: Array, targets: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Return outputs, targets and weights as arrays, after checking that their shapes match.

    Numbers on the host are first measured from the mean of their targets, in float64, so that numbers far from zero
    lose no precision: neither metric changes if the same number is added to outputs and targets.
    """
    if not isinstance(outputs, jax.Array) and not isinstance(targets, jax.Array):
        outputs, targets = (
            arrays.as_numpy(name, value).astype(np.float64)
            for name, value in (("outputs", outputs), ("targets", targets))
        )
        _check(outputs, trees.shapes(targets))
        middle = _middle(targets, weights)
        targets = targets - middle
        outputs = outputs.reshape(targets.shape) - middle
    outputs = arrays.as_array("outputs", outputs, floats=True)
    targets, weights = with_weights(arrays.as_array("targets", targets, floats=True), weights)
    _check(outputs, targets)
    return outputs, targets, weights


def _middle(targets: np.ndarray, weights: Any) -> np.ndarray:
    """Return the mean of the known targets of each output, over rows that may have weight."""
    counts = np.isfinite(targets)
    if weights is not None and checks.is_concrete(weights):
        has_weight = arrays.as_numpy("weights", weights) != 0
        if has_weight.shape == targets.shape[:1]:  # otherwise an error follows
            counts &= has_weight.reshape(-1, *[1] * (targets.ndim - 1))
    total = np.where(counts, targets, 0).sum(0)
    return np.asarray(total / np.maximum(counts.sum(0), 1))


def _aligned(outputs: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return errors and targets, `(batch, outputs)`, zero for rows of weight zero, and weights, `(batch, 1)`."""
    dtype = at_least_float32(outputs.dtype)  # half precision cannot sum many rows
    shape = len(targets), math.prod(targets.shape[1:])
    targets = targets.astype(dtype)
    errors = (outputs.reshape(targets.shape).astype(dtype) - targets).reshape(shape)
    weights = weights.astype(dtype)[:, None]
    return jnp.where(weights != 0, errors, 0), targets.reshape(shape), weights


def _mean(values: Array, weights: Array) -> Array:
    """Return the weighted mean of each output; NaN if all weights are zero."""
    total = weights.sum()
    return jnp.where(total > 0, (weights * values).sum(0) / jnp.where(total > 0, total, 1), jnp.nan)
