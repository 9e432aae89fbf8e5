"""A thousand runs: the time per member of a sweep against one fit of scikit-learn.

    python -m experiments.benchmarks sweep [--devices 2] [--repeats 7]

On CPUs, `--devices 2` splits the members over two virtual devices, one for each core.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nnfx
from experiments.benchmarks import problems
from experiments.benchmarks.fit import nnfx_run, with_nnfx
from experiments.benchmarks.peers import with_scikit_learn
from experiments.benchmarks.problems import RATE, Problem
from experiments.benchmarks.timing import System, Timed, compare, report


def main(
    devices: int = 1,
    members: int = 1024,
    digits_members: int = 64,
    repeats: int = 7,
    out: Path = Path("runs/benchmarks"),
) -> dict[str, Any]:
    """Time sweeps; their rows give the time per member, and the lines below the table compare it.

    Args:
        devices: number of CPU devices over which to split the members.
        members: number of members in the Titanic sweeps.
        digits_members: number of members in the digits sweep.
        repeats: the number of times that each system is timed, with the systems in turn.
        out: where the results go.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    titanic, digits = problems.titanic(), problems.digits()
    rates = np.logspace(-4, -2, members // 16)
    rows = compare(
        "titanic",
        {
            f"{members} orders": System(with_sweep(titanic, members, np.array([RATE])), is_peer=False),
            f"16 seeds × {len(rates)} rates": System(with_sweep(titanic, 16, rates), is_peer=False),
            "one nnfx run": System(with_nnfx(titanic), is_peer=False),
            "one scikit-learn fit": System(with_scikit_learn(titanic)),
        },
        repeats,
    )
    rows += compare(
        "digits",
        {
            f"{digits_members} seeds": System(with_sweep(digits, digits_members, np.array([RATE])), is_peer=False),
            "one nnfx run": System(with_nnfx(digits), is_peer=False),
            "one scikit-learn fit": System(with_scikit_learn(digits)),
        },
        repeats,
    )
    summary = report(f"sweep_{devices}", rows, out)
    for row in (rows[0], rows[1], rows[4]):
        single = next(other for other in rows if other.case == row.case and other.system == "one nnfx run")
        peer = next(other for other in rows if other.case == row.case and other.system == "one scikit-learn fit")
        print(
            f"{row.case}, {row.system}: {row.median_s * 1e3:.2f} ms per member,"
            f" 1/{peer.median_s / row.median_s:.0f} of a scikit-learn fit,"
            f" {row.median_s / single.median_s:.2f} of a run"
        )
    return summary


def with_sweep(problem: Problem, seeds: int, rates: np.ndarray) -> Callable[[int], Timed]:
    """Sweep seeds × rates, and return the mean loss over the members and the time per member."""
    train, data = nnfx_run(problem)

    def run(seed: int) -> Timed:
        start = time.perf_counter()
        result = nnfx.sweeps.sweep(train, data, key=jax.random.key(seed), seeds=seeds, learning_rate=rates)
        loss = float(result.histories["train_loss"][:, -1].mean())
        return Timed((time.perf_counter() - start) / (seeds * len(rates)), loss)

    return run
