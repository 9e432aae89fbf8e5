"""The temperature that calibrates a model's probabilities, fitted to held-out data."""

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Array
from nnfx.uncertainty.predictions import check_labels, class_logits, wide

__all__ = ["fit_temperature"]

TEMPERATURES = (1e-4, 1e4)
"""The range of temperatures that `fit_temperature` searches."""
HALVINGS = 45
"""The number of bisections of the range of log T, to below the resolution of float32, and to 1e-12 in float64."""


def fit_temperature(logits: Array, labels: Array, weights: Array | None = None) -> Array:
    """The temperature T > 0 that minimises the cross-entropy `−Σᵢ wᵢ log softmax(zᵢ / T)[yᵢ]` on held-out data.

    Divide logits by T before calling `probabilities`: the predicted classes stay the same, and their confidence is
    calibrated. The sum is convex in β = 1/T, and its slope `Σᵢ wᵢ (E_p[zᵢ] − zᵢ[yᵢ])` increases with β, so bisection
    over log T finds where the slope is zero. T is differentiable in logits and weights. Logits of −∞ mean zero
    probability at every T. T is NaN if traced arguments are invalid: logits that are NaN, or −∞ for the label, labels
    out of range, weights that are negative or all zero.

    If the data do not determine T, the result is an end of its range: 1e-4 if every prediction is right, 1e4 if
    predictions are no better than chance. If all logits of each example are equal, the sum is the same at every T, and
    the result is 1.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, classes)`.
        labels: integers `(batch,)`.
        weights: `(batch,)`, non-negative and not all zero; an example of weight zero is left out, whatever its values.
            1 by default.

    Returns:
        T, a dimensionless scalar from 1e-4 to 1e4: above 1 if the model is overconfident, below 1 if underconfident.

    Raises:
        TypeError: for logits that are not floating-point numbers.
        ValueError: for labels out of range or with a logit of −∞, logits that are NaN or +∞, weights that are negative,
            not finite or all zero, or shapes that do not match.

    Example:
        >>> logits = jnp.array([3.0, 3.0, 3.0, -3.0])  # equally confident predictions, 3 of 4 right
        >>> round(float(fit_temperature(logits, jnp.array([1, 1, 0, 0]))), 3)  # 3 / log 3
        2.731

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017, section 4.2.
    """
    logits = wide(class_logits(logits))
    if logits.ndim != 2:
        raise ValueError(
            f"logits: expected (batch, classes), got {checks.describe(logits)}; map over further axes with jax.vmap"
        )
    if not len(logits):
        raise ValueError(f"logits: expected at least one example, got {checks.describe(logits)}")
    labels = arrays.as_labels("labels", labels)
    check_labels(labels, logits.shape[:1], logits.shape[1])
    if weights is None:
        weights = jnp.ones_like(logits[:, 0])
    weights = arrays.as_array("weights", weights, floats=True).astype(logits.dtype)
    if weights.shape != labels.shape:
        raise ValueError(f"weights: expected one per example, {labels.shape}, got {checks.describe(weights)}")
    checks.weights("weights", weights)
    if checks.is_concrete((logits, labels, weights)):
        _check_possible(*map(np.asarray, (logits, labels, weights)))
    return _temperature(logits, labels, weights)


def _check_possible(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
    """Check that the logits of examples with positive weight are finite or −∞, and finite for the label."""
    has_weight = weights != 0
    checks.finite("logits", np.where(has_weight[:, None] & ~np.isneginf(logits), logits, 0))
    is_ruled_out = has_weight & np.isneginf(np.take_along_axis(logits, labels[:, None], -1)[:, 0])
    if is_ruled_out.any():
        first = int(is_ruled_out.argmax())
        raise ValueError(f"labels: expected classes whose logits are not −∞, got one with a logit of −∞ at {first}")


@jax.jit
def _temperature(logits: Array, labels: Array, weights: Array) -> Array:
    """Return the temperature by bisection; NaN for invalid labels, logits or weights."""
    own = jnp.take_along_axis(logits, jnp.where(labels < 0, logits.shape[1], labels)[:, None], -1)
    margins = logits - jnp.where(jnp.isneginf(own), jnp.nan, own)
    # Logits of an example of weight zero do not count, but if they are finite, they determine the gradient by its
    # weight.
    is_counted = (weights != 0)[:, None] | (margins < jnp.inf).all(-1, keepdims=True)
    margins = jnp.where(is_counted, margins, 0)
    are_weights = (weights >= 0).all() & (weights > 0).any()
    weights = jnp.where(are_weights, weights, jnp.nan)

    def slope_and_curvature(inverse: Array, margins: Array, weights: Array) -> tuple[Array, Array]:
        p = jax.nn.softmax(inverse * margins, -1)
        margins = jnp.where(jnp.isneginf(margins), 0, margins)  # for a class of zero probability
        mean = (p * margins).sum(-1)
        variance = (p * jnp.square(margins - mean[:, None])).sum(-1)
        return jnp.vdot(weights, mean), jnp.vdot(weights, variance)

    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        slope = slope_and_curvature(jnp.exp(middle), *fixed)[0]
        return jnp.where(slope > 0, low, middle), jnp.where(slope > 0, middle, high)

    fixed = jax.lax.stop_gradient((margins, weights))
    least, most = (jnp.asarray(-np.log(temperature), margins.dtype) for temperature in reversed(TEMPERATURES))
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (least, most))
    inverse = jnp.exp((low + high) / 2)
    # The subtracted term is zero, and its derivative is that of the minimum, by the implicit function theorem.
    slope, curvature = slope_and_curvature(inverse, margins, weights)
    curvature = jax.lax.stop_gradient(curvature)
    says_nothing = ((weights == 0)[:, None] | (margins == 0) | jnp.isneginf(margins)).all()
    inverse = jnp.where(says_nothing, 1, inverse)
    found = (low > least) & (high < most) & (curvature > 0)
    moves = jnp.where(found, 1 / jnp.where(found, curvature, 1), 0)
    return 1 / (inverse - moves * (slope - jax.lax.stop_gradient(slope)))
