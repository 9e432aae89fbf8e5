"""Checkpoints of a run, saved to a folder in the background; the latest and the best are kept."""

import concurrent.futures
import contextlib
import errno
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from nnfx import checkpoint, distributed, paths
from nnfx.checkpoint import DamagedError, Description


class AnotherRunError(ValueError):
    """Raised for an intact checkpoint that belongs to another run."""


class Checkpoints:
    """A folder of checkpoints of one run.

    Use it in a `with` statement, which locks the folder, removes the files left by interrupted saves, and on exit waits
    for the last save. A checkpoint is named after its number, such as `epoch-00000012`. With several processes, the
    first one locks, removes and saves, and all processes load.

    Args:
        folder: the folder, created if missing.
        keep_last: the number of newest checkpoints to keep, at least 1.
        keep_best: the number of checkpoints with the lowest losses to keep in addition.
        unit: the unit of the checkpoints' numbers, such as "epoch".
        on_saved: called in another thread when a checkpoint is on disk.

    Attributes:
        unwritable: the error if the folder contains readable checkpoints but is not writable; otherwise None.

    Raises:
        OSError: for a folder that cannot be created, that is in use by another process, or that is not writable and
            contains no checkpoints.

    Example:
        >>> import jax.numpy as jnp, tempfile
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     for epoch, loss in enumerate((3.0, 1.0, 2.0, 2.5), start=1):
        ...         checkpoints.save(epoch, {"w": jnp.full(2, loss)}, loss=loss)
        ...     checkpoints.wait()
        ...     [path.name for path in checkpoints.paths()]
        ['epoch-00000002', 'epoch-00000003', 'epoch-00000004']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        unit: str = "epoch",
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.unit = paths.absolute("folder", folder), unit
        self.keep_last, self.keep_best = keep_last, keep_best
        self.unwritable: OSError | None = None
        self._on_saved = on_saved
        self._pending: tuple[Path, concurrent.futures.Future[None]] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        if distributed.is_first():
            self._open()
        return self

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: expected a folder for checkpoints, got a file")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._closing.callback(os.close, lock(self.folder))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not self.paths():
                raise
            self.unwritable = error
            return
        for left_over in self.folder.glob(f".{self.unit}-*"):
            if re.fullmatch(rf"\.{self.unit}-\d{{8,}}\.\w+", left_over.name):
                paths.remove(left_over)
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
        """Return the paths of the checkpoints in the folder, the newest last."""
        return saved_in(self.folder, self.unit)

    def save(self, number: int, tree: Any, *, loss: float, about: Mapping[str, Any] | None = None) -> None:
        """Save a tree in the background, once the previous save has finished.

        JAX arrays must not be donated until the save has finished; NumPy arrays are copied, and may be modified.

        Args:
            number: the number of epochs, or other units; there must be no checkpoint with this number yet.
            tree: the arrays; see `nnfx.checkpoint.save`.
            loss: the loss by which checkpoints are ranked, lowest first; NaN ranks last.
            about: notes to store with the arrays; see `nnfx.checkpoint.save`. The number, under the name of its unit,
                and the loss are added.

        Raises:
            OSError: if the previous save failed, or the folder is not writable.
        """
        if not distributed.is_first():
            return
        if self.unwritable is not None:
            raise self.unwritable
        self.wait()
        noted = {**(about or {}), self.unit: number, "loss": float(loss)}
        path = self.folder / f"{self.unit}-{number:08d}"
        copied = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.array(leaf), tree)
        self._pending = path, self._writer.submit(self._publish, path, copied, noted)

    def wait(self) -> None:
        """Wait until the pending checkpoint is on disk.

        Raises:
            OSError: if the checkpoint could not be saved; earlier checkpoints are unchanged.
        """
        if self._pending is None:
            return
        (path, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            left = self.paths()
            rest = f"the newest checkpoint is {left[-1]}" if left else "there is no checkpoint"
            raise OSError(f"{path}: could not write a checkpoint: {error}; {rest}") from error

    def resume(
        self, expected: Callable[[Description], Any], *, skip_damaged: bool = False
    ) -> tuple[Path, Description, Any] | None:
        """Load the newest checkpoint; return None if there is none. Every process must call this method.

        Args:
            expected: a function that returns the expected tree for a description (see `nnfx.checkpoint.load_as`), and
                raises `AnotherRunError` for a checkpoint of another run.
            skip_damaged: whether to set unusable checkpoints aside with a warning, and load the newest good one.
                Otherwise, an error names the unusable checkpoint.

        Raises:
            ValueError: for a checkpoint that is damaged, unreadable or of another run.
        """
        if not distributed.is_first():
            distributed.wait()
        found = self._newest(expected, skip_damaged)
        if distributed.is_first():
            distributed.wait()  # other processes read the folder after unusable checkpoints have been set aside
        distributed.wait()
        return found

    def _newest(
        self, expected: Callable[[Description], Any], skip_damaged: bool
    ) -> tuple[Path, Description, Any] | None:
        refused: list[tuple[Path, ValueError]] = []
        found = None
        for path in reversed(self.paths()):
            try:
                found = (path, *checkpoint.load_as(path, expected))
                break
            except (MemoryError, AnotherRunError):
                raise
            except (ValueError, DamagedError) as error:
                refused.append((path, error))
            except Exception as error:  # an error of the disk or of Orbax, or one caused by unexpected notes
                words = f"{path}: could not read the checkpoint: {type(error).__name__}: {error}"
                refused.append((path, DamagedError(words)))
        if not refused:
            return found
        _, first = refused[0]
        kind = DamagedError if isinstance(first, DamagedError) else ValueError
        if found is None:
            raise kind(f"{first}; no usable checkpoint in {self.folder}") from first
        if not skip_damaged:
            raise kind(
                f"{first}; the newest good checkpoint is {found[0]}: skip_damaged=True resumes from it"
            ) from first
        if self.unwritable is not None:
            return found
        for path, reason in refused:
            aside = path.with_name(f"{path.name}.damaged")
            paths.remove(aside)
            path.rename(aside)
            warnings.warn(f"{reason}; it was renamed to {aside.name}, and {found[0]} is used instead", stacklevel=3)
        return found

    def _publish(self, path: Path, tree: Any, about: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove checkpoints that are no longer needed."""
        if os.path.lexists(path):  # a file or link that is not a checkpoint is kept under another name
            path.rename(paths.aside(path).with_name(f"{path.name}.stray{paths.aside(path).suffix}"))
        checkpoint.save(path, tree, about)
        self._on_saved()
        losses = {path: _loss(path) for path in self.paths()}
        ranked = sorted(losses, key=losses.__getitem__)
        kept = {*list(losses)[-self.keep_last :], *ranked[: self.keep_best]}
        for path in losses.keys() - kept:
            # renamed first, so that a folder with a checkpoint's name is complete even during removal
            paths.remove(path.rename(path.with_name(f".{path.name}.dropped")))


