"""Per-example losses, `(outputs, targets) -> (batch,)`, and the empirical loss that averages them.

Losses do not reduce over the batch or apply weights, so padding, class weights and masks need no new loss: `empirical`
is the weighted mean. Each loss accepts a single output as `(batch,)` or `(batch, 1)`, and has a `loss.check(outputs,
targets)`, which raises an error for targets that do not suit the loss.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nnfx import arrays, checks, ops
from nnfx.bounds import Positive, Share
from nnfx.memo import one_program
from nnfx.types import Array, Mean, PerExample, at_least_float32

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


Measure = TypeVar("Measure", bound=Callable[..., Any])


def with_check(check: Callable[[Any, Any], None]) -> Callable[[Measure], Measure]:
    """Attach a check to a loss or metric; the check takes outputs and targets in any form that users may pass."""

    def decorate(loss: Measure) -> Measure:
        def converted(outputs: Any, targets: Any) -> None:
            held = isinstance(targets, jax.Array | jax.ShapeDtypeStruct)
            targets = targets if held else arrays.as_numpy("targets", targets)
            check(arrays.as_array("outputs", outputs), targets)

        loss.check = converted  # type: ignore[attr-defined]
        return loss

    return decorate


def check(loss: PerExample, outputs: Any, targets: Any) -> None:
    """Raise an error if the targets do not suit the loss or metric; user-defined functions are not checked.

    Args:
        loss: a loss of this module or a metric of `nnfx.metrics`, possibly a `functools.partial` of one, or any
            other function.
        outputs: the model's outputs or their `jax.ShapeDtypeStruct`.
        targets: the targets; their values are checked if they are concrete.
    """
    loss = _function(loss)
    if hasattr(loss, "check"):
        loss.check(outputs, targets)


def is_of_numbers(loss: PerExample) -> bool:
    """Return whether a loss of this module, possibly a partial, measures errors of numbers rather than of classes.

    >>> is_of_numbers(functools.partial(huber, delta=2.0)), is_of_numbers(categorical_cross_entropy)
    (True, False)
    """
    return any(_function(loss) is each for each in (mean_square_error, mean_absolute_error, huber))


def _function(loss: Any) -> Any:
    """Return the function of a `functools.partial`, and any other function itself."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _check_shapes(outputs: Any, targets: Any) -> None:
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
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise ValueError(
            f"outputs: expected logits for two classes or more, (batch, classes), got {checks.describe(outputs)}"
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
    else:
        checks.shares("targets", targets, "binary_cross_entropy")


def _aligned(check: Callable[[Any, Any], None], outputs: Any, targets: Any) -> tuple[Array, Array]:
    """Check outputs and targets, and return them as floats of one shape and dtype.

    Real numbers on the host are subtracted there, in float64, so that numbers far from zero lose no precision; the
    result is then their difference and zero.
    """
    if check is _check_real and not isinstance(outputs, jax.Array) and not isinstance(targets, jax.Array):
        exact = [arrays.as_numpy(*pair).astype(np.float64) for pair in (("outputs", outputs), ("targets", targets))]
        check(*exact)
        outputs = exact[0].reshape(exact[1].shape) - exact[1]
        targets = np.zeros_like(outputs)
    outputs = arrays.as_array("outputs", outputs, floats=True)
    targets = arrays.as_array("targets", targets, floats=check is _check_real)
    check(outputs, targets)
    return outputs.reshape(targets.shape), targets.astype(outputs.dtype)


def _known(labels: Array) -> Array:
    """Replace traced labels that are not probabilities by NaN, so that the loss and its gradient are NaN."""
    return jnp.where((labels >= 0) & (labels <= 1), labels, jnp.nan)


def mean_of_each(values: Array) -> Array:
    """Average over all axes but the first, which may be empty."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:])).mean(-1)


def _smoothing(label_smoothing: ArrayLike) -> ArrayLike | None:
    """Return the label smoothing after checking it, or None if it is zero."""
    checks.number("label_smoothing", label_smoothing, minimum=0, maximum=1)
    return None if isinstance(label_smoothing, float) and label_smoothing == 0 else label_smoothing


def _smoothed(labels: Array, smoothing: ArrayLike | None, classes: int) -> Array:
    """Smooth labels towards the uniform distribution over the classes."""
    if smoothing is None:
        return labels
    smoothing = jnp.asarray(smoothing, labels.dtype)
    return labels * (1 - smoothing) + smoothing / classes


@with_check(_check_binary)
def binary_cross_entropy(logits: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Binary cross-entropy from logits z: `−y log σ(z) − (1 − y) log(1 − σ(z))`.

    With label smoothing s the labels become `y (1 − s) + s / 2`. The loss and gradient of an infinite logit are zero if
    its sign matches the label; otherwise the loss is infinite.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, before the sigmoid.
        labels: 0 or 1, of the shape of the logits or `(batch,)`. Traced labels may lie in between, as those made
            by `nnfx.augment.mixup` do; the loss of labels outside [0, 1] is NaN.
        label_smoothing: s, between 0 and 1; may be traced.

    Returns:
        `(batch,)` in nats, the mean over several outputs.

    Raises:
        ValueError: for labels other than 0 and 1, or shapes that do not match.

    Example:
        >>> binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1, 0]))
        Array([0.6931472, 2.126928 ], dtype=float32)

    References:
        Goodfellow, Bengio and Courville, *Deep learning*, section 6.2.2.2.
    """
    logits, labels = _aligned(_check_binary, logits, labels)
    return _binary_cross_entropy(logits, labels, _smoothing(label_smoothing))


@one_program
def _binary_cross_entropy(logits: Array, labels: Array, smoothing: ArrayLike | None) -> Array:
    return mean_of_each(ops.logistic_loss(logits, _smoothed(_known(labels), smoothing, classes=2)))


@with_check(_check_binary)
def binary_cross_entropy_from_probabilities(probabilities: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Binary cross-entropy from probabilities p: `−y log p − (1 − y) log(1 − p)`, finite at 0 and 1.

    Probabilities are clipped to the dtype's smallest positive number and its largest number below 1, where the
    gradient is zero. Prefer `binary_cross_entropy` if logits are available: it is more accurate.

    Args:
        probabilities: `(batch,)`, `(batch, 1)` or `(batch, outputs)`, between 0 and 1; the loss of traced values
            outside this range, such as logits, is NaN, and so is its gradient.
        labels: 0 or 1, of the shape of the probabilities or `(batch,)`.
        label_smoothing: as for `binary_cross_entropy`.

    Returns:
        `(batch,)` in nats, the mean over several outputs.

    Raises:
        ValueError: for labels other than 0 and 1, probabilities outside [0, 1], or shapes that do not match.

    Example:
        >>> binary_cross_entropy_from_probabilities(jnp.array([0.5, 0.0]), jnp.array([1, 0]))
        Array([0.6931472, 0.       ], dtype=float32)
    """
    probabilities, labels = _aligned(_check_binary, probabilities, labels)
    if checks.is_concrete(probabilities):
        with jax.ensure_compile_time_eval():
            known, _ = checks.near(probabilities)
            if not ((known >= 0) & (known <= 1)).all():
                raise ValueError("probabilities: expected numbers from 0 to 1, got numbers outside; are they logits?")
    return _from_probabilities(probabilities, labels, _smoothing(label_smoothing))


@one_program
def _from_probabilities(probabilities: Array, labels: Array, smoothing: ArrayLike | None) -> Array:
    is_known = (probabilities >= 0) & (probabilities <= 1)
    probabilities = probabilities * jnp.where(is_known, 1, jnp.nan)  # the gradient is NaN too
    labels = _smoothed(_known(labels), smoothing, classes=2)
    limits = jnp.finfo(probabilities.dtype)
    log_p = jnp.log(jnp.maximum(probabilities, limits.tiny))
    log_not_p = jnp.log1p(-jnp.minimum(probabilities, 1 - limits.epsneg))
    return mean_of_each(-labels * log_p - (1 - labels) * log_not_p)


@with_check(_check_categorical)
def categorical_cross_entropy(logits: Array, labels: Array, label_smoothing: Share = 0.0) -> Array:
    """Categorical cross-entropy from logits z: `−Σₖ yₖ log softmax(z)ₖ`.

    With label smoothing s, over K classes, the labels become `y (1 − s) + s / K`.

    A logit of −∞ gives a class zero probability: it contributes nothing if the class's label is zero, and makes the
    loss infinite otherwise. Label smoothing gives every class a positive label, so with it, a logit of −∞ makes
    the loss infinite, as in PyTorch and Optax.

    Args:
        logits: `(batch, classes)`, before the softmax; further axes may lie between these two.
        labels: integers `(batch,)`, or one-hot rows or probabilities `(batch, classes)`. If labels are traced, the loss
            and its gradient are NaN for labels out of range and for rows that are not probabilities.
        label_smoothing: s, between 0 and 1; may be traced.

    Returns:
        `(batch,)` in nats, the mean over further axes. If some steps of a sequence have no label, give the batch
        weights `(batch, time)`, such as `labels >= 0`: steps then count like rows, and steps of weight 0 are ignored.

    Raises:
        ValueError: for integer labels outside `[0, classes)`, rows that do not sum to 1, or shapes that do
            not match.

    Example:
        >>> categorical_cross_entropy(jnp.array([[0.0, 0.0], [9.0, 0.0]]), jnp.array([1, 0]))
        Array([6.931472e-01, 1.233...e-04], dtype=float32)

    References:
        Szegedy et al., *Rethinking the Inception architecture*, CVPR 2016, section 7 (label smoothing).
    """
    logits = arrays.as_array("outputs", logits, floats=True)
    labels = arrays.as_labels("targets", labels)
    _check_categorical(logits, labels)
    return _categorical_cross_entropy(logits, labels, _smoothing(label_smoothing))


@one_program
def _categorical_cross_entropy(logits: Array, labels: Array, smoothing: ArrayLike | None) -> Array:
    labels = _smoothed(as_shares(labels, logits), smoothing, logits.shape[-1])
    log_p = ops.log_softmax(logits)
    log_p = jnp.where((labels == 0) & jnp.isneginf(log_p), 0, log_p)
    return mean_of_each(-(labels * log_p).sum(-1))


def as_shares(labels: Array, logits: Array) -> Array:
    """Return labels as rows of probabilities, which are NaN for invalid labels, so that loss and gradient are too."""
    if labels.shape == logits.shape:
        total = labels.astype(at_least_float32(logits.dtype)).sum(-1)
        is_known = (labels >= 0).all(-1) & (jnp.abs(total - 1) < checks.SUM_TOLERANCE)
        labels = labels.astype(logits.dtype)
    else:
        is_known = (labels >= 0) & (labels < logits.shape[-1])
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(is_known[..., None], labels, jnp.nan)


@with_check(_check_real)
def mean_square_error(outputs: Array, targets: Array) -> Array:
    """Mean square error: the mean of `(f(x) − y)²` over the outputs of an example.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`.

    Returns:
        `(batch,)`, in the squared units of the targets.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> mean_square_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))
        Array([2.5], dtype=float32)
    """
    outputs, targets = _aligned(_check_real, outputs, targets)
    return _mean_square_error(outputs, targets)


@one_program
def _mean_square_error(outputs: Array, targets: Array) -> Array:
    return mean_of_each(optax.losses.squared_error(outputs, targets))


@with_check(_check_real)
def mean_absolute_error(outputs: Array, targets: Array) -> Array:
    """Mean absolute error: the mean of `|f(x) − y|` over the outputs of an example.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`.

    Returns:
        `(batch,)`, in the targets' units.

    Raises:
        ValueError: for targets that are not finite, or shapes that do not match.

    Example:
        >>> mean_absolute_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))
        Array([1.5], dtype=float32)
    """
    outputs, targets = _aligned(_check_real, outputs, targets)
    return _mean_absolute_error(outputs, targets)


@one_program
def _mean_absolute_error(outputs: Array, targets: Array) -> Array:
    return mean_of_each(ops.absolute(outputs - targets))


@with_check(_check_real)
def huber(outputs: Array, targets: Array, delta: Positive = 1.0) -> Array:
    """Huber loss: `e²/2` for errors `|e| ≤ δ` and `δ (|e| − δ/2)` for larger ones, averaged over the outputs.

    Args:
        outputs: `(batch,)`, `(batch, 1)` or `(batch, ...)`.
        targets: real numbers of the shape of the outputs, or `(batch,)`.
        delta: δ > 0, the error at which the parabola becomes a line, in the targets' units; may be traced.

    Returns:
        `(batch,)`, in the squared units of the targets.

    Raises:
        ValueError: for targets that are not finite, a delta that is not positive, or shapes that do not match.

    Example:
        >>> huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]))
        Array([0.125, 2.5  ], dtype=float32)

    References:
        Huber, *Robust estimation of a location parameter*, Annals of Mathematical Statistics, 1964.
    """
    checks.number("delta", delta, above=0)
    outputs, targets = _aligned(_check_real, outputs, targets)
    return _huber(outputs, targets, delta)


@one_program
def _huber(outputs: Array, targets: Array, delta: ArrayLike) -> Array:
    return mean_of_each(optax.losses.huber_loss(outputs, targets, delta=delta))


def empirical(losses: Array, weights: Array | None = None) -> Array:
    """The empirical loss: the weighted mean `Σ wᵢ ℓᵢ / Σ wᵢ` of the per-example losses.

    Args:
        losses: `(batch,)`.
        weights: `(batch,)`, non-negative; all 1 if not given.

    Returns:
        A scalar; NaN if all weights are zero.

    Raises:
        ValueError: unless there is one loss per example and one weight per loss, or if a weight is negative or not
            finite.

    Example:
        >>> empirical(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0]))
        Array(2., dtype=float32)
    """
    losses = arrays.as_array("losses", losses, floats=True)
    if weights is None:
        return Mean.of(losses).value
    weights = arrays.as_array("weights", weights, floats=True)
    checks.weights("weights", weights, may_be_zero=True)
    mean = Mean.of(losses, weights).value
    return jnp.where((weights >= 0).all(), mean, jnp.nan)
