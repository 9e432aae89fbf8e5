"""Metrics of the ranks of scores: areas under curves."""

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.metrics.marks import overall
from nnfx.types import Array

__all__ = ["average_precision", "roc_auc"]


@overall
def roc_auc(scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """The area under the ROC curve: `P(score of a positive > of a negative) + ½ P(equal)`.

    Args:
        scores: `(batch,)` or `(batch, 1)`; larger scores mean that label 1 is likelier. Logits will do.
        labels: 0 or 1, `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever they hold. All 1 by default.

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
    return _area(*_converted(scores, labels, weights))


@overall
def average_precision(scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """The average precision: the precision at the score of each positive, averaged over the positives.

    It summarises the curve of precision against recall without interpolation, `Σₙ (Rₙ − Rₙ₋₁) Pₙ` over thresholds n.

    Args:
        scores: `(batch,)` or `(batch, 1)`; larger scores mean that label 1 is likelier. Logits will do.
        labels: 0 or 1, `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever they hold. All 1 by default.

    Returns:
        A float32 scalar between 0 and 1; NaN if a score is NaN, if there is no positive, or if traced labels are
        neither 0 nor 1.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> average_precision(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
        Array(0.8333334, dtype=float32)

    References:
        Manning, Raghavan and Schütze, *Introduction to information retrieval*, section 8.4.
    """
    return _average_precision(*_converted(scores, labels, weights))


def _converted(scores: Array, labels: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Return scores or their ranks, labels and weights, `(batch,)` each; weights that only count are integers."""
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
    labels, weights = with_weights(labels, weights)
    checks.binary_labels("labels", labels)
    return scores.reshape(-1), labels, weights


def with_weights(labels: Array, weights: Array | None) -> tuple[Array, Array]:
    """Return labels, zero where they have no weight, and one weight for each: integers of 1 by default.

    Raises:
        ValueError: for another number of weights.
    """
    if weights is None:
        return labels, jnp.ones(labels.shape[:1], jnp.int32)
    weights = arrays.as_array("weights", weights)
    if weights.shape != labels.shape[:1]:
        raise ValueError(f"weights: expected one per row, ({labels.shape[0]},), got {checks.describe(weights)}")
    weights = weights.astype(jnp.int32) if weights.dtype == jnp.bool_ else weights
    has_weight = (weights != 0).reshape(-1, *[1] * (labels.ndim - 1))
    return jnp.where(has_weight, labels, jnp.zeros((), labels.dtype)), weights


def _sums_by_rank(scores: Array, *weights: Array) -> list[tuple[Array, Array]]:
    """Return, for each row, the sums of some weights over the rows with lower scores, and with scores not higher."""
    order = jnp.argsort(scores)
    ordered = scores[order]
    low, high = (jnp.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    sums = [jnp.concatenate([jnp.zeros(1, each.dtype), jnp.cumsum(each[order], dtype=each.dtype)]) for each in weights]
    return [(each[low], each[high]) for each in sums]


@jax.jit
def _area(scores: Array, labels: Array, weights: Array) -> Array:
    """Count the negatives below each positive, by ranks; compiled whole, since each operation alone costs as much."""
    scores, positive, negative, is_known = _split(scores, labels, weights)
    ((below, not_above),) = _sums_by_rank(scores, negative)
    beaten = (below / 2 + not_above / 2) / negative.sum()
    area = (beaten * positive).sum() / positive.sum()
    return jnp.where(is_known, area, jnp.nan)


@jax.jit
def _average_precision(scores: Array, labels: Array, weights: Array) -> Array:
    scores, positive, negative, is_known = _split(scores, labels, weights)
    (positives_below, _), (negatives_below, _) = _sums_by_rank(scores, positive, negative)
    found, wrong = positive.sum() - positives_below, negative.sum() - negatives_below
    precision = found / jnp.where(found + wrong > 0, found + wrong, 1)
    return jnp.where(is_known, (precision * positive).sum() / positive.sum(), jnp.nan)


def _split(scores: Array, labels: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Return scores, the weights of positives and of negatives, and whether all rows with weight are known."""
    has_weight = weights != 0
    is_known = (((labels == 0) | (labels == 1)) & ~jnp.isnan(scores)) | ~has_weight
    zero = jnp.zeros((), weights.dtype)
    positive, negative = (jnp.where(has_weight & (labels == label), weights, zero) for label in (1, 0))
    return jnp.where(has_weight, scores, jnp.zeros((), scores.dtype)), positive, negative, is_known.all()
