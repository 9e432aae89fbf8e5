"""Absolute user paths, and files that are either complete or absent and never written through symbolic links."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nnfx import checks

__all__ = ["absolute", "append", "aside", "remove", "replace"]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(
    os, "O_BINARY", 0
)  # the first flag is missing on Windows; only Windows has the second


def absolute(name: str, path: str | os.PathLike[str]) -> Path:
    """Return an absolute path, which stays valid if the process later changes its working directory.

    Symbolic links are not resolved: they may be replaced before the path is used.

    Args:
        name: the argument's name, for error messages.
        path: absolute, relative to the current folder, or beginning with `~`.

    Raises:
        TypeError: for anything other than a string or a path.
        ValueError: for an empty string.

    Example:
        >>> absolute("out", "runs/mine") == Path.cwd() / "runs" / "mine"
        True
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{name}: expected a path, got {checks.describe(path)}")
    if not os.fspath(path):  # an empty path is probably an unset variable, not the current folder
        raise ValueError(f"{name}: expected a path, got {path!r}")
    return Path(path).expanduser().absolute()


def aside(path: Path) -> Path:
    """Return a hidden, unused path beside a given one, to write to until the result is complete.

    >>> aside(Path("/runs/table.csv")).parent, aside(Path("/runs/table.csv")).name.startswith(".table.csv.")
    (PosixPath('/runs'), True)
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name, and move it into place once it is complete and on disk.

    A symbolic link at that path is replaced, and its target is left unchanged.

    Args:
        path: the file's path.

    Yields:
        The path to write to: an empty file. If the block raises an error, this file is removed, and an existing file
            at `path` is kept.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with replace(path) as written:
        ...     _ = written.write_text("epoch,loss")
        >>> path.read_text()
        'epoch,loss'
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "expected a file or an unused path, got a folder", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "expected an existing folder", str(path.parent))
    beside = aside(path)
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # so that the error message names the file
        raise


def append(path: Path, *, is_new: bool = False) -> IO[bytes]:
    """Open a file for unbuffered appending, but never through a symbolic link.

    Args:
        path: the file's path; the file is created if missing.
        is_new: whether the file must not exist yet.

    Raises:
        OSError: for a symbolic link, or if the file cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK | (os.O_EXCL if is_new else 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def remove(path: Path) -> None:
    """Remove a file, a folder with its contents, or a symbolic link without its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
