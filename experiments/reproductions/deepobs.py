"""DeepOBS's `fmnist_2c2d`: a small convolutional network on Fashion-MNIST, trained by SGD, Momentum and Adam.

    NNFX_DATA=... python -m experiments.reproductions.deepobs [--seeds 0 1 2] [--optimizers sgd momentum adam]

The problem is as in the paper: a 5 × 5 × 32 convolution, 2 × 2 max pooling (SAME), a 5 × 5 × 64 convolution, the same
pooling, a dense layer of 1024 units, and ReLU; truncated-normal weights of scale 0.05 and biases of 0.05; batches of
128, without the incomplete one; pixels divided by 255. The learning rates were tuned by the authors. Expect the test
accuracies after epochs 1, 2 and 5 to lie within two standard errors of the published ones, except for Momentum after
the first epoch. Five epochs take about five minutes on one core. Finished runs are kept under `runs/`, so an
interrupted run continues when the command is repeated. The record is next to this script.

Schneider, Balles and Hennig, *DeepOBS: a deep learning optimizer benchmark suite*, ICLR 2019. The accuracies are from
its published baselines: mean and standard deviation over ten seeds.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, Results, command
from experiments.reproductions.comparison import Comparison, Sample, finished, print_comparisons
from nnfx.data import batching
from nnfx.models import conv, max_pool
from nnfx.types import PerExample

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1585),
    "momentum": optax.sgd(2.512e-3, momentum=0.99),
    "adam": optax.adam(2.512e-4),
}
PUBLISHED = {
    "sgd": {1: (85.45, 1.18), 2: (87.54, 0.91), 5: (89.56, 0.68), 10: (90.24, 0.74)},
    "momentum": {1: (85.17, 0.84), 2: (88.00, 0.55), 5: (89.88, 0.62), 10: (90.60, 0.56)},
    "adam": {1: (85.26, 0.57), 2: (87.61, 0.33), 5: (89.67, 0.37), 10: (90.99, 0.36)},
}
"""Test accuracy in per cent by epoch: mean and standard deviation over ten seeds."""
SEEDS = 10
"""The number of published seeds."""
COLOURS = {"sgd": BLUE, "momentum": ORANGE, "adam": GREEN}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/deepobs")
    """where the results go"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of each optimizer for each seed"""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """optimizers to run"""
    epochs: int = 5
    """epochs of each run"""
    batch_size: int = 128
    """rows in a minibatch"""
    rows: int | None = None
    """number of training images, for a quick trial; all by default"""
    progress: bool = True
    """whether to show progress"""


def model() -> nnfx.Model:
    """Return the network of the problem."""
    return nnfx.models.cnn(
        [conv(32, 5), max_pool(2, padding="SAME"), conv(64, 5), max_pool(2, padding="SAME")],
        hidden=(1024,),
        outputs=10,
        initializer=jax.nn.initializers.truncated_normal(0.05),
        bias_initializer=jax.nn.initializers.constant(0.05),
    )


def make_epoch(
    model: nnfx.Model, loss: PerExample, optimizer: optax.GradientTransformation, batch_size: int
) -> Callable[[nnfx.TrainState, nnfx.Batch, jax.Array], tuple[nnfx.TrainState, jax.Array]]:
    """Return an epoch `(state, data, order_key) -> (state, training loss)` without the incomplete batch."""
    step = nnfx.make_step(model, loss, optimizer)

    def epoch(state: nnfx.TrainState, data: nnfx.Batch, order_key: jax.Array) -> tuple[nnfx.TrainState, jax.Array]:
        rows = len(data.weights)
        order = batching.shuffled(order_key, 0, rows, batch_size)
        full = jax.tree.map(lambda batches: batches[: rows // batch_size], order)
        state, measured = jax.lax.scan(lambda s, chosen: step(s, batching.take(data, chosen)), state, full)
        return state, measured["loss"].total.sum() / measured["loss"].weight.sum()

    return epoch


@jax.jit
def accuracy(variables: nnfx.types.Variables, data: nnfx.Batch) -> jax.Array:
    """Return the fraction of test images classified correctly."""
    return nnfx.evaluate(model(), {"accuracy": nnfx.metrics.accuracy}, variables, data)["accuracy"].value


def train(name: str, seed: int, data: nnfx.data.Data, config: Config) -> dict[str, Any]:
    """Run the training once, and return its curves."""
    assert data.valid is not None
    optimizer, key = OPTIMIZERS[name], jax.random.key(seed)
    loss_of = nnfx.losses.categorical_cross_entropy
    epoch = jax.jit(make_epoch(model(), loss_of, optimizer, config.batch_size), donate_argnums=0)
    state = nnfx.init_state(key, model(), optimizer, data.train.inputs[:1])
    curves: dict[str, Any] = {"optimizer": name, "seed": seed, "train_loss": [], "test_accuracy": []}
    for number in tqdm(range(config.epochs), desc=f"{name}, seed {seed}", unit="epoch", disable=not config.progress):
        order_key = jax.random.fold_in(nnfx.split_key(key).order, number)
        state, loss = epoch(state, data.train, order_key)
        curves["train_loss"].append(float(loss))
        curves["test_accuracy"].append(100 * float(accuracy(state.variables, data.valid)))
    return curves


def compare(runs: list[dict[str, Any]]) -> list[Comparison]:
    """Return the accuracy next to the published one, for each optimizer and published epoch that its runs reached."""
    rows = []
    for name, published in PUBLISHED.items():
        curves = [run["test_accuracy"] for run in runs if run["optimizer"] == name]
        reached = min(map(len, curves), default=0)
        rows += [
            Comparison(
                f"{name}, epoch {epoch}, test accuracy in %",
                Sample.of([curve[epoch - 1] for curve in curves]),
                Sample(mean, deviation, SEEDS),
            )
            for epoch, (mean, deviation) in published.items()
            if epoch <= reached
        ]
    return rows


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Plot our curves over the published points."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, colour in COLOURS.items():
        curves = [run["test_accuracy"] for run in runs if run["optimizer"] == name]
        for i, curve in enumerate(curves):
            label = f"{name}, {len(curves)} seeds" if i == 0 else None
            axes.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.6, linewidth=1.2, label=label)
        shift = {"sgd": -0.08, "momentum": 0.0, "adam": 0.08}[name]
        longest = max((len(curve) for curve in curves), default=0)
        epochs = [epoch for epoch in PUBLISHED[name] if epoch <= longest]
        means, deviations = zip(*[PUBLISHED[name][epoch] for epoch in epochs], strict=True) if epochs else ((), ())
        axes.errorbar(
            [epoch + shift for epoch in epochs], means, yerr=[2 * sd for sd in deviations], fmt="o", color=colour,
            capsize=3, markersize=4, label=f"{name}, published ± 2 sd",
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="fmnist_2c2d: ours as lines, published as points")
    axes.legend(fontsize=8)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Make the runs that have not been made yet, and compare all results with the published ones."""
    results = Results(config.out)
    data = nnfx.data.fashion_mnist(hold_out_test=True)
    if config.rows is not None:
        data = dataclasses.replace(data, train=jax.tree.map(lambda array: array[: config.rows], data.train))
    settings = {"epochs": config.epochs, "batch_size": config.batch_size, "rows": config.rows}
    runs = [
        finished(config.out / f"run_{name}_{seed}.json", settings, partial(train, name, seed, data, config))
        for seed, name in itertools.product(config.seeds, config.optimizers)
    ]
    rows = compare(runs)
    print_comparisons(rows)
    results.figure("accuracy", draw(runs))
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    command(main, Config, __doc__)
