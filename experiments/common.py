"""Code shared by all experiments: it runs them as commands, writes and prints results, and styles figures."""

import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import tyro
from cycler import cycler

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nnfx import Run, compilation_cache, distributed, paths
from nnfx.tables import table

# Okabe and Ito's colours remain distinct for colour-blind readers, and the first two also in greyscale.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
PURPLE, SKY = "#CC79A7", "#56B4E9"
SHADES = LinearSegmentedColormap.from_list("shades", ["#FDE3B5", "#BCD0D8", "#4B9CD3"])
"""The colours of a probability from 0 to 1: from light orange to blue, and from light to dark in greyscale."""

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so it is the same on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE, SKY, GREY]),
    "legend.frameon": False,
    "svg.hashsalt": "nnfx",  # otherwise the ids in a file would differ each time it is written
}
plt.rcParams.update(STYLE)

_compile_seconds = 0.0


def _count_compilation(event: str, duration_secs: float, **_: Any) -> None:
    global _compile_seconds
    if event == "/jax/core/compile/backend_compile_duration":
        _compile_seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def command(main: Callable[[Any], Any], config: type, about: str | None, *, is_short: bool = False) -> None:
    """Run an experiment as a command, with its options from the command line, and keep its compiled programs.

    Args:
        main: the function that runs the experiment, given its options.
        config: the dataclass of the options.
        about: the description of the experiment, for `--help`.
        is_short: whether the experiment's programs take longer to compile than to run, and should therefore be
            optimised less.
    """
    options: Any = tyro.cli(config, description=about)
    compilation_cache.keep_programs()
    jax.config.update("jax_traceback_in_locations_limit", 0)  # tracebacks take a twentieth of the lowering time
    if is_short:
        compile_quickly()
    main(options)


def compile_quickly() -> None:
    """Have XLA compile CPU programs in about half the time, into slower code; call this before any computation.

    LLVM optimises less. In releases of jaxlib with two loop emitters, the one that compiles faster is
    used. Flags that the user has set take precedence.
    """
    flags = ["--xla_backend_optimization_level=1"]
    if jax.__version_info__ < (0, 11):  # later releases end the process if they find an unknown flag
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


class Results:
    """The folder of an experiment's results. Only the first process writes, and no file is ever incomplete.

    Args:
        out: the folder, created if missing.
    """

    def __init__(self, out: Path) -> None:
        self.out = out = paths.absolute("out", out)
        self._started = time.perf_counter()
        self._compiled = _compile_seconds
        out.mkdir(parents=True, exist_ok=True)

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG and as SVG without a date, and close it."""
        for kind, about in (("png", {}), ("svg", {"Date": None})):
            self._put(f"{name}.{kind}", partial(figure.savefig, format=kind, metadata=about))
        plt.close(figure)

    def history(self, curves: Mapping[str, Any]) -> None:
        """Write `history.csv`, one row per epoch and one column per curve, empty for epochs that were not run."""
        columns = {name: np.asarray(values) for name, values in curves.items()}
        epochs = max(int(np.isfinite(values).sum()) for values in columns.values())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *columns])
        for i in range(epochs):
            cells = [values[i] if i < len(values) else np.nan for values in columns.values()]
            writer.writerow([i + 1, *("" if np.isnan(cell) else f"{cell:.7g}" for cell in cells)])
        self._put("history.csv", lambda aside: aside.write_text(text.getvalue()))

    def summary(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Write `summary.json`: these numbers, the versions of packages, the device, and the time spent, in seconds.

        Returns:
            The contents of the file; `compile_s` is the time spent in XLA's compiler, and `wall_s` is the total time
            since the start.
        """
        summary = {
            **numbers,
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("nnfx", "jax", "jaxlib", "flax", "optax")},
            },
            "device": str(jax.local_devices()[0].device_kind),
            "wall_s": round(time.perf_counter() - self._started, 3),
            "compile_s": round(_compile_seconds - self._compiled, 3),
        }
        text = json.dumps(summary, indent=2, default=_as_json) + "\n"
        self._put("summary.json", lambda aside: aside.write_text(text))
        print(f"\nwrote {', '.join(sorted(path.name for path in self.out.iterdir()))} to {self.out}/")
        return summary

    def _put(self, name: str, write: Callable[[Path], Any]) -> None:
        if distributed.is_first():
            with paths.replace(self.out / name) as aside:
                write(aside)


def _as_json(value: Any) -> Any:
    """Convert arrays and their scalars to types that JSON supports."""
    return np.asarray(value).tolist()


def curves_of(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the history of each run for `Results.history`, named after its group and its number in the group."""
    return {
        f"{name} {i} {metric}": values
        for name, some in runs.items()
        for i, run in enumerate(some)
        for metric, values in run.history.items()
    }


def mean_and_error(values: Any) -> dict[str, float]:
    """Return the mean over several runs and its standard error."""
    several = np.asarray(values, float)
    return {"mean": float(several.mean()), "error": float(several.std(ddof=1) / np.sqrt(len(several)))}


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> None:
    """Print a table with text in its first `words` columns, and numbers with four digits in the others."""
    print(table(header, rows, words))
