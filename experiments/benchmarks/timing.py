"""Timing systems against each other, in turn, so that other load on the machine affects all systems equally."""

import contextlib
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from experiments.common import print_table
from nnfx import paths

Result = TypeVar("Result")


class System(NamedTuple):
    """A system to time.

    Attributes:
        run: `seed -> final training loss`, with all work done when it returns; or a `Timed` with its own time.
        is_peer: whether the system is a competitor with which this library is compared.
    """

    run: "Callable[[int], float | Timed]"
    is_peer: bool = True


class Timed(NamedTuple):
    """A loss and the time in seconds to reach it, from a system that measures its own time."""

    seconds: float
    loss: float


class Row(NamedTuple):
    """The measurements of one system in one case, in seconds; the time of compilation is separate.

    The gradient error is the difference between the gradients of the system and of this library, if gradients are
    compared; a peer is a competitor with which this library is compared.
    """

    case: str
    system: str
    median_s: float
    min_s: float
    repeats: int
    compile_s: float
    ratio: float
    loss: float
    loss_error: float
    gradient_error: float | None = None
    is_peer: bool = False


def has_compiler() -> bool:
    """Return whether the C++ compiler that `torch.compile` needs on CPUs is installed."""
    return shutil.which("g++") is not None


def compare(case: str, systems: Mapping[str, System], repeats: int) -> list[Row]:
    """Time systems in turn.

    Args:
        case: the name of the problem.
        systems: the systems by name.
        repeats: the number of times that each system is timed; repeat i runs seed i.

    Returns:
        A row for each system. `compile_s` is the time of the first call minus the time of the median call, for whole
            calls even if the system times only one step of many; `ratio` is the median divided by the median of the
            fastest peer; `loss` is the mean final loss over the seeds, and `loss_error` its standard error.
    """
    first = {name: seconds_of(partial(system.run, 0))[0] for name, system in systems.items()}
    calls: dict[str, list[float]] = {name: [] for name in systems}
    times: dict[str, list[float]] = {name: [] for name in systems}
    losses: dict[str, list[float]] = {name: [] for name in systems}
    for seed in range(repeats):
        for name, system in systems.items():
            whole, result = seconds_of(partial(system.run, seed))
            seconds, loss = result if isinstance(result, Timed) else (whole, result)
            calls[name].append(whole)
            times[name].append(seconds)
            losses[name].append(loss)
    medians = {name: statistics.median(values) for name, values in times.items()}
    peers = [medians[name] for name, system in systems.items() if system.is_peer]
    return [
        Row(
            case,
            name,
            medians[name],
            min(times[name]),
            repeats,
            max(0.0, first[name] - statistics.median(calls[name])),
            medians[name] / min(peers) if peers else float("nan"),
            statistics.mean(losses[name]),
            statistics.stdev(losses[name]) / repeats**0.5 if repeats > 1 else float("nan"),
            is_peer=systems[name].is_peer,
        )
        for name in systems
    ]


def seconds_of(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the time in seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def report(name: str, rows: list[Row], out: Path) -> dict[str, Any]:
    """Print the rows as a table, and write them to `NAME.json` in one step."""
    header, cells = columns(rows)
    print_table(header, cells)
    return write(name, {"rows": [row._asdict() for row in rows]}, out)


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the rows of the printed table."""
    compared = any(row.gradient_error is not None for row in rows)
    header = ["case", "system", "median ms", "min ms", "× best peer", "compile s", "final loss"]
    return header + ["gradient's error"] * compared, [
        [
            row.case,
            row.system,
            row.median_s * 1e3,
            row.min_s * 1e3,
            row.ratio,
            row.compile_s,
            f"{row.loss:.4f} ± {row.loss_error:.4f}",
            *(["" if row.gradient_error is None else f"{row.gradient_error:.1e}"] * compared),
        ]
        for row in rows
    ]


def write(name: str, results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write results to `NAME.json` in one step, with the command, the machine and the versions of packages."""
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    packages = ("jax", "flax", "optax", "torch", "keras", "scikit-learn")
    summary = {
        **results,
        "command": " ".join(["python -m experiments.benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "devices": sorted({str(device.device_kind) for device in jax.devices()}),
        "cores": os.cpu_count(),
        "machine": processor(),
        "allocator": os.environ.get("MALLOC_TOP_PAD_", "default"),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages if package in installed},
        },
    }
    out = paths.absolute("out", out)
    out.mkdir(parents=True, exist_ok=True)
    with paths.replace(out / f"{name}.json") as aside:
        aside.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwrote {out / name}.json")
    return summary


def processor() -> str:
    """Return the name of the processor, such as "AMD EPYC 9654", or the kind of processor if the name is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
