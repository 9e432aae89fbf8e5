"""The progress bar of a run or a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

_IN_BAR = ("train_loss", "valid_loss", "valid_loss_lowest")


class ProgressBar:
    """A bar that shows the speed of a program and the time left, if tqdm is installed.

    Args:
        title: the text in front of the bar.
        epochs: the maximum number of epochs.
        done: the amount done.
        total: the maximum amount to do.
        unit: the unit of `done` and `total`.
    """

    def __init__(self, title: str, epochs: int, done: int, total: int, unit: str) -> None:
        self._epochs = epochs
        self._bar: Any = None
        try:
            from tqdm.auto import tqdm
        except ModuleNotFoundError:
            return
        self._bar = tqdm(total=total, initial=done, desc=title, unit=f" {unit}", unit_scale=unit != "epochs")

    def show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show how much is done, and the last row of the epochs that have ended since."""
        if self._bar is None:
            return
        if rows:
            row = rows[-1]
            words = [f"epoch {row['epoch']} of {self._epochs}"]
            words += [f"{row['running']} running"] if "running" in row else []
            words += [f"{name} {row[name]:.4g}" for name in _IN_BAR if name in row]
            self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Close the bar in its current state."""
        if self._bar is not None:
            self._bar.close()
