"""Predicted probabilities of single models and of ensembles."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, ops
from nnfx.types import Array, at_least_float32

__all__ = ["Spread", "log_probabilities", "probabilities", "spread"]

SUM_TOLERANCE = 1e-2
"""How far the sum of a row of probabilities may deviate from 1, to allow for a softmax in bfloat16."""


def wide(array: Array) -> Array:
    """Convert an array to at least float32, so that many numbers can be summed accurately."""
    return array.astype(at_least_float32(array.dtype))


def _check_floats(name: str, value: Any) -> None:
    if not jnp.issubdtype(value.dtype, np.floating):
        raise TypeError(f"{name}: expected an array of floating-point numbers, got {checks.describe(value)}")


def _check_probabilities(probabilities: Any, axes: str = "(batch, classes)") -> None:
    _check_floats("probabilities", probabilities)
    if probabilities.ndim != axes.count(",") + 1 or probabilities.shape[-1] < 2:
        raise ValueError(
            f"probabilities: expected {axes} with two classes or more, got {checks.describe(probabilities)};"
            " nnfx.uncertainty.probabilities computes them from logits"
        )
    if checks.is_concrete(probabilities):
        values = np.asarray(probabilities, np.float64)
        if not (((values >= 0) & (values <= 1)).all() and np.allclose(values.sum(-1), 1, atol=SUM_TOLERANCE)):
            raise ValueError(
                "probabilities: expected numbers from 0 to 1 whose rows sum to 1, got other numbers; are they logits?"
            )


def check_labels(labels: Any, shape: tuple[int, ...], classes: int) -> None:
    if labels.shape != shape or not jnp.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers {list(shape)}, one per example, got {checks.describe(labels)}")
    checks.class_labels("labels", labels, classes)


def known_probabilities(probabilities: Any, axes: str = "(batch, classes)") -> Array:
    """Return probabilities on the device, after checking them; traced rows that are not probabilities become NaN."""
    p: Array = arrays.as_array("probabilities", probabilities)
    _check_probabilities(p, axes)
    if checks.is_concrete(p):
        return p
    is_known = (p >= 0).all(-1, keepdims=True) & (jnp.abs(wide(p).sum(-1, keepdims=True) - 1) < SUM_TOLERANCE)
    return jnp.where(is_known, p, jnp.nan)


def known(probabilities: Any, labels: Any) -> tuple[Array, Array]:
    """Return probabilities and labels on the device, after checking them; invalid traced rows become NaN."""
    p, y = known_probabilities(probabilities), arrays.as_labels("labels", labels)
    check_labels(y, p.shape[:1], p.shape[1])
    if checks.is_concrete(y):
        return p, y
    return jnp.where(((y >= 0) & (y < p.shape[1]))[:, None], p, jnp.nan), y


def class_logits(logits: Any) -> Array:
    """Return one logit per class; a single output z becomes the logits 0 and z, whose softmax is 1 − σ(z) and σ(z)."""
    logits = arrays.as_array("logits", logits)
    _check_floats("logits", logits)
    if logits.ndim < 1:
        raise ValueError(f"logits: expected a batch, (batch, ...), got {checks.describe(logits)}")
    single = logits[..., None] if logits.ndim == 1 else logits
    if single.shape[-1] > 1:
        return single
    is_certain = single == jnp.inf
    pair = jnp.where(is_certain, -jnp.inf, 0).astype(single.dtype), jnp.where(is_certain, 0, single)
    return jnp.concatenate(pair, -1)


def probabilities(logits: Array) -> Array:
    """The probability of each class: `softmax(z)` or, for a single output, `(1 − σ(z), σ(z))`.

    A logit of −∞ gives its class zero probability, and a logit of +∞ gives all other classes zero probability.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, classes)`; axes such as `(members, ...)` may precede the
            last two, in which case a single output must be `(members, batch, 1)`.

    Returns:
        `(batch, classes)`, with two classes for a single output; the rows sum to 1.

    Raises:
        ValueError: for logits without a batch axis.

    Example:
        >>> probabilities(jnp.array([0.0, 100.0]))
        Array([[0.5, 0.5],
               [0. , 1. ]], dtype=float32)
    """
    return ops.softmax(class_logits(logits))


def log_probabilities(logits: Array) -> Array:
    """The logarithm of `probabilities`, computed without underflow; −∞ for a class with a logit of −∞.

    Args:
        logits: as for `probabilities`.

    Returns:
        `(batch, classes)` in nats.

    Raises:
        ValueError: for logits without a batch axis.

    Example:
        >>> log_probabilities(jnp.array([[0.0, 200.0, -jnp.inf]]))
        Array([[-200.,    0.,  -inf]], dtype=float32)
    """
    return ops.log_softmax(class_logits(logits))


class Spread(NamedTuple):
    """The predictions of an ensemble, and how closely its members agree.

    Attributes:
        mean: the ensemble's prediction, `(batch, classes)`.
        std: the standard deviation of the members around the mean, `(batch, classes)`.
        entropy: the entropy of the mean in nats, `(batch,)`: the total uncertainty.
        mutual_information: the part of the entropy due to disagreement among members in nats, `(batch,)`.
    """

    mean: Array
    std: Array
    entropy: Array
    mutual_information: Array


def spread(probabilities: Array) -> Spread:
    """The mean of an ensemble's predictions, and its uncertainty: `H[E p] = E H[p] + mutual information`.

    The first term is noise in the data, which neither more members nor more data can reduce; the second is disagreement
    among the members (BALD), which more data can reduce.

    Args:
        probabilities: `(members, batch, classes)`, rows that sum to 1.

    Returns:
        The mean, the standard deviation (without Bessel's correction), the entropy and the mutual information.

    Raises:
        ValueError: for numbers that are not probabilities, or the wrong number of axes.

    Example:
        >>> disagree = spread(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> disagree.mean.tolist(), disagree.entropy, disagree.mutual_information
        ([[0.5, 0.5]], Array([0.6931472], dtype=float32), Array([0.6931472], dtype=float32))

    References:
        Lakshminarayanan et al., *Simple and scalable predictive uncertainty estimation using deep ensembles*, 2017.
        Houlsby et al., *Bayesian active learning for classification and preference learning*, 2011.
    """
    probabilities = known_probabilities(probabilities, "(members, batch, classes)")
    mean, variance = probabilities.mean(0), probabilities.var(0)
    std = ops.square_root(variance)
    entropy = _entropy(mean)
    # Rounding may make the difference negative, but mutual information is non-negative.
    return Spread(mean, std, entropy, jnp.maximum(entropy - _entropy(probabilities).mean(0), 0))


def _entropy(p: Array) -> Array:
    """Return the entropy over the last axis; the logarithm is clipped, so that its gradient is finite at 0."""
    return -(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))).sum(-1)
