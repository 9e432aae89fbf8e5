"""How far predicted probabilities can be trusted, for single models and for ensembles.

Scores are per example, and their averages are proper scores; the calibration error, the reliability diagram and the
temperature are computed from all examples together. All of them are meant for held-out data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, ops
from nnfx.types import Array, at_least_float32

__all__ = [
    "Reliability",
    "Spread",
    "brier_score",
    "expected_calibration_error",
    "fit_temperature",
    "log_probabilities",
    "negative_log_likelihood",
    "probabilities",
    "reliability",
    "spread",
]

TEMPERATURES = (1e-4, 1e4)
"""The range that `fit_temperature` searches."""
HALVINGS = 45
"""The number of times it halves the range of log T: to below the resolution of float32, and to 1e-12 in float64."""

SUM_TOLERANCE = 1e-2
"""How far the sum of a row of probabilities may be from 1, to allow for a softmax in bfloat16."""


def _wide(array: Array) -> Array:
    """Convert an array to a dtype in which many numbers can be summed."""
    return array.astype(at_least_float32(array.dtype))


def _check_floats(name: str, value: Any) -> None:
    if not jnp.issubdtype(value.dtype, np.floating):
        raise TypeError(f"{name}: expected an array of floating-point numbers, got {checks.describe(value)}")


def _check_probabilities(probabilities: Any, axes: str = "(batch, classes)") -> None:
    _check_floats("probabilities", probabilities)
    if probabilities.ndim != axes.count(",") + 1 or probabilities.shape[-1] < 2:
        raise ValueError(
            f"probabilities: expected {axes} with two classes or more, got {checks.describe(probabilities)};"
            " nnfx.calibration.probabilities computes them from logits"
        )
    if checks.is_concrete(probabilities):
        values = np.asarray(probabilities, np.float64)
        if not (((values >= 0) & (values <= 1)).all() and np.allclose(values.sum(-1), 1, atol=SUM_TOLERANCE)):
            raise ValueError(
                "probabilities: expected numbers from 0 to 1 whose rows sum to 1, got others; are they logits?"
            )


def _check_labels(labels: Any, shape: tuple[int, ...], classes: int) -> None:
    if labels.shape != shape or not jnp.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers {list(shape)}, one per example, got {checks.describe(labels)}")
    checks.class_labels("labels", labels, classes)


def _known_probabilities(probabilities: Any, axes: str = "(batch, classes)") -> Array:
    """Return checked probabilities on the device; traced rows that are not probabilities become NaN."""
    p: Array = arrays.as_array("probabilities", probabilities)
    _check_probabilities(p, axes)
    if checks.is_concrete(p):
        return p
    is_known = (p >= 0).all(-1, keepdims=True) & (jnp.abs(_wide(p).sum(-1, keepdims=True) - 1) < SUM_TOLERANCE)
    return jnp.where(is_known, p, jnp.nan)


def _known(probabilities: Any, labels: Any) -> tuple[Array, Array]:
    """Return checked probabilities and labels on the device; traced rows become NaN if either is invalid."""
    p, y = _known_probabilities(probabilities), arrays.as_array("labels", labels)
    _check_labels(y, p.shape[:1], p.shape[1])
    if checks.is_concrete(y):
        return p, y
    return jnp.where(((y >= 0) & (y < p.shape[1]))[:, None], p, jnp.nan), y


def _class_logits(logits: Any) -> Array:
    """Turn a single output z into the two logits 0 and z, whose softmax is 1 − σ(z) and σ(z)."""
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
    """The probability of every class: `softmax(z)`, and for a single output `(1 − σ(z), σ(z))`.

    A logit of −∞ rules out its class, and one of +∞ all others.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, classes)`; axes such as `(members, ...)` may precede the
            last two, but then a single output has to be `(members, batch, 1)`.

    Returns:
        `(batch, classes)`, two columns for a single output; the rows sum to 1.

    Raises:
        ValueError: for logits without a batch axis.

    Example:
        >>> probabilities(jnp.array([0.0, 100.0]))
        Array([[0.5, 0.5],
               [0. , 1. ]], dtype=float32)
    """
    return ops.softmax(_class_logits(logits))


def log_probabilities(logits: Array) -> Array:
    """The logarithm of `probabilities`, without underflow: −∞ for a class that is ruled out.

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
    return ops.log_softmax(_class_logits(logits))


def negative_log_likelihood(probabilities: Array, labels: Array) -> Array:
    """Negative log-likelihood of the true class: `−log p_y`, finite at 0, a proper score.

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
    probabilities, labels = _known(probabilities, labels)
    chosen = jnp.take_along_axis(probabilities, labels[:, None], -1)[:, 0]
    return -jnp.log(jnp.maximum(chosen, jnp.finfo(chosen.dtype).tiny))


def brier_score(probabilities: Array, labels: Array) -> Array:
    """Brier's score `Σₖ (pₖ − [k = y])²`, from 0 to 2, a proper score.

    This is Brier's own definition. For two classes it is twice the `(p₁ − y)²` that goes by the same name, in
    scikit-learn among others.

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
    probabilities, labels = _known(probabilities, labels)
    truth = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.square(probabilities - truth).sum(-1)


class Reliability(NamedTuple):
    """A reliability diagram: three arrays `(bins,)`, over bins of confidence.

    Attributes:
        confidence: the mean probability of the predicted class; NaN if the bin is empty.
        accuracy: the fraction of predictions that are correct; NaN if the bin is empty.
        counts: the number of examples in the bin.
    """

    confidence: Array
    accuracy: Array
    counts: Array


def _sums(probabilities: Array, labels: Array, bins: int) -> tuple[Array, Array, Array]:
    """Return the sum of confidences, the number of correct predictions and the number of examples, by bin."""
    checks.positive_integer("bins", bins)
    probabilities, labels = _known(probabilities, labels)
    confidence = _wide(probabilities.max(-1))
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
        bins: M, the number of bins, of equal width; static.

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

    The confidence is the probability of the predicted class. The estimate is biased upwards if bins hold few
    examples, so compare only values from equally many examples and bins.

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


def fit_temperature(logits: Array, labels: Array, weights: Array | None = None) -> Array:
    """The temperature T > 0 that minimises `−Σᵢ wᵢ log softmax(zᵢ / T)` at the labels of held-out data.

    Divide logits by it before calling `probabilities`: the predicted classes stay the same, and their confidence is
    calibrated. The sum is convex in β = 1/T, and its slope `Σᵢ wᵢ (E_p[zᵢ] − zᵢ at the label)` grows with β, so
    bisection over log T finds where it is zero. T is differentiable in logits and weights. Logits of −∞ rule classes
    out at every T. T is NaN if traced arguments are invalid: logits that are NaN or rule out the label, labels out of
    range, weights that are negative or all zero.

    If the data do not bound T, it is at an end of its range: at 1e-4 if every prediction is right, at 1e4 if they are
    no better than chance.

    Args:
        logits: `(batch,)`, `(batch, 1)` or `(batch, classes)`.
        labels: integers `(batch,)`.
        weights: `(batch,)`, not negative, some positive; a weight of zero leaves an example out, whatever it holds. By
            default all are 1.

    Returns:
        T, a dimensionless scalar from 1e-4 to 1e4: above 1 if the model is overconfident, below 1 if underconfident.

    Raises:
        TypeError: for logits that are not floating-point numbers.
        ValueError: for labels out of range or ruled out, logits that are NaN or +∞, weights that are negative, not
            finite or all zero, or shapes that do not match.

    Example:
        >>> logits = jnp.array([3.0, 3.0, 3.0, -3.0])  # so sure, and right in 3 of 4
        >>> round(float(fit_temperature(logits, jnp.array([1, 1, 0, 0]))), 3)  # 3 / log 3
        2.731

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017, section 4.2.
    """
    logits = _wide(_class_logits(logits))
    if logits.ndim != 2:
        raise ValueError(
            f"logits: expected (batch, classes), got {checks.describe(logits)}; map over further axes with jax.vmap"
        )
    if not len(logits):
        raise ValueError(f"logits: expected at least one example, got {checks.describe(logits)}")
    labels = arrays.as_array("labels", labels)
    _check_labels(labels, logits.shape[:1], logits.shape[1])
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
    """Require logits of examples with weight that are finite or −∞, and labels that none of them rules out."""
    has_weight = weights != 0
    checks.finite("logits", np.where(has_weight[:, None] & ~np.isneginf(logits), logits, 0))
    is_ruled_out = has_weight & np.isneginf(np.take_along_axis(logits, labels[:, None], -1)[:, 0])
    if is_ruled_out.any():
        first = int(is_ruled_out.argmax())
        raise ValueError(f"labels: expected classes whose logits are not −∞, got one with a logit of −∞ at {first}")


@jax.jit
def _temperature(logits: Array, labels: Array, weights: Array) -> Array:
    """Find the temperature; NaN for labels, logits or weights that cannot be what the caller intended."""
    own = jnp.take_along_axis(logits, jnp.where(labels < 0, logits.shape[1], labels)[:, None], -1)
    margins = logits - jnp.where(jnp.isneginf(own), jnp.nan, own)
    # What an example of weight zero holds does not count, but if it is finite, its gradient does.
    is_counted = (weights != 0)[:, None] | (margins < jnp.inf).all(-1, keepdims=True)
    margins = jnp.where(is_counted, margins, 0)
    are_weights = (weights >= 0).all() & (weights > 0).any()
    weights = jnp.where(are_weights, weights, jnp.nan)

    def slope_and_curvature(inverse: Array, margins: Array, weights: Array) -> tuple[Array, Array]:
        p = jax.nn.softmax(inverse * margins, -1)
        margins = jnp.where(jnp.isneginf(margins), 0, margins)  # for a class without probability
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
    # The term subtracted is zero, and its derivative is that of the minimum by the implicit function theorem.
    slope, curvature = slope_and_curvature(inverse, margins, weights)
    curvature = jax.lax.stop_gradient(curvature)
    found = (low > least) & (high < most) & (curvature > 0)
    moves = jnp.where(found, 1 / jnp.where(found, curvature, 1), 0)
    return 1 / (inverse - moves * (slope - jax.lax.stop_gradient(slope)))


class Spread(NamedTuple):
    """What the members of an ensemble predict, and how far they agree.

    Attributes:
        mean: `(batch, classes)`, the ensemble's prediction.
        std: `(batch, classes)`, the standard deviation of the members around it.
        entropy: `(batch,)` in nats, the entropy of the mean: the total uncertainty.
        mutual_information: `(batch,)` in nats, the part of it that is due to the members' disagreement.
    """

    mean: Array
    std: Array
    entropy: Array
    mutual_information: Array


def spread(probabilities: Array) -> Spread:
    """The mean of an ensemble's predictions, and its uncertainty: `H[E p] = E H[p] + mutual information`.

    The first term is noise in the data, which more members or more data do not reduce; the second is the members'
    disagreement (BALD), which more data do reduce.

    Args:
        probabilities: `(members, batch, classes)`, rows that sum to 1.

    Returns:
        Mean, standard deviation (over the members, without correction), entropy and mutual information.

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
    probabilities = _known_probabilities(probabilities, "(members, batch, classes)")
    mean, variance = probabilities.mean(0), probabilities.var(0)
    std = ops.square_root(variance)
    entropy = _entropy(mean)
    # Rounding may make the difference negative, which mutual information never is.
    return Spread(mean, std, entropy, jnp.maximum(entropy - _entropy(probabilities).mean(0), 0))


def _entropy(p: Array) -> Array:
    """Entropy over the last axis; the logarithm is clipped, so that its gradient is finite at 0."""
    return -(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))).sum(-1)
