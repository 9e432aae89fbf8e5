"""One call, made before anything is computed, that configures JAX for the CPU it runs on.

Results are correct without it; it only makes runs on a CPU faster.
"""

import ctypes
import os
import platform

import jax

from nnfx import checks, compilation_cache, paths

__all__ = ["cores", "set_up"]

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
        devices: the number of CPU devices that JAX creates; by default one per core.
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
            "devices: expected set_up to be called before JAX computes anything, got a later call"
        ) from error
    if cache is not None:
        compilation_cache.keep_programs(cache)
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOPT.items():
            libc.mallopt(parameter, value)
