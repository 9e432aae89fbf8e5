"""One call that configures JAX for the CPU it runs on, made before anything is computed.

Results are correct without it; it only makes runs on a CPU faster.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
from pathlib import Path

import jax

from nnfx import checks, paths

__all__ = ["cores", "keep_programs", "set_up"]

_MALLOPT = {-8: 1, -1: 2**31 - 1, -2: 2**29, -3: 2**25}
"""Settings from glibc's `malloc.h`: M_ARENA_MAX, and M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD in bytes."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(
    devices: int | None = None,
    *,
    keep_memory: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> None:
    """Configure JAX for this machine's CPU: one device per core, memory reuse, and a program cache on disk.

    - **Devices.** Inside a loop XLA hardly uses a second core. Sweeps spread their members over devices, so one
      device per core keeps all cores busy; a single run uses one device.
    - **Memory.** XLA allocates its temporaries at every call, and glibc maps and unmaps large ones each time. Memory
      that is kept causes no page faults. This affects the whole process, only on Linux with glibc, and increases its
      memory by up to 512 MiB.
    - **Cache.** Given a folder, later processes read compiled programs from it. XLA then prints notices about
      the preferences of the machine they were compiled for; `TF_CPP_MIN_LOG_LEVEL=3` in the environment silences them.

    Args:
        devices: the number of CPU devices that JAX shows; by default one per core.
        keep_memory: whether to keep memory for reuse.
        cache: a folder for compiled programs, by default none; one that JAX already uses (`JAX_COMPILATION_CACHE_DIR`)
            takes precedence.

    Raises:
        TypeError, ValueError: for a number of devices that is not a positive integer.
        RuntimeError: if JAX has already computed something, and thereby created its devices.

    Example:
        >>> set_up()  # doctest: +SKIP
    """
    devices = cores() if devices is None else devices
    checks.positive_integer("devices", devices)
    if cache is not None:
        paths.absolute("cache", cache)
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        raise RuntimeError(
            "devices: expected a call of set_up before JAX computes anything, got a later one"
        ) from error
    if cache is not None:
        keep_programs(cache)
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOPT.items():
            libc.mallopt(parameter, value)


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
        TypeError, ValueError: for a folder that is not a path, or a number of bytes that is not an integer.

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
    """Return the folder for programs of this kind of CPU: other CPUs may lack instructions that they use."""
    about = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        about += sorted({line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")})
    kind = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "nnfx" / "programs" / kind


def _shrink(folder: Path, at_most: int) -> None:
    """Remove the least recently read programs until the others fit."""
    kept = 0
    found = [(max(about.st_atime, about.st_mtime), about.st_size, path) for path, about in _files(folder)]
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > at_most:
            with contextlib.suppress(OSError):  # another process may have removed it
                path.unlink()


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files of a folder, if it exists, each with its size and times."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                found.append((path, path.stat()))
    return found
