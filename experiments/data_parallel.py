"""Data parallelism: one run on 1, 2, 4 and 8 devices, with batches split by XLA (a mesh) and by hand (`pmap`).

    python -m experiments.data_parallel [--out DIR] [--seed N] [--devices 1 2 4 8]

A network with dropout learns the embedded digits by plain SGD, in batches of 100 that do not always divide evenly
among the devices. Expect the losses to differ by rounding errors alone, and one exchange of the whole gradient per
step, however many devices there are. On a CPU, the devices are virtual and share its cores. The number of examples per
second then shows what splitting costs and whether it puts idle cores to use; `experiments.scaling_model` predicts how
well real devices scale. The same run is also made by two processes with one device each, which communicate over the
loopback interface. The experiment works offline and takes about a minute.
"""

import dataclasses
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, print_table
from nnfx import distributed
from nnfx.data import Data
from nnfx.distributed.collectives import Collective, collectives
from nnfx.stopping import Clock
from nnfx.training import in_memory
from nnfx.training.data_parallel import data_parallel

STRATEGIES: tuple[Literal["mesh", "pmap"], ...] = ("mesh", "pmap")
MARKERS = {"mesh": "o", "pmap": "s"}
COLOURS = (GREY, BLUE, ORANGE, GREEN)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the data parallelism experiment."""

    out: Path = Path("runs/data_parallel")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """numbers of devices over which to split batches"""
    processes: int = 2
    """number of processes, with one device each, for another run; 1 to skip it"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
    dropout: float = 0.3
    """dropout rate of the hidden layers"""
    batch_size: int = 100
    """number of digits in a batch"""
    epochs: int = 5
    """number of epochs of the runs whose losses are compared"""
    timed_epochs: int = 5
    """number of epochs to time, one by one"""
    learning_rate: float = 0.1
    """learning rate of plain SGD"""


