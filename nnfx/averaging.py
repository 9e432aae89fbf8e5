"""Averages of the weights over a run, each defined by the fraction that the latest weights contribute at each step.

A run trains the latest weights and is evaluated with their average `aₜ = aₜ₋₁ + sₜ (wₜ − aₜ₋₁)`; these functions
return the fractions `sₜ`. The first fraction is 1, so no average depends on its initial value.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.bounds import Share
from nnfx.types import Array, Average, Variables

__all__ = ["exponential", "uniform"]


def exponential(count: ArrayLike, ema_decay: Share = 0.999) -> Array:
    """Weight past parameters by powers of the decay (EMA): `sₜ = (1 − d) / (1 − dᵗ)`.

    Args:
        count: t, the number of steps averaged, including the latest; at least 1.
        ema_decay: d, from 0 (the latest weights alone) to 1 (the uniform average); may be traced.

    Returns:
        The fraction contributed by the latest weights, a scalar.

    Raises:
        ValueError: for a decay outside `[0, 1]`.

    Example:
        After three steps with a decay of 1/2, the latest weights contribute 4/7, and the earlier two 2/7 and 1/7:

        >>> exponential(3, 0.5)
        Array(0.5714286, dtype=float32)

    References:
        Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, 1992; the bias correction is from
        Kingma and Ba, *Adam*, ICLR 2015, section 3.
    """
    checks.number("ema_decay", ema_decay, minimum=0, maximum=1)
    decay, t = jnp.asarray(ema_decay, float), jnp.asarray(count, float)
    is_mixed = (decay > 0) & (decay < 1)
    safe = jnp.where(is_mixed, decay, 0.5)
    mixed = (1 - safe) / -jnp.expm1(t * jnp.log(safe))
    return jnp.where(is_mixed, mixed, jnp.where(decay > 0, 1 / t, 1))


def uniform(count: ArrayLike) -> Array:
    """Weight the parameters of all steps equally: `sₜ = 1 / t`.

    Args:
        count: t, the number of steps averaged, including the latest; at least 1.

    Returns:
        The fraction contributed by the latest weights, a scalar.

    Example:
        >>> uniform(4)
        Array(0.25, dtype=float32)

    References:
        Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, 1992.
    """
    return 1 / jnp.asarray(count, float)


def follow(average: Average, latest: Variables, share: Callable[[Array], Array]) -> Average:
    """Update an average with the latest variables; those that are not floats, such as counts, are copied."""
    steps = average.steps + 1
    portion = share(steps)

    def mix(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return jnp.asarray(old + portion.astype(new.dtype) * (new - old), new.dtype)

    mixed: Any = jax.tree.map(mix, dict(average.variables), dict(latest))
    return Average(steps, mixed)


def start(variables: Variables) -> Average:
    """Return the average before the first step: a copy of the variables."""
    return Average(jnp.zeros((), jnp.int32), dict(variables))
