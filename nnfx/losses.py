"""Losses per example, `(outputs, targets) -> (batch,)`, and the empirical loss that averages them.

Reduction and weights are kept out of the losses, so that padding, class weights and masks need no new
one: `empirical` is the weighted mean. Each loss accepts a single output as `(batch,)` or `(batch, 1)`, and
carries `loss.check(outputs, targets)`, which raises on targets that it cannot be meant for.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nnfx import checks, ops
from nnfx.bounds import Positive, Share
from nnfx.types import Array, Mean, PerExample

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_from_probabilities",
    "categorical_cross_entropy",
    "check",
    "empirical",
    "huber",
    "mean_absolute_error",
    "mean_square_error",
]


def _with_check(check: Callable[[Any, Any], None]) -> Callable[[PerExample], PerExample]:
    """Attach the check of a loss's targets, and run it before each call."""

    def decorate(loss: PerExample) -> PerExample:
        @functools.wraps(loss)
        def checked(outputs: Array, targets: Array, *args: Any, **kwargs: Any) -> Array:
            check(outputs, targets)
            return loss(outputs, targets, *args, **kwargs)

        checked.check = check  # type: ignore[attr-defined]
        return checked

    return decorate


def check(loss: PerExample, outputs: Any, targets: Any) -> None:
    """Raise where a loss cannot be meant for these targets; a loss of the user's own passes.

    Args:
        loss: a loss of this module, perhaps within `functools.partial`, or any other function.
        outputs: the model's outputs or their `jax.ShapeDtypeStruct`.
        targets: the targets; their values are looked at where they are concrete.
    """
    while isinstance(loss, functools.partial):
        loss = loss.func
    if hasattr(loss, "check"):
        loss.check(outputs, targets)


def _check_shapes(outputs: Any, targets: Any) -> None:
    checks.numeric("targets", targets)
    if outputs.ndim < 1:
        raise ValueError(f"outputs: expected a batch, (batch, ...), got {checks.describe(outputs)}")
    if outputs.shape not in (targets.shape, (*targets.shape, 1)):
        raise ValueError(
            f"targets: expected the shape of the outputs, {checks.describe(outputs)}"
            f" (a single output may be (batch, 1)), got {checks.describe(targets)}"
        )


def _check_real(outputs: Any, targets: Any) -> None:
    _check_shapes(outputs, targets)
    checks.finite("targets", targets)


def _check_binary(outputs: Any, targets: Any) -> None:
    _check_shapes(outputs, targets)
    checks.binary_labels("targets", targets)


def _check_categorical(outputs: Any, targets: Any) -> None:
    checks.numeric("targets", targets)
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise ValueError(
            f"outputs: expected logits of two classes or more, (batch, classes), got {checks.describe(outputs)}"
        )
    classes = outputs.shape[-1]
    one_hot = targets.shape == outputs.shape
    if not one_hot and not (targets.shape == outputs.shape[:-1] and jnp.issubdtype(targets.dtype, np.integer)):
        raise ValueError(
            f"targets: expected integer labels {list(outputs.shape[:-1])} or one-hot labels"
            f" {list(outputs.shape)} for outputs {checks.describe(outputs)}, got {checks.describe(targets)}"
        )
    if not one_hot:
        checks.class_labels("targets", targets, classes)
    elif checks.is_concrete(targets) and targets.size:
        with jax.ensure_compile_time_eval():
            if not (targets.min() >= 0 and abs(targets.sum(-1) - 1).max() < 0.01):
                raise ValueError("targets: expected one-hot rows or probabilities that sum to 1, got other rows")


