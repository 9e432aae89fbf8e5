"""PyTorch's Quickstart tutorial: three dense layers on Fashion-MNIST, trained by SGD, epoch by epoch.

    NNFX_DATA=... python -m experiments.reproductions.pytorch_quickstart [--seeds 0 1 2 3 4 5]

The network has 784, 512, 512 and 10 units, ReLU, and PyTorch's initial weights and biases, both `U(±1/√inputs)`. SGD
with a learning rate of 0.001 visits the images in the order of the files, in batches of 64, the last of which is
incomplete. The test loss is the mean of the batch means, as the tutorial prints it.

The tutorial prints one run. Its numbers are assumed to vary from run to run as ours do. The numbers of one run depend
on each other: a network that starts well stays ahead. Expect all but one of the ten to lie within two standard errors
of ours. Five epochs take less than a minute on one core. Finished runs are kept under `runs/`, so an interrupted run
continues when the command is repeated. The record is next to this script.

*Quickstart*, docs.pytorch.org/tutorials/beginner/basics/quickstart_tutorial.html. The numbers are from the page as
built at commit 031a91a of github.com/pytorch/tutorials.
"""

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

import nnfx
from experiments.common import BLUE, ORANGE, Results, command
from experiments.reproductions.comparison import Comparison, Sample, finished, print_comparisons
from nnfx.data import batching
from nnfx.types import Array

LEARNING_RATE = 1e-3
PUBLISHED = {
    "accuracy": (50.2, 59.4, 61.5, 63.9, 65.4),
    "loss": (2.151703, 1.880744, 1.505376, 1.231725, 1.066030),
}
"""Test accuracy in per cent, and test loss, after each epoch of one run."""
LAST_DIGIT = {"accuracy": 0.1, "loss": 1e-6}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/pytorch_quickstart")
    """where the results go"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """a run for each seed"""
    epochs: int = 5
    """epochs of each run"""
    batch_size: int = 64
    """rows in a minibatch"""
    rows: int | None = None
    """number of training images, for a quick trial; all by default"""


class Quickstart(nn.Module):
    """Dense layers with PyTorch's initial weights and biases."""

    units: tuple[int, ...] = (784, 512, 512, 10)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits `(batch, classes)`."""
        x = x.reshape(len(x), -1)
        for layer, (inputs, units) in enumerate(itertools.pairwise(self.units)):
            bound = 1 / math.sqrt(inputs)

            def uniform(key: Array, shape: Any, dtype: Any, bound: float = bound) -> Array:
                return jax.random.uniform(key, shape, dtype, -bound, bound)

            x = nn.Dense(units, kernel_init=uniform, bias_init=uniform)(nn.relu(x) if layer else x)
        return x


def run(seed: int, data: nnfx.data.Data, config: Config) -> dict[str, list[float]]:
    """Train once, and return the test accuracy and the test loss after each epoch."""
    assert data.valid is not None
    model, loss, optimizer = (
        nnfx.models.from_linen(Quickstart()),
        nnfx.losses.categorical_cross_entropy,
        optax.sgd(LEARNING_RATE),
    )
    step = nnfx.make_step(model, loss, optimizer)
    order = batching.in_order(len(data.train.targets), config.batch_size)

    @jax.jit
    def epoch(state: nnfx.TrainState, train: nnfx.Batch) -> nnfx.TrainState:
        return jax.lax.scan(lambda s, chosen: (step(s, batching.take(train, chosen))[0], None), state, order)[0]

    @jax.jit
    def test(state: nnfx.TrainState, batch: nnfx.Batch) -> tuple[Array, Array]:
        outputs = model.apply(state.variables, batch.inputs)
        return nnfx.metrics.accuracy(outputs, batch.targets), loss(outputs, batch.targets)

    state = nnfx.init_state(jax.random.key(seed), model, optimizer, data.train.inputs[:1])
    curves: dict[str, list[float]] = {name: [] for name in PUBLISHED}
    for _ in range(config.epochs):
        state = epoch(state, data.train)
        right, losses = map(np.asarray, test(state, data.valid))
        starts = range(config.batch_size, len(losses), config.batch_size)
        curves["accuracy"].append(100 * float(right.mean(dtype=float)))
        curves["loss"].append(float(np.mean([batch.mean(dtype=float) for batch in np.split(losses, starts)])))
    return curves


def compare(runs: list[dict[str, list[float]]]) -> list[Comparison]:
    """Return the test accuracy and loss next to the published ones, for each epoch that all runs reached."""
    reached = min(len(curves["loss"]) for curves in runs)
    return [
        Comparison(
            f"epoch {epoch + 1}, test {name}{' in %' * (name == 'accuracy')}",
            Sample.of([curves[name][epoch] for curves in runs]),
            Sample(published, None, 1),
            LAST_DIGIT[name],
        )
        for name, all_epochs in PUBLISHED.items()
        for epoch, published in enumerate(all_epochs[:reached])
    ]


def draw(runs: list[dict[str, list[float]]]) -> Figure:
    """Plot our curves, and the published points."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, (name, published) in zip(axes, PUBLISHED.items(), strict=True):
        for curves in runs:
            axis.plot(range(1, len(curves[name]) + 1), curves[name], color=BLUE, alpha=0.6, linewidth=1)
        epochs = range(1, len(published) + 1)
        axis.plot(epochs, published, "o", color=ORANGE, markersize=4, label="published, one run")
        axis.set(xlabel="epoch", xticks=epochs, ylabel=f"test {name}{' (%)' * (name == 'accuracy')}")
    axes[0].legend(loc="lower right")
    figure.suptitle("PyTorch's Quickstart: ours as lines")
    return figure


def main(config: Config) -> dict[str, Any]:
    """Make the runs that have not been made yet, and compare all results with the published run."""
    results = Results(config.out)
    data = nnfx.data.fashion_mnist(hold_out_test=True)
    if config.rows is not None:
        data = dataclasses.replace(data, train=jax.tree.map(lambda array: array[: config.rows], data.train))
    settings: dict[str, Any] = {"epochs": config.epochs, "batch_size": config.batch_size, "rows": config.rows}
    runs = [
        finished(config.out / f"run_{seed}.json", settings, partial(run, seed, data, config))
        for seed in tqdm(config.seeds, unit="run")
    ]
    rows = compare(runs)
    print_comparisons(rows)
    results.figure("curves", draw(runs))
    settings["seeds"] = config.seeds
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    nnfx.cpu.set_up()
    command(main, Config, __doc__)
