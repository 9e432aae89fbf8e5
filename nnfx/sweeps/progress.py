"""The progress of a sweep."""

from collections.abc import Callable
from typing import NamedTuple

from nnfx.sweeps.result import Sweep


class Progress(NamedTuple):
    """The progress of a sweep, for code that displays it.

    Attributes:
        epoch: the number of epochs completed.
        epochs: the maximum number of epochs.
        running: the number of members still running.
        members: the number of members in all.
        result: returns the result so far, in the form that the sweep returns at the end: `progress.result().save(path)`
            keeps the results of a sweep in case it is interrupted. Members still running are marked as running.
    """

    epoch: int
    epochs: int
    running: int
    members: int
    result: Callable[[], Sweep] | None = None
