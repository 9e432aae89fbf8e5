"""The meaning of a forecaster's outputs: points, normal distributions, or quantiles.

The outputs of a forecaster with a head have a trailing axis of parameters, `(batch, horizon, channels, parameters)`;
point forecasts have none. Pass the loss of a head to `nnfx.fit`; its quantiles give intervals.

>>> import optax, nnfx
>>> from nnfx.forecasting import as_data, forecasters, windows
>>> head = quantiles([0.1, 0.5, 0.9])
>>> model = forecasters.direct(lambda outputs: nnfx.models.mlp((8,), outputs), horizon=3, head=head)
>>> train = nnfx.fit(model, head.loss, optax.adam, epochs=2)
>>> data = as_data(windows(jnp.sin(jnp.arange(40.0))[:, None], lookback=6, horizon=3))
>>> run = train(jax.random.key(0), data, learning_rate=0.01)
>>> interval(head, run.apply(data.train.inputs), level=0.8).lower.shape
(32, 3, 1)
"""

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, losses, ops
from nnfx.forecasting import scores
from nnfx.types import Array, PerExample
from nnfx.uncertainty.conformal import Interval

__all__ = ["GAUSSIAN", "POINT", "Head", "Interval", "interval", "quantiles"]

SMALLEST_DEVIATION = 1e-4
"""The smallest standard deviation of a Gaussian head, in the units of the scaled series: without it, the likelihood is
unbounded if a target is predicted exactly."""


class Head(NamedTuple):
    """The meaning of a forecaster's outputs, as a set of functions of the outputs.

    Attributes:
        parameters: the number of parameters that describe each target; 0 for point forecasts, which have no parameter
            axis.
        constrain: maps the raw outputs of a network to parameters, both `(..., parameters)`.
        loss: maps outputs `(batch, horizon, channels, parameters)` and targets to losses, `(batch,)`.
        point: maps outputs to point forecasts, `(...)`.
        quantiles: maps outputs and levels, such as `(0.05, 0.95)`, to quantiles `(..., levels)`.
        affine: maps outputs for y, a shift and a scale > 0 to outputs for `scale · y + shift`; shift and scale
            broadcast to `(..., horizon, channels)`.
        pool: maps the outputs of the members of an ensemble, `(members, ...)`, to the outputs of the ensemble.
    """

    parameters: int
    constrain: Callable[[Array], Array]
    loss: PerExample
    point: Callable[[Array], Array]
    quantiles: Callable[[Array, Sequence[float]], Array]
    affine: Callable[[Array, Array, Array], Array]
    pool: Callable[[Array], Array]


def interval(head: Head, outputs: Array, level: float) -> Interval:
    """Return the central interval of a forecast, from its quantile `(1 − level) / 2` to its quantile `(1 + level) / 2`.

    Whether the coverage of the interval reaches the level depends on the model; `nnfx.forecasting.conformal`
    calibrates intervals so that it does.

    Args:
        head: the meaning of the outputs.
        outputs: `(..., parameters)`.
        level: the probability that the interval should cover, above 0 and below 1.

    Returns:
        Lower and upper bounds, `(...)`.

    Raises:
        ValueError: for a level that is out of range, or that needs quantiles beyond those of the head.

    Example:
        >>> bounds = interval(GAUSSIAN, jnp.array([[5.0, 1.0]]), level=0.9)
        >>> round(bounds.lower.item(), 3), round(bounds.upper.item(), 3)
        (3.355, 6.645)
    """
    checks.number("level", level, above=0, below=1)
    bounds = head.quantiles(outputs, ((1 - level) / 2, (1 + level) / 2))
    return Interval(bounds[..., 0], bounds[..., 1])


