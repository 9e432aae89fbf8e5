"""Metrics per example, `(outputs, targets) -> (batch,)`, which merge as sums, and rank statistics, which do not.

Metrics per example are averaged over batches; the area under the ROC curve is computed once, from the
predictions for all of the data.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Array

__all__ = ["accuracy", "binary_accuracy", "roc_auc"]


def binary_accuracy(logits: Array, labels: Array) -> Array:
    """One if the sign of the logit agrees with the binary label, else zero: `[z > 0] = y`.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, before the sigmoid.
        labels: 0 or 1, in the shape of the logits or `(batch,)`.

    Returns:
        `(batch,)` in the dtype of the logits, the mean over several outputs; NaN for logits that are NaN, and for
        traced labels outside [0, 1].

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> binary_accuracy(jnp.array([2.0, 3.0]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    logits, labels = _converted(logits, labels)
    if logits.ndim < 1 or logits.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(f"labels: expected {checks.describe(logits)}, got {checks.describe(labels)}")
    checks.binary_labels("labels", labels)
    logits = logits.reshape(labels.shape)
    is_known = (labels >= 0) & (labels <= 1) & ~jnp.isnan(logits)
    return _per_example((logits > 0) == (labels > 0.5), is_known, logits.dtype)


def accuracy(logits: Array, labels: Array) -> Array:
    """One if the largest logit is that of the label, else zero: `[argmaxₖ zₖ = y]`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)`, or one-hot rows or probabilities `(batch, classes)`, whose largest entry
            counts.

    Returns:
        `(batch,)` in the dtype of the logits; NaN for logits that are NaN, and for traced labels out of range.

    Raises:
        ValueError: for integer labels outside `[0, classes)`, rows with negative numbers or no positive ones, or
            shapes that do not match.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    logits, labels = _converted(logits, labels)
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits: expected two classes or more, (batch, classes), got {checks.describe(logits)};"
            " for a single output use binary_accuracy"
        )
    if labels.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"labels: expected integers (batch,) or one-hot rows for logits {checks.describe(logits)},"
            f" got {checks.describe(labels)}"
        )
    if labels.shape == logits.shape:
        is_known = _are_shares(labels)
        labels = labels.argmax(-1)
    else:
        classes = logits.shape[-1]
        checks.class_labels("labels", labels, classes)
        is_known = (labels >= 0) & (labels < classes)
    is_known &= ~jnp.isnan(logits).any(-1)
    return _per_example(logits.argmax(-1) == labels, is_known, logits.dtype)


def _converted(logits: Any, labels: Any) -> tuple[Array, Array]:
    return arrays.as_array("logits", logits, floats=True), arrays.as_array("labels", labels)


def _are_shares(rows: Array) -> Array:
    """Return which rows have a positive number and no negative one; raise an error if a concrete row does not."""
    are_shares = (rows >= 0).all(-1) & (rows > 0).any(-1)
    if checks.is_concrete(rows):
        with jax.ensure_compile_time_eval():
            if not are_shares.all():
                raise ValueError(
                    "labels: expected one-hot rows or probabilities, got negative numbers or rows of zeros"
                )
    return are_shares


def roc_auc(scores: Array, labels: Array) -> Array:
    """The area under the ROC curve: `P(score of a positive > of a negative) + ½ P(equal)`.

    Args:
        scores: `(batch,)` or `(batch, 1)`; larger scores mean that label 1 is likelier. Logits will do.
        labels: 0 or 1, `(batch,)`.

    Returns:
        A float32 scalar between 0 and 1; NaN if a score is NaN, if one of the two classes is absent, or if traced
        labels are neither 0 nor 1.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> roc_auc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
        Array(0.75, dtype=float32)

    References:
        Hanley and McNeil, *The meaning and use of the area under a ROC curve*, Radiology, 1982.
    """
    if not isinstance(scores, jax.Array):  # ranks keep apart scores that are equal in the device's precision
        exact = arrays.as_numpy("scores", scores)
        ranks = np.unique(exact, return_inverse=True)[1].reshape(exact.shape)
        scores = jnp.asarray(np.where(np.isnan(exact), np.nan, ranks) if np.isnan(exact).any() else ranks)
    labels = arrays.as_array("labels", labels)
    if labels.ndim != 1 or scores.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"scores: expected one score for each of the labels {checks.describe(labels)},"
            f" got {checks.describe(scores)}"
        )
    checks.binary_labels("labels", labels)
    return _area(scores.reshape(-1), labels)


@jax.jit
def _area(scores: Array, labels: Array) -> Array:
    """Count the negatives below each positive, by ranks; compiled whole, since each operation alone costs as much."""
    is_negative = labels == 0
    ordered = jnp.sort(scores)
    negatives_up_to = jnp.concatenate(
        [jnp.zeros(1, jnp.int32), jnp.cumsum(is_negative[jnp.argsort(scores)], dtype=jnp.int32)]
    )
    below = negatives_up_to[jnp.searchsorted(ordered, scores, side="left")]
    not_above = negatives_up_to[jnp.searchsorted(ordered, scores, side="right")]
    beaten = (below / 2 + not_above / 2) / is_negative.sum()
    area = jnp.where(is_negative, 0, beaten).sum() / (~is_negative).sum()
    is_known = ((labels == 0) | (labels == 1)).all() & ~jnp.isnan(scores).any()
    return jnp.where(is_known, area, jnp.nan)


def _per_example(right: Array, is_known: Array, dtype: jnp.dtype) -> Array:
    """Average what is right over all axes but the first; what is unknown is NaN."""
    scored = jnp.where(is_known, right.astype(dtype), jnp.nan)
    return scored.reshape(scored.shape[0], math.prod(scored.shape[1:])).mean(-1)
