"""The optimizer's update, with finite derivatives even for parameters whose gradients have always been zero.

Many optimizers divide by the square root of a mean of squared gradients. If every gradient so far was exactly zero
(a pixel that is black in every image, a unit that is never active), the root is taken at zero, where its slope is
infinite, and the derivative of a whole run with respect to its hyper-parameters becomes `0 · ∞`, which is NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nnfx.types import Array, Params

EXPONENT = 0.79
"""Zeros in the state are replaced by the smallest number of their dtype to this power, 1e-30 in float32: its root,
1e-15, is negligible compared with the epsilon of any optimizer, and `1 / (root · epsilon²)` does not overflow."""


def update(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: Any,
    params: Params,
    *,
    value: Array,
    value_fn: Callable[[Params], Array],
) -> tuple[Params, Any]:
    """Return the updates and the new state of an optimizer, both with finite derivatives.

    The values equal those of `optimizer.update`, bit for bit. If a slope is infinite, derivatives are taken at a nearby
    point: zeros in the optimizer's state are replaced by a tiny positive number. A mean of squares that is zero is at
    its minimum and does not change to first order, so its slope is multiplied by zero.

    Args:
        optimizer: an Optax optimizer, whose hyper-parameters, such as the learning rate, may be traced.
        gradient: the gradient of the loss.
        opt_state: the optimizer's state.
        params: the parameters.
        value: the loss, for optimizers that use it, such as `reduce_on_plateau`.
        value_fn: the loss as a function of the parameters, for line searches.

    Example:
        >>> def change(rate, gradient):
        ...     optimizer = optax.adam(rate)
        ...     state = optimizer.init(jnp.zeros(()))
        ...     one = update(optimizer, gradient, state, jnp.zeros(()), value=jnp.zeros(()), value_fn=jnp.sum)
        ...     return one[0]
        >>> [round(jax.grad(change)(0.1, gradient).item(), 3) for gradient in (2.0, 0.0)]
        [-1.0, -0.0]
    """
    parts: list[Any] = [optax.with_extra_args_support(optimizer), value_fn]

    def plain(gradient: Params, opt_state: Any, params: Params, value: Array) -> tuple[Params, Any]:
        transform, value_fn = parts
        return transform.update(gradient, opt_state, params, value=value, grad=gradient, value_fn=value_fn)

    # Hyper-parameters that the optimizer closes over are differentiated too, but a custom rule sees only arguments.
    converted, held = jax.closure_convert(plain, gradient, opt_state, params, value)
    parts.clear()  # JAX keeps the function forever, and would keep the model with it

    @jax.custom_jvp
    def updated(gradient: Params, opt_state: Any, others: Any) -> tuple[Params, Any]:
        return converted(gradient, opt_state, *others)

    @updated.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        gradient, opt_state, others = primals

        def function(*arguments: Any) -> Any:
            return converted(*arguments[:2], *arguments[2])

        shift = jnp.where(_has_slopes(function, primals), 0, 1)
        beside = (gradient, jax.tree.map(lambda leaf: _off_zero(leaf, shift), opt_state), others)
        return updated(*primals), jax.jvp(function, beside, tangents)[1]

    return updated(gradient, opt_state, (params, value, *held))


def _has_slopes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Array:
    """Return whether all reverse-mode derivatives of a function are finite."""
    leaves, tree = jax.tree.flatten(jax.lax.stop_gradient(arguments))
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def of_floats(floats: list[Array]) -> list[Array]:
        filled = list(leaves)
        for i, leaf in zip(places, floats, strict=True):
            filled[i] = leaf
        return [leaf for leaf in jax.tree.leaves(function(*jax.tree.unflatten(tree, filled))) if _is_float(leaf)]

    try:
        outputs, pull = jax.vjp(of_floats, [leaves[i] for i in places])
        (slopes,) = pull([jnp.ones_like(leaf) for leaf in outputs])
    except ValueError:  # line searches have no reverse mode, so forward mode is in use
        return jnp.asarray(False)
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in slopes]).all()


def _off_zero(leaf: Any, shift: Array) -> Any:
    """Replace zeros in a floating-point leaf by a tiny number if `shift` is 1, with the derivative of the identity."""
    if not _is_float(leaf):
        return leaf
    tiny = jnp.asarray(float(jnp.finfo(leaf.dtype).tiny) ** EXPONENT, leaf.dtype) * shift.astype(leaf.dtype)
    return leaf + jax.lax.stop_gradient(jnp.where(leaf == 0, tiny, 0))


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
