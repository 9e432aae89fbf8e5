"""Ranking metrics: the areas under the ROC curve and the precision–recall curve."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, losses, trees
from nnfx.metrics.marks import overall
from nnfx.types import Array, at_least_float32

__all__ = ["average_precision", "roc_auc"]


def _check(scores: Any, labels: Any) -> None:
    if labels.ndim != 1 or scores.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"scores: expected one score for each label (labels: {checks.describe(labels)}),"
            f" got {checks.describe(scores)}"
        )
    checks.binary_labels("labels", labels)


@overall
@losses.with_check(_check)
def roc_auc(scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """The area under the ROC curve: `P(s₊ > s₋) + ½ P(s₊ = s₋)` for the scores of a random positive and negative row.

    Args:
        scores: `(batch,)` or `(batch, 1)`, such as logits; larger scores mean that label 1 is more likely.
        labels: 0 or 1, `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

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
    return _computed(_area, *_converted(scores, labels, weights))


@overall
@losses.with_check(_check)
def average_precision(scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """The average precision: the precision at the score of each positive, averaged over the positives.

    It summarises the precision–recall curve without interpolation, `Σₙ (Rₙ − Rₙ₋₁) Pₙ` over thresholds n.

    Args:
        scores: `(batch,)` or `(batch, 1)`, such as logits; larger scores mean that label 1 is more likely.
        labels: 0 or 1, `(batch,)`.
        weights: `(batch,)`, non-negative; rows of weight zero are left out, whatever their values. All 1 by default.

    Returns:
        A float32 scalar between 0 and 1; NaN if a score is NaN, if there is no positive, or if traced labels are
        neither 0 nor 1.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> average_precision(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
        Array(0.8333333, dtype=float32)

    References:
        Manning, Raghavan and Schütze, *Introduction to information retrieval*, section 8.4.
    """
    return _computed(_average_precision, *_converted(scores, labels, weights))


def _converted(scores: Array, labels: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Return scores or their ranks, labels and weights, one for each row; boolean weights become integers."""
    if not isinstance(scores, jax.Array):  # ranks distinguish scores that are equal in the device's precision
        exact = arrays.as_numpy("scores", scores)
        ranks = np.unique(exact, return_inverse=True)[1].reshape(exact.shape)
        scores = jax.device_put(np.where(np.isnan(exact), np.nan, ranks) if np.isnan(exact).any() else ranks)
    labels = arrays.as_array("labels", labels)
    _check(scores, trees.shapes(labels))  # so that rows of weight zero may have any label
    labels, weights = with_weights(labels, weights)
    _check(scores, labels)
    return scores, labels, weights


def with_weights(labels: Array, weights: Array | None) -> tuple[Array, Array]:
    """Return labels, set to zero where their weight is zero, and one weight per label, by default the integer 1.

    Weights have at least 32 bits, so that they can be summed.

    Raises:
        ValueError: if there is not one weight per label, or for weights that are negative or not finite.
    """
    if weights is None:
        return labels, jax.device_put(np.ones(labels.shape[:1], np.int32))
    weights = arrays.as_array("weights", weights)
    if weights.shape != labels.shape[:1]:
        raise ValueError(f"weights: expected one per row, ({labels.shape[0]},), got {checks.describe(weights)}")
    checks.weights("weights", weights, may_be_zero=True)
    if jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(at_least_float32(weights.dtype))
    elif weights.dtype.itemsize < 4:
        weights = weights.astype(jnp.int32)
    has_weight = (weights != 0).reshape(-1, *[1] * (labels.ndim - 1))
    return jnp.where(has_weight, labels, jnp.zeros((), labels.dtype)), weights


def _computed(measure: Callable[..., Any], scores: Array, labels: Array, weights: Array) -> Array:
    """Compute a measure with NumPy in float64 from concrete values on a CPU, and as part of a program otherwise.

    XLA takes about a second to compile a sort, for each new number of rows.
    """
    given = scores, labels, weights
    if not checks.is_concrete(given) or any(checks.near(each)[1] is not np for each in given):
        return _compiled(measure, *given)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = measure(np, *(np.asarray(each, np.float64) for each in given))
    floats = weights.dtype if jnp.issubdtype(weights.dtype, jnp.floating) else float
    return jax.device_put(np.asarray(result, jax.dtypes.canonicalize_dtype(floats)))


@functools.partial(jax.jit, static_argnums=0)
def _compiled(measure: Callable[..., Any], scores: Array, labels: Array, weights: Array) -> Array:
    return measure(jnp, scores, labels, weights)


def _area(library: Any, scores: Any, labels: Any, weights: Any) -> Any:
    """Return the area under the ROC curve, by counting the negatives ranked below each positive."""
    scores, positive, negative, is_known = _split(library, scores, labels, weights)
    ((below, not_above),) = _sums_by_rank(library, scores, negative)
    beaten = (below / 2 + not_above / 2) / negative.sum()
    area = (beaten * positive).sum() / positive.sum()
    return library.where(is_known, area, library.nan)


def _average_precision(library: Any, scores: Any, labels: Any, weights: Any) -> Any:
    scores, positive, negative, is_known = _split(library, scores, labels, weights)
    (positives_below, _), (negatives_below, _) = _sums_by_rank(library, scores, positive, negative)
    found, wrong = positive.sum() - positives_below, negative.sum() - negatives_below
    precision = found / library.where(found + wrong > 0, found + wrong, 1)
    return library.where(is_known, (precision * positive).sum() / positive.sum(), library.nan)


def _sums_by_rank(library: Any, scores: Any, *weights: Any) -> list[tuple[Any, Any]]:
    """Return, for each row, the sums of weights over rows with a lower score and over rows with no higher score."""
    order = library.argsort(scores)
    ordered = scores[order]
    low, high = (library.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    sums = [
        library.concatenate([library.zeros(1, each.dtype), library.cumsum(each[order], dtype=each.dtype)])
        for each in weights
    ]
    return [(each[low], each[high]) for each in sums]


def _split(library: Any, scores: Any, labels: Any, weights: Any) -> tuple[Any, Any, Any, Any]:
    """Return scores, the weights of positives and of negatives, and whether no row with positive weight has NaN."""
    scores = scores.reshape(labels.shape)
    has_weight = weights != 0
    is_known = (((labels == 0) | (labels == 1)) & ~library.isnan(scores)) | ~has_weight
    zero = library.zeros((), weights.dtype)
    positive, negative = (library.where(has_weight & (labels == label), weights, zero) for label in (1, 0))
    return library.where(has_weight, scores, library.zeros((), scores.dtype)), positive, negative, is_known.all()
