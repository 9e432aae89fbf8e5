"""One call that fits JAX to the CPU it runs on, made before anything is computed.

Nothing here is needed for right results: it is what a run on a CPU gains in speed by.
"""

import ctypes
import os
import platform

import jax

from nnfx import checks, paths

__all__ = ["cores", "set_up"]

_MALLOPT = {-8: 1, -1: 2**31 - 1, -2: 2**29, -3: 2**25}
"""Numbers of glibc's `malloc.h`: M_ARENA_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(
    devices: int | None = None,
    *,
    keep_memory: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> None:
    """Fit JAX to this machine's CPU: a device for each core, memory kept for reuse, and compiled programs on disk.

    - **Devices.** Within a loop XLA hardly uses a second core. Sweeps spread their members over devices, so that a
      device for each core keeps all of them busy; a single run uses one device.
    - **Memory.** XLA asks for its temporaries at every call, and glibc maps and unmaps large ones each time. Kept, they
      cost no page faults. It acts on this whole process, on Linux with glibc, and grows it by up to 512 MiB.
    - **Cache.** Given a folder, a program compiled once is read from there by later processes. XLA then prints notices
      on the preferences of the machine it was compiled for; `TF_CPP_MIN_LOG_LEVEL=3` in the environment silences them.

    Args:
        devices: how many CPU devices JAX shows; one for each core unless given.
        keep_memory: whether to keep memory.
        cache: a folder for compiled programs; none unless given, or what JAX has already
            (`JAX_COMPILATION_CACHE_DIR`).

    Raises:
        TypeError, ValueError: for a number of devices that is not a positive integer.
        RuntimeError: after JAX has computed something, and has made its devices.

    Example:
        >>> set_up()  # doctest: +SKIP
    """
    devices = cores() if devices is None else devices
    checks.positive_integer("devices", devices)
    folder = None if cache is None else paths.absolute("cache", cache)
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        raise RuntimeError(
            "devices: expected set_up to be called before JAX computes anything, got it later"
        ) from error
    if folder is not None and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # most programs here compile in less than the second below which JAX would not keep them
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOPT.items():
            libc.mallopt(parameter, value)
