"""Prediction sets and intervals with guaranteed coverage, by split conformal prediction with held-out data.

If calibration examples and new examples are exchangeable, a set or interval of level c contains its target with a
probability of at least c, and below c + 1/(n + 1) for n calibration examples without ties, whatever the model. The
probability is over calibration and new examples together; for given calibration examples, the coverage follows
`Beta(r, n + 1 − r)`, with `r = rank(n, c)`.

>>> probabilities, labels = jnp.array([[0.75, 0.25], [0.5, 0.5], [0.875, 0.125]]), jnp.array([0, 1, 0])
>>> limit = threshold(lac(probabilities), labels, level=0.75)  # the worst of the three
>>> lac(jnp.array([[0.5, 0.5], [1.0, 0.0]])) <= limit
Array([[ True,  True],
       [ True, False]], dtype=bool)
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks
from nnfx.types import Array
from nnfx.uncertainty.predictions import check_labels, known_probabilities, wide

__all__ = ["Interval", "aps", "lac", "margins", "rank", "threshold", "widen"]


class Interval(NamedTuple):
    """The bounds between which targets are expected.

    Attributes:
        lower: the lower bounds, `(batch, ...)`, in the units of the targets.
        upper: the upper bounds, of the same shape, nowhere below `lower`.
    """

    lower: Array
    upper: Array


def rank(examples: int, level: float) -> int:
    """Return the rank of the limit among n calibration scores, `⌈(n + 1) level⌉`, counting from 1 for the smallest.

    Args:
        examples: n, the number of calibration examples.
        level: the fraction of targets to cover, above 0 and below 1.

    Raises:
        ValueError: for a level out of range, or fewer scores than the level requires, `level / (1 − level)`.

    Example:
        >>> rank(9, 0.9), rank(100, 0.9)
        (9, 91)

    References:
        Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, Springer 2005.
    """
    checks.positive_integer("examples", examples)
    least = fewest(level)
    if examples < least:
        raise ValueError(f"examples: expected at least {least} to calibrate at a level of {level:g}, got {examples}")
    return math.ceil((examples + 1) * _share(level))


def lac(probabilities: Array) -> Array:
    """Score every class by `1 − p`, which gives the smallest sets on average: the least ambiguous classifier (LAC).

    The coverage holds on average over all examples; hard examples have a lower coverage, and their sets may be empty.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.

    Returns:
        Scores `(batch, classes)`, from 0 to 1; an example's set contains the classes with scores up to `threshold`.

    Raises:
        ValueError: for numbers that are not probabilities.

    Example:
        >>> lac(jnp.array([[0.75, 0.25]]))
        Array([[0.25, 0.75]], dtype=float32)

    References:
        Sadinle, Lei and Wasserman, *Least ambiguous set-valued classifiers with bounded error levels*, JASA 2019.
    """
    return 1 - wide(known_probabilities(probabilities))


def aps(key: Array, probabilities: Array) -> Array:
    """Score every class for adaptive prediction sets (APS): `Σ_{pⱼ > pₖ} pⱼ + u pₖ`, with a random `u ~ U(0, 1)`.

    The sets are larger than those of `lac`, and their coverage varies less between easy and hard examples. One u is
    drawn for each example. If the probabilities are the true ones, the scores of the labels are uniform, and the
    threshold equals the level.

    Args:
        key: a typed key; use different keys for calibration examples and new examples.
        probabilities: `(batch, classes)`, rows that sum to 1; of equal probabilities, the first counts as larger.

    Returns:
        Scores `(batch, classes)`, from 0 to 1; an example's set contains the classes with scores up to `threshold`.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for numbers that are not probabilities.

    Example:
        >>> scores = aps(jax.random.key(0), jnp.array([[0.25, 0.75]]))
        >>> bool(scores[0, 1] <= 0.75), bool(scores[0, 0] >= 0.75)
        (True, True)

    References:
        Romano, Sesia and Candès, *Classification with valid and adaptive coverage*, NeurIPS 2020.
    """
    checks.key("key", key)
    p = wide(known_probabilities(probabilities))
    order = jnp.argsort(-p, axis=-1)
    ordered = jnp.take_along_axis(p, order, -1)
    above = jnp.cumsum(ordered, -1) - ordered
    likelier = jnp.take_along_axis(above, jnp.argsort(order, axis=-1), -1)
    return likelier + jax.random.uniform(key, (len(p), 1), p.dtype) * p


def threshold(scores: Array, labels: Array, level: float) -> Array:
    """Return the score up to which classes belong to a set: the label score of rank `⌈(n + 1) level⌉`.

    Args:
        scores: the scores of n calibration examples, `(n, classes)`, such as those of `lac` or `aps`; larger for less
            likely classes.
        labels: the true classes, integers `(n,)`.
        level: the fraction of labels that sets should contain, above 0 and below 1.

    Returns:
        A scalar; `scores <= threshold` are the sets of new examples, `(batch, classes)`.

    Raises:
        ValueError: for labels out of range, scores that are not finite, shapes that do not match, or too few examples
            for the level.

    Example:
        >>> threshold(jnp.array([[0.25, 0.75], [0.5, 0.5], [0.125, 0.875]]), jnp.array([0, 0, 1]), level=0.5)
        Array(0.5, dtype=float32)
    """
    scores = arrays.as_array("scores", scores, floats=True)
    if scores.ndim != 2:
        raise ValueError(f"scores: expected (examples, classes), got {checks.describe(scores)}")
    labels = arrays.as_labels("labels", labels)
    check_labels(labels, scores.shape[:1], scores.shape[1])
    checks.finite("scores", scores)
    place = rank(len(scores), level) - 1
    return jnp.sort(jnp.take_along_axis(scores, labels[:, None], -1)[:, 0])[place]


def margins(predictions: Array | Interval, targets: Array, level: float) -> Array:
    """Return how far to widen predictions to cover targets, for each output: a quantile of calibration errors.

    The score of an example is `max(l − y, y − u)`. For points, this is the absolute residual `|y − ŷ|`; for intervals,
    it is the score of conformalised quantile regression, which is negative if the target lies inside. The margin is the
    score of rank `⌈(n + 1) level⌉`.

    Args:
        predictions: the predictions for n calibration examples, points `(n, ...)` or an `Interval` of that shape.
        targets: the actual values, `(n, ...)`.
        level: the fraction of targets to cover, above 0 and below 1.

    Returns:
        `(...)`, in the units of the targets; negative for intervals wider than necessary.

    Raises:
        ValueError: for shapes that do not match, values that are not finite, or too few examples for the level.

    Example:
        >>> margins(jnp.zeros(4), jnp.array([3.0, -1.0, 4.0, 2.0]), level=0.6)
        Array(3., dtype=float32)

    References:
        Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, Springer 2005.
        Romano, Patterson and Candès, *Conformalized quantile regression*, NeurIPS 2019.
    """
    found = distances(predictions, targets)
    return jnp.sort(found, axis=0)[rank(len(found), level) - 1]


def widen(predictions: Array | Interval, margins: ArrayLike) -> Interval:
    """Widen predictions by margins on both sides: `[l − m, u + m]`.

    Args:
        predictions: points `(batch, ...)` or an `Interval` of that shape.
        margins: m, `(...)`, one for each output, or `(batch, ...)`, one for each output of each example.

    Returns:
        The intervals; an interval that a negative margin would invert shrinks to its midpoint.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> widen(jnp.zeros(1), 1.0)
        Interval(lower=Array([-1.], dtype=float32), upper=Array([1.], dtype=float32))
    """
    lower, upper = bounds(predictions)
    margin = arrays.as_array("margins", margins, floats=True)
    if margin.ndim > lower.ndim or margin.shape != lower.shape[lower.ndim - margin.ndim :]:
        raise ValueError(
            f"margins: expected one margin for each output of the predictions, {list(lower.shape[1:])}, got"
            f" {checks.describe(margin)}"
        )
    margin = jnp.broadcast_to(margin, lower.shape)
    middle = (lower + upper) / 2
    return Interval(jnp.minimum(lower - margin, middle), jnp.maximum(upper + margin, middle))


def fewest(level: Any) -> int:
    """Return the smallest number n of scores for which the rank of the limit is at most n: `(n + 1) level ≤ n`."""
    share = _share(level)
    return math.ceil(share / (1 - share))


def _share(level: Any) -> Fraction:
    """Return a level as an exact fraction, since 0.55 in binary is slightly more, which could raise the rank by one."""
    checks.number("level", level, above=0, below=1)
    exact = Fraction(float(level))
    near = exact.limit_denominator(1_000_000)
    return near if 0 < near < 1 else exact


def bounds(predictions: Any) -> Interval:
    """Return predictions as intervals; points become intervals of width zero."""
    return Interval(*(arrays.as_array("predictions", bound, floats=True) for bound in _pair(predictions)))


def _pair(predictions: Any) -> Interval:
    return predictions if isinstance(predictions, Interval) else Interval(predictions, predictions)


def _held(name: str, value: Any) -> Any:
    """Return floats: JAX arrays on the device, anything else in float64 on the host."""
    if isinstance(value, jax.Array):
        return arrays.as_array(name, value, floats=True)
    return arrays.as_numpy(name, value).astype(np.float64)


def distances(predictions: Any, targets: Any) -> Array:
    """Return how far each target lies outside its interval, negative if inside, of the shape of the targets."""
    lower, upper = (_held("predictions", bound) for bound in _pair(predictions))
    targets = _held("targets", targets)
    if targets.shape != lower.shape or not targets.ndim:
        raise ValueError(
            f"targets: expected the shape of the predictions, {checks.describe(lower)}, with an axis of examples, got"
            f" {checks.describe(targets)}"
        )
    if upper.shape != lower.shape:
        raise ValueError(
            f"predictions: expected bounds of the same shape, got {checks.describe(upper)} for the upper one"
        )
    for name, value in (("predictions", lower), ("predictions", upper), ("targets", targets)):
        checks.finite(name, value)
    if any(isinstance(part, np.ndarray) for part in (lower, upper, targets)) and checks.is_concrete((lower, targets)):
        low, high, exact = (np.asarray(part, np.float64) for part in (lower, upper, targets))
        return arrays.as_array("predictions", np.maximum(low - exact, exact - high))
    return jnp.maximum(lower - targets, targets - upper)
