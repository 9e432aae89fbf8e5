"""Sweeps larger than memory: the table of members is run in slices that fit, one after the other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nnfx.sweeps.blocks import Groups
from nnfx.sweeps.programs import Program

SHARE = 0.8
"""The fraction of the free memory that a sweep uses."""


def free_memory(devices: tuple[jax.Device, ...]) -> int:
    """Return the bytes that each device has available for a sweep; CPU devices of one host share its memory."""
    if devices[0].platform == "cpu":
        return int(SHARE * _free_on_host() / len(devices))
    statistics: dict[str, int] = devices[0].memory_stats() or {}
    limit = statistics.get("bytes_limit", _free_on_host())
    return int(SHARE * (limit - statistics.get("bytes_in_use", 0)))


def _free_on_host() -> int:
    """Return the free memory in bytes, on this machine or in the control group that limits this process."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.exists() and limit.read_text().strip() != "max":
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics["inactive_file"])  # counted as used, but released when needed
        free = min(free, int(limit.read_text()) - used + cached)
    return free


def fitting_shape(
    program: Program, members: Any, groups: Groups, shared: Any, spread: tuple[int, int], memory: int
) -> tuple[int, int]:
    """Return the shape of a large slice of the table, of whole groups if possible, whose program fits into memory.

    Args:
        program: the program to run.
        members: `(groups, points, ...)`, or the shapes of such arrays.
        groups: the seeds and folds.
        shared: the arguments that all members share.
        spread: the number of devices over which each axis is spread.
        memory: the number of bytes for each device.

    Raises:
        MemoryError: if not even one member per device fits.
    """
    height, width = _shape(members)
    while True:
        needed = program.bytes_needed(resized(members, height, width), resized(groups, height), shared)
        if needed <= memory:
            return height, width
        if (height, width) == spread:
            raise MemoryError(
                f"memory: expected at least {needed} bytes per device for one member, got {memory}; pass `memory=`"
                " if more memory is available than was detected"
            )
        share = memory / needed
        taller = int(height * share) // spread[0] * spread[0]
        if taller:
            height = taller
        else:
            width = max(spread[1], int(width * height / spread[0] * share) // spread[1] * spread[1])
            height = spread[0]


def in_slices(program: Program, shape: tuple[int, int], members: Any, groups: Groups, shared: Any) -> Any:
    """Run a program on the table slice by slice; the results of several slices are assembled on the host."""
    whole = _shape(members)
    if shape == whole:
        return program(members, groups, shared)
    results: Any = None
    for rows, columns in _blocks(whole, shape):
        places = np.ix_(rows, columns)
        found = program(_taken(members, places), _taken(groups, rows), shared)
        if results is None:
            results = jax.tree.map(lambda a: np.empty((*whole, *a.shape[2:]), a.dtype), found)
        for result, part in zip(jax.tree.leaves(results), jax.tree.leaves(found), strict=True):
            result[places] = part
    return results


def _taken(tree: Any, places: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a)[places], tree)


def resized(tree: Any, *axes: int) -> Any:
    """Return the shapes of arrays with their leading axes replaced."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape[len(axes) :]), a.dtype), tree)


def _shape(members: Any) -> tuple[int, int]:
    height, width = jax.tree.leaves(members)[0].shape[:2]
    return height, width


def _blocks(whole: tuple[int, int], shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows and columns of each slice; all have the same shape, padded by repeating the table's edge.

    >>> [(rows.tolist(), columns.tolist()) for rows, columns in _blocks((2, 3), (2, 2))]
    [([0, 1], [0, 1]), ([0, 1], [2, 2])]
    """
    for top in range(0, whole[0], shape[0]):
        for left in range(0, whole[1], shape[1]):
            yield (
                np.minimum(np.arange(top, top + shape[0]), whole[0] - 1),
                np.minimum(np.arange(left, left + shape[1]), whole[1] - 1),
            )
