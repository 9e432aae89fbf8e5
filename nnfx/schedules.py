"""Learning-rate schedules whose numeric arguments may all be traced: `step -> rate` functions for Optax.

Optax's schedules branch in Python on step counts, and some also on rates, so that these arguments cannot be swept
under `jax.vmap`. This module provides only the schedules for which that matters. If step counts are fixed, use Optax's
schedules, in which the following arguments may be traced:

- `optax.linear_schedule`, `warmup_constant_schedule`, `polynomial_schedule`, `cosine_decay_schedule`: every rate,
  the power, `alpha` and the exponent;
- `optax.exponential_decay`, `warmup_exponential_decay_schedule`: all but the decay rate;
- `optax.piecewise_constant_schedule`: the initial rate; `optax.cosine_onecycle_schedule` and
  `linear_onecycle_schedule`: the peak;
- `optax.constant_schedule`, `optax.join_schedules`: everything, including the boundaries. Join the schedules of this
  module for piecewise constants, warm restarts, or any other schedule after a warm-up.

Pass a schedule to an optimizer in a factory, and the factory's arguments become hyper-parameters of the run:
`lambda peak, warmup_steps: optax.adam(warmup_cosine(peak, warmup_steps, total_steps=1000))`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from optax.contrib import ReduceLROnPlateauState

from nnfx import checks
from nnfx.bounds import AtLeastOne, BelowOne, Inside, NonNegative, Positive, Share
from nnfx.types import Array, Params

__all__ = ["exponential_decay", "one_cycle", "polynomial", "reduce_on_plateau", "warmup_cosine"]

Schedule = Callable[[ArrayLike], Array]
"""The learning rate as a function of the step, counted from zero."""


def _number(value: ArrayLike) -> Array:
    return jnp.asarray(value, float)


def _progress(step: ArrayLike, begin: ArrayLike, end: ArrayLike) -> Array:
    """Return the fraction of the way from one step to another, from 0 to 1."""
    done, length = _number(step) - begin, _number(end) - begin
    # A compiler may multiply by the reciprocal, which can give a little less than 1 at the end.
    is_over, some = (done >= length) & (done >= 0), length > 0
    return jnp.where(is_over, 1, jnp.clip(done / jnp.where(some, length, 1), 0, 1))


def _whole_times(step: ArrayLike, length: ArrayLike) -> Array:
    """Return ⌊step / length⌋, exact for whole numbers, unlike a rounded quotient."""
    made, length = jnp.asarray(step), _number(length)
    if jnp.issubdtype(made.dtype, jnp.integer):
        made = made.astype(jnp.result_type(int))
    times = jnp.floor(_number(made) / length)
    times += jnp.where((times + 1) * length <= made, 1, 0)
    times -= jnp.where(times * length > made, 1, 0)
    if not jnp.issubdtype(made.dtype, jnp.integer):
        return times
    is_whole = (length == jnp.round(length)) & (length >= 1) & (length < 2**30)
    whole = jnp.where(is_whole, length, 1).astype(made.dtype)
    return jnp.where(is_whole, _number(made // whole), times)


def _cosine(start: ArrayLike, end: ArrayLike, progress: Array) -> Array:
    """Interpolate from one rate to another along half a cosine."""
    return (_number(start) - end) * (1 + jnp.cos(jnp.pi * progress)) / 2 + end


def polynomial(start: NonNegative, end: NonNegative, total_steps: Positive, power: Positive = 1.0) -> Schedule:
    """Change the rate from `start` to `end` along `end + (start − end) (1 − t/T)ᵖ`, by default linearly.

    All arguments may be traced, unlike in `optax.polynomial_schedule`, where T may not.

    Args:
        start: the rate at step 0, non-negative.
        end: the rate from step T on, non-negative.
        total_steps: T, in steps, positive.
        power: p, positive.

    Returns:
        The rate as a function of the step t.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> rate = polynomial(1.0, 0.0, total_steps=4)
        >>> [float(rate(step)) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    checks.number("start", start, minimum=0)
    checks.number("end", end, minimum=0)
    checks.number("total_steps", total_steps, above=0)
    checks.number("power", power, above=0)

    def rate(step: ArrayLike) -> Array:
        left = _progress(_number(total_steps) - step, 0, total_steps)
        some = left > 0
        # A power below 1 has an infinite slope at zero, which would make the gradient NaN.
        factor = jnp.where(some, jnp.where(some, left, 1) ** power, 0)
        return (_number(start) - end) * factor + end

    return rate


def exponential_decay(
    start: NonNegative, transition_steps: Positive, decay_rate: Positive, staircase: bool = False
) -> Schedule:
    """Multiply the rate by γ every T steps: `start · γ^(t/T)`, or as a staircase `start · γ^⌊t/T⌋`.

    All numbers may be traced, unlike in `optax.exponential_decay`, where γ and T may not.

    Args:
        start: the rate at step 0, non-negative.
        transition_steps: T, in steps, positive.
        decay_rate: γ, positive; if above 1, the rate grows.
        staircase: whether the rate changes only every T steps.

    Returns:
        The rate as a function of the step t.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> rate = exponential_decay(1.0, transition_steps=2, decay_rate=0.25)
        >>> [float(rate(step)) for step in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    checks.number("start", start, minimum=0)
    checks.number("transition_steps", transition_steps, above=0)
    checks.number("decay_rate", decay_rate, above=0)

    def rate(step: ArrayLike) -> Array:
        times = _whole_times(step, transition_steps) if staircase else _number(step) / transition_steps
        return _number(decay_rate) ** times * start

    return rate


def warmup_cosine(peak: Positive, warmup_steps: NonNegative, total_steps: Positive, end: NonNegative = 0.0) -> Schedule:
    """Raise the rate linearly from zero to `peak` at step W, then lower it along half a cosine to `end` at step T.

    The rate at step t is `peak · t/W` up to W, then `end + (peak − end) (1 + cos(π (t − W)/(T − W))) / 2` up to T, and
    `end` after T. All arguments may be traced, whereas only `end` may be traced in
    `optax.warmup_cosine_decay_schedule(0, peak, W, T, end)`.

    Args:
        peak: the highest rate, positive.
        warmup_steps: W, in steps, at least 0 and below T. If it is traced and equals T, the rate is `peak` at T and
            `end` after it.
        total_steps: T, in steps, positive, including the warm-up.
        end: the last rate, non-negative.

    Returns:
        The rate as a function of the step t.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> rate = warmup_cosine(1.0, warmup_steps=2, total_steps=6)
        >>> [round(float(rate(step)), 3) for step in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]

    References:
        Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017, equation 5.
    """
    checks.number("peak", peak, above=0)
    checks.number("total_steps", total_steps, above=0)
    longest = np.asarray(total_steps).item() if checks.is_concrete(total_steps) else None
    checks.number("warmup_steps", warmup_steps, minimum=0, below=longest)
    checks.number("end", end, minimum=0)

    def rate(step: ArrayLike) -> Array:
        is_up = _number(step) <= warmup_steps  # if W = T, the second part is empty, and over already at W
        down = _cosine(peak, end, jnp.where(is_up, 0, _progress(step, warmup_steps, total_steps)))
        return jnp.where(is_up, peak * _progress(step, 0, warmup_steps), down)

    return rate


def one_cycle(
    peak: Positive,
    total_steps: Positive,
    pct_start: Share = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> Schedule:
    """Raise the rate along half a cosine to `peak` at step `s T`, then lower it to `peak / (d f)` at step T.

    The rate at step 0 is `peak / d`, and it falls along half a cosine, too. All arguments may be traced, whereas only
    the peak may be traced in `optax.cosine_onecycle_schedule`. Optax rounds `s T` down to a whole step. This function
    does not round it, so the rate is differentiable in s.

    Args:
        peak: the highest rate, positive.
        total_steps: T, in steps, positive.
        pct_start: s, from 0 to 1, the fraction of the steps in which the rate increases.
        div_factor: d, positive, the ratio of the peak to the first rate.
        final_div_factor: f, positive, the ratio of the first rate to the last.

    Returns:
        The rate as a function of the step t.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> rate = one_cycle(1.0, total_steps=8, pct_start=0.25, div_factor=10.0, final_div_factor=10.0)
        >>> [round(float(rate(step)), 3) for step in range(9)]
        [0.1, 0.55, 1.0, 0.934, 0.752, 0.505, 0.257, 0.076, 0.01]

    References:
        Smith and Topin, *Super-convergence: very fast training of neural networks using large learning rates*, 2019.
    """
    checks.number("peak", peak, above=0)
    checks.number("total_steps", total_steps, above=0)
    checks.number("pct_start", pct_start, minimum=0, maximum=1)
    checks.number("div_factor", div_factor, above=0)
    checks.number("final_div_factor", final_div_factor, above=0)
    first = _number(peak) / div_factor
    last = first / final_div_factor
    top = _number(pct_start) * total_steps

    def rate(step: ArrayLike) -> Array:
        up = _cosine(first, peak, _progress(step, 0, top))
        down = _cosine(peak, last, _progress(step, top, total_steps))
        return jnp.where(_number(step) < top, up, down)

    return rate


def reduce_on_plateau(
    factor: Inside = 0.1,
    patience: AtLeastOne = 10,
    rtol: BelowOne = 1e-4,
    atol: NonNegative = 0.0,
    cooldown: NonNegative = 0,
    accumulation_size: AtLeastOne = 1,
    min_scale: Share = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by a scale that is multiplied by `factor` whenever the loss has stopped improving.

    The losses passed to `update(..., value=loss)` are averaged, `accumulation_size` at a time. An average below `best
    − rtol · |best| − atol` is an improvement, whatever the sign of the losses. After `patience` averages in a row
    without an improvement, the scale is reduced, and the next `cooldown` averages are ignored. Chain this after
    the optimizer.

    The arguments and the type of the state are the same as in `optax.contrib.reduce_on_plateau`. There are three
    differences. All arguments may be traced here, whereas `factor`, `rtol` and `atol` may not be traced in Optax. In
    Optax, a negative loss that grows counts as an improvement. Finally, the best value starts at the largest finite
    number here, and at infinity in Optax.

    Args:
        factor: the factor by which the scale is multiplied, between 0 and 1.
        patience: the number of averages to wait, at least 1.
        rtol: the smallest relative improvement that counts, at least 0 and below 1.
        atol: the smallest absolute improvement that counts, in the units of the loss, non-negative.
        cooldown: the number of averages to ignore after each reduction, non-negative.
        accumulation_size: the number of losses in an average, at least 1.
        min_scale: the smallest scale, from 0 to 1.

    Returns:
        An Optax transformation, whose state holds the `scale`.

    Raises:
        TypeError: if `update` is called without `value`.
        ValueError: for a number out of range, or if `update` is called with a `value` that is not a single number.

    Example:
        >>> optimizer = optax.chain(optax.sgd(1.0), reduce_on_plateau(factor=0.5, patience=2))
        >>> state, updates = optimizer.init(jnp.zeros(1)), []
        >>> for loss in (3.0, 2.0, 2.0, 2.0, 1.0):
        ...     update, state = optimizer.update(jnp.ones(1), state, value=loss)
        ...     updates.append(update.item())
        >>> updates
        [-1.0, -1.0, -1.0, -0.5, -0.5]
    """
    checks.number("factor", factor, above=0, below=1)
    checks.number("patience", patience, minimum=1)
    checks.number("rtol", rtol, minimum=0, below=1)
    checks.number("atol", atol, minimum=0)
    checks.number("cooldown", cooldown, minimum=0)
    checks.number("accumulation_size", accumulation_size, minimum=1)
    checks.number("min_scale", min_scale, minimum=0, maximum=1)

    def init(params: Params) -> ReduceLROnPlateauState:
        del params
        zero, none = _number(0), jnp.asarray(0, jnp.int32)
        return ReduceLROnPlateauState(
            scale=jnp.ones_like(zero),
            best_value=jnp.full_like(zero, jnp.finfo(zero.dtype).max),
            plateau_count=none,
            cooldown_count=none,
            count=none,
            avg_value=zero,
        )

    def judge(state: ReduceLROnPlateauState) -> ReduceLROnPlateauState:
        improved = state.avg_value < (1 - rtol * jnp.sign(state.best_value)) * state.best_value - atol
        cooling = state.cooldown_count > 0
        waited = jnp.where(improved | cooling, 0, state.plateau_count + 1)
        shrink = waited >= patience
        scale = jnp.where(shrink, jnp.maximum(state.scale * factor, min_scale), state.scale)
        rest = jnp.where(shrink, jnp.asarray(cooldown, jnp.int32), jnp.maximum(state.cooldown_count - 1, 0))
        return ReduceLROnPlateauState(
            scale=scale.astype(state.scale.dtype),
            best_value=jnp.where(improved, state.avg_value, state.best_value),
            plateau_count=jnp.where(shrink, 0, waited),
            cooldown_count=rest,
            count=jnp.zeros_like(state.count),
            avg_value=jnp.zeros_like(state.avg_value),
        )

    def update(
        updates: Any, state: ReduceLROnPlateauState, params: Params = None, *, value: Any = None, **others: Any
    ) -> tuple[Any, ReduceLROnPlateauState]:
        del params, others
        if value is None:
            raise TypeError("value: expected the loss, as in update(updates, state, params, value=loss), got nothing")
        if jnp.shape(value) != ():
            raise ValueError(f"value: expected one number, got {checks.describe(value)}")
        seen = state.count + 1
        loss = jnp.asarray(value, state.avg_value.dtype)
        state = state._replace(count=seen, avg_value=state.avg_value + (loss - state.avg_value) / seen)
        state = optax.tree.where(seen >= accumulation_size, judge(state), state)
        return jax.tree.map(lambda u: state.scale.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
