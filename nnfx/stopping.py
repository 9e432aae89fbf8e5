"""Stopping rules: pairs of pure functions `init` and `update`, consulted after each epoch.

Pass a rule's factory to `nnfx.fit`, and its numeric arguments become hyper-parameters of the run. Combine rules in a
list: the run stops as soon as any rule asks it to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.bounds import AtLeastOne, NonNegative, Positive
from nnfx.types import Array, Params

__all__ = [
    "Clock",
    "Epoch",
    "StoppingRule",
    "non_finite",
    "patience",
    "small_change",
    "step_budget",
    "time_budget",
]


class Clock(NamedTuple):
    """Readings of the host's clock, passed in as numbers because a pure function cannot read a clock.

    Attributes:
        seconds: the time since the run began, in seconds, at the last reading.
        pace: the recent duration of an epoch, or of a step for stored data, in seconds; 0 until one has been timed.
    """

    seconds: ArrayLike = 0.0
    pace: ArrayLike = 0.0


class Epoch(NamedTuple):
    """The information available to a rule after an epoch.

    Attributes:
        before: the parameters when the epoch began.
        after: the parameters now.
        metrics: the epoch's metrics, such as `train_loss` and, with held-out data, `valid_loss`.
        faults: the number of steps skipped so far; see `skip_non_finite` of `nnfx.make_step`.
        step: the number of steps made so far.
        seconds: the time since the run began, in seconds, as estimated from the host's clock; see `Clock`.
    """

    before: Params
    after: Params
    metrics: dict[str, Array]
    faults: Array | int = 0
    step: Array | int = 0
    seconds: Array | float = 0.0


class StoppingRule(NamedTuple):
    """A stopping rule: `init() -> state` and `update(state, epoch) -> (state, stop)`.

    Attributes:
        init: returns the state that a run starts with.
        update: takes the state and an `Epoch`, and returns the next state and a boolean scalar.
        needs_valid: whether the rule uses held-out data.
        needs_clock: whether the rule uses the clock, so that the host must run the epochs in chunks.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Epoch], tuple[Any, Array]]
    needs_valid: bool = False
    needs_clock: bool = False


def small_change(tolerance: Positive = 1e-5) -> StoppingRule:
    """Stop when the weights W hardly change in an epoch: `‖W_after − W_before‖ ≤ tolerance · ‖W_before‖`.

    The norms are over all parameters together. An epoch whose steps were all skipped does not count as a small change.

    Args:
        tolerance: the relative change that counts as small, positive; may be traced.

    Raises:
        ValueError: for a tolerance that is not positive.

    Example:
        >>> rule = small_change(0.01)
        >>> before, after = jnp.array([3.0, 4.0]), jnp.array([3.0, 4.01])
        >>> _, stop = rule.update(rule.init(), Epoch(before, after, {}))
        >>> bool(stop)
        True
    """
    checks.number("tolerance", tolerance, above=0)

    def update(state: tuple[()], epoch: Epoch) -> tuple[tuple[()], Array]:
        change = optax.tree.norm(optax.tree.sub(epoch.after, epoch.before))
        was_trained = ~jnp.isnan(jnp.asarray(epoch.metrics.get("train_loss", 0.0)))
        is_small = change <= tolerance * optax.tree.norm(epoch.before)
        return state, jnp.isfinite(change) & was_trained & is_small

    return StoppingRule(lambda: (), update)


def patience(patience: AtLeastOne = 10, min_improvement: NonNegative = 0.0) -> StoppingRule:
    """Stop when the held-out loss has not improved for `patience` epochs in a row.

    An improvement is a held-out loss below the best so far by more than `min_improvement`. The run returns
    the weights with the lowest held-out loss in `run.best`.

    Args:
        patience: the number of epochs to wait, at least 1; may be traced.
        min_improvement: the smallest improvement that counts, in the units of the loss, non-negative; may be traced.

    Raises:
        ValueError: for a patience below 1 or a negative improvement.

    Example:
        >>> rule = patience(2)
        >>> state, stops = rule.init(), []
        >>> for loss in (3.0, 2.0, 2.5, 2.0):
        ...     state, stop = rule.update(state, Epoch((), (), {"valid_loss": jnp.float32(loss)}))
        ...     stops.append(bool(stop))
        >>> stops
        [False, False, False, True]

    References:
        Prechelt, *Early stopping — but when?*, 1998.
    """
    checks.number("patience", patience, minimum=1)
    checks.number("min_improvement", min_improvement, minimum=0)

    def init() -> tuple[Array, Array]:
        dtype = jax.dtypes.canonicalize_dtype(float)
        # before the first loss, the best loss counts as the largest number
        return jnp.asarray(jnp.finfo(dtype).max, dtype), jnp.asarray(0, jnp.int32)

    def update(state: tuple[Array, Array], epoch: Epoch) -> tuple[tuple[Array, Array], Array]:
        best, waited = state
        loss = epoch.metrics["valid_loss"].astype(best.dtype)
        improved = jnp.isfinite(loss) & (loss < best - min_improvement)
        waited = jnp.where(improved, 0, waited + 1)
        return (jnp.where(improved, loss, best), waited), waited >= patience

    return StoppingRule(init, update, needs_valid=True)


def non_finite() -> StoppingRule:
    """Stop when the training loss or a parameter is no longer finite, or a step had to be skipped.

    Example:
        >>> rule = non_finite()
        >>> _, stop = rule.update(rule.init(), Epoch((), jnp.ones(2), {"train_loss": jnp.array(jnp.nan)}))
        >>> bool(stop)
        True
    """

    def update(state: tuple[()], epoch: Epoch) -> tuple[tuple[()], Array]:
        leaves = [epoch.metrics["train_loss"], *jax.tree.leaves(epoch.after)]
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
        return state, ~finite | (epoch.faults > 0)

    return StoppingRule(lambda: (), update)


def step_budget(max_steps: AtLeastOne) -> StoppingRule:
    """Stop at the end of the epoch in which the number of steps reaches `max_steps`.

    Args:
        max_steps: the number of steps, at least 1; may be traced.

    Raises:
        ValueError: for fewer than one step.

    Example:
        >>> rule = step_budget(100)
        >>> [bool(rule.update(rule.init(), Epoch((), (), {}, step=step))[1]) for step in (90, 120)]
        [False, True]
    """
    checks.number("max_steps", max_steps, minimum=1)

    def update(state: tuple[()], epoch: Epoch) -> tuple[tuple[()], Array]:
        return state, jnp.asarray(epoch.step) >= jnp.asarray(max_steps)

    return StoppingRule(lambda: (), update)


def time_budget(max_seconds: Positive) -> StoppingRule:
    """Stop when `max_seconds` have passed since the run, or the sweep that it belongs to, began.

    The time includes compilation. The host measures it after each chunk of epochs, so the run ends within one chunk of
    its budget. A chunk takes about a second, or one epoch if that takes longer. A run inside `jit`, `vmap` or `grad`
    has no clock, and raises an error.

    Args:
        max_seconds: the time in seconds, positive; may be traced.

    Raises:
        ValueError: for a time that is not positive.

    Example:
        >>> rule = time_budget(60.0)
        >>> [bool(rule.update(rule.init(), Epoch((), (), {}, seconds=seconds))[1]) for seconds in (59.0, 61.0)]
        [False, True]
    """
    checks.number("max_seconds", max_seconds, above=0)

    def update(state: tuple[()], epoch: Epoch) -> tuple[tuple[()], Array]:
        return state, jnp.asarray(epoch.seconds) >= jnp.asarray(max_seconds)

    return StoppingRule(lambda: (), update, needs_clock=True)