def quantiles(levels: Sequence[float]) -> Head:
    """A head that outputs quantiles, trained with the pinball loss and sorted so that they never cross.

    Sorting never raises the pinball loss. Quantiles are interpolated linearly between the levels, and are not defined
    beyond them. The point forecast is the median. An ensemble is pooled by averaging each quantile.

    Args:
        levels: the levels of the quantiles, in ascending order, above 0 and below 1, with 0.5 within their range.

    Raises:
        TypeError: if `levels` is not a sequence of numbers.
        ValueError: for levels that are out of range, not ascending, or all on one side of the median.

    Example:
        >>> head = quantiles([0.25, 0.5, 0.75])
        >>> outputs = head.constrain(jnp.array([[3.0, 1.0, 2.0]]))
        >>> outputs, head.point(outputs)
        (Array([[1., 2., 3.]], dtype=float32), Array([2.], dtype=float32))

    References:
        Koenker and Bassett, *Regression quantiles*, Econometrica 1978.
        Chernozhukov, Fernández-Val and Galichon, *Quantile and probability curves without crossing*, Econometrica 2010.
    """
    known = _levels("levels", levels)
    if not known[0] <= 0.5 <= known[-1]:
        raise ValueError(f"levels: expected the median, 0.5, within their range, got {known[0]:g} to {known[-1]:g}")

    def interpolated(outputs: Array, levels: Sequence[float]) -> Array:
        outputs = _require_parameters(outputs, len(known))
        wanted = _levels("levels", levels)
        if wanted[0] < known[0] - _ROUNDING or wanted[-1] > known[-1] + _ROUNDING:
            raise ValueError(
                f"levels: expected levels within those of the head, {known[0]:g} to {known[-1]:g}, got {wanted[0]:g} to"
                f" {wanted[-1]:g}"
            )
        shares = np.stack([np.interp(wanted, known, unit) for unit in np.eye(len(known))])
        shares = np.where(shares < _ROUNDING, 0, shares)
        return jnp.matmul(outputs, jnp.asarray(shares, outputs.dtype), precision="highest")

    def pinball(outputs: Array, targets: Array) -> Array:
        return scores.pinball(outputs, targets, known)

    return Head(
        parameters=len(known),
        constrain=lambda raw: jnp.sort(raw, axis=-1),
        loss=_checked(pinball, len(known)),
        point=lambda outputs: interpolated(outputs, (0.5,))[..., 0],
        quantiles=interpolated,
        affine=lambda outputs, shift, scale: outputs * scale[..., None] + shift[..., None],
        pool=lambda members: members.mean(0),
    )


_ROUNDING = 1e-9
"""The rounding error allowed in a level: (1 − 0.9) / 2 is a little less than 0.05."""


def _levels(name: str, levels: Sequence[float]) -> np.ndarray:
    """Return levels as an array, after checking them."""
    if isinstance(levels, str) or not isinstance(levels, Sequence | np.ndarray):
        raise TypeError(
            f"{name}: expected a sequence of levels, such as (0.1, 0.5, 0.9), got {checks.describe(levels)}"
        )
    if not len(levels):
        raise ValueError(f"{name}: expected at least one level, got none")
    for i, level in enumerate(levels):
        checks.number(f"{name}[{i}]", level, above=0, below=1)
    if any(one >= other for one, other in itertools.pairwise(levels)):
        raise ValueError(f"{name}: expected levels in ascending order, got {tuple(levels)}")
    return np.asarray(levels, np.float64)


def _require_parameters(outputs: Any, parameters: int) -> Array:
    """Return outputs as an array, after checking that each has the given number of parameters."""
    outputs = arrays.as_array("outputs", outputs, floats=True)
    if outputs.ndim < 1 or outputs.shape[-1] != parameters:
        raise ValueError(
            f"outputs: expected (..., {parameters}), the parameters of the head last, got {checks.describe(outputs)}"
        )
    return outputs


