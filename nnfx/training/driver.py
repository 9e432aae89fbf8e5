"""Programs that the host runs piece by piece, and the single timed loop that drives them.

A run in memory, a run on stored data and a sweep are three such programs. The division into pieces does not change a
program's result by a single bit, except for a run of only one step, which XLA compiles differently.
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
"""How long a piece should take: signals are noticed, and time budgets kept, to within this time."""

History = dict[str, np.ndarray]
"""Each metric by epoch, `(epochs,)`."""

State = TypeVar("State")


class Program(abc.ABC, Generic[State]):
    """A function from a state to a later one, counted in epochs or in smaller units; it can be saved and identified.

    What is not abstract suits a single run, whose state has the fields `run`, a `RunState`, and `history`.

    Attributes:
        kind: the kind of program: "run", "run on stored data" or "sweep".
        recipe: the recipe of its runs.
        key: the key of its runs.
        hyper: the hyper-parameters of its runs.
        data: the data of its runs: arrays, and descriptions of arrays.
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
        """The items that a progress bar counts, and the number of them in a unit."""
        return "epochs", 1

    @abc.abstractmethod
    def start(self) -> State:
        """Return the initial state."""

    @abc.abstractmethod
    def advance(self, state: State, until: int, clock: Clock) -> State:
        """Return the state after this many units in total, or at the end if that comes first."""

    @abc.abstractmethod
    def done(self, state: State) -> int:
        """Return how many units have been completed in a state."""

    def has_ended(self, state: State) -> bool:
        """Return whether nothing is left to do."""
        run: RunState = state.run  # type: ignore[attr-defined]
        return self.done(state) >= self.total or int(run.stopped_by) != RUNNING

    def history(self, state: State, since: int) -> History:
        """Return each metric for the epochs that have ended after the first `since`."""
        history: History = state.history  # type: ignore[attr-defined]
        return {name: values[since:] for name, values in history.items()}

    def saved(self, state: State) -> tuple[Any, dict[str, Any]]:
        """Return the arrays of a checkpoint, and the notes saved with them."""
        return state, {}

    @abc.abstractmethod
    def expected(self, noted: Mapping[str, Any]) -> Any:
        """Return arrays of the shapes and dtypes of those saved with these notes."""

    def restored(self, arrays: Any, noted: Mapping[str, Any]) -> State:
        """Return the state that a checkpoint holds."""
        del noted
        state: State = arrays
        return state

    @property
    @abc.abstractmethod
    def lowered(self) -> list[Lowered]:
        """The programs of one run on one device, not yet compiled."""


class Progress(NamedTuple, Generic[State]):
    """The progress of a program after each piece.

    Attributes:
        state: the current state of the program.
        done: the number of units completed.
        seconds: the seconds since it began, including those before an interruption.
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
    """Advance a program to its end, about a second at a time.

    Args:
        program: the program to advance.
        state: its current state.
        seconds: the seconds that it has already taken.
        pause_every: numbers of units; a piece ends at every multiple of each of them.
        is_hurried: whether a piece should take only about a second; otherwise, it is as long as possible.

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
        # the time of the first piece includes compilation, so it says little about later ones; and the overhead of a
        # piece makes short ones look slow, so their length at most doubles
        pace = (now - piece_began) / (done - before) if is_compiled else 0.0
        if is_compiled and is_hurried:
            units = min(max(1, int(SECONDS / pace)), 2 * units, program.longest)
        clock, is_compiled = Clock(np.float32(now - began), np.float32(pace)), True
        yield Progress(state, done, now - began)


def joined(pieces: Sequence[History]) -> History:
    """Return several consecutive histories joined into one.

    >>> joined([{}, {"train_loss": np.array([3.0])}, {"train_loss": np.array([2.0, 1.0])}])
    {'train_loss': array([3., 2., 1.])}
    """
    names = {name: None for piece in pieces for name in piece}
    return {name: np.concatenate([piece[name] for piece in pieces if name in piece]) for name in names}
