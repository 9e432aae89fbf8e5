"""Write the benchmarks page: the latest record of each, with machine, versions and command, and a figure of ratios.

    python -m experiments.benchmarks --write-readme [--records runs/benchmarks]

It copies the records that it finds into `experiments/benchmarks/records`, where the records of other benchmarks
remain, and writes `README.md` and its figures from all of them.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.benchmarks import growth
from experiments.benchmarks.points import Point
from experiments.benchmarks.timing import Row, columns
from experiments.common import BLUE, GREY
from nnfx import paths

HERE = Path(__file__).parent
TITLES = {
    "fit": "One run, compared with the same network in other libraries",
    "first_call": "The first run in a process, without imports",
    "sweep_1": "Sweeps on one device",
    "sweep_2": "Sweeps on two devices, one for each core",
    "search": "A grid search",
    "session": "The overhead of a session, and of sharding over a mesh of one device",
    "cnn": "Steps of convolutional networks",
    "recurrent": "Steps of recurrent networks",
    "landscape": "Loss landscapes",
    "growth": "Cost as the work grows",
}
"""The heading of each record; other records are shown under their names."""
FIGURES = "figures"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the benchmarks page."""

    records: Path = Path("runs/benchmarks")
    """the folder of new records"""
    page: Path = HERE
    """the folder of the page, with the earlier records in `records`"""


def main(config: Config) -> None:
    """Copy new records, and write the page and its figures."""
    kept = config.page / "records"
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(config.records.glob("*.json")) if config.records.resolve() != kept.resolve() else ():
        json.loads(path.read_text())  # a file that cannot be read should not replace a record
        shutil.copyfile(path, kept / path.name)
    records = read(kept)
    for name, figure in figures(records).items():
        (config.page / FIGURES).mkdir(exist_ok=True)
        with paths.replace(config.page / FIGURES / f"{name}.png") as aside:
            figure.savefig(aside, format="png")
        plt.close(figure)
    (config.page / "README.md").write_text(text(records), encoding="utf-8")
    print(f"wrote {config.page / 'README.md'} from {len(records)} records")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a folder by name, in the order of the page."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    known = [name for name in TITLES if name in found]
    return {name: found[name] for name in (*known, *(name for name in found if name not in TITLES))}


def text(records: dict[str, dict[str, Any]]) -> str:
    """Return the page in Markdown."""
    parts = [
        "# Benchmarks",
        "Written by `python -m experiments.benchmarks --write-readme`; do not edit. Systems take turns in one run, so"
        " that other load affects all of them alike. `× best peer` is the median time divided by that of the fastest"
        " other system: below 1, this library is faster. The final losses show that all systems did the same work.",
    ]
    if any(_ours(record) for record in records.values()):
        parts.append(f"![The time of this library relative to the best peer, in every row]({FIGURES}/ratios.png)")
    for name, record in records.items():
        parts += [f"## {TITLES.get(name, name)}", about(record)]
        if name == "growth":
            points = _points(record)
            parts += [f"![Time and memory against each size]({FIGURES}/growth.png)", markdown(*growth.table(points))]
        else:
            parts.append(markdown(*columns(_rows(record))))
    missing = [f"- `{name}`: {title[0].lower()}{title[1:]}" for name, title in TITLES.items() if name not in records]
    if missing:
        parts += ["## Without a record", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def about(record: dict[str, Any]) -> str:
    """Return where, when and how a record was made."""
    releases = ", ".join(f"{name} {release}" for name, release in record["versions"].items())
    devices = ", ".join(record["devices"])
    allocator = "" if record["allocator"] == "default" else "; the allocator keeps memory"
    return (
        f"`{record['command']}`\n\n{record['date']}, {record['machine']}, {record['cores']} cores, device {devices}"
        f"{allocator}; {releases}."
    )


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown, with numbers to three digits.

    >>> print(markdown(["system", "seconds"], [["nnfx", 0.12345]]))
    | system | seconds |
    |---|---|
    | nnfx | 0.123 |
    """
    lines = [header, *([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], "|" + "---|" * len(header), *shown[1:]])


def figures(records: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures of the page by name."""
    ratios = [
        (f"{name}: {row.case}, {row.system}", row.ratio) for name, record in records.items() for row in _ours(record)
    ]
    drawn = {"ratios": draw_ratios(ratios)} if ratios else {}
    return drawn | ({"growth": growth.draw(_points(records["growth"]))} if "growth" in records else {})


def draw_ratios(ratios: list[tuple[str, float]]) -> Figure:
    """Plot the time of each row relative to its fastest competitor."""
    figure, axis = plt.subplots(figsize=(9, 1 + 0.2 * len(ratios)))
    names, values = zip(*reversed(ratios), strict=True)
    axis.hlines(range(len(names)), [1.0] * len(names), values, color=GREY, linewidth=0.8)
    axis.scatter(values, range(len(names)), s=22, color=BLUE, zorder=3)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xscale="log", xlabel="time relative to the best peer (left of 1: faster)", ylim=(-0.7, len(names) - 0.3))
    return figure


def _rows(record: dict[str, Any]) -> list[Row]:
    return [Row(**row) for row in record["rows"]]


def _points(record: dict[str, Any]) -> list[Point]:
    return [Point(**point) for point in record["rows"]]


def _ours(record: dict[str, Any]) -> list[Row]:
    """Return the rows of this library that have a competitor."""
    rows = _rows(record) if record["rows"] and "ratio" in record["rows"][0] else []
    return [row for row in rows if not row.is_peer and row.ratio == row.ratio]
