"""The checkpoints of a run: a folder of them, of which the last and the best are kept, saved in the background."""

import concurrent.futures
import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import numpy as np

from nnfx import checkpoint, distributed
from nnfx.checkpoint import Description


class Checkpoints:
    """A folder of checkpoints of one run.

    Open it with `with`: it locks the folder, removes what a killed save has left over, and waits at the end. A
    checkpoint is called after its number, such as `epoch-00000012`. Of several processes the first locks, removes and
    saves; all of them load.

    Args:
        folder: made where it is lacking.
        keep_last: how many of the newest to keep, at least 1.
        keep_best: how many of those of the lowest loss to keep besides.
        unit: what the numbers count.

    Raises:
        OSError: for a folder that cannot be made or written, or that another process has open.

    Example:
        >>> import jax.numpy as jnp, tempfile
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     for epoch, loss in enumerate((3.0, 1.0, 2.0, 2.5), start=1):
        ...         checkpoints.save(epoch, {"w": jnp.full(2, loss)}, loss=loss)
        ...     checkpoints.wait()
        ...     [path.name for path in checkpoints.paths()]
        ['epoch-00000002', 'epoch-00000003', 'epoch-00000004']
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: int = 1, unit: str = "epoch") -> None:
        self.folder, self.unit = Path(folder), unit
        self.keep_last, self.keep_best = keep_last, keep_best
        self._pending: tuple[Path, concurrent.futures.Future[None]] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        if distributed.is_first():
            self._open()
        return self

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: expected a folder for checkpoints, got a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._closing.enter_context(_locked(self.folder))
        for left_over in self.folder.glob(f".{self.unit}-*"):
            shutil.rmtree(left_over)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._closing.enter_context(self._writer)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self.wait()
        except OSError as unsaved:
            if error is None:
                raise
            error.add_note(str(unsaved))
        finally:
            self._closing.close()

    def paths(self) -> list[Path]:
        """Return the checkpoints in the folder, the newest last."""
        named = (path for path in self.folder.glob(f"{self.unit}-*") if re.fullmatch(r"\w+-\d{8,}", path.name))
        return sorted(named, key=lambda path: int(path.name.removeprefix(f"{self.unit}-")))

    def save(self, number: int, tree: Any, *, loss: float, about: Mapping[str, Any] | None = None) -> None:
        """Save a tree in the background, after the save before.

        JAX's arrays may be replaced at once, but not be donated; NumPy's may be changed as well.

        Args:
            number: after how many epochs, or what else is counted; there must be no checkpoint of it yet.
            tree: as for `nnfx.checkpoint.save`.
            loss: what the best are the lowest of; NaN ranks last.
            about: as for `nnfx.checkpoint.save`; the number, as `epoch`, and the loss are noted besides.

        Raises:
            OSError: where the save before has failed.
        """
        if not distributed.is_first():
            return
        self.wait()
        noted = {**(about or {}), self.unit: number, "loss": float(loss)}
        path = self.folder / f"{self.unit}-{number:08d}"
        copied = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.array(leaf), tree)
        self._pending = path, self._writer.submit(self._publish, path, copied, noted)

    def wait(self) -> None:
        """Wait until what was to be saved is on the disk.

        Raises:
            OSError: where it could not be; what was saved before is as it was.
        """
        if self._pending is None:
            return
        (path, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            left = self.paths()
            rest = f"the newest checkpoint is {left[-1]}" if left else "there is no checkpoint"
            raise OSError(f"{path}: expected a checkpoint to be written, got {error}; {rest}") from error

    def resume(
        self, expected: Callable[[Description], Any], *, skip_damaged: bool = False
    ) -> tuple[Path, Description, Any] | None:
        """Load the newest checkpoint; None where there is none. Every process has to call it.

        Args:
            expected: returns the tree that is expected of a checkpoint, as for `load`.
            skip_damaged: whether to warn of checkpoints that cannot be used, put them aside, and take the newest good
                one; else they raise an error that names it.

        Raises:
            ValueError: as `load` does.
        """
        if not distributed.is_first():
            distributed.wait()
        found = self._newest(expected, skip_damaged)
        if distributed.is_first():
            distributed.wait()  # the others look once what cannot be used is put aside
        distributed.wait()
        return found

    def _newest(
        self, expected: Callable[[Description], Any], skip_damaged: bool
    ) -> tuple[Path, Description, Any] | None:
        refused: list[tuple[Path, ValueError]] = []
        found = None
        for path in reversed(self.paths()):
            try:
                description = checkpoint.read(path)
                found = path, description, checkpoint.load(path, expected(description))
                break
            except ValueError as error:
                refused.append((path, error))
        if not refused:
            return found
        _, first = refused[0]
        if found is None:
            raise type(first)(f"{first}; no checkpoint in {self.folder} can be used") from first
        if not skip_damaged:
            raise type(first)(
                f"{first}; the newest good checkpoint is {found[0]}: skip_damaged=True goes on from there"
            ) from first
        for path, reason in refused:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(f"{reason}; it is kept as {aside.name}, and {found[0]} taken", stacklevel=3)
        return found

    def _publish(self, path: Path, tree: Any, about: Mapping[str, Any]) -> None:
        """Write a checkpoint, and then drop those that are no longer wanted."""
        checkpoint.save(path, tree, about)
        losses = {path: _loss(path) for path in self.paths()}
        ranked = sorted(losses, key=losses.__getitem__)
        kept = {*list(losses)[-self.keep_last :], *ranked[: self.keep_best]}
        for path in losses.keys() - kept:
            # what has a checkpoint's name is whole, while it goes as well
            aside = path.rename(path.with_name(f".{path.name}.dropped"))
            shutil.rmtree(aside)


def _locked(folder: Path) -> IO[str]:
    """Keep other processes out of a folder for as long as a file is open, also where this one is killed."""
    file = (folder / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # on Windows
        pass
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(f"{folder}: expected no other run to be saved here, got one that is going on") from error
    return file


def _loss(path: Path) -> float:
    """Return the loss noted in a checkpoint; infinity for none, one that is not a number, or that cannot be read."""
    try:
        loss = float(json.loads((path / checkpoint.DESCRIPTION).read_bytes())["about"]["loss"])
    except (OSError, ValueError, KeyError):
        loss = np.nan
    return np.inf if np.isnan(loss) else loss
