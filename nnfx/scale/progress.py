"""How far a sweep has come."""

from collections.abc import Callable
from typing import NamedTuple

from nnfx.scale.result import Sweep


class Progress(NamedTuple):
    """How far a sweep has come, for whoever shows it.

    Attributes:
        epoch: epochs behind it.
        epochs: epochs at most.
        running: members still running.
        members: members in all.
        result: returns what there is by now, as the sweep will return it in the end: so `progress.result().save(path)`
            keeps what a sweep has found, should it be cut off. Members still running say so.
    """

    epoch: int
    epochs: int
    running: int
    members: int
    result: Callable[[], Sweep] | None = None
