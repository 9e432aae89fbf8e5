"""Metrics for language models: perplexity and bits per token."""

import math
from functools import partial

import jax.numpy as jnp

from nnfx import arrays, checks, losses
from nnfx.metrics.marks import overall
from nnfx.metrics.ranks import with_weights
from nnfx.types import Array

__all__ = ["bits_per_token", "perplexity"]


@losses.with_check(partial(losses.check, losses.categorical_cross_entropy))
def bits_per_token(logits: Array, labels: Array) -> Array:
    """The cross-entropy in bits, `−log₂ softmax(z)_y`: the length of a token in an ideal code based on the model.

    For character-level models, this is known as bits per character.

    Args:
        logits: `(batch, classes)`, or `(batch, time, classes)`, before the softmax.
        labels: integers `(batch,)` or `(batch, time)`, one-hot rows or probabilities.

    Returns:
        `(batch,)` in bits, averaged over the steps. In a run with a weight for each step, steps count as rows.

    Raises:
        ValueError: as `nnfx.losses.categorical_cross_entropy` does.

    Example:
        >>> bits_per_token(jnp.zeros((1, 8)), jnp.array([5]))  # one of eight
        Array([3.], dtype=float32)

    References:
        Shannon, *Prediction and entropy of printed English*, Bell System Technical Journal 1951.
    """
    return losses.categorical_cross_entropy(logits, labels) / math.log(2)


@overall
@losses.with_check(partial(losses.check, losses.categorical_cross_entropy))
def perplexity(logits: Array, labels: Array, weights: Array | None = None) -> Array:
    """The exponential of the mean cross-entropy, `exp(Σ wᵢ ℓᵢ / Σ wᵢ)`: the effective number of tokens to choose from.

    Args:
        logits: `(batch, classes)`, or `(batch, time, classes)`, before the softmax.
        labels: integers `(batch,)` or `(batch, time)`; or one-hot rows or probabilities, of the shape of the logits.
        weights: one for each label, non-negative; labels of weight zero are left out, whatever their values. All 1 by
            default.

    Returns:
        A scalar, at least 1; NaN if all weights are zero.

    Raises:
        ValueError: as `nnfx.losses.categorical_cross_entropy` does, and for weights whose shape does not match the
            labels.

    Example:
        >>> perplexity(jnp.zeros((2, 8)), jnp.array([5, -1]), jnp.array([1.0, 0.0])).round(4)  # one of eight
        Array(8., dtype=float32)

    References:
        Jelinek, Mercer, Bahl and Baker, *Perplexity: a measure of the difficulty of speech recognition tasks*, Journal
        of the Acoustical Society of America 1977.
    """
    logits, labels = arrays.as_array("logits", logits, floats=True), arrays.as_labels("labels", labels)
    if logits.ndim < 2 or labels.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"labels: expected integers or one-hot rows for logits {checks.describe(logits)},"
            f" got {checks.describe(labels)}"
        )
    if weights is not None:
        weights = arrays.as_array("weights", weights)
        if weights.shape != logits.shape[:-1]:
            raise ValueError(f"weights: expected one weight for each label, got {checks.describe(weights)}")
        weights = weights.reshape(-1)
    labels = labels.reshape(-1, *labels.shape[logits.ndim - 1 :])
    labels, weights = with_weights(labels, weights)
    if labels.ndim == 2:  # a row of zeros is not a distribution
        labels = jnp.where((weights != 0)[:, None], labels, 1 / logits.shape[-1])
    each = losses.categorical_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels)
    return jnp.exp(losses.empirical(each, weights))
