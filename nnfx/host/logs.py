"""Where the numbers of a run go while it goes on: a CSV file, TensorBoard, and a bar on the screen."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]
"""Numbers by name, the epoch that they were measured after among them."""


class Log(Protocol):
    """Takes rows as they come."""

    def add(self, rows: Sequence[Row]) -> None:
        """Take further rows, of which there is at least one, all with the same names."""

    def close(self) -> None:
        """Let go of files and screen."""


class CsvLog:
    """A CSV file to which whole rows are appended, so that a kill costs no row that was there.

    Args:
        path: of the file. What it held gives way to the rows known.
        rows: those known when a run goes on.
    """

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(_text(rows, has_header=True) if rows else "")
        os.replace(aside, path)
        self._is_empty = not rows
        self._path, self._file = path, path.open("ab", buffering=0)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows.

        Raises:
            OSError: where they cannot be written.
        """
        left = _text(rows, has_header=self._is_empty).encode()
        self._is_empty = False
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(f"{self._path}: expected rows to be appended, got {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _text(rows: Sequence[Row], has_header: bool) -> str:
    """Write rows as CSV, with as many digits as tell every number from its neighbours."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if has_header:
        writer.writeheader()
    writer.writerows({name: str(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


class TensorBoardLog:
    """Files for TensorBoard.

    Args:
        folder: where they go.

    Raises:
        ModuleNotFoundError: where TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tensorboard: needed to write logs for it; not installed: pip install tensorboard"
            ) from error
        self._writer = Writer(str(folder))

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        for row in rows:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, float(value), row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class Bar:
    """A bar that shows the examples learned from a second, and the time left; nothing without tqdm.

    Args:
        title: what stands before it.
        epochs: how many there are at most.
        done: how many there have been.
        examples: in an epoch.
    """

    def __init__(self, title: str, epochs: int, done: int, examples: int) -> None:
        self._epochs, self._examples = epochs, examples
        self._bar: Any = None
        try:
            from tqdm.auto import tqdm
        except ModuleNotFoundError:
            return
        total, initial = epochs * examples, done * examples
        self._bar = tqdm(total=total, initial=initial, desc=title, unit=" examples", unit_scale=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Show the last of some rows."""
        if self._bar is not None:
            last = rows[-1]
            losses = [f"{name} {last[name]:.4g}" for name in ("train_loss", "valid_loss") if name in last]
            self._bar.set_postfix_str(", ".join([f"epoch {last['epoch']} of {self._epochs}", *losses]), refresh=False)
            self.reach(last["epoch"] * self._examples)

    def reach(self, examples: int) -> None:
        """Show how many examples there have been in all."""
        if self._bar is not None:
            self._bar.update(examples - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
