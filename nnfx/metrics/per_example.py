"""Per-example metrics, `(outputs, targets) -> (batch,)`, which a run averages over all rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nnfx import arrays, checks, losses, ops
from nnfx.memo import one_program
from nnfx.types import Array, PerExample

__all__ = ["accuracy", "binary_accuracy", "brier", "log_loss", "mean_absolute_percentage_error"]


def _check_binary(logits: Any, labels: Any) -> None:
    if logits.ndim < 1 or logits.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(f"labels: expected {checks.describe(logits)}, got {checks.describe(labels)}")
    checks.binary_labels("labels", labels)


def _check_classes(logits: Any, labels: Any) -> None:
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
        checks.shares("labels", labels, "binary_accuracy")
    else:
        checks.class_labels("labels", labels, logits.shape[-1])


def _check_likelihood(logits: Any, labels: Any) -> None:
    losses.check(_likelihood(logits), logits, labels)


def _likelihood(logits: Any) -> PerExample:
    """Return the cross-entropy that suits the number of outputs."""
    is_single = logits.ndim < 2 or logits.shape[-1] == 1
    return losses.binary_cross_entropy if is_single else losses.categorical_cross_entropy


@losses.with_check(_check_binary)
def binary_accuracy(logits: Array, labels: Array) -> Array:
    """Accuracy for binary labels: 1 if the sign of the logit agrees with the label, else 0, `[(z > 0) = y]`.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, before the sigmoid.
        labels: 0 or 1, of the shape of the logits, or `(batch,)`.

    Returns:
        `(batch,)` in the dtype of the logits, averaged over several outputs; NaN for logits that are NaN, and for
        traced labels outside [0, 1].

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> binary_accuracy(jnp.array([2.0, 3.0]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    logits, labels = _converted(logits, labels)
    _check_binary(logits, labels)
    return _binary_accuracy(logits.reshape(labels.shape), labels)


@one_program
def _binary_accuracy(logits: Array, labels: Array) -> Array:
    is_known = (labels >= 0) & (labels <= 1) & ~jnp.isnan(logits)
    return _per_example((logits > 0) == (labels > 0.5), is_known, logits.dtype)


@losses.with_check(_check_classes)
def accuracy(logits: Array, labels: Array) -> Array:
    """Accuracy: 1 if the label has the largest logit, else 0, `[argmaxₖ zₖ = y]`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)`, or one-hot rows or probabilities `(batch, classes)`, whose largest entry
            is the label.

    Returns:
        `(batch,)` in the dtype of the logits; NaN for logits that are NaN, and for traced labels out of range.

    Raises:
        ValueError: for integer labels outside `[0, classes)`, rows that do not sum to 1, such as several labels per
            row, or shapes that do not match.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    logits, labels = _converted(logits, labels)
    _check_classes(logits, labels)
    return _accuracy(logits, labels)


@one_program
def _accuracy(logits: Array, labels: Array) -> Array:
    if labels.shape == logits.shape:
        is_known, labels = checks.are_shares(labels), labels.argmax(-1)
    else:
        is_known = (labels >= 0) & (labels < logits.shape[-1])
    is_known &= ~jnp.isnan(logits).any(-1)
    return _per_example(logits.argmax(-1) == labels, is_known, logits.dtype)


@losses.with_check(_check_likelihood)
def log_loss(logits: Array, labels: Array) -> Array:
    """The negative log-likelihood of the label: binary cross-entropy for one output, categorical for several.

    Args:
        logits: `(batch,)` or `(batch, 1)` before the sigmoid, or `(batch, classes)` before the softmax.
        labels: 0 or 1, `(batch,)`; or integers `(batch,)`, one-hot rows or probabilities `(batch, classes)`.

    Returns:
        `(batch,)` in nats.

    Raises:
        ValueError: as `nnfx.losses.binary_cross_entropy` and `nnfx.losses.categorical_cross_entropy` do.

    Example:
        >>> log_loss(jnp.array([0.0, 2.0]), jnp.array([1, 0]))
        Array([0.6931472, 2.126928 ], dtype=float32)
    """
    logits = arrays.as_array("logits", logits, floats=True)
    return _likelihood(logits)(logits, labels)


@losses.with_check(_check_likelihood)
def brier(logits: Array, labels: Array) -> Array:
    """The Brier score: `(p − y)²` for one output, `Σₖ (pₖ − yₖ)²` for several classes.

    Args:
        logits: `(batch,)` or `(batch, 1)` before the sigmoid, or `(batch, classes)` before the softmax.
        labels: 0 or 1, `(batch,)`; or integers `(batch,)`, one-hot rows or probabilities `(batch, classes)`.

    Returns:
        `(batch,)` in the dtype of the logits, from 0 to 1 for one output and from 0 to 2 for several classes.

    Raises:
        ValueError: for labels that are out of range, or shapes that do not match.

    Example:
        >>> brier(jnp.array([0.0, 100.0]), jnp.array([1, 1]))
        Array([0.25, 0.  ], dtype=float32)

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, Monthly Weather Review, 1950.
    """
    logits, labels = _converted(logits, labels)
    _check_likelihood(logits, labels)
    if logits.ndim < 2 or logits.shape[-1] == 1:
        labels = jnp.where((labels >= 0) & (labels <= 1), labels, jnp.nan)
        probabilities = jax.nn.sigmoid(logits.reshape(labels.shape))
        return losses.mean_of_each((probabilities - labels.astype(logits.dtype)) ** 2)
    return losses.mean_of_each(((jnp.exp(ops.log_softmax(logits)) - losses.as_shares(labels, logits)) ** 2).sum(-1))


@losses.with_check(partial(losses.check, losses.mean_absolute_error))
def mean_absolute_percentage_error(outputs: Array, targets: Array) -> Array:
    """The absolute error as a fraction of the target, `|f(x) − y| / |y|`; 1 means 100 %.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`; zeros are replaced by the dtype's machine
            epsilon, as in scikit-learn.

    Returns:
        `(batch,)`, averaged over several outputs.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> mean_absolute_percentage_error(jnp.array([90.0, 3.0]), jnp.array([100.0, 2.0]))
        Array([0.1, 0.5], dtype=float32)
    """
    outputs = arrays.as_array("outputs", outputs, floats=True)
    targets = arrays.as_array("targets", targets, floats=True)
    losses.check(losses.mean_absolute_error, outputs, targets)
    targets = targets.astype(outputs.dtype)
    scale = jnp.maximum(jnp.abs(targets), jnp.finfo(outputs.dtype).eps)
    return losses.mean_of_each(jnp.abs(outputs.reshape(targets.shape) - targets) / scale)


def _converted(logits: Any, labels: Any) -> tuple[Array, Array]:
    return arrays.as_array("logits", logits, floats=True), arrays.as_labels("labels", labels)


def _per_example(right: Array, is_known: Array, dtype: jnp.dtype) -> Array:
    """Average correct predictions over all axes but the first; invalid entries are NaN."""
    return losses.mean_of_each(jnp.where(is_known, right.astype(dtype), jnp.nan))
