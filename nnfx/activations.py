"""Activation functions, as callables and by name.

Most come from JAX unchanged. `gelu` and `silu` are wrapped so that their gradients stay finite for large inputs, and
`maxout` is added. An activation acts on pre-activations of shape `(..., units)`; see `get` for look-up by name and
`pieces` for the number of affine pieces per unit.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import elu, identity, leaky_relu, relu, sigmoid, softplus, tanh

from nnfx import checks, ops
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


LARGE = 30.0
"""The magnitude beyond which gelu equals relu to the last bit of float64."""


def gelu(x: Array, approximate: bool = True) -> Array:
    """The Gaussian error linear unit `x Φ(x)`, where Φ is the standard normal distribution function.

    It equals `jax.nn.gelu`, except that it is exactly `relu` for large |x|. Where the square of x overflows (in
    float16, from 256 on), the gradient of `jax.nn.gelu` is NaN.

    Args:
        x: pre-activations.
        approximate: whether to use `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which is faster.

    Example:
        >>> x = jnp.array([-500.0, 0.0, 500.0], jnp.float16)
        >>> gelu(x).tolist(), jax.vmap(jax.grad(gelu))(x).tolist()
        ([0.0, 0.0, 500.0], [0.0, 0.5, 1.0])

    References:
        Hendrycks and Gimpel, *Gaussian error linear units*, 2016.
    """
    is_large = jnp.abs(x) > LARGE
    return jnp.where(is_large, relu(x), jax.nn.gelu(jnp.where(is_large, 0, x), approximate))


def silu(x: Array) -> Array:
    """The sigmoid linear unit `x σ(x)`, where σ is the logistic function.

    It equals `jax.nn.silu`, except that it is exactly `relu` at ±∞.

    Args:
        x: pre-activations.

    Example:
        >>> silu(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
        [0.0, 0.0, inf]

    References:
        Elfwing, Uchibe and Doya, *Sigmoid-weighted linear units for neural network function approximation*, 2018.
    """
    is_infinite = jnp.isinf(x)
    return jnp.where(is_infinite, relu(x), jax.nn.silu(jnp.where(is_infinite, 0, x)))


def maxout(x: Array, pieces: int = 2) -> Array:
    """The largest of several affine pieces: `max(w₁ᵀx + b₁, …, w_kᵀx + b_k)` for each unit.

    The pieces of one unit are adjacent, so a single dense layer of `pieces · units` outputs feeds it. The gradient
    goes to the largest piece; in a tie, to the first.

    Args:
        x: pre-activations, `(..., units · pieces)`.
        pieces: k, the number of affine pieces of a unit.

    Returns:
        `(..., units)`, in the dtype of `x`.

    Raises:
        ValueError: if `pieces` does not divide the last axis.

    Example:
        >>> maxout(jnp.array([[1.0, 5.0, -2.0, -3.0]]))
        Array([[ 5., -2.]], dtype=float32)

    References:
        Goodfellow et al., *Maxout networks*, ICML 2013, equation 1.
    """
    checks.positive_integer("pieces", pieces)
    if x.ndim == 0 or x.shape[-1] % pieces:
        raise ValueError(f"x: expected a last axis divisible by pieces={pieces}, got {checks.describe(x)}")
    return ops.largest(x.reshape(*x.shape[:-1], x.shape[-1] // pieces, pieces), axis=-1)


_BY_NAME: dict[str, Activation] = {
    "identity": identity,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "softplus": softplus,
    "gelu": gelu,
    "gelu_exact": functools.partial(gelu, approximate=False),
    "silu": silu,
    "maxout": maxout,
}


def names() -> tuple[str, ...]:
    """Return the names that `get` accepts.

    >>> names()[:4]
    ('identity', 'sigmoid', 'tanh', 'relu')
    """
    return tuple(_BY_NAME)


def get(activation: str | Activation) -> Activation:
    """Return an activation by name; a function is returned unchanged.

    Fix a hyper-parameter with `functools.partial`, as in `partial(leaky_relu, negative_slope=0.2)`.

    Args:
        activation: a name from `names()`, or a function of pre-activations.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Example:
        >>> get("relu")(jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """
    if callable(activation):
        return activation
    checks.choice("activation", activation, _BY_NAME)
    return _BY_NAME[activation]


def pieces(activation: Activation) -> int:
    """Return the number of pre-activations that one unit takes: k for maxout with k pieces, 1 for all others.

    >>> pieces(tanh), pieces(maxout), pieces(functools.partial(maxout, pieces=3))
    (1, 2, 3)
    """
    if activation is maxout:
        return 2
    if isinstance(activation, functools.partial) and activation.func is maxout:
        return int(activation.keywords.get("pieces", 2))
    return 1
