"""Penalties on the parameters, to be added to a loss, and a limit on their size, to be chained to an optimizer.

Arrays with two axes or more count as weights; arrays with fewer axes, such as biases and normalisation scales, are
ignored. If the parameters of several models are stacked, map over them with `jax.vmap`: a stack of biases has two axes,
and would count as weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.bounds import NonNegative, Positive
from nnfx.types import Array, Params, at_least_float32

__all__ = ["elastic_net", "l1", "l2", "max_norm"]


def _penalty(name: str, strength: ArrayLike, measure: Callable[[Array], Array], params: Params) -> Array:
    """Return a strength times the sum of a function over all weights."""
    checks.number(name, strength, minimum=0)
    weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
    total = jnp.asarray(sum((measure(w.astype(at_least_float32(w.dtype))).sum() for w in weights), start=0.0))
    return jnp.asarray(strength, total.dtype) * total


def _absolute(weights: Array) -> Array:
    return weights * jnp.sign(weights)  # the gradient at zero is zero, unlike the gradient of `jnp.abs`


def _half_square(weights: Array) -> Array:
    return jnp.square(weights) / 2


def l1(params: Params, l1: NonNegative) -> Array:
    """The lasso penalty `λ₁ Σ |w|`, which drives weights to zero; its gradient at zero is defined as zero.

    Args:
        params: a tree of arrays; those with two axes or more are weights.
        l1: λ₁, non-negative, in the units of the loss per unit of weight; may be traced.

    Returns:
        A scalar.

    Raises:
        ValueError: for a negative λ₁.

    Example:
        >>> l1({"kernel": jnp.array([[3.0], [-4.0]]), "bias": jnp.array([9.0])}, 0.5)
        Array(3.5, dtype=float32)

    References:
        Tibshirani, *Regression shrinkage and selection via the lasso*, JRSS B, 1996.
    """
    return _penalty("l1", l1, _absolute, params)


def l2(params: Params, l2: NonNegative) -> Array:
    """The ridge penalty, or weight decay: `λ₂/2 Σ w²`, whose gradient is `λ₂ w`.

    Args:
        params: a tree of arrays; those with two axes or more are weights.
        l2: λ₂, non-negative, in the units of the loss per squared unit of weight; may be traced.

    Returns:
        A scalar.

    Raises:
        ValueError: for a negative λ₂.

    Example:
        >>> l2({"kernel": jnp.array([[3.0], [-4.0]]), "bias": jnp.array([9.0])}, 0.5)
        Array(6.25, dtype=float32)

    References:
        Goodfellow, Bengio and Courville, *Deep learning*, section 7.1.1.
    """
    return _penalty("l2", l2, _half_square, params)


def elastic_net(params: Params, l1: NonNegative, l2: NonNegative) -> Array:
    """The elastic net, the sum of the lasso and ridge penalties: `λ₁ Σ |w| + λ₂/2 Σ w²`.

    Args:
        params: a tree of arrays; those with two axes or more are weights.
        l1: λ₁, non-negative, in the units of the loss per unit of weight; may be traced.
        l2: λ₂, non-negative, in the units of the loss per squared unit of weight; may be traced.

    Returns:
        A scalar.

    Raises:
        ValueError: for a negative λ₁ or λ₂.

    Example:
        >>> elastic_net({"kernel": jnp.array([[3.0], [-4.0]])}, l1=1.0, l2=2.0)
        Array(32., dtype=float32)

    References:
        Zou and Hastie, *Regularization and variable selection via the elastic net*, JRSS B, 2005.
    """
    return _penalty("l1", l1, _absolute, params) + _penalty("l2", l2, _half_square, params)


def max_norm(limit: Positive = 3.0) -> optax.GradientTransformation:
    """Keep the incoming weights of every unit within a ball: if `‖w‖ > c` after the update, `w ← c w / ‖w‖`.

    Here w are the incoming weights of one unit, and c is the limit. Chain this transformation last, since it constrains
    the parameters after the update. Kernels are laid out as in Flax: the incoming weights of a unit are the entries
    with one index on the last axis, a column of a dense kernel. The updates of columns within the limit are unchanged,
    bit for bit; the other columns satisfy the limit up to rounding.

    Args:
        limit: c, positive, in the units of the weights; may be traced.

    Returns:
        A stateless Optax transformation.

    Raises:
        ValueError: for a limit that is not positive, or if `update` is called without the parameters.

    Example:
        >>> optimizer = optax.chain(optax.sgd(1.0), max_norm(1.0))
        >>> kernel = jnp.zeros((2, 1))
        >>> updates, _ = optimizer.update(jnp.array([[-3.0], [4.0]]), optimizer.init(kernel), kernel)
        >>> optax.apply_updates(kernel, updates).round(3).tolist()
        [[0.6...], [-0.8...]]

    References:
        Srivastava et al., *Dropout: a simple way to prevent neural networks from overfitting*, JMLR 2014, section 5.1.
    """
    checks.number("limit", limit, above=0)

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def correct(change: Array, weights: Array) -> Array:
        if weights.ndim < 2:
            return change
        dtype = at_least_float32(weights.dtype)
        old, bound = weights.astype(dtype), jnp.asarray(limit, dtype)
        new = old + change.astype(dtype)
        norm_squared = jnp.square(new).sum(tuple(range(new.ndim - 1)), keepdims=True)
        over = norm_squared > bound**2
        # The square root has no gradient for a column of zeros.
        shrunk = new * (bound / jnp.sqrt(jnp.where(over, norm_squared, 1)))
        return jnp.where(over, (shrunk - old).astype(change.dtype), change)

    def update(updates: Any, state: optax.EmptyState, params: Params = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("params: expected the parameters, as in update(updates, state, params), got None")
        return jax.tree.map(correct, updates, params), state

    return optax.GradientTransformation(init, update)
