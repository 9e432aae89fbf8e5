"""The progress of a sweep."""

from collections.abc import Callable
from typing import NamedTuple

from nnfx.sweeps.result import Sweep


class Progress(NamedTuple):
    """The progress of a sweep, as passed to `on_chunk`.

    Attributes:
        epoch: the number of epochs completed.
        epochs: the maximum number of epochs.
        running: the number of members still running.
        members: the total number of members.
        result: a function that returns the result so far, in the same form as the final result:
            `progress.result().save(path)` saves it in case the sweep is interrupted. For members still running, the
            reason is "running". None in a search.
    """

    epoch: int
    epochs: int
    running: int
    members: int
    result: Callable[[], Sweep] | None = None