class Outcome(NamedTuple):
    """The outcome of a run on some number of devices.

    Attributes:
        strategy: "mesh" or "pmap".
        devices: the number of devices.
        processes: the number of processes over which they are spread.
        losses: the training loss of each epoch, followed by the held-out losses.
        crossing: the data that crosses between devices in a step.
        examples_per_second: the median throughput over the timed epochs.
    """

    strategy: str
    devices: int
    processes: int
    losses: np.ndarray
    crossing: list[Collective]
    examples_per_second: float


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    for count in config.devices:
        nnfx.checks.positive_integer("devices", count)
        if count > jax.local_device_count():
            raise ValueError(f"devices: expected at most the {jax.local_device_count()} available, got {count}")
    nnfx.checks.positive_integer("processes", config.processes)
    results = Results(config.out)
    data = nnfx.data.digits(key=jax.random.key(config.seed), valid_fraction=0.25)
    alone = run(config, data, "mesh", 1)
    counts = config.devices if jax.process_count() == 1 else (jax.device_count(),)
    outcomes = [
        alone._replace(strategy=strategy) if count == 1 else run(config, data, strategy, count)
        for strategy in STRATEGIES
        for count in counts
    ]
    if config.processes > 1:
        outcomes += in_processes(config)
    apart = [float(np.abs(outcome.losses / alone.losses - 1).max()) for outcome in outcomes]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters(config, data)))
    print(f"the gradient has {size:,} bytes\n")
    print_table(
        ["strategy", "devices", "processes", "loss difference", "exchanges per step", "bytes", "examples per second"],
        [
            [
                outcome.strategy,
                outcome.devices,
                outcome.processes,
                f"{error:.1e}",
                len(outcome.crossing),
                sum(each.bytes for each in outcome.crossing),
                round(outcome.examples_per_second),
            ]
            for outcome, error in zip(outcomes, apart, strict=True)
        ],
    )
    draw(results, outcomes, alone)
    results.history(
        {
            f"{outcome.strategy} on {outcome.devices} {part}_loss": losses
            for outcome in outcomes
            if outcome.processes == jax.process_count()
            for part, losses in zip(("train", "valid"), np.split(outcome.losses, 2), strict=True)
        }
    )
    return results.summary(
        {
            "gradient_bytes": size,
            "runs": [
                {
                    "strategy": outcome.strategy,
                    "devices": outcome.devices,
                    "processes": outcome.processes,
                    "losses": outcome.losses,
                    "loss_apart": error,
                    "exchanges": [each._asdict() for each in outcome.crossing],
                    "examples_per_second": outcome.examples_per_second,
                }
                for outcome, error in zip(outcomes, apart, strict=True)
            ],
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
    )


def in_processes(config: Config) -> list[Outcome]:
    """Make the same runs in several processes on this machine, and return their outcomes."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = opened.getsockname()[1]
    out = config.out / "processes"
    options = {**dataclasses.asdict(config), "devices": (1,), "processes": 1, "out": out}
    arguments = [
        text
        for name, value in options.items()
        for text in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,)))
    ]
    together = ["--coordinator", f"localhost:{port}", "--processes", str(config.processes)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "nnfx.distributed", *together, "--process", str(i), __spec__.name, *arguments],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.DEVNULL,
        )
        for i in range(config.processes)
    ]
    ends = [process.wait() for process in started]
    if any(ends):
        raise RuntimeError(f"processes: expected all {config.processes} to exit with status 0; see their output above")
    runs = json.loads((out / "summary.json").read_text())["runs"]
    return [
        Outcome(
            each["strategy"],
            each["devices"],
            each["processes"],
            np.array(each["losses"]),
            [Collective(**one) for one in each["exchanges"]],
            each["examples_per_second"],
        )
        for each in runs
    ]


def network(config: Config) -> nnfx.Model:
    """Return the network."""
    return nnfx.models.mlp(config.hidden, outputs=10, dropout=config.dropout)


def parameters(config: Config, data: Data) -> Any:
    """Return the shapes of the network's parameters."""
    return jax.eval_shape(network(config).init, jax.random.key(0), data.train.inputs[:1])["params"]


def run(config: Config, data: Data, strategy: Literal["mesh", "pmap"], count: int) -> Outcome:
    """Train on `count` devices, list the data that crosses between them, and time single epochs."""
    devices = jax.local_devices()[:1] if count == 1 else jax.devices()[:count]
    split = functools.partial(data_parallel, strategy=strategy, devices=devices)
    train = nnfx.fit(
        network(config),
        nnfx.losses.categorical_cross_entropy,
        optax.sgd,
        epochs=config.epochs,
        batch_size=config.batch_size,
        parallel=split,
    )
    key, numbers = jax.random.key(config.seed), {"learning_rate": config.learning_rate}
    history = train(key, data, **numbers).history
    losses = np.concatenate([history["train_loss"], history["valid_loss"]])

    optimizer = optax.sgd(config.learning_rate)
    step = nnfx.make_step(network(config), nnfx.losses.categorical_cross_entropy, optimizer)
    state = nnfx.init_state(key, network(config), optimizer, data.train.inputs[:1])
    batch = jax.tree.map(lambda rows: rows[: config.batch_size], data.train)
    crossing = collectives(jax.jit(split(step)).lower(state, batch).compile())

    rows = len(data.train.weights)
    state_of_run = in_memory.begin(train, key, data.train, data.valid, numbers)
    seconds = []
    for epoch in range(config.timed_epochs + 1):
        began = time.perf_counter()
        until, clock = np.int32(epoch + 1), Clock(np.float32(0), np.float32(0))
        advanced = in_memory.advance(train, state_of_run, data.train, data.valid, numbers, until, clock)
        state_of_run, _ = jax.block_until_ready(distributed.local(advanced))
        seconds.append(time.perf_counter() - began)
    per_second = rows / statistics.median(seconds[1:])  # the first epoch includes compilation
    return Outcome(strategy, count, 1 if count == 1 else jax.process_count(), losses, crossing, per_second)


def draw(results: Results, outcomes: list[Outcome], alone: Outcome) -> None:
    """Plot the losses, the differences between them, and the examples per second."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2))
    colours = {count: COLOURS[i % len(COLOURS)] for i, count in enumerate(sorted({each.devices for each in outcomes}))}
    epochs = np.arange(1, len(alone.losses) // 2 + 1)
    for outcome in outcomes:
        losses = np.split(outcome.losses, 2)[1]
        apart_in = f" in {outcome.processes} processes" if outcome.processes > 1 else ""
        name = f"{outcome.strategy}, {outcome.devices}{apart_in}"
        style: dict[str, Any] = {"color": colours[outcome.devices], "marker": MARKERS[outcome.strategy]}
        style["linestyle"] = ":" if outcome.processes > 1 else "-"
        axes[0].plot(epochs, losses, markersize=3 + 1.2 * outcome.devices, fillstyle="none", label=name, **style)
        if outcome.devices > 1:
            apart = np.abs(losses / np.split(alone.losses, 2)[1] - 1)
            axes[1].plot(epochs, np.maximum(apart, 1e-9), linewidth=1, markersize=4, label=name, **style)
    axes[0].set(xlabel="epoch", ylabel="held-out cross-entropy (nats)", title="losses: all curves coincide")
    axes[0].legend(title="strategy, devices", fontsize=8)
    axes[1].axhline(2.0**-23, color="black", linewidth=0.8, linestyle="--", label="spacing of float32 at 1")
    axes[1].set(xlabel="epoch", ylabel="relative difference from one device", yscale="log", ylim=(5e-10, 1e-3))
    axes[1].set_title("difference from one device (0 drawn at 1e-9)")
    axes[1].legend(fontsize=8)
    for strategy in STRATEGIES:
        for processes in sorted({outcome.processes for outcome in outcomes}):
            some = [each for each in outcomes if (each.strategy, each.processes) == (strategy, processes)]
            axes[2].plot(
                [outcome.devices for outcome in some],
                [outcome.examples_per_second for outcome in some],
                marker=MARKERS[strategy],
                fillstyle="full" if processes == 1 else "none",
                linestyle="-" if processes == 1 else "",
                color=BLUE if strategy == "mesh" else ORANGE,
                label=strategy if processes == 1 else f"{strategy}, {processes} processes",
            )
    counts = sorted(colours)
    axes[2].set(xscale="log", xlabel=f"devices ({jax.devices()[0].device_kind})", ylabel="examples per second")
    axes[2].set_xticks(counts, map(str, counts))
    axes[2].set_xticks([], minor=True)
    axes[2].set_ylim(0)
    axes[2].set_title("throughput; virtual devices share the cores")
    axes[2].legend()
    results.figure("data_parallel", figure)


if __name__ == "__main__":
    chosen = tyro.cli(Config, description=__doc__)
    nnfx.cpu.set_up(devices=max(chosen.devices))
    main(chosen)
