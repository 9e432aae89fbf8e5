"""The overhead of a session with a checkpoint every epoch, and of a step sharded over a mesh of one device.

    python -m experiments.benchmarks session [--epochs 6] [--repeats 30]

The run trains a dense network on the embedded digits, each repeated fifty times, so that an epoch takes about a
second. A session wraps the same run: it identifies the run, shows nothing, logs to CSV, and saves after every epoch,
in a new folder each time. The time of a session includes all of this, and the wait for the last checkpoint. The final
losses are identical, bit for bit.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import nnfx
from experiments.benchmarks.timing import System, compare, report
from nnfx.data import Data
from nnfx.training.fit import Fit

NUMBERS: dict[str, Any] = {"learning_rate": 0.05}


def main(epochs: int = 6, copies: int = 50, repeats: int = 30, out: Path = Path("runs/benchmarks")) -> dict[str, Any]:
    """Time the run by itself, in a session, and with its steps sharded over a mesh of one device.

    Args:
        epochs: number of epochs in each run.
        copies: the number of copies of each digit in an epoch.
        repeats: the number of times that each of these is timed, in turn.
        out: where the results go.
    """
    nnfx.cpu.set_up(devices=1)
    data = problem(copies)
    on_one = functools.partial(nnfx.data_parallel, devices=jax.devices()[:1])
    systems = {
        "the run by itself": System(with_run(train(epochs), data)),
        "in a session": System(with_session(train(epochs), data), is_peer=False),
        "sharded over one device": System(with_run(train(epochs, parallel=on_one), data), is_peer=False),
    }
    rows = compare(f"{epochs} epochs of {len(data.train.weights):,} digits", systems, repeats)
    print(f"an epoch takes {rows[0].median_s / epochs:.2f} s\n")
    return report("session", rows, out)


def problem(copies: int) -> Data:
    """Return the digits, repeated `copies` times."""
    digits = nnfx.data.images("digits").train
    inputs = digits.inputs.reshape(len(digits.inputs), -1).astype(np.float32)
    inputs, labels = np.tile(inputs / 16, (copies, 1)), np.tile(digits.targets, copies)
    return nnfx.data.prepare(inputs, labels, standardize=False)


def train(epochs: int, **options: Any) -> Fit:
    """Return the function that trains the network."""
    model = nnfx.models.mlp((512, 512), outputs=10)
    loss = nnfx.losses.categorical_cross_entropy
    return nnfx.fit(model, loss, optax.sgd, epochs=epochs, batch_size=128, **options)


def with_run(fit: Fit, data: Data) -> Callable[[int], float]:
    """Run the compiled program."""
    return lambda seed: float(fit(jax.random.key(seed), data, **NUMBERS).final["train_loss"])


def with_session(fit: Fit, data: Data) -> Callable[[int], float]:
    """Run the compiled program in a session."""

    def looked_after(seed: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            session = nnfx.session(fit, folder, save_every_epochs=1, progress=False)
            return float(session(jax.random.key(seed), data, **NUMBERS).final["train_loss"])

    return looked_after
