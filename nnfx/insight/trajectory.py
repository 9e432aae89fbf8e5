"""Trajectories of gradient descent: any function of the training state, recorded every few steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnfx import checks, memo
from nnfx.training.batch_checks import check_batch
from nnfx.types import Batch, Step, TrainState

__all__ = ["follow"]


def follow(
    step: Step, state: TrainState, batch: Batch, look: Callable[[TrainState], Any], *, steps: int, every: int = 1
) -> tuple[TrainState, Any]:
    """Take training steps on one batch, and record `look(state)` before the first step and after every few steps.

    With a whole data set as the batch, this is full-batch gradient descent. All steps form one compiled program, which
    works under `jax.vmap`, for example over initial states.

    Args:
        step: the training step, `(state, batch) -> (state, metrics)`, as made by `nnfx.make_step`.
        state: the state to start from, as made by `nnfx.init_state`.
        batch: the examples used in every step.
        look: a function from the state to what should be recorded, an array or a tree of arrays.
        steps: the number of steps.
        every: the number of steps between two records, a divisor of `steps`.

    Returns:
        The last state, and the records, each with a leading axis `(steps / every + 1, ...)`.

    Raises:
        TypeError: for a `step` or `look` that is not a function, or a state or a batch of another type.
        ValueError: for numbers of steps that are not positive, or that `every` does not divide; and as for
            `nnfx.make_step`.

    Example:
        A weight whose optimum is 1, trained from 0 with learning rate η, is `1 − (1 − 2η)ᵗ` after t steps:

        >>> import nnfx, optax
        >>> batch = Batch(jnp.ones((1, 1)), jnp.ones(1), jnp.ones(1))
        >>> model = nnfx.models.pretrained(nnfx.models.perceptron(), {"params": {"kernel": jnp.zeros((1, 1))}})
        >>> optimizer = nnfx.optimizers.freeze(optax.sgd(0.25), "bias")
        >>> step = nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer)
        >>> start = nnfx.init_state(jax.random.key(0), model, optimizer, batch.inputs)
        >>> _, weights = follow(step, start, batch, lambda state: state.params["kernel"][0, 0], steps=4, every=2)
        >>> weights.tolist()
        [0.0, 0.75, 0.9375]
    """
    for name, given in {"step": step, "look": look}.items():
        if not callable(given):
            raise TypeError(f"{name}: expected a function, got {checks.describe(given)}")
    if not isinstance(state, TrainState):
        raise TypeError(f"state: expected a TrainState, as made by nnfx.init_state, got {checks.describe(state)}")
    if not isinstance(batch, Batch):
        raise TypeError(f"batch: expected a Batch, such as data.train, got {checks.describe(batch)}")
    check_batch("batch", batch)
    checks.positive_integer("steps", steps)
    checks.positive_integer("every", every)
    if steps % every:
        raise ValueError(f"every: expected a divisor of the {steps} steps, got {every}")
    return _follow(step, look, steps // every, every, state, batch)


@memo.compiled(static=4)
def _follow(
    step: Step, look: Callable[[TrainState], Any], records: int, every: int, state: TrainState, batch: Batch
) -> tuple[TrainState, Any]:
    def advance(state: TrainState, _: None) -> tuple[TrainState, Any]:
        state = jax.lax.fori_loop(0, every, lambda _, state: step(state, batch)[0], state)
        return state, look(state)

    last, seen = jax.lax.scan(advance, state, None, length=records)
    return last, jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), look(state), seen)
