"""A run as the host sees it: chunk after chunk, with a clock."""

import time
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nnfx import checks
from nnfx.training.chunk import RUNNING, RunState, chunk, judged, start
from nnfx.training.stopping import Clock
from nnfx.types import Array, Batch, Hyper

if TYPE_CHECKING:
    from nnfx.training.fit import Fit

CHUNKS = 100
"""Into about how many chunks a timed run is cut."""


def timed(fit: "Fit", key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> tuple[RunState, dict[str, Array]]:
    """Run to the stop with an eye on the clock: the same steps as the run in one piece.

    Raises:
        ValueError: within `jit`, `vmap` or `grad`, where no clock ticks.
    """
    if not checks.is_concrete((key, train, valid, hyper)):
        raise ValueError(
            "stop: expected rules without a clock for a run within jit, vmap or grad, got one with;"
            " nnfx.sweeps.sweep maps runs with a clock"
        )
    began = time.monotonic()
    state = _start(fit, key, train, valid, hyper)
    epochs_per_chunk, clock, done = max(1, fit.epochs // CHUNKS), Clock(), 0
    pieces = []
    while done < fit.epochs and int(state.stopped_by) == RUNNING:
        epochs = min(epochs_per_chunk, fit.epochs - done)
        chunk_began = time.monotonic()
        state, history = _advance(fit, epochs, state, train, valid, hyper, clock)
        jax.block_until_ready(history)
        now = time.monotonic()
        # the first chunk is compiled while it is timed, so that it says little of those to come
        clock = Clock(now - began, (now - chunk_began) / epochs if done else 0.0)
        done += epochs
        pieces.append(history)
    rest = fit.epochs - done
    return judged(state, train), jax.tree.map(lambda *parts: _padded(jnp.concatenate(parts), rest), *pieces)


@partial(jax.jit, static_argnums=0)
def _start(fit: "Fit", key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> RunState:
    return start(key, fit.parts(hyper), train, valid)


@partial(jax.jit, static_argnums=(0, 1))
def _advance(
    fit: "Fit", epochs: int, state: RunState, train: Batch, valid: Batch | None, hyper: Hyper, clock: Clock
) -> tuple[RunState, dict[str, Array]]:
    return chunk(state, fit.parts(hyper), train, valid, epochs, state.epoch, clock)


def _padded(values: Array, rest: int) -> Array:
    return jnp.pad(values, (0, rest), constant_values=jnp.nan)
