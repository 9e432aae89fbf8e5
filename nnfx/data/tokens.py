"""Sequences of tokens, such as texts, cut into examples whose targets are the next tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Batch

__all__ = ["next_tokens"]


def next_tokens(tokens: Any, length: int, context: int = 0) -> Batch:
    """Cut a sequence of tokens into examples for a model that predicts the next token at every step.

    Each token except the first is the target of exactly one step of weight 1. The last example is padded with steps of
    weight zero.

    Args:
        tokens: at least two non-negative integers, `(tokens,)`.
        length: the number of steps of each example.
        context: the number of steps at the start of each example, except the first, that repeat the end of the
            previous example with weight zero, so that every later target has at least that many tokens before it. Use
            0 for training, and more to score a model with a long memory.

    Returns:
        Inputs and targets, int32 `(examples, length)`, and a weight for each step.

    Raises:
        TypeError: for tokens that are not integers.
        ValueError: for tokens that are not `(tokens,)`, negative or fewer than two, or a context that is not less
            than the length.

    Example:
        >>> batch = next_tokens([3, 1, 4, 1, 5, 9], length=3, context=1)
        >>> batch.inputs.tolist(), batch.targets.tolist()
        ([[3, 1, 4], [4, 1, 5]], [[1, 4, 1], [1, 5, 9]])
        >>> batch.weights.tolist()
        [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]

    References:
        Press, Smith and Lewis, *Shortformer: better language modeling using shorter inputs*, ACL 2021, for overlapping
        examples.
    """
    found = np.asarray(arrays.as_numpy("tokens", tokens))
    if not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"tokens: expected integers, got {checks.describe(found)}")
    if found.ndim != 1 or len(found) < 2 or found.min() < 0:
        raise ValueError(
            f"tokens: expected shape (tokens,) with at least two non-negative integers, got {checks.describe(found)}"
        )
    checks.positive_integer("length", length)
    checks.non_negative_integer("context", context)
    if context >= length:
        raise ValueError(f"context: expected less than the length of {length}, got {context}")
    targets = len(found) - 1
    starts = np.arange(0, max(targets - context, 1), length - context)
    places = starts[:, None] + np.arange(length)
    is_new = (np.arange(length) >= context) | (starts == 0)[:, None]
    padded = np.pad(found, (0, length))
    parts = padded[places], padded[places + 1]
    inputs, labels = (arrays.to_device("tokens", arrays.narrowed("tokens", part, np.int32)) for part in parts)
    return Batch(inputs, labels, jnp.asarray((places < targets) & is_new, float))
