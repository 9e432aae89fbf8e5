"""Non-linearities, by function and by name.

Those that JAX has are JAX's own; maxout is added. An activation acts on pre-activations of shape
`(..., units)`; see `get` for look-up by name and `pieces` for how many affine pieces a unit needs.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.nn import elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softplus, tanh

from nnfx import checks
from nnfx.types import Array

__all__ = [
    "elu",
    "gelu",
    "get",
    "identity",
    "leaky_relu",
    "maxout",
    "names",
    "pieces",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]

Activation = Callable[..., Array]


def maxout(x: Array, pieces: int = 2) -> Array:
    """The largest of several affine pieces: `max(w₁ᵀx + b₁, …, w_kᵀx + b_k)` for each unit.

    The pieces of one unit lie side by side, so one dense layer of `pieces · units` outputs feeds it.

    Args:
        x: pre-activations, `(..., units · pieces)`.
        pieces: k, the affine pieces of a unit.

    Returns:
        `(..., units)`, in the dtype of `x`.

    Raises:
        ValueError: where `pieces` does not divide the last axis.

    Example:
        >>> maxout(jnp.array([[1.0, 5.0, -2.0, -3.0]]))
        Array([[ 5., -2.]], dtype=float32)

    References:
        Goodfellow et al., *Maxout networks*, ICML 2013, equation 1.
    """
    checks.positive_integer("pieces", pieces)
    if x.ndim == 0 or x.shape[-1] % pieces:
        raise ValueError(f"x: expected a last axis divisible by pieces={pieces}, got {checks.describe(x)}")
    return jnp.max(x.reshape(*x.shape[:-1], x.shape[-1] // pieces, pieces), axis=-1)


_BY_NAME: dict[str, Activation] = {
    "identity": identity,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "softplus": softplus,
    "gelu": gelu,
    "silu": silu,
    "maxout": maxout,
}


def names() -> tuple[str, ...]:
    """Return the names that `get` knows.

    >>> names()[:4]
    ('identity', 'sigmoid', 'tanh', 'relu')
    """
    return tuple(_BY_NAME)


def get(activation: str | Activation) -> Activation:
    """Return an activation from its name; a function passes through.

    Fix a number with `functools.partial`, such as `partial(leaky_relu, negative_slope=0.2)`.

    Args:
        activation: a name out of `names()`, or a function of pre-activations.

    Raises:
        ValueError: for an unknown name; it lists the right ones.

    Example:
        >>> get("relu")(jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """
    if callable(activation):
        return activation
    checks.choice("activation", activation, _BY_NAME)
    return _BY_NAME[activation]


def pieces(activation: Activation) -> int:
    """Return how many pre-activations one unit of this activation takes: k for maxout, else 1.

    >>> pieces(tanh), pieces(maxout), pieces(functools.partial(maxout, pieces=3))
    (1, 2, 3)
    """
    if activation is maxout:
        return 2
    if isinstance(activation, functools.partial) and activation.func is maxout:
        return int(activation.keywords.get("pieces", 2))
    return 1
