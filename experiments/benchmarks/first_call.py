"""The first run in a process, including compilation: this library without and with a warm cache, and scikit-learn.

    python -m experiments.benchmarks first_call [--repeats 7]

Each time is measured in a separate process, excluding imports, with the systems strictly in turn. The warm runs of
this library use a compilation cache that belongs to the benchmark; the cold runs use none.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import System, Timed, compare, report

_ONE_FIT = """
import sys, time
import jax
import nnfx
from experiments.benchmarks import fit, problems
make, case, cache, seed = sys.argv[1:]
nnfx.cpu.set_up(devices=1, cache=cache or None)
problem = getattr(problems, case)()
if make == "with_scikit_learn":
    import sklearn.neural_network
start = time.perf_counter()
loss = getattr(fit, make)(problem)(int(seed))
print(time.perf_counter() - start, loss)
"""


def main(
    cases: tuple[str, ...] = ("titanic", "digits"), repeats: int = 7, out: Path = Path("runs/benchmarks")
) -> dict[str, Any]:
    """Time first calls.

    Args:
        cases: the problems to run; see `experiments.benchmarks.problems`.
        repeats: number of processes for each system.
        out: where the results go.
    """
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for case in cases:
            systems = {
                "nnfx, nothing cached": System(_first_call("with_nnfx", case, ""), is_peer=False),
                "nnfx, warm cache": System(_first_call("with_nnfx", case, cache), is_peer=False),
                "scikit-learn": System(_first_call("with_scikit_learn", case, "")),
            }
            rows += compare(case, systems, repeats)
    return report("first_call", rows, out)


def _first_call(make: str, case: str, cache: str) -> Callable[[int], Timed]:
    def run(seed: int) -> Timed:
        command = [sys.executable, "-c", _ONE_FIT, make, case, cache, str(seed)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return Timed(*map(float, printed.split()))

    return run
