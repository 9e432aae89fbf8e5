"""Metrics per example, `(outputs, targets) -> (batch,)`, which merge as sums, and rank statistics, which don't.

What is averaged over batches is a metric per example; the area under the ROC curve is computed once, on
the predictions of the whole data.
"""

import jax.numpy as jnp

from nnfx import checks
from nnfx.types import Array

__all__ = ["accuracy", "binary_accuracy", "roc_auc"]


def binary_accuracy(logits: Array, labels: Array) -> Array:
    """One where the sign of the logit agrees with the binary label, else zero: `[z > 0] = y`.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, before the sigmoid.
        labels: 0 or 1, in the shape of the logits or `(batch,)`.

    Returns:
        `(batch,)` in the dtype of the logits, the mean over several outputs.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> binary_accuracy(jnp.array([2.0, 3.0]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    if logits.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(f"labels: expected {checks.describe(logits)}, got {checks.describe(labels)}")
    right = (logits.reshape(labels.shape) > 0) == (labels > 0)
    return right.reshape(right.shape[0], -1).astype(logits.dtype).mean(-1)


def accuracy(logits: Array, labels: Array) -> Array:
    """One where the largest logit is that of the label, else zero: `[argmaxₖ zₖ = y]`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)`, or one-hot rows `(batch, classes)`.

    Returns:
        `(batch,)` in the dtype of the logits.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    if logits.ndim < 2 or labels.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"labels: expected integers (batch,) or one-hot rows for logits {checks.describe(logits)},"
            f" got {checks.describe(labels)}"
        )
    if labels.shape == logits.shape:
        labels = labels.argmax(-1)
    right = logits.argmax(-1) == labels
    return right.reshape(right.shape[0], -1).astype(logits.dtype).mean(-1)


def roc_auc(scores: Array, labels: Array) -> Array:
    """The area under the ROC curve: `P(score of a positive > of a negative) + ½ P(equal)`.

    Args:
        scores: `(batch,)` or `(batch, 1)`; the larger, the likelier the label 1. Logits will do.
        labels: 0 or 1, `(batch,)`.

    Returns:
        A scalar between 0 and 1; NaN where one of the two classes is absent.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> roc_auc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
        Array(0.75, dtype=float32)

    References:
        Hanley and McNeil, *The meaning and use of the area under a ROC curve*, Radiology, 1982.
    """
    if labels.ndim != 1 or scores.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"scores: expected one score for each of the labels {checks.describe(labels)},"
            f" got {checks.describe(scores)}"
        )
    scores = scores.reshape(-1)
    ordered = jnp.sort(scores)
    below = jnp.searchsorted(ordered, scores, side="left").astype(scores.dtype)
    not_above = jnp.searchsorted(ordered, scores, side="right").astype(scores.dtype)
    rank = (below + not_above + 1) / 2
    positive = (labels > 0).astype(scores.dtype)
    positives, negatives = positive.sum(), (1 - positive).sum()
    return ((rank * positive).sum() / positives - (positives + 1) / 2) / negatives
