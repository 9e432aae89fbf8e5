"""How far a sweep has come, and a bar that shows it."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


def bar(title: str = "sweep") -> Callable[[Progress], None]:
    """Return what shows a sweep's progress as a bar, for `on_chunk`: epochs, members that run, and the time left.

    Without tqdm nothing is shown. The bar moves after each chunk: a sweep without stopping rules is one chunk unless
    `epochs_per_chunk` says otherwise.

    Args:
        title: what stands before it.

    Example:
        >>> show = bar("rates")
        >>> show(Progress(epoch=10, epochs=10, running=2, members=64))
    """
    shown: Any = None

    def show(progress: Progress) -> None:
        nonlocal shown
        if shown is None:
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                return
            shown = tqdm(total=progress.epochs, desc=title, unit=" epochs")
        shown.set_postfix_str(f"{progress.running} of {progress.members} members running", refresh=False)
        shown.update(progress.epoch - shown.n)
        if progress.epoch == progress.epochs or not progress.running:
            shown.close()

    return show
