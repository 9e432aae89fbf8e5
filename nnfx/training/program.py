"""What the host drives piece by piece, and the one loop with a clock that drives it.

A run in memory, a run on stored data and a sweep are three programs. Where a piece ends changes no bit of what a
program comes to, except of a run that has but a single step, which XLA compiles otherwise.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from nnfx import distributed
from nnfx.stopping import Clock

SECONDS = 1.0
"""How long a piece should take: so soon a signal is heard, and a budget of time kept."""

History = dict[str, np.ndarray]
"""Each metric by epoch, `(epochs,)`."""

State = TypeVar("State")


class Program(Protocol[State]):
    """A function from a state to a later one, counted in epochs or in smaller units."""

    @property
    def total(self) -> int:
        """How many units there are at most."""

    @property
    def longest(self) -> int:
        """How many units one call of `advance` makes at most."""

    @property
    def pause_every(self) -> int | None:
        """One call of `advance` never crosses a multiple of this number of units; None for any number."""

    def start(self) -> State:
        """Return the state that it starts from."""

    def advance(self, state: State, until: int, clock: Clock) -> State:
        """Return the state after so many units in all, or at the end where that comes first."""

    def done(self, state: State) -> int:
        """Return how many units lie behind a state."""

    def has_ended(self, state: State) -> bool:
        """Say whether nothing is left to do."""


class Progress(NamedTuple, Generic[State]):
    """What the host sees after each piece.

    Attributes:
        state: where the program stands.
        done: how many units lie behind it.
        seconds: since it began, those before it was cut off included.
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
        program: what to advance.
        state: where it stands.
        seconds: that it has taken before.
        pause_every: a piece ends at every multiple of each of these numbers of units.
        is_hurried: whether the host wants to look about once a second; else a piece is as long as may be.

    Yields:
        What the host sees after each piece; nothing where the program has ended before.
    """
    began = time.monotonic() - seconds
    units, clock, is_compiled = 1 if is_hurried else program.longest, Clock(np.float32(seconds), np.float32(0)), False
    done = program.done(state)
    while not program.has_ended(state):
        pauses = [every * (done // every + 1) for every in (*pause_every, program.pause_every) if every]
        until = min(done + units, program.total, *pauses)
        # what is spread over several processes stands still unless all of them go equally far
        until, *ticks = distributed.agree([until, *(float(np.asarray(tick)) for tick in clock)])
        piece_began = time.monotonic()
        state = program.advance(state, until, Clock(*map(np.float32, ticks)))
        before, done = done, program.done(state)
        now = time.monotonic()
        # the first piece is compiled while it is timed, so that it says little of those to come; and what a piece costs
        # besides its units makes short ones look slow, so that their length at most doubles
        pace = (now - piece_began) / (done - before) if is_compiled else 0.0
        if is_compiled and is_hurried:
            units = min(max(1, int(SECONDS / pace)), 2 * units, program.longest)
        clock, is_compiled = Clock(np.float32(now - began), np.float32(pace)), True
        yield Progress(state, done, now - began)


def joined(pieces: Sequence[History]) -> History:
    """Return one history of several that follow each other.

    >>> joined([{}, {"train_loss": np.array([3.0])}, {"train_loss": np.array([2.0, 1.0])}])
    {'train_loss': array([3., 2., 1.])}
    """
    names = {name: None for piece in pieces for name in piece}
    return {name: np.concatenate([piece[name] for piece in pieces if name in piece]) for name in names}
