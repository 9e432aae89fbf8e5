"""Sets and intervals with a stated coverage, by split conformal prediction, which calibrates them on held-out data.

If calibration examples and new ones are exchangeable, a set or interval of level c contains its target with a
probability of at least c, and below c + 1/(n + 1) for n calibration examples without ties, whatever the model. That
probability is over calibration and new examples together; for given calibration examples, the coverage is a draw from
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
    """The range in which targets are expected.

    Attributes:
        lower: `(batch, ...)`, in the unit of the targets.
        upper: in the same shape, nowhere below `lower`.
    """

    lower: Array
    upper: Array


def rank(examples: int, level: float) -> int:
    """Return which of n calibration scores is the limit, counting from 1 for the smallest: `⌈(n + 1) level⌉`.

    Args:
        examples: n.
        level: the share of the targets to cover, above 0 and below 1.

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
    """Score every class by `1 − p`, which gives sets of least average size: the least ambiguous classifier (LAC).

    The coverage holds on average over all examples: that of hard examples is lower, and their sets may be empty.

    Args:
        probabilities: `(batch, classes)`, rows that sum to 1.

    Returns:
        `(batch, classes)`, from 0 to 1; the set of an example has the classes with scores up to the `threshold`.

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
    """Score every class by the probability of the likelier ones and a random part of its own: `Σ_{pⱼ > pₖ} pⱼ + u pₖ`.

    These are adaptive prediction sets (APS): larger than those of `lac`, and with a coverage that varies less between
    easy and hard examples. `u ~ U(0, 1)` is drawn for each example. If the probabilities are the true ones, the scores
    of the labels are uniform, and the limit is the level.

    Args:
        key: a typed key; calibration and new examples need different ones.
        probabilities: `(batch, classes)`, rows that sum to 1; of equal ones, the first counts as likelier.

    Returns:
        `(batch, classes)`, from 0 to 1; the set of an example has the classes with scores up to the `threshold`.

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
    """Return the limit up to which classes belong to a set: of the labels' scores, that of rank `⌈(n + 1) level⌉`.

    Args:
        scores: those of n calibration examples, `(n, classes)`, larger for less expected classes: `lac`, `aps`.
        labels: integers `(n,)`.
        level: the share of the labels that sets should contain, above 0 and below 1.

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
    labels = arrays.as_array("labels", labels)
    check_labels(labels, scores.shape[:1], scores.shape[1])
    checks.finite("scores", scores)
    place = rank(len(scores), level) - 1
    return jnp.sort(jnp.take_along_axis(scores, labels[:, None], -1)[:, 0])[place]


def margins(predictions: Array | Interval, targets: Array, level: float) -> Array:
    """Return how far to widen predictions to cover targets, for each output: a quantile of past errors.

    The score of an example is `max(l − y, y − u)`. For points, this is the absolute residual `|y − ŷ|`; for intervals,
    it is the score of conformalised quantile regression, negative if a target lies inside. The margin is the score of
    rank `⌈(n + 1) level⌉`.

    Args:
        predictions: those of n calibration examples, points `(n, ...)` or an `Interval` of that shape.
        targets: the actual values, `(n, ...)`.
        level: the share of the targets to cover, above 0 and below 1.

    Returns:
        `(...)`, in the targets' unit; negative for intervals wider than necessary.

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
        margins: m, `(...)`: one for each output, or for each output of each example.

    Returns:
        The intervals; if a negative margin would invert one, it shrinks to its midpoint.

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
            f"margins: expected one for each output of the predictions, {list(lower.shape[1:])}, got"
            f" {checks.describe(margin)}"
        )
    margin = jnp.broadcast_to(margin, lower.shape)
    middle = (lower + upper) / 2
    return Interval(jnp.minimum(lower - margin, middle), jnp.maximum(upper + margin, middle))


def fewest(level: Any) -> int:
    """Return how many scores are needed for one of them to be the limit: `(n + 1) level ≤ n`."""
    share = _share(level)
    return math.ceil(share / (1 - share))


def _share(level: Any) -> Fraction:
    """Return the exact fraction of a level: 0.55 in binary is slightly more, which could raise the rank by one."""
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
    """Return how far each target lies outside its interval, negative inside, in the shape of the targets."""
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
