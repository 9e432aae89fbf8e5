"""One point of `growth`: a run of one size by one system, in a process that imports nothing else.

python -m experiments.benchmarks.points rows nnfx 1000
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.problems import RATE, Problem

OURS, TORCH, SCIKIT_LEARN = "nnfx", "PyTorch", "scikit-learn"
HIDDEN = 32
"""Width of recurrent networks."""

Run = Callable[[], Any]
"""A function that does all the work, and returns a loss."""


class Point(NamedTuple):
    """One measurement.

    Attributes:
        axis: the quantity that grows.
        system: the system that was measured.
        size: the size of the quantity that grows.
        seconds: the time of a compiled run, in seconds.
        first_seconds: the time of the first run, including compilation, in seconds.
        peak_mib: the peak resident memory of the process, in MiB.
        imports_mib: the peak resident memory after the libraries were imported, in MiB.
        loss: the final training loss.
    """

    axis: str
    system: str
    size: int
    seconds: float
    first_seconds: float
    peak_mib: float
    imports_mib: float
    loss: float


class Sizes(NamedTuple):
    """The sizes of a dense network and its data; the defaults apply to all except the one that the benchmark varies."""

    rows: int = 1000
    features: int = 16
    width: int = 32
    batch_size: int = 100
    epochs: int = 1


def noise(sizes: Sizes) -> Problem:
    """Return noise to classify by the sign of its first feature, and a dense network."""
    inputs = np.random.default_rng(0).standard_normal((sizes.rows, sizes.features), np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int32)
    return Problem(inputs, labels, (sizes.width,), "relu", sizes.batch_size, sizes.epochs)


def dense(system: str, sizes: Sizes) -> Run:
    """Train a dense network on noise."""
    problem = noise(sizes)
    if system == OURS:
        import jax

        from experiments.benchmarks.fit import nnfx_run

        fit, data = nnfx_run(problem)
        return lambda: float(fit(jax.random.key(0), data, learning_rate=RATE).final["train_loss"])
    from experiments.benchmarks import peers

    run = peers.with_torch(problem, fused=True) if system == TORCH else peers.with_scikit_learn(problem)
    return lambda: run(0)


def of_rows(system: str, size: int) -> Run:
    """Train for one epoch of many rows."""
    return dense(system, Sizes(rows=size, batch_size=min(size, 1000)))


def of_features(system: str, size: int) -> Run:
    """Train on rows of many features."""
    return dense(system, Sizes(features=size))


def of_width(system: str, size: int) -> Run:
    """Train a wide network, in which both layers grow linearly."""
    return dense(system, Sizes(width=size))


def of_epochs(system: str, size: int) -> Run:
    """Train for many epochs."""
    return dense(system, Sizes(epochs=size))


def of_steps(system: str, size: int) -> Run:
    """Train a GRU on long sequences, for four steps of gradient descent."""
    rows, batch_size, features = 64, 16, 4
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((rows, size, features), np.float32)
    targets = inputs[:, -1, 0]
    if system == OURS:
        import jax
        import optax

        import nnfx

        data = nnfx.data.prepare(inputs, targets, standardize=False)
        model = nnfx.models.gru(outputs=1, hidden=(HIDDEN,))
        fit = nnfx.fit(model, nnfx.losses.mean_square_error, optax.adam, epochs=1, batch_size=batch_size)
        return lambda: float(fit(jax.random.key(0), data, learning_rate=RATE).final["train_loss"])

    import torch

    torch.manual_seed(0)
    cell, head = torch.nn.GRU(features, HIDDEN, batch_first=True), torch.nn.Linear(HIDDEN, 1)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=RATE, fused=True)
    x, y = torch.tensor(inputs), torch.tensor(targets)

    def run() -> float:
        total = 0.0
        for chosen in torch.randperm(rows).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(head(cell(x[chosen])[0][:, -1])[:, 0], y[chosen])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        return total / rows

    return run


def of_members(system: str, size: int) -> Run:
    """Train many networks: as one sweep, or one after another."""
    sizes = Sizes(rows=100, features=4, width=8, batch_size=20, epochs=5)
    if system != OURS:
        one = dense(system, sizes)
        return lambda: np.mean([one() for _ in range(size)])
    import jax

    import nnfx
    from experiments.benchmarks.fit import nnfx_run

    fit, data = nnfx_run(noise(sizes))

    def run() -> float:
        result = nnfx.sweeps.sweep(fit, data, key=jax.random.key(0), seeds=size, learning_rate=RATE)
        return float(np.asarray(result.histories["train_loss"])[..., -1].mean())

    return run


AXES: dict[str, Callable[[str, int], Run]] = {
    "rows": of_rows,
    "features": of_features,
    "width": of_width,
    "steps": of_steps,
    "members": of_members,
    "epochs": of_epochs,
}
"""The functions that make a system's run of a given size."""


def print_point(axis: str, system: str, size: str) -> None:
    """Measure a point in this process, and print it as JSON."""
    if system == TORCH:
        import torch  # noqa: F401 -- so that the memory after the imports is that of all libraries
    elif system == SCIKIT_LEARN:
        import sklearn.neural_network  # noqa: F401
    else:
        import nnfx  # noqa: F401
    imports, run, times = peak_mib(), AXES[axis](system, int(size)), []
    for _ in range(2):
        start = time.perf_counter()
        loss = float(run())
        times.append(time.perf_counter() - start)
    first, seconds = times
    print(json.dumps(Point(axis, system, int(size), seconds, first, peak_mib(), imports, loss)))


def peak_mib() -> float:
    """Return the peak resident memory of this process, in MiB."""
    with contextlib.suppress(OSError):  # the peak reported by getrusage is inherited from the parent process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print_point(*sys.argv[1:])
