"""The progress bar of a run or a sweep."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from nnfx.training.driver import Program

_IN_BAR = ("train_loss", "valid_loss", "valid_loss_lowest")


class ProgressBar:
    """A bar that shows the speed of a program and the time left, if tqdm is installed.

    Args:
        title: the text in front of the bar.
        program: the program.
        done: the number of units completed.
    """

    def __init__(self, title: str, program: Program[Any], done: int) -> None:
        self._epochs, (items, self._per_unit) = program.recipe.epochs, program.shown
        self._bar: Any = None
        try:
            from tqdm.auto import tqdm
        except ModuleNotFoundError:
            return
        each = self._per_unit
        self._bar = tqdm(
            total=program.total * each, initial=done * each, desc=title, unit=f" {items}", unit_scale=items != "epochs"
        )

    @classmethod
    def open(
        cls, stack: contextlib.ExitStack, title: str | None, program: Program[Any], state: Any
    ) -> Optional["ProgressBar"]:
        """Open a bar that the exit stack closes; return None if there is no title."""
        if title is None:
            return None
        return stack.enter_context(contextlib.closing(cls(title, program, program.done(state))))

    def show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the number of completed units, and the last of the new rows."""
        if self._bar is None:
            return
        if rows:
            row = rows[-1]
            words = [f"epoch {row['epoch']} of {self._epochs}"]
            words += [f"{row['running']} running"] if "running" in row else []
            words += [f"{name} {row[name]:.4g}" for name in _IN_BAR if name in row]
            self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(done * self._per_unit - self._bar.n)

    def close(self) -> None:
        """Close the bar in its current state."""
        if self._bar is not None:
            self._bar.close()
