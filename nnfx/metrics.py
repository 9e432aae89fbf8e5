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
        `(batch,)` in the dtype of the logits, the mean over several outputs; NaN for logits that are NaN.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not fit.

    Example:
        >>> binary_accuracy(jnp.array([2.0, 3.0]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    if logits.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(f"labels: expected {checks.describe(logits)}, got {checks.describe(labels)}")
    checks.binary_labels("labels", labels)
    logits = logits.reshape(labels.shape)
    return _per_example((logits > 0) == (2 * labels > 1), jnp.isnan(logits), logits.dtype)


def accuracy(logits: Array, labels: Array) -> Array:
    """One where the largest logit is that of the label, else zero: `[argmaxₖ zₖ = y]`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)`, or one-hot rows or probabilities `(batch, classes)`, whose largest counts.

    Returns:
        `(batch,)` in the dtype of the logits; NaN for logits that are NaN.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits: expected two classes or more, (batch, classes), got {checks.describe(logits)};"
            " for a single output there is binary_accuracy"
        )
    if labels.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"labels: expected integers (batch,) or one-hot rows for logits {checks.describe(logits)},"
            f" got {checks.describe(labels)}"
        )
    if labels.shape == logits.shape:
        labels = labels.argmax(-1)
    return _per_example(logits.argmax(-1) == labels, jnp.isnan(logits).any(-1), logits.dtype)


def roc_auc(scores: Array, labels: Array) -> Array:
    """The area under the ROC curve: `P(score of a positive > of a negative) + ½ P(equal)`.

    Args:
        scores: `(batch,)` or `(batch, 1)`; the larger, the likelier the label 1. Logits will do.
        labels: 0 or 1, `(batch,)`.

    Returns:
        A float32 scalar between 0 and 1; NaN where a score is, or where one of the two classes is absent.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not fit.

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
    checks.binary_labels("labels", labels)
    scores = scores.reshape(-1)
    is_negative = labels == 0
    ordered = jnp.sort(scores)
    negatives_up_to = jnp.concatenate(
        [jnp.zeros(1, jnp.int32), jnp.cumsum(is_negative[jnp.argsort(scores)], dtype=jnp.int32)]
    )
    below = negatives_up_to[jnp.searchsorted(ordered, scores, side="left")]
    not_above = negatives_up_to[jnp.searchsorted(ordered, scores, side="right")]
    beaten = (below / 2 + not_above / 2) / is_negative.sum()
    area = jnp.where(is_negative, 0, beaten).sum() / (~is_negative).sum()
    return jnp.where(jnp.isnan(scores).any(), jnp.nan, area)


def _per_example(right: Array, unknown: Array, dtype: jnp.dtype) -> Array:
    """Average what is right over all but the first axis; what is unknown stays so."""
    scored = jnp.where(unknown, jnp.nan, right.astype(dtype))
    return scored.reshape(scored.shape[0], -1).mean(-1)
