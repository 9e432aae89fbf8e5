"""The host's loop over batches: a run whose data are handed in batch by batch, as they are read.

It takes the same steps, in the same order, and ends its epochs as a run in memory does.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnfx import distributed, memo
from nnfx.training import epochs
from nnfx.training.epochs import RUNNING, RunState
from nnfx.training.loop import SECONDS, History
from nnfx.training.parts import Recipe
from nnfx.types import Array, Batch, Hyper, Metrics, Params, TrainState

QUEUED = 2
"""How many steps the host is ahead of the devices at most: each holds a batch in their memory."""


class Standing(NamedTuple):
    """All that a run goes on from, between two steps.

    Attributes:
        run: the run's state when its last epoch ended, but for the training state, which is that of now.
        before: the parameters when this epoch began, for stopping rules; None without.
        measured: what the steps of this epoch have measured so far.
    """

    run: RunState
    before: Params | None
    measured: Metrics


class Stride(NamedTuple):
    """What the host sees after some steps.

    Attributes:
        standing: where the run stands.
        steps: how many steps it has made in all.
        history: each metric, `(1,)`, where an epoch has ended with the last step; else nothing.
        seconds: since the run began.
    """

    standing: Standing
    steps: int
    history: History
    seconds: float


def begin(recipe: Recipe, key: Array, first: Batch, valid: Batch | None, hyper: Hyper) -> Standing:
    """Return where a run starts from, given a batch for its shapes."""
    run, measured = _begin(recipe, key, first, valid, hyper)
    return Standing(run, _copy(run.train.params) if recipe.rule_names else None, measured)


def strides(
    recipe: Recipe,
    standing: Standing,
    batches: Iterator[Batch],
    valid: Batch | None,
    hyper: Hyper,
    *,
    steps: int,
    steps_per_epoch: int,
    seconds: float = 0.0,
    pause_every: int | None = None,
) -> Iterator[Stride]:
    """Run to the stop, for about a second or to the end of an epoch at a time.

    Args:
        recipe: how the run is made.
        standing: where the run stands; its arrays are used up.
        batches: those that follow.
        valid: what is held out, or None.
        hyper: the hyper-parameters, as arrays.
        steps: how many steps the run has made.
        steps_per_epoch: how many batches an epoch has.
        seconds: that the run has taken before.
        pause_every: a stride ends at every multiple of so many steps.

    Yields:
        What the host sees after each stride; its arrays are used up by the next.
    """
    run, before, measured = distributed.everywhere(standing)
    began, looked, length, is_compiled = time.monotonic() - seconds, time.monotonic(), 1, False
    look_at, queued = steps + 1, collections.deque[Metrics]()
    while int(run.epoch) < recipe.epochs and int(run.stopped_by) == RUNNING:
        made = 0
        while steps < look_at:
            train, measured = _step(recipe, run.train, measured, next(batches), hyper)
            run = run._replace(train=train)
            steps, made = steps + 1, made + 1
            queued.append(measured)
            if len(queued) > QUEUED:
                jax.block_until_ready(queued.popleft())
        jax.block_until_ready(measured)
        now = time.monotonic()
        history: History = {}
        if steps % steps_per_epoch == 0:
            passed = np.float32(distributed.agree(now - began))
            run, row = _end_epoch(recipe, run, before, measured, valid, hyper, passed)
            history = {name: np.asarray(value)[None] for name, value in row.items()}
            before = _copy(run.train.params) if recipe.rule_names else None
            measured = jax.tree.map(jnp.zeros_like, measured)
        yield Stride(Standing(run, before, measured), steps, history, now - began)
        # the first steps are compiled while they are timed; and short strides look slow, so that their length doubles
        if is_compiled:
            length = min(max(1, int(SECONDS * made / (now - looked))), 2 * length)
        is_compiled, looked = True, time.monotonic()
        ends = [steps + length, steps_per_epoch * (steps // steps_per_epoch + 1)]
        if pause_every is not None:
            ends.append(pause_every * (steps // pause_every + 1))
        look_at = distributed.agree(min(ends))


@memo.compiled()
def _begin(recipe: Recipe, key: Array, first: Batch, valid: Batch | None, hyper: Hyper) -> tuple[RunState, Metrics]:
    parts = recipe.bind(hyper)
    first = in_floats(first)
    run = epochs.start(key, parts, first, valid)
    _, measured = jax.eval_shape(recipe.step(parts), run.train, first)
    return run, jax.tree.map(lambda sums: jnp.zeros(sums.shape, sums.dtype), measured)


def step(
    recipe: Recipe, train: TrainState, measured: Metrics, batch: Batch, hyper: Hyper
) -> tuple[TrainState, Metrics]:
    """Take a step, and add what it measures to what was measured before."""
    train, more = recipe.step(recipe.bind(hyper))(train, in_floats(batch))
    return train, optax.tree.add(measured, more)


def end_epoch(
    recipe: Recipe,
    run: RunState,
    before: Params | None,
    measured: Metrics,
    valid: Batch | None,
    hyper: Hyper,
    seconds: np.float32,
) -> tuple[RunState, dict[str, Array]]:
    """End an epoch, as runs in memory do."""
    began = run.train if before is None else run.train._replace(params=before)
    return epochs.end_epoch(
        run._replace(train=began), recipe.bind(hyper), run.train, measured, valid, jnp.asarray(seconds)
    )


def _over_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function returns whole on the devices of all processes."""
    return functools.wraps(function)(lambda *arguments: distributed.everywhere(function(*arguments)))


_step = memo.compiled(donate=(1,))(_over_all(step))
_end_epoch = memo.compiled()(_over_all(end_epoch))


def in_floats(batch: Batch) -> Batch:
    """Return a batch whose inputs are as `nnfx.data.prepare` leaves them: floats, but for integers `(rows, n)`."""
    inputs = jnp.asarray(batch.inputs)
    if jnp.issubdtype(inputs.dtype, np.floating):
        return batch
    is_kept = inputs.ndim == 2 and jnp.issubdtype(inputs.dtype, np.integer)
    return batch._replace(inputs=inputs.astype(int if is_kept else float))


def _copy(tree: Params) -> Params:
    """Return arrays of their own: steps use up those that they are given."""
    return jax.tree.map(jnp.copy, tree)
