"""Programs that the host advances in pieces, and the single timed loop that drives them.

A run in memory, a run on stored data and a sweep are such programs. The division into pieces does not change a single
bit of a program's result, except for a run of only one step, which XLA compiles differently.
"""

import abc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jax.stages import Lowered

from nnfx import distributed
from nnfx.stopping import Clock
from nnfx.training.epochs import RUNNING, RunState
from nnfx.training.parts import Recipe
from nnfx.types import Array, Hyper

SECONDS = 1.0
"""The intended duration of a piece, in seconds: signals and time budgets are checked between pieces."""

History = dict[str, np.ndarray]
"""Each metric by epoch, `(epochs,)`."""

State = TypeVar("State")


class Program(abc.ABC, Generic[State]):
    """A function that advances a state by epochs or smaller units, and whose state can be saved and restored.

    The methods that are not abstract suit a single run, whose state has the fields `run`, a `RunState`, and `history`.

    Attributes:
        kind: the kind of program: "run", "run on stored data" or "sweep".
        recipe: the recipe of the runs.
        key: the key of the runs.
        hyper: the hyper-parameters of the runs.
        data: the data of the runs, as arrays or descriptions of arrays.
        units_per_epoch: the number of units in an epoch.
        longest: the maximum number of units that one call of `advance` completes.
        pause_every: a number of units; no call of `advance` crosses a multiple of it. None if calls may end anywhere.
    """

    kind: str
    recipe: Recipe
    key: Array
    hyper: Hyper
    data: Any
    units_per_epoch: int
    longest: int = sys.maxsize
    pause_every: int | None = None

    @property
    def total(self) -> int:
        """The maximum number of units."""
        return self.recipe.epochs * self.units_per_epoch

    @property
    def shown(self) -> tuple[str, int]:
        """The name of the items that a progress bar counts, and the number of items in one unit of the program."""
        return "epochs", 1

    @abc.abstractmethod
    def start(self) -> State:
        """Return the initial state."""

    @abc.abstractmethod
    def advance(self, state: State, until: int, clock: Clock) -> State:
        """Return the state after `until` units in total, or at the end if the program ends earlier."""

    @abc.abstractmethod
    def done(self, state: State) -> int:
        """Return the number of completed units in a state."""

    def has_ended(self, state: State) -> bool:
        """Return whether the program has ended."""
        run: RunState = state.run  # type: ignore[attr-defined]
        return self.done(state) >= self.total or int(run.stopped_by) != RUNNING

    def history(self, state: State, since: int) -> History:
        """Return each metric for the completed epochs after the first `since`."""
        history: History = state.history  # type: ignore[attr-defined]
        return {name: values[since:] for name, values in history.items()}

    def saved(self, state: State) -> tuple[Any, dict[str, Any]]:
        """Return the arrays of a checkpoint, and the notes saved with them."""
        return state, {}

    @abc.abstractmethod
    def expected(self, noted: Mapping[str, Any]) -> Any:
        """Return a template for the arrays saved with the given notes, with the same shapes and dtypes."""

    def restored(self, arrays: Any, noted: Mapping[str, Any]) -> State:
        """Rebuild a state from the arrays and notes of a checkpoint."""
        del noted
        state: State = arrays
        return state

    @property
    @abc.abstractmethod
    def lowered(self) -> list[Lowered]:
        """The programs of one run on one device, lowered but not compiled."""


class Progress(NamedTuple, Generic[State]):
    """The progress of a program after each piece.

    Attributes:
        state: the current state of the program.
        done: the number of units completed.
        seconds: the time since the program began, including that before an interruption, in seconds.
    """

    state: State
    done: int
    seconds: float


def drive(
    program: Program[State],
    state: State,
    *,
    seconds: float = 0.0,
    pause_every: Sequence[int] = (),
    is_hurried: bool = True,
) -> Iterator[Progress[State]]:
    """Advance a program to its end, in pieces of about a second.

    Args:
        program: the program to advance.
        state: the current state of the program.
        seconds: the time that the program has already taken, in seconds.
        pause_every: numbers of units; a piece ends at every multiple of each number.
        is_hurried: whether pieces should take only about a second; otherwise, they are as long as possible.

    Yields:
        The progress after each piece; nothing if the program has already ended.
    """
    began = time.monotonic() - seconds
    units, clock, is_compiled = 1 if is_hurried else program.longest, Clock(np.float32(seconds), np.float32(0)), False
    done = program.done(state)
    while not program.has_ended(state):
        pauses = [every * (done // every + 1) for every in (*pause_every, program.pause_every) if every]
        until = min(done + units, program.total, *pauses)
        # a program spread over several processes hangs unless all of them advance by the same amount
        until, *ticks = distributed.agree([until, *(float(np.asarray(tick)) for tick in clock)])
        piece_began = time.monotonic()
        state = program.advance(state, until, Clock(*map(np.float32, ticks)))
        before, done = done, program.done(state)
        now = time.monotonic()
        # the time of the first piece includes compilation, so it says little about later pieces; and overhead makes
        # short pieces look slow, so their length at most doubles
        pace = (now - piece_began) / (done - before) if is_compiled else 0.0
        if is_compiled and is_hurried:
            units = min(max(1, int(SECONDS / pace)), 2 * units, program.longest)
        clock, is_compiled = Clock(np.float32(now - began), np.float32(pace)), True
        yield Progress(state, done, now - began)


def joined(pieces: Sequence[History]) -> History:
    """Concatenate consecutive histories.

    >>> joined([{}, {"train_loss": np.array([3.0])}, {"train_loss": np.array([2.0, 1.0])}])
    {'train_loss': array([3., 2., 1.])}
    """
    names = {name: None for piece in pieces for name in piece}
    return {name: np.concatenate([piece[name] for piece in pieces if name in piece]) for name in names}
