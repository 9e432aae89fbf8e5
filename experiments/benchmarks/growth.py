"""Cost as the work grows: time and memory against rows, features, width, steps of a sequence, members and epochs.

    python -m experiments.benchmarks growth [--axes rows features width steps members epochs] [--full]

Each point has its own process, which makes the data, runs once to compile, and then times a second run; the memory is
the peak resident memory of the whole process, including libraries and compiler. An exponent p is the slope of
log(cost) against log(size) over the upper half of the sizes: there, the cost grows like sizeᵖ. The exponent of memory
excludes the memory of imported libraries. Expect at most 1 everywhere, and 0 for the memory of epochs.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.benchmarks.points import OURS, SCIKIT_LEARN, TORCH, Point
from experiments.benchmarks.timing import write
from experiments.common import BLUE, GREEN, ORANGE, Results, print_table

COLOURS = {OURS: BLUE, TORCH: ORANGE, SCIKIT_LEARN: GREEN}


class Axis(NamedTuple):
    """The quantity that grows.

    Attributes:
        sizes: the sizes to measure.
        more: the larger sizes that `--full` adds.
        systems: the systems to compare.
    """

    sizes: tuple[int, ...]
    more: tuple[int, ...]
    systems: tuple[str, ...]


DENSE = (OURS, TORCH, SCIKIT_LEARN)
AXES = {
    "rows": Axis((1_000, 10_000, 100_000), (1_000_000, 10_000_000), DENSE),
    "features": Axis((10, 100, 1_000), (10_000,), DENSE),
    "width": Axis((10, 100, 1_000), (10_000,), DENSE),
    "steps": Axis((10, 100, 1_000), (10_000,), (OURS, TORCH)),
    "members": Axis((1, 10, 100, 1_000), (10_000, 100_000), DENSE),
    "epochs": Axis((1, 10, 100), (1_000,), DENSE),
}
AT_MOST = {("members", TORCH): 100, ("members", SCIKIT_LEARN): 100, ("epochs", TORCH): 1_000}
"""The largest size of systems that repeat the same work in a Python loop."""


def main(
    axes: tuple[str, ...] = tuple(AXES), full: bool = False, out: Path = Path("runs/benchmarks")
) -> dict[str, Any]:
    """Measure, print the exponents, and plot the curves.

    Args:
        axes: the quantities that grow.
        full: whether to measure the largest sizes too, which takes much longer.
        out: where the results go.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ValueError(f"axes: expected some of {', '.join(AXES)}, got {unknown[0]!r}")
    points = [
        measured(axis, system, size)
        for axis in axes
        for size in (*AXES[axis].sizes, *(AXES[axis].more if full else ()))
        for system in AXES[axis].systems
        if is_installed(system) and size <= AT_MOST.get((axis, system), size)
    ]
    print_table(*table(points), words=2)
    summary = write("growth", {"rows": [point._asdict() for point in points]}, out)
    Results(out).figure("growth", draw(points))
    return summary


def is_installed(system: str) -> bool:
    """Return whether a system can be measured."""
    return system != TORCH or importlib.util.find_spec("torch") is not None


def measured(axis: str, system: str, size: int) -> Point:
    """Measure a point in a separate process."""
    command = [sys.executable, "-m", "experiments.benchmarks.points", axis, system, str(size)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Point(*json.loads(printed.splitlines()[-1]))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) against log(size) over the upper half of the sizes, at least two of them.

    >>> round(exponent([1, 10, 100], [7.0, 20.0, 2000.0]), 3)
    2.0
    """
    kept = max(2, (len(sizes) + 1) // 2)
    slope, _ = np.polyfit(np.log(sizes[-kept:]), np.log(costs[-kept:]), 1)
    return float(slope)


def curves(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """Return the points of each axis and system, by size."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in sorted(points, key=lambda point: point.size):
        found.setdefault((point.axis, point.system), []).append(point)
    return dict(sorted(found.items(), key=lambda item: (list(AXES).index(item[0][0]), list(COLOURS).index(item[0][1]))))


def table(points: Sequence[Point]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the rows of the table of exponents, and of the largest size."""
    rows = []
    for (axis, system), curve in curves(points).items():
        sizes, last = [point.size for point in curve], curve[-1]
        several = len(curve) > 1
        # less than 1 MiB above the memory of the imports is allocator noise
        beyond = [max(1.0, point.peak_mib - point.imports_mib) for point in curve]
        rows.append(
            [
                axis,
                system,
                f"{last.size:,}",
                last.seconds,
                exponent(sizes, [point.seconds for point in curve]) if several else float("nan"),
                last.peak_mib,
                exponent(sizes, beyond) if several else float("nan"),
            ]
        )
    header = ["grows", "system", "largest", "seconds", "exponent", "peak MiB", "memory exponent"]
    return header, rows


def draw(points: Sequence[Point]) -> Figure:
    """Plot time and memory against each size."""
    axes_drawn = [axis for axis in AXES if any(point.axis == axis for point in points)]
    figure, panels = plt.subplots(2, len(axes_drawn), figsize=(2.6 * len(axes_drawn) + 1, 5.6), squeeze=False)
    for (axis, system), curve in curves(points).items():
        column = axes_drawn.index(axis)
        sizes = [point.size for point in curve]
        for panel, costs in (
            (panels[0, column], [point.seconds for point in curve]),
            (panels[1, column], [point.peak_mib for point in curve]),
        ):
            panel.loglog(sizes, costs, color=COLOURS[system], marker="o", markersize=4, label=system)
        panels[0, column].set_title(axis)
        panels[1, column].set_xlabel(axis)
    for panel in panels[0]:
        left, right = panel.get_xlim()
        low, high = panel.get_ylim()
        panel.plot([left, right], [low, low * right / left], color="black", linewidth=0.8, linestyle=":")
        panel.set(xlim=(left, right), ylim=(low, high))
    for panel in panels[1]:  # the libraries take most of the memory, so a logarithmic scale would show noise
        panel.set_yscale("linear")
        panel.set_ylim(bottom=0)
    panels[0, 0].set_ylabel("seconds per run")
    panels[1, 0].set_ylabel("resident MiB, whole process")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(COLOURS))
    figure.suptitle("Cost as the work grows (dotted: proportional)", x=0.98, ha="right", fontsize=11)
    return figure
