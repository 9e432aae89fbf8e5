"""Paths that users give, made absolute once; and files that are whole or not there, written through no link."""

import contextlib
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
)  # the first is not on Windows, the second only there


def absolute(name: str, path: str | os.PathLike[str]) -> Path:
    """Return an absolute path, so that it names the same file when the process changes its folder later.

    Links are not followed: they may be replaced before the path is used.

    Args:
        name: of the argument, for errors.
        path: absolute, relative to the present folder, or beginning with `~`.

    Raises:
        TypeError: for something else than text or a path.
        ValueError: for empty text.

    Example:
        >>> absolute("out", "runs/mine") == Path.cwd() / "runs" / "mine"
        True
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{name}: expected a path, got {checks.describe(path)}")
    if not os.fspath(path):  # such as a variable that is not set, and not the present folder
        raise ValueError(f"{name}: expected a path, got {path!r}")
    return Path(path).expanduser().absolute()


def aside(path: Path) -> Path:
    """Return a path beside another, hidden and not used by anything, under which to write what is not whole yet.

    >>> aside(Path("/runs/table.csv")).parent, aside(Path("/runs/table.csv")).name.startswith(".table.csv.")
    (PosixPath('/runs'), True)
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Write a file aside, and put it in place once it is whole and on the disk.

    A link of that name is replaced, and what it points to stays as it is.

    Args:
        path: of the file.

    Yields:
        The path to write to: an empty file. If the block raises, it is removed, and what was in place stays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with replace(path) as written:
        ...     _ = written.write_text("epoch,loss")
        >>> path.read_text()
        'epoch,loss'
    """
    beside = aside(path)
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # which its text tells then
        raise


def append(path: Path, *, is_new: bool = False) -> IO[bytes]:
    """Open a file to write at its end, unbuffered, and never through a link.

    Args:
        path: of the file, made where it is lacking.
        is_new: whether it must not be there yet.

    Raises:
        OSError: for a link, or where the file cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK | (os.O_EXCL if is_new else 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file or folder on the disk before what comes next."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