def _checked(loss: PerExample, parameters: int) -> PerExample:
    """Return the loss, with the check of outputs and targets that `nnfx.fit` makes before training attached to it."""

    def check(outputs: Any, targets: Any) -> None:
        outputs = arrays.as_array("outputs", outputs, floats=True)
        targets = targets if isinstance(targets, jax.Array) else arrays.as_numpy("targets", targets)
        checks.numeric("targets", targets)
        if outputs.shape != (*targets.shape, parameters):
            raise ValueError(
                f"outputs: expected {parameters} parameters for each of the targets {checks.describe(targets)},"
                f" {[*targets.shape, parameters]}, got {checks.describe(outputs)}; was the model made with this head?"
            )
        checks.finite("targets", targets)

    def checked(outputs: Any, targets: Any) -> Array:
        check(outputs, targets)
        outputs, targets = (
            arrays.as_array(name, value, floats=True) for name, value in (("outputs", outputs), ("targets", targets))
        )
        return loss(outputs, targets)

    checked.check = check  # type: ignore[attr-defined]
    checked.__name__ = loss.__name__.lstrip("_")
    return checked


def _no_quantiles(outputs: Array, levels: Sequence[float]) -> Array:  # noqa: ARG001 -- the signature of a head's function
    raise ValueError(
        "head: expected a head with quantiles, such as heads.GAUSSIAN, got point forecasts;"
        " nnfx.forecasting.conformal computes intervals around them"
    )


POINT = Head(
    parameters=0,
    constrain=lambda raw: raw,
    loss=losses.mean_square_error,
    point=lambda outputs: outputs,
    quantiles=_no_quantiles,
    affine=lambda outputs, shift, scale: outputs * scale + shift,
    pool=lambda members: members.mean(0),
)
"""Point forecasts, one number per target. The loss here is the mean square error, but any of `nnfx.losses` works."""


def _deviation(raw: Array) -> Array:
    """Convert the raw outputs of a network to parameters: the mean unchanged, the deviation by softplus."""
    raw = _require_parameters(raw, 2)
    return jnp.stack([raw[..., 0], jax.nn.softplus(raw[..., 1]) + SMALLEST_DEVIATION], -1)


def _gaussian_negative_log_likelihood(outputs: Array, targets: Array) -> Array:
    mean, deviation = outputs[..., 0], outputs[..., 1]
    if checks.is_concrete(deviation):
        with jax.ensure_compile_time_eval():
            if (deviation <= 0).any():
                raise ValueError(
                    "outputs: expected positive standard deviations, got some that are not; apply head.constrain first"
                )
    deviation = jnp.where(deviation > 0, deviation, jnp.nan)
    standardised = (targets.astype(mean.dtype) - mean) / deviation
    terms = jnp.square(standardised) / 2 + jnp.log(deviation) + math.log(2 * math.pi) / 2
    return losses.mean_of_each(terms)


def _gaussian_quantiles(outputs: Array, levels: Sequence[float]) -> Array:
    outputs = _require_parameters(outputs, 2)
    standard = [NormalDist().inv_cdf(level) for level in _levels("levels", levels)]
    shape = (1,) * (outputs.ndim - 1)
    return outputs[..., :1] + outputs[..., 1:] * jnp.asarray(standard, outputs.dtype).reshape(*shape, -1)


def _gaussian_affine(outputs: Array, shift: Array, scale: Array) -> Array:
    return jnp.stack([outputs[..., 0] * scale + shift, outputs[..., 1] * scale], -1)


def _gaussian_pool(members: Array) -> Array:
    mean, deviation = members[..., 0], members[..., 1]
    return jnp.stack([mean.mean(0), ops.square_root(jnp.square(deviation).mean(0) + mean.var(0))], -1)


GAUSSIAN = Head(
    parameters=2,
    constrain=_deviation,
    loss=_checked(_gaussian_negative_log_likelihood, 2),
    point=lambda outputs: outputs[..., 0],
    quantiles=_gaussian_quantiles,
    affine=_gaussian_affine,
    pool=_gaussian_pool,
)
"""Normal distributions with a mean μ and a standard deviation σ for each target.

The loss is the negative log-likelihood `½ ((y − μ) / σ)² + log σ + ½ log 2π` in nats, averaged over the targets of an
example. A pooled ensemble has the mean and the variance of the mixture of its members.

References:
    Nix and Weigend, *Estimating the mean and variance of the target probability distribution*, ICNN 1994.
    Lakshminarayanan et al., *Simple and scalable predictive uncertainty estimation using deep ensembles*, NeurIPS
    2017.
"""
