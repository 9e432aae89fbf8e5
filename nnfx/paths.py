"""Paths that users give: relative ones, those that begin with `~`, and `pathlib`'s, made absolute once."""

import os
from pathlib import Path

from nnfx import checks

__all__ = ["absolute"]


def absolute(name: str, path: str | os.PathLike[str]) -> Path:
    """Return an absolute path, so that it names the same file when the process changes its folder later.

    Links are not followed: they may be replaced before the path is used.

    Args:
        name: of the argument, for errors.
        path: absolute, relative to the present folder, or beginning with `~`.

    Raises:
        TypeError: for something else than text or a path.

    Example:
        >>> absolute("out", "runs/mine") == Path.cwd() / "runs" / "mine"
        True
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{name}: expected a path, got {checks.describe(path)}")
    return Path(path).expanduser().absolute()