def _aligned(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Drop the axis of a single output, and bring the targets to the dtype of the outputs."""
    return outputs.reshape(targets.shape), targets.astype(outputs.dtype)


def _per_example(values: Array) -> Array:
    """Average all but the first axis."""
    return values.reshape(values.shape[0], -1).mean(-1)


def _smoothed(labels: Array, label_smoothing: ArrayLike, classes: int) -> Array:
    """Move labels towards the uniform distribution over the classes."""
    checks.number("label_smoothing", label_smoothing, minimum=0, maximum=1)
    if isinstance(label_smoothing, float) and label_smoothing == 0:
        return labels
    smoothing = jnp.asarray(label_smoothing, labels.dtype)
    return labels * (1 - smoothing) + smoothing / classes


@_with_check(_check_binary)
def binary_cross_entropy(logits: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Binary cross-entropy from logits z: `−y log σ(z) − (1 − y) log(1 − σ(z))`.

    With label smoothing s the labels become `y (1 − s) + s / 2`.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, before the sigmoid.
        labels: 0 or 1, in the shape of the logits or `(batch,)`.
        label_smoothing: s, between 0 and 1; may be traced.

    Returns:
        `(batch,)` in nats, the mean over several outputs.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not fit.

    Example:
        >>> binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1, 0]))
        Array([0.6931472, 2.126928 ], dtype=float32)

    References:
        Goodfellow, Bengio and Courville, *Deep learning*, section 6.2.2.2.
    """
    logits, labels = _aligned(logits, labels)
    labels = _smoothed(labels, label_smoothing, classes=2)
    return _per_example(ops.logistic_loss(logits, labels))


@_with_check(_check_binary)
def binary_cross_entropy_from_probabilities(probabilities: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Binary cross-entropy from probabilities p: `−y log p − (1 − y) log(1 − p)`, finite at 0 and 1.

    The logarithms are cut off at the smallest positive number, and at the largest below 1, of the dtype.
    Where there is a choice, `binary_cross_entropy` from logits is more accurate.

    Args:
        probabilities: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, between 0 and 1.
        labels: 0 or 1, in the shape of the probabilities or `(batch,)`.
        label_smoothing: as for `binary_cross_entropy`.

    Returns:
        `(batch,)` in nats, the mean over several outputs.

    Raises:
        ValueError: for labels other than 0 and 1, probabilities outside [0, 1], or shapes that do not fit.

    Example:
        >>> binary_cross_entropy_from_probabilities(jnp.array([0.5, 0.0]), jnp.array([1, 0]))
        Array([0.6931472, 0.       ], dtype=float32)
    """
    if checks.is_concrete(probabilities):
        with jax.ensure_compile_time_eval():
            if not ((probabilities >= 0) & (probabilities <= 1)).all():
                raise ValueError("probabilities: expected numbers from 0 to 1, got others; are they logits?")
    probabilities, labels = _aligned(probabilities, labels)
    labels = _smoothed(labels, label_smoothing, classes=2)
    limits = jnp.finfo(probabilities.dtype)
    log_p = jnp.log(jnp.maximum(probabilities, limits.tiny))
    log_not_p = jnp.log1p(-jnp.minimum(probabilities, 1 - limits.epsneg))
    return _per_example(-labels * log_p - (1 - labels) * log_not_p)


@_with_check(_check_categorical)
def categorical_cross_entropy(logits: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Categorical cross-entropy from logits z: `−Σₖ yₖ log softmax(z)ₖ`.

    With label smoothing s, over K classes, the labels become `y (1 − s) + s / K`.

    Args:
        logits: `(batch, classes)`, before the softmax; further axes may stand between the two.
        labels: integers `(batch,)`, or one-hot rows or probabilities `(batch, classes)`.
        label_smoothing: s, between 0 and 1; may be traced.

    Returns:
        `(batch,)` in nats, the mean over further axes.

    Raises:
        ValueError: for integer labels outside `[0, classes)`, rows that do not sum to 1, or shapes that do
            not fit.

    Example:
        >>> categorical_cross_entropy(jnp.array([[0.0, 0.0], [9.0, 0.0]]), jnp.array([1, 0]))
        Array([6.931472e-01, 1.233...e-04], dtype=float32)

    References:
        Szegedy et al., *Rethinking the Inception architecture*, CVPR 2016, section 7 (label smoothing).
    """
    if labels.shape != logits.shape:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    labels = _smoothed(labels.astype(logits.dtype), label_smoothing, logits.shape[-1])
    return _per_example(optax.losses.softmax_cross_entropy(logits, labels))


@_with_check(_check_real)
def mean_square_error(outputs: Array, targets: Array) -> Array:
    """Mean square error: the mean of `(f(x) − y)²` over the outputs of an example.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers in the shape of the outputs, or `(batch,)`.

    Returns:
        `(batch,)`, in the square of the targets' unit.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not fit.

    Example:
        >>> mean_square_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))
        Array([2.5], dtype=float32)
    """
    outputs, targets = _aligned(outputs, targets)
    return _per_example(optax.losses.squared_error(outputs, targets))


@_with_check(_check_real)
def mean_absolute_error(outputs: Array, targets: Array) -> Array:
    """Mean absolute error: the mean of `|f(x) − y|` over the outputs of an example.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers in the shape of the outputs, or `(batch,)`.

    Returns:
        `(batch,)`, in the targets' unit.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not fit.

    Example:
        >>> mean_absolute_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))
        Array([1.5], dtype=float32)
    """
    outputs, targets = _aligned(outputs, targets)
    return _per_example(jnp.abs(outputs - targets))


@_with_check(_check_real)
def huber(outputs: Array, targets: Array, delta: Positive = 1.0) -> Array:
    """Huber loss: `e²/2` for errors `|e| ≤ δ` and `δ (|e| − δ/2)` beyond, the mean over the outputs.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers in the shape of the outputs, or `(batch,)`.
        delta: δ > 0, where the parabola becomes a line, in the targets' unit; may be traced.

    Returns:
        `(batch,)`, in the square of the targets' unit.

    Raises:
        ValueError: for targets that are not finite, a delta that is not positive, or shapes that do not fit.

    Example:
        >>> huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]))
        Array([0.125, 2.5  ], dtype=float32)

    References:
        Huber, *Robust estimation of a location parameter*, Annals of Mathematical Statistics, 1964.
    """
    checks.number("delta", delta, above=0)
    outputs, targets = _aligned(outputs, targets)
    return _per_example(optax.losses.huber_loss(outputs, targets, delta=delta))


def empirical(losses: Array, weights: Array | None = None) -> Array:
    """The empirical loss: the weighted mean `Σ wᵢ ℓᵢ / Σ wᵢ` of the losses of the examples.

    Args:
        losses: `(batch,)`.
        weights: `(batch,)`, non-negative; one each where they are not given.

    Returns:
        A scalar; zero where all weights are.

    Raises:
        ValueError: for losses that are not one per example, or as many weights as examples.

    Example:
        >>> empirical(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0]))
        Array(2., dtype=float32)
    """
    return Mean.of(losses, weights).value
