"""Metrics computed from a confusion matrix."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnfx import arrays, checks, losses, trees
from nnfx.metrics.marks import overall
from nnfx.metrics.ranks import with_weights
from nnfx.types import Array

__all__ = ["Average", "balanced_accuracy", "confusion_matrix", "f1", "precision", "recall"]

Average = Literal["binary", "macro", "micro", "weighted"]


def _check(logits: Any, labels: Any) -> None:
    is_one_hot = not _is_single(logits) and labels.shape == logits.shape
    if logits.ndim not in (1, 2) or not (is_one_hot or labels.shape == logits.shape[:1]):
        raise ValueError(
            f"labels: expected one for each row of logits (batch,) or (batch, classes), {checks.describe(logits)}, got"
            f" {checks.describe(labels)}"
        )
    if is_one_hot:
        checks.shares("labels", labels, "binary_accuracy")
    else:
        checks.class_labels("labels", labels, _classes(logits))


@losses.with_check(_check)
def confusion_matrix(logits: Array, labels: Array, weights: Array | None = None) -> Array:
    """Return the confusion matrix: the number of rows of each true class (first axis) by predicted class (second axis).

    Args:
        logits: `(batch,)` or `(batch, 1)`, whose sign decides between classes 0 and 1; or `(batch, classes)`, whose
            largest entry decides.
        labels: integers `(batch,)`; or one-hot rows or probabilities `(batch, classes)`, whose largest entry counts.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

    Returns:
        `(classes, classes)`, int32, or floats if there are weights; NaN if a logit is NaN.

    Raises:
        ValueError: for labels out of range, rows that do not sum to 1, such as several labels per row, logits that
            are NaN, or shapes that do not match.

    Example:
        >>> confusion_matrix(jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0, 1])).tolist()
        [[1, 1], [0, 1]]
    """
    counts, is_known = _counts(*_checked(logits, labels, weights))
    if checks.is_concrete(is_known) and not bool(is_known):
        raise ValueError("logits: expected numbers, got NaN")
    return counts


@overall
@losses.with_check(_check)
def precision(logits: Array, labels: Array, weights: Array | None = None, average: Average | None = None) -> Array:
    """Precision: the fraction of rows predicted as a class that belong to the class, `TP / (TP + FP)`.

    Args:
        logits: `(batch,)` or `(batch, 1)`, whose sign decides between classes 0 and 1; or `(batch, classes)`.
        labels: integers `(batch,)`; or one-hot rows or probabilities `(batch, classes)`, whose largest entry counts.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.
        average: `"binary"` for class 1 only, the default for one output; `"macro"` for the mean over the classes that
            occur among labels or predictions, the default for several outputs; `"weighted"` for the mean over classes
            by their number of rows; `"micro"` for pooled counts of all classes.

    Returns:
        A float32 scalar; 0 if nothing is predicted as a class, as in scikit-learn, and NaN if there are no rows or a
        logit is NaN.

    Raises:
        ValueError: for labels out of range, rows that do not sum to 1, such as several labels per row, an unknown
            average, or shapes that do not match.

    Example:
        >>> precision(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1]))
        Array(0.5, dtype=float32)
    """
    return _averaged(0.0, average, logits, labels, weights)


@overall
@losses.with_check(_check)
def recall(logits: Array, labels: Array, weights: Array | None = None, average: Average | None = None) -> Array:
    """Recall: the fraction of rows of a class that are predicted as it, `TP / (TP + FN)`; arguments as for `precision`.

    Example:
        >>> recall(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1]))
        Array(0.5, dtype=float32)
    """
    return _averaged(1.0, average, logits, labels, weights)


@overall
@losses.with_check(_check)
def f1(logits: Array, labels: Array, weights: Array | None = None, average: Average | None = None) -> Array:
    """F1: the harmonic mean of precision and recall, `2 TP / (2 TP + FP + FN)`; arguments as for `precision`.

    Example:
        >>> f1(jnp.array([2.0, 1.0, -1.0, 3.0]), jnp.array([1, 0, 1, 1]))
        Array(0.6666667, dtype=float32)
    """
    return _averaged(0.5, average, logits, labels, weights)


@overall
@losses.with_check(_check)
def balanced_accuracy(logits: Array, labels: Array, weights: Array | None = None) -> Array:
    """Macro-averaged recall: the mean over classes of the fraction of rows of the class that are predicted correctly.

    Args:
        logits: `(batch,)` or `(batch, 1)`, whose sign decides between classes 0 and 1; or `(batch, classes)`.
        labels: integers `(batch,)`; or one-hot rows or probabilities `(batch, classes)`, whose largest entry counts.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

    Returns:
        A float32 scalar, the mean over classes that have rows; NaN if there are no rows or a logit is NaN.

    Raises:
        ValueError: for labels out of range, rows that do not sum to 1, such as several labels per row, or shapes that
            do not match.

    Example:
        >>> balanced_accuracy(jnp.array([-1.0, -2.0, -3.0, 1.0]), jnp.array([0, 0, 1, 1]))
        Array(0.75, dtype=float32)
    """
    return _balanced(*_checked(logits, labels, weights))


def _checked(logits: Any, labels: Any, weights: Any) -> tuple[Array, Array, Array]:
    """Return logits, labels and weights as arrays, after checking that their shapes match."""
    logits, labels = arrays.as_array("logits", logits, floats=True), arrays.as_labels("labels", labels)
    _check(logits, trees.shapes(labels))  # so that rows of weight zero may have any label
    labels, is_weighted = labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels, weights is not None
    labels, weights = with_weights(labels, weights)
    if is_weighted and labels.ndim == 2:  # a row of zeros is not one-hot
        labels = jnp.where((weights != 0)[:, None], labels, jnp.arange(labels.shape[1])[None] == 0)
    _check(logits, labels)
    return logits, labels, weights


def _is_single(logits: Array) -> bool:
    return logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)


def _classes(logits: Array) -> int:
    return 2 if _is_single(logits) else logits.shape[-1]


@jax.jit
def _counts(logits: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Return the confusion matrix, and whether the logits and labels of all rows with positive weight are finite."""
    classes = _classes(logits)
    is_known = ~jnp.isnan(logits).any(tuple(range(1, logits.ndim)))
    if labels.ndim == 2:
        is_known &= checks.are_shares(labels)
        labels = labels.argmax(-1)
    else:
        is_known &= (labels >= 0) & (labels < classes) & (labels == jnp.round(labels))
    predicted = logits.reshape(-1) > 0 if _is_single(logits) else logits.argmax(-1)
    places = labels.astype(jnp.int32), predicted.astype(jnp.int32)
    return jnp.zeros((classes, classes), weights.dtype).at[places].add(weights), (is_known | (weights == 0)).all()


