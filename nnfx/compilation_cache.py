"""Compiled programs kept on disk, so that later processes need not compile them again."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

from nnfx import checks, paths

__all__ = ["keep_programs"]


def keep_programs(folder: str | os.PathLike[str] | None = None, *, at_most: int = 2**30) -> Path | None:
    """Keep compiled programs on disk, so that later processes load them instead of compiling again.

    Several processes may use one folder. The least recently read programs are removed first.

    Args:
        folder: where to keep them; by default, a folder for this kind of CPU in `$XDG_CACHE_HOME/nnfx/programs`, or
            `~/.cache/nnfx/programs`. A folder that JAX already uses (`JAX_COMPILATION_CACHE_DIR`) takes precedence.
        at_most: the maximum size of the folder, in bytes, when this is called; programs compiled later are added to it.

    Returns:
        The folder in use; None if JAX keeps no programs (`JAX_ENABLE_COMPILATION_CACHE=false`).

    Raises:
        TypeError, ValueError: for a folder that is not a path, or `at_most` that is not a non-negative integer.

    Example:
        >>> import tempfile
        >>> keep_programs(tempfile.mkdtemp())  # doctest: +SKIP
        PosixPath('/tmp/tmp1234')
    """
    checks.non_negative_integer("at_most", at_most)
    chosen = _programs() if folder is None else paths.absolute("folder", folder)
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    given = jax.config.values["jax_compilation_cache_dir"]
    if given is not None:
        return Path(given)
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # by default JAX keeps no program that compiles in less than a second, as most do here
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    _shrink(chosen, at_most)
    return chosen


def _programs() -> Path:
    """Return the folder for programs compiled for this kind of CPU: another may lack instructions that they use."""
    about = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        about += sorted({line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")})
    kind = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "nnfx" / "programs" / kind


def _shrink(folder: Path, at_most: int) -> None:
    """Remove the least recently read programs until the rest fit."""
    kept = 0
    found = [(max(about.st_atime, about.st_mtime), about.st_size, path) for path, about in _files(folder)]
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > at_most:
            with contextlib.suppress(OSError):  # another process may have removed it
                path.unlink()


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """List the cached programs in a folder, each with its file status; none if the folder does not exist."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob("*-cache"):  # the names that JAX gives: other files are not ours to remove
            with contextlib.suppress(OSError):
                found.append((path, path.stat()))
    return found