def saved_in(folder: Path, unit: str) -> list[Path]:
    """Return the paths of a folder's checkpoints whose numbers count the given unit, the newest last."""
    named = (path for path in folder.glob(f"{unit}-*") if re.fullmatch(r"\w+-\d{8,}", path.name) and path.is_dir())
    return sorted(named, key=lambda path: int(path.name.removeprefix(f"{unit}-")))


def lock(folder: Path) -> int:
    """Lock a folder, and return the open file descriptor that holds the lock; a killed process releases it.

    The file is not truncated, and a symbolic link is not followed: it may point to a file elsewhere. On Windows,
    nothing is locked.

    Raises:
        BlockingIOError: if the folder is already locked, by another process or within this one.
        OSError: for a symbolic link, or if the file cannot be opened.
    """
    path = folder / ".lock"
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                error.errno, f"{path}: expected a file, got a symbolic link; nothing is written through links"
            ) from error
        raise
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # on Windows
        pass
    except BlockingIOError as error:
        os.close(opened)
        raise BlockingIOError(f"{folder}: another active run is using this folder") from error
    return opened


def _loss(path: Path) -> float:
    """Return the loss recorded in a checkpoint; infinity if it is missing, not finite, or cannot be read."""
    try:
        loss = float(checkpoint.described(path).about["loss"])
    except Exception:  # an unreadable checkpoint must not prevent the next save
        loss = np.nan
    return loss if np.isfinite(loss) else np.inf