def _averaged(recall_share: float, average: Average | None, logits: Any, labels: Any, weights: Any) -> Array:
    """Return the average of `TP / (TP + s FN + (1 − s) FP)`: precision for s = 0, F1 for s = ½, recall for s = 1."""
    logits, labels, weights = _checked(logits, labels, weights)
    if average is not None:
        checks.choice("average", average, ("binary", "macro", "micro", "weighted"))
    if average == "binary" and _classes(logits) != 2:
        raise ValueError(
            f"average: expected 'macro', 'micro' or 'weighted' for {_classes(logits)} classes, got 'binary'"
        )
    return _score(logits, labels, weights, recall_share, average or ("binary" if _is_single(logits) else "macro"))


@partial(jax.jit, static_argnums=(3, 4))
def _score(logits: Array, labels: Array, weights: Array, recall_share: float, average: Average) -> Array:
    counts, is_known = _counts(logits, labels, weights)
    counts = counts.astype(jnp.float32)
    right, of_class, as_class = jnp.diagonal(counts), counts.sum(1), counts.sum(0)
    all_of_them = recall_share * of_class + (1 - recall_share) * as_class
    if average == "binary":
        value = _share(right[1], all_of_them[1])
    elif average == "micro":
        value = _share(right.sum(), all_of_them.sum())
    elif average == "weighted":
        value = (_share(right, all_of_them) * of_class).sum() / of_class.sum()
    else:
        occurs = of_class + as_class > 0
        value = _share(right, all_of_them).sum() / occurs.sum()
    return jnp.where(is_known & (counts.sum() > 0), value, jnp.nan)


@jax.jit
def _balanced(logits: Array, labels: Array, weights: Array) -> Array:
    counts, is_known = _counts(logits, labels, weights)
    of_class = counts.sum(1)
    value = _share(jnp.diagonal(counts), of_class).sum() / (of_class > 0).sum()
    return jnp.where(is_known, value, jnp.nan)


def _share(right: Array, all_of_them: Array) -> Array:
    """Return `right / all_of_them`, or 0 where `all_of_them` is 0."""
    return right / jnp.where(all_of_them > 0, all_of_them, 1)
