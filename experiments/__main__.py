"""Make the gallery of the course: run each experiment in its own process, and print a table of results at the end.

    python -m experiments [--out DIR] [--seed N] [--rows titanic ...] [--quick] [--write-readme]

It runs the experiments of `experiments/gallery.py` one after the other, offline. The figures, tables and printed
output of each experiment go to a separate folder. If an experiment fails, the table reports it, the others still run,
and the exit status is 1.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from PIL import Image
from tqdm import tqdm

from experiments import gallery
from experiments.common import print_table

HERE = Path(__file__).parent
COPY_SIZE, COPY_BYTES = (900, 660), 60_000
"""The maximum size of the small copy of a figure, in pixels and in bytes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the gallery."""

    out: Path = Path("runs/gallery")
    """the folder for the results, with a subfolder for each experiment"""
    seed: int = 0
    """the random seed of every experiment"""
    rows: tuple[str, ...] = ()
    """run only the rows of these experiments, such as titanic; by default, all are run"""
    quick: bool = False
    """use small settings, to check that everything runs; the figures then show little"""
    write_readme: bool = False
    """also write experiments/README.md and the small copies of its figures"""


class Made(NamedTuple):
    """The outcome of an experiment.

    Attributes:
        seconds: how long the experiment took.
        summary: the experiment's summary; empty if it failed.
        fault: the exit status and the last line of output of an experiment that failed; empty otherwise.
    """

    seconds: float
    summary: dict[str, Any]
    fault: str


def main(config: Config) -> int:
    """Make the gallery, and return the exit status."""
    chosen = choose(config)
    made = {}
    with tqdm(chosen, unit="experiment", dynamic_ncols=True) as bar:
        for name in bar:
            bar.set_description(name)
            made[name] = make(name, config)
    show(made, config)
    if config.write_readme:
        write_readme([name for name, each in made.items() if not each.fault], config.out)
    return int(any(each.fault for each in made.values()))


def choose(config: Config) -> list[str]:
    """Return the experiments to run, in the order of the course.

    Raises:
        ValueError: if an experiment is not in the gallery, or if small copies of quick figures are requested.
    """
    known = gallery.experiments()
    if unknown := sorted(set(config.rows) - set(known)):
        raise ValueError(f"rows: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if config.quick and config.write_readme:
        raise ValueError("write_readme: expected full settings, got quick ones")
    return [name for name in known if not config.rows or name in config.rows]


def command_of(name: str, config: Config) -> list[str]:
    """Return the command that runs an experiment."""
    options = shlex.split(gallery.QUICK[name] if config.quick else gallery.PART.get(name, ""))
    common = ["--out", str(config.out / name), "--seed", str(config.seed)]
    return [sys.executable, "-m", f"experiments.{name}", *common, *options]


def make(name: str, config: Config) -> Made:
    """Run an experiment in its own process, and keep its output in `output.txt`."""
    folder = config.out / name
    folder.mkdir(parents=True, exist_ok=True)
    summary, printed = folder / "summary.json", folder / "output.txt"
    summary.unlink(missing_ok=True)
    started = time.perf_counter()
    with printed.open("wb") as output:
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        ended = subprocess.run(command_of(name, config), stdout=output, stderr=subprocess.STDOUT, env=environment)
    seconds = time.perf_counter() - started
    if ended.returncode == 0 and summary.exists():
        return Made(seconds, json.loads(summary.read_text()), fault="")
    lines = printed.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return Made(seconds, {}, fault=f"exit status {ended.returncode}: {last}")


def show(made: dict[str, Made], config: Config) -> None:
    """Print a line for each row: its figure, its numbers or the error, and how long its experiment took."""
    lines = []
    for number, row in enumerate(gallery.ROWS, start=1):
        if row.experiment in made:
            each = made[row.experiment]
            told = [
                f"{label} {number_at(each.summary, path):.4g}" for label, path in row.numbers.items() if each.summary
            ]
            figure = config.out / row.experiment / f"{row.figure}.png"
            lines.append([f"{number}. {row.title}", figure, each.fault or ", ".join(told), round(each.seconds)])
    print()
    print_table(["", "figure", "results", "seconds"], lines, words=3)
    failed = [name for name, each in made.items() if each.fault]
    print(f"\n{len(made) - len(failed)} of {len(made)} experiments completed")
    for name in failed:
        print(f"{name} failed; its output is in {config.out / name / 'output.txt'}")


def number_at(summary: dict[str, Any], path: str) -> float:
    """Return the number in a summary at a path of names and indices into lists, separated by slashes.

    Example:
        >>> number_at({"solved": {"full batch": [0.25, 0.5]}}, "solved/full batch/-1")
        0.5
    """
    found: Any = summary
    for name in path.split("/"):
        found = found[int(name)] if isinstance(found, list) else found[name]
    return float(found)


def write_readme(made: list[str], out: Path) -> None:
    """Write the page of the gallery, and small copies of the figures that were made."""
    for row in gallery.ROWS:
        if row.experiment in made:
            shrink(out / row.experiment / f"{row.figure}.png", HERE / "figures" / row.copy)
    (HERE / "README.md").write_text(gallery.readme(), encoding="utf-8")


def shrink(figure: Path, copy: Path) -> None:
    """Save a small copy of a figure, with as many colours as fit into `COPY_BYTES`."""
    with Image.open(figure) as picture:
        small = picture.convert("RGB")
    small.thumbnail(COPY_SIZE, Image.Resampling.LANCZOS)
    for colours in range(128, 8, -8):
        small.quantize(colours, Image.Quantize.FASTOCTREE).save(copy, optimize=True)
        if copy.stat().st_size <= COPY_BYTES:
            break


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
