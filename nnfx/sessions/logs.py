"""Logs of a run in progress: CSV and JSON files, TensorBoard, and user functions."""

import collections
import contextlib
import csv
import io
import itertools
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from nnfx import paths
from nnfx.sessions.progress_bar import ProgressBar

Row = Mapping[str, Any]
"""Numbers by name, including the `epoch` after which they were measured."""


Log = Callable[[Sequence[Row]], None]
"""A function called with new rows, at least one; all rows of a log have the same names."""


class FileLog:
    """A file to which whole rows are appended, so that no earlier row is lost if the process is killed.

    Args:
        path: the path of the file: `.csv`, or `.jsonl` for a line of JSON per row. Any existing contents are replaced
            by `rows`.
        rows: the rows recorded before the run resumes.
    """

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self._text = _json_lines if path.suffix == ".jsonl" else _csv
        text = (self._text(rows, has_header=True) if rows else "").encode()
        if path.is_symlink() or not path.is_file() or path.read_bytes() != text:
            with paths.replace(path) as aside:
                aside.write_bytes(text)
        self._is_empty = not rows
        self._path, self._file = path, paths.append(path)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows.

        Raises:
            OSError: if the rows cannot be written.
        """
        text = self._text(rows, has_header=self._is_empty).encode()
        self._is_empty = False
        try:
            _write(self._file, text)
        except OSError as error:
            raise OSError(f"{self._path}: could not append rows: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rows_in(path: Path) -> list[Row]:
    """Return the complete rows of a CSV file as numbers; an empty list if the file is missing or unreadable."""
    try:
        lines = path.read_text().rpartition("\n")[0].splitlines()
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines, strict=True)]
        return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error):
        return []


def _write(file: IO[bytes], content: bytes) -> None:
    """Write all content to an unbuffered file, whose `write` may accept only a part at a time."""
    while content:
        content = content[file.write(content) :]


def _json_lines(rows: Sequence[Row], has_header: bool) -> str:
    """Return rows as lines of JSON; NaN and infinities, which JSON lacks, become null."""
    del has_header
    numbers = ({name: float(value) for name, value in row.items()} | {"epoch": row["epoch"]} for row in rows)
    known = ({name: value if math.isfinite(value) else None for name, value in row.items()} for row in numbers)
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in known)


def _csv(rows: Sequence[Row], has_header: bool) -> str:
    """Return rows as CSV, with enough digits to reproduce every number exactly."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if has_header:
        writer.writeheader()
    writer.writerows({name: str(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


class TensorBoardLog:
    """A TensorBoard event file, next to any earlier files in the folder.

    Each number is written once per epoch, however often a run resumes, so that no value appears twice.

    Args:
        folder: the folder of the file.
        rows: the rows recorded before the run resumes; those missing from the folder are written.

    Raises:
        ModuleNotFoundError: if TensorBoard is not installed.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path, rows: Sequence[Row] = ()) -> None:
        try:
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tensorboard: required to write TensorBoard logs, but not installed: pip install tensorboard"
            ) from error
        self._folder, self._writer_of = folder, RecordWriter
        self._file: IO[bytes] | None = None
        self._written = _scalars_in(folder)
        self.add(rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows.

        Raises:
            OSError: if the rows cannot be written.
        """
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events = []
        for row in rows:
            epoch = row["epoch"]
            new = [name for name in row if name != "epoch" and epoch not in self._written[name]]
            values = [summary_pb2.Summary.Value(tag=name, simple_value=float(row[name])) for name in new]
            if values:
                summary = summary_pb2.Summary(value=values)
                events.append(event_pb2.Event(wall_time=time.time(), step=epoch, summary=summary))
            for name in new:
                self._written[name].add(epoch)
        if not events:
            return
        try:
            if self._file is None:
                self._file = self._opened()
                events.insert(0, event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
            records = io.BytesIO()
            writer = self._writer_of(records)
            for event in events:
                writer.write(event.SerializeToString())
            _write(self._file, records.getvalue())
        except OSError as error:
            raise OSError(f"{self._folder}: could not write logs: {error}") from error

    def _opened(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.{next(self._numbers)}"
        return paths.append(self._folder / name, is_new=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def calling(function: Callable[[Row], object]) -> Log:
    """Return a log that calls a function with each row, as Python numbers by name.

    >>> calling(print)([{"epoch": 1, "loss": 2}])
    {'epoch': 1, 'loss': 2.0}
    """

    def add(rows: Sequence[Row]) -> None:
        for row in rows:
            function({name: value if name == "epoch" else float(value) for name, value in row.items()})

    return add


def apart(log: Log, names: Container[str]) -> Log:
    """Wrap a log of evaluations, and prefix names that are also used in the history.

    >>> apart(print, {"loss"})([{"epoch": 1, "loss": 2.0}])
    [{'epoch': 1, 'evaluation/loss': 2.0}]
    """

    def add(rows: Sequence[Row]) -> None:
        log([{f"evaluation/{name}" if name in names else name: row[name] for name in row} for row in rows])

    return add


def _scalars_in(folder: Path) -> dict[str, set[int]]:
    """Return the steps recorded in a folder for each name, as far as the files can be read."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    steps: dict[str, set[int]] = collections.defaultdict(set)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        if path.is_file():
            for record in RawEventFileLoader(str(path)).Load():
                event = event_pb2.Event.FromString(record)
                for value in event.summary.value:
                    steps[value.tag].add(event.step)
    return steps


class Logs(NamedTuple):
    """The logs for the history and for evaluations, and the progress bar."""

    of_history: Sequence[Log] = ()
    of_evaluation: Sequence[Log] = ()
    names: set[str] = set()  # noqa: RUF012 -- never added to if there are no logs
    bar: ProgressBar | None = None

    @classmethod
    def open(
        cls,
        stack: contextlib.ExitStack,
        out: Path,
        known: Sequence[Row],
        evaluations: Sequence[Row] | None,
        *,
        tensorboard: bool,
        json_lines: bool,
        call: Callable[[Row], object] | None,
    ) -> "Logs":
        """Open the logs in a folder, to be closed by an exit stack.

        Args:
            stack: the exit stack that closes the logs.
            out: the folder.
            known: the rows of the history before the run resumes.
            evaluations: the rows of evaluations before the run resumes; None if nothing is evaluated.
            tensorboard: whether to write logs for TensorBoard.
            json_lines: whether to write `.jsonl` files in addition to CSV files.
            call: a function called with each new row; None for no calls.
        """
        names = {name for row in known[:1] for name in row if name != "epoch"}

        def files(name: str, rows: Sequence[Row]) -> list[Log]:
            paths = [out / f"{name}{suffix}" for suffix in (".csv", ".jsonl")[: 2 if json_lines else 1]]
            return [stack.enter_context(contextlib.closing(FileLog(path, rows))).add for path in paths]

        shared: list[Log] = []
        if tensorboard:
            shared.append(stack.enter_context(contextlib.closing(TensorBoardLog(out / "tensorboard", known))).add)
            apart(shared[0], names)(evaluations or [])
        if call is not None:
            shared.append(calling(call))
        of_evaluation = [] if evaluations is None else files("evaluation", evaluations)
        return cls([*shared, *files("history", known)], [*(apart(log, names) for log in shared), *of_evaluation], names)

    def history(self, rows: Sequence[Row], done: int) -> None:
        """Log the rows of newly completed epochs, and update the progress bar."""
        for log in self.of_history if rows else ():
            self.names.update(name for name in rows[0] if name != "epoch")
            log(rows)
        if self.bar is not None:
            self.bar.show(done, rows)

    def evaluation(self, rows: Sequence[Row]) -> None:
        """Log the rows of an evaluation."""
        for log in self.of_evaluation:
            log(rows)
