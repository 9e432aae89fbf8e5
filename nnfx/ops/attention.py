"""Scaled dot-product attention, and rotary position embedding."""

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.types import Array, at_least_float32


def attention(queries: Array, keys: Array, values: Array, mask: Array | None = None) -> Array:
    """Scaled dot-product attention, `softmax(Q Kᵀ / √features) V`, for each head.

    Products are accumulated, and the softmax is computed, in at least float32.

    Args:
        queries: Q, `(..., queries, heads, features)`, floats.
        keys: K, `(..., keys, heads, features)`, of the same dtype.
        values: V, `(..., keys, heads, features)`; finite, even where the mask is False.
        mask: booleans `(..., queries, keys)`, True where a query sees a key; all True if None. The leading axes may be
            omitted, or have size 1.

    Returns:
        `(..., queries, heads, features)` in the dtype of the queries; zero for a query that sees no key.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> queries, keys = jnp.ones((1, 1, 2)), jnp.array([[[0.0, 0.0]], [[9.0, 9.0]]])
        >>> attention(queries, keys, keys).round(3)
        Array([[[9., 9.]]], dtype=float32)
        >>> attention(queries, keys, keys, mask=jnp.array([[True, False]]))
        Array([[[0., 0.]]], dtype=float32)

    References:
        Vaswani et al., *Attention is all you need*, NeurIPS 2017, section 3.2.1.
    """
    *lead, _, heads, features = queries.shape
    if keys.shape != values.shape or keys.shape[:-3] != (*lead,) or keys.shape[-2:] != (heads, features):
        raise ValueError(
            f"keys: expected {checks.describe(queries)} with any number of keys, and values of the same shape, got"
            f" {checks.describe(keys)} and {checks.describe(values)}"
        )
    dtype = at_least_float32(queries.dtype)
    scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys, preferred_element_type=dtype) / features**0.5
    if mask is not None:
        *of_batch, rows, columns = mask.shape
        mask = mask.reshape(*[1] * (len(lead) - len(of_batch)), *of_batch, 1, rows, columns)
        scores = jnp.where(mask, scores, -jnp.inf)
    highest = scores.max(-1, keepdims=True)
    shares = jnp.exp(scores - jnp.where(jnp.isneginf(highest), 0, highest))
    total = shares.sum(-1, keepdims=True)
    shares = shares / jnp.where(total > 0, total, 1)
    found = jnp.einsum("...hqk,...khd->...qhd", shares.astype(values.dtype), values, preferred_element_type=dtype)
    return found.astype(queries.dtype)


def rotated(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotate pairs of features by angles proportional to the position (RoPE), so dot products depend on distances only.

    Features i and i + d / 2 are the coordinates of a point in a plane, which is rotated by the angle
    `position / base^(2 i / d)`, in radians. The dot product of two vectors rotated in this way depends only on the
    difference of their positions. This holds however large the positions are, since angles are computed modulo a full
    turn in exact integer arithmetic.

    Args:
        x: `(..., time, heads, features)`, with an even number of features, d.
        positions: integers `(time,)`.
        base: the number that determines the speeds of rotation: the fastest pair of features rotates by 1 radian per
            step, and the slowest by nearly `1 / base` radians.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        TypeError: for positions that are not integers.
        ValueError: for an odd number of features.

    Example:
        >>> rotated(jnp.array([[[1.0, 0.0]]]), jnp.array([1])).round(3)  # cos 1 and sin 1
        Array([[[0.54 , 0.841]]], dtype=float32)

    References:
        Su et al., *RoFormer: enhanced transformer with rotary position embedding*, 2021.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected an even number of features, got {checks.describe(x)}")
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"positions: expected integers, got {checks.describe(positions)}")
    half, dtype = x.shape[-1] // 2, jax.dtypes.canonicalize_dtype(at_least_float32(x.dtype))
    signed, unsigned, bits = (np.int64, np.uint64, 64) if dtype == jnp.float64 else (np.int32, np.uint32, 32)
    # angles and speeds in units of 2^-bits turns, so that overflow removes whole turns and nothing is rounded
    speeds = np.round(2.0**bits / (2 * np.pi) * base ** -(np.arange(half) / half)).astype(unsigned)
    turns = jnp.outer(positions.astype(unsigned), jnp.asarray(speeds)).astype(signed)
    angles = (turns.astype(dtype) * (2 * np.pi / 2.0**bits))[:, None]  # (time, 1, half)
    angles = angles.reshape(*[1] * (x.ndim - 3), *angles.shape)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
