"""The host's loop: chunk after chunk, with a clock, so that the host gets to do its own work in between.

One compiled program advances a run by as many epochs as the host asks for, which is about a second's worth. Where a
chunk ends changes no bit of a run, except of one that has but a single step, which XLA compiles otherwise.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nnfx import checks, distributed, memo
from nnfx.stopping import Clock
from nnfx.training.epochs import RUNNING, RunState, run_epochs_until, start
from nnfx.training.parts import Recipe
from nnfx.types import Array, Batch, Hyper

SECONDS = 1.0
"""How long a chunk should take, as far as epochs can be cut: so soon a signal is heard, and a budget of time kept."""
LONGEST = 1000
"""How many epochs a chunk has at most."""

History = dict[str, np.ndarray]
"""Each metric by epoch, `(epochs,)`."""


class Chunk(NamedTuple):
    """What the host sees when a chunk has ended.

    Attributes:
        state: where the run stands.
        history: each metric by epoch of the chunk, `(epochs,)`.
        seconds: since the run began.
    """

    state: RunState
    history: History
    seconds: float


def chunks(
    recipe: Recipe,
    state: RunState,
    train: Batch,
    valid: Batch | None,
    hyper: Hyper,
    *,
    seconds: float = 0.0,
    pause_every: Sequence[int] = (),
) -> Iterator[Chunk]:
    """Run to the stop, chunk after chunk.

    Args:
        recipe: how the run is made.
        state: where the run stands, such as `begin` returns.
        train: what to train on.
        valid: what is held out, or None.
        hyper: the hyper-parameters, as arrays.
        seconds: that the run has taken before.
        pause_every: a chunk ends at every multiple of each of these numbers of epochs.

    Yields:
        What the host sees after each chunk; nothing where the run has ended before.
    """
    began = time.monotonic() - seconds
    epochs, clock, is_compiled = 1, Clock(np.float32(seconds), np.float32(0)), False
    done = int(state.epoch)
    while done < recipe.epochs and int(state.stopped_by) == RUNNING:
        pauses = [every * (done // every + 1) for every in pause_every]
        until = min(done + epochs, recipe.epochs, *pauses)
        # what is spread over several processes stands still unless all of them go equally far
        until, *ticks = distributed.agree([until, *(float(np.asarray(tick)) for tick in clock)])
        clock = Clock(*map(np.float32, ticks))
        chunk_began = time.monotonic()
        state, history = distributed.local(advance(recipe, state, train, valid, hyper, np.int32(until), clock))
        before, done = done, int(state.epoch)
        now = time.monotonic()
        # the first chunk is compiled while it is timed, so that it says little of those to come; and what a chunk costs
        # besides its epochs makes short ones look slow, so that their length at most doubles
        seconds_per_epoch = (now - chunk_began) / (done - before) if is_compiled else 0.0
        if is_compiled:
            epochs = min(max(1, int(SECONDS / seconds_per_epoch)), 2 * epochs, LONGEST)
        clock, is_compiled = Clock(np.float32(now - began), np.float32(seconds_per_epoch)), True
        yield Chunk(state, {name: np.asarray(values)[: done - before] for name, values in history.items()}, now - began)


def timed(
    recipe: Recipe, key: Array, train: Batch, valid: Batch | None, hyper: Hyper
) -> tuple[RunState, dict[str, Array]]:
    """Run to the stop with an eye on the clock: the same steps as the run in one piece.

    Raises:
        ValueError: within `jit`, `vmap` or `grad`, where no clock ticks.
    """
    if not checks.is_concrete((key, train, valid, hyper)):
        raise ValueError(
            "stop: expected rules without a clock for a run within jit, vmap or grad, got one with;"
            " nnfx.sweeps.sweep maps runs with a clock"
        )
    state, pieces = begin(recipe, key, train, valid, hyper), []
    for each in chunks(recipe, state, train, valid, hyper):
        state = each.state
        pieces.append(each.history)
    return state, padded(joined(pieces), recipe.epochs)


@memo.compiled()
def begin(recipe: Recipe, key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> RunState:
    """Return the state that a run starts from."""
    return start(key, recipe.bind(hyper), train, valid)


@memo.compiled()
def advance(
    recipe: Recipe,
    state: RunState,
    train: Batch,
    valid: Batch | None,
    hyper: Hyper,
    until: int | np.int32,
    clock: Clock,
) -> tuple[RunState, dict[str, Array]]:
    """Train until so many epochs have been run in all, `LONGEST` of them at most."""
    return run_epochs_until(recipe, hyper, state, train, valid, until, LONGEST, clock)


def joined(pieces: Sequence[History]) -> History:
    """Return the history of all chunks, of which there is at least one.

    >>> joined([{"train_loss": np.array([3.0])}, {"train_loss": np.array([2.0, 1.0])}])
    {'train_loss': array([3., 2., 1.])}
    """
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def padded(history: History, epochs: int) -> dict[str, Array]:
    """Return a history as chunks do, `(epochs,)`, zero where not run.

    >>> padded({"train_loss": np.array([2.0, 1.0], np.float32)}, 3)
    {'train_loss': Array([2., 1., 0.], dtype=float32)}
    """
    return {name: jax.device_put(np.pad(values, (0, epochs - len(values)))) for name, values in history.items()}
