"""Scores of predicted probabilities on held-out data.

The per-example scores are proper scoring rules; the calibration error and the reliability diagram are computed from all
examples together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.types import Array
from nnfx.uncertainty.predictions import known, wide

__all__ = [
    "Reliability",
    "brier_score",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability",
    "score",
]


def negative_log_likelihood(probabilities: Array, labels: Array) -> Array:
    """Negative log-likelihood of the true class, `−log p_y`, a proper scoring rule; finite for a probability of 0.

    The logarithm is clipped at the smallest positive normal number of the dtype.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.
        labels: integers `(batch,)`.

    Returns:
        `(batch,)` in nats.

    Raises:
        ValueError: for labels out of range, numbers that are not probabilities, or shapes that do not match.

    Example:
        >>> negative_log_likelihood(jnp.array([[0.5, 0.5], [0.25, 0.75]]), jnp.array([1, 0]))
        Array([0.6931472, 1.3862944], dtype=float32)
    """
    probabilities, labels = known(probabilities, labels)
    chosen = jnp.take_along_axis(probabilities, labels[:, None], -1)[:, 0]
    return -jnp.log(jnp.maximum(chosen, jnp.finfo(chosen.dtype).tiny))


def brier_score(probabilities: Array, labels: Array) -> Array:
    """The Brier score `Σₖ (pₖ − [k = y])²`, from 0 to 2, a proper scoring rule.

    This is Brier's own definition. For two classes it is twice the `(p₁ − y)²` that is also called the Brier score, for
    example in scikit-learn.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.
        labels: integers `(batch,)`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: for labels out of range, numbers that are not probabilities, or shapes that do not match.

    Example:
        >>> brier_score(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([1, 1]))
        Array([0.5, 2. ], dtype=float32)

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, Monthly Weather Review, 1950.
    """
    probabilities, labels = known(probabilities, labels)
    truth = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.square(probabilities - truth).sum(-1)


class Reliability(NamedTuple):
    """A reliability diagram: three arrays `(bins,)`, with one entry for each bin of confidence.

    Attributes:
        confidence: the mean probability of the predicted class; NaN if the bin is empty.
        accuracy: the fraction of predictions that are correct; NaN if the bin is empty.
        counts: the number of examples in the bin.
    """

    confidence: Array
    accuracy: Array
    counts: Array


def _sums(probabilities: Array, labels: Array, bins: int) -> tuple[Array, Array, Array]:
    """Return, for each bin, the sum of confidences, the number of correct predictions and the number of examples."""
    checks.positive_integer("bins", bins)
    probabilities, labels = known(probabilities, labels)
    confidence = wide(probabilities.max(-1))
    right = (probabilities.argmax(-1) == labels).astype(confidence.dtype)
    right = jnp.where(jnp.isnan(confidence), jnp.nan, right)
    inner_edges = jnp.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1]
    position = jnp.searchsorted(inner_edges, confidence, side="left")
    columns = jnp.stack([confidence, right, jnp.ones_like(confidence)], -1)
    sums = jax.ops.segment_sum(columns, position, num_segments=bins)
    return sums[:, 0], sums[:, 1], sums[:, 2]


def reliability(probabilities: Array, labels: Array, bins: int = 15) -> Reliability:
    """A reliability diagram: confidence and accuracy in bins `((m − 1)/M, m/M]` of the predicted class's probability.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.
        labels: integers `(batch,)`.
        bins: M, the number of bins of equal width; static.

    Returns:
        Three arrays `(bins,)`; a calibrated model has confidence = accuracy.

    Raises:
        ValueError: for labels out of range, numbers that are not probabilities, or shapes that do not match.

    Example:
        >>> diagram = reliability(jnp.array([[0.25, 0.75], [0.75, 0.25], [0.0, 1.0]]), jnp.array([1, 1, 1]), bins=4)
        >>> diagram.accuracy, diagram.counts
        (Array([nan, nan, 0.5, 1. ], dtype=float32), Array([0., 0., 2., 1.], dtype=float32))

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017, section 2.
    """
    confidence, right, counts = _sums(probabilities, labels, bins)
    some = counts > 0

    def mean(total: Array) -> Array:
        of_some = total / jnp.where(some, counts, 1)
        if checks.is_concrete(of_some):  # on the host, so that `jax_debug_nans` does not raise for empty bins
            known = np.asarray(of_some)
            return jax.device_put(np.where(np.asarray(some), known, np.asarray(np.nan, known.dtype)))
        return jnp.where(some, of_some, jnp.nan)

    return Reliability(mean(confidence), mean(right), counts)


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> Array:
    """Expected calibration error `Σₘ |Bₘ|/n · |accuracy(Bₘ) − confidence(Bₘ)|` over bins of equal width.

    The confidence is the probability of the predicted class. The estimate is biased upwards if bins contain few
    examples, so compare values only for equal numbers of examples and bins.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.
        labels: integers `(batch,)`.
        bins: the number of bins; static.

    Returns:
        A scalar from 0 to 1.

    Raises:
        ValueError: for labels out of range, numbers that are not probabilities, or shapes that do not match.

    Example:
        >>> expected_calibration_error(jnp.array([[0.25, 0.75], [0.75, 0.25]]), jnp.array([1, 1]))
        Array(0.25, dtype=float32)

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017, equation 3.
    """
    confidence, right, counts = _sums(probabilities, labels, bins)
    return jnp.abs(right - confidence).sum() / counts.sum()


def score(probabilities: Array, labels: Array) -> dict[str, Array]:
    """Return all scores of predicted probabilities on held-out data, each as one number.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.
        labels: integers `(batch,)`.

    Returns:
        Accuracy, mean negative log-likelihood (nats), mean Brier score and expected calibration error, by name.

    Raises:
        ValueError: for labels out of range, numbers that are not probabilities, or shapes that do not match.

    Example:
        >>> scores = score(jnp.array([[0.25, 0.75], [0.75, 0.25]]), jnp.array([1, 1]))
        >>> {name: round(float(value), 3) for name, value in scores.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'accuracy': 0.5, 'negative_log_likelihood': 0.837, 'brier_score': 0.625,
         'expected_calibration_error': 0.25}
    """
    probabilities, labels = known(probabilities, labels)
    return {
        "accuracy": (probabilities.argmax(-1) == labels).mean(),
        "negative_log_likelihood": negative_log_likelihood(probabilities, labels).mean(),
        "brier_score": brier_score(probabilities, labels).mean(),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
    }
