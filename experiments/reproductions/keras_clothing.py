"""Keras' first tutorial, images of clothing: two dense layers on Fashion-MNIST, trained by Adam, epoch by epoch.

    NNFX_DATA=... python -m experiments.reproductions.keras_clothing [--seeds 0 1 2]

The network has 784, 128 and 10 units, ReLU, Glorot-uniform weights and biases of zero; pixels are divided by 255. Adam
with Keras' defaults, a rate of 0.001 and ε = 10⁻⁷, is applied to shuffled batches of 32 for five epochs. Training loss
and accuracy are means over the epoch, with each batch measured before its step, as Keras prints them; test loss and
accuracy are measured after the last epoch. Keras adds ε before the bias correction of the second moment, and Optax
after it. This matters only where gradients are about as small as ε: with Keras' form, the mean training loss of ten
runs changes by at most 0.0005 in each epoch.

The page was rendered nine times, and the network was trained anew each time. All nine renderings print the test loss,
four print the test accuracy, and two the training curves. Two runs are too few to estimate a deviation, so these are
assumed to vary as ours do. Expect the test loss and accuracy to lie within two standard errors, and all but three of
the ten numbers of the training curves; these numbers depend on each other. A run takes about four seconds of processor
time. Finished runs are kept under `runs/`, so an interrupted run continues when the command is repeated. The record is
next to this script.

*Basic image classification*, tensorflow.rstudio.com/tutorials/keras/classification, the tutorial of TensorFlow in
Keras for R. The numbers are from the renderings of the page in `_freeze/tutorials/keras/classification` of
github.com/rstudio/tensorflow.rstudio.com, at commits dd3f204, 494db9d, d342873, 7b6c59d, 405f982, e3cc5ac, 543e5c4,
ac75648 and dbead72, latest first.
"""

import dataclasses
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
from experiments.common import BLUE, ORANGE, Results, command
from experiments.reproductions.comparison import Comparison, Sample, finished, print_comparisons

TRAINING: dict[str, tuple[tuple[float, ...], ...]] = {
    "loss": ((0.5022, 0.3774, 0.3402, 0.3154, 0.2958), (0.4972, 0.3760, 0.3382, 0.3155, 0.2953)),
    "accuracy": ((82.35, 86.42, 87.60, 88.48, 89.16), (82.38, 86.45, 87.61, 88.37, 89.10)),
}
"""The training loss, and the accuracy in per cent, of each epoch of the two runs that print them."""
TEST: dict[str, tuple[float, ...]] = {
    "loss": (
        0.3550621, 0.3549634, 0.3500043, 0.3616685, 0.343714, 0.3694608, 0.374816, 0.3504261, 0.356607,
    ),
    "accuracy": (87.21, 87.43, 87.44, 87.05),
}  # fmt: skip
"""The test loss and the accuracy in per cent after the last epoch, of each run that prints them."""
EPOCHS = 5
LAST_DIGIT = {"loss": 1e-4, "accuracy": 0.01}
"""The unit of the last digit of the training curves; both measures are printed to the same digit."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/keras_clothing")
    """where the results go"""
    seeds: tuple[int, ...] = tuple(range(10))
    """a run for each seed"""
    epochs: int = EPOCHS
    """epochs of each run; the test set is compared only after all five"""
    batch_size: int = 32
    """rows in a minibatch"""
    rows: int | None = None
    """number of training images, for a quick trial; all by default"""


def make_run(config: Config) -> Callable[..., nnfx.Run]:
    """Return the tutorial's training run, a function of a key and data."""
    return nnfx.fit(
        nnfx.models.mlp((128,), outputs=10, initializer="glorot_uniform"),
        nnfx.losses.categorical_cross_entropy,
        optax.adam(1e-3, eps=1e-7),
        epochs=config.epochs,
        batch_size=config.batch_size,
        metrics=["accuracy"],
    )


def run(seed: int, data: nnfx.data.Data, train: Callable[..., nnfx.Run]) -> dict[str, list[float]]:
    """Train once, and return the loss and accuracy on both parts of the data in each epoch."""
    history = train(jax.random.key(seed), data).history
    return {
        f"{part}_{measure}": [factor * float(value) for value in history[f"{column}_{measure}"]]
        for part, column in (("train", "train"), ("test", "valid"))
        for measure, factor in (("loss", 1), ("accuracy", 100))
    }


def label(measure: str) -> str:
    """Return a measure and its unit.

    >>> label("accuracy")
    'accuracy in %'
    """
    return f"{measure}{' in %' * (measure == 'accuracy')}"


def compare(runs: list[dict[str, list[float]]]) -> list[Comparison]:
    """Return our curves next to the published ones, and the last test loss and accuracy if all epochs were run."""
    reached = min(len(curves["train_loss"]) for curves in runs)
    rows = [
        Comparison(
            f"epoch {epoch + 1}, training {label(measure)}",
            Sample.of([curves[f"train_{measure}"][epoch] for curves in runs]),
            Sample(sum(published) / len(published), None, len(published)),
            LAST_DIGIT[measure],
        )
        for measure, curves_of in TRAINING.items()
        for epoch, published in enumerate(list(zip(*curves_of, strict=True))[:reached])
    ]
    if reached >= EPOCHS:
        rows += [
            Comparison(
                f"epoch {EPOCHS}, test {label(measure)}",
                Sample.of([curves[f"test_{measure}"][EPOCHS - 1] for curves in runs]),
                Sample.of(published),
            )
            for measure, published in TEST.items()
        ]
    return rows


def draw(runs: list[dict[str, list[float]]]) -> Figure:
    """Plot our curves on both parts of the data, and the published points."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, measure in zip(axes, ("accuracy", "loss"), strict=True):
        for part, colour in (("train", BLUE), ("test", ORANGE)):
            for number, curves in enumerate(runs):
                values = curves[f"{part}_{measure}"]
                name = {"train": "training", "test": "test"}[part] if number == 0 else None
                axis.plot(range(1, len(values) + 1), values, color=colour, alpha=0.5, linewidth=1, label=name)
        for published in TRAINING[measure]:
            axis.plot(range(1, EPOCHS + 1), published, "o", color=BLUE, markersize=4)
        axis.plot([EPOCHS] * len(TEST[measure]), TEST[measure], "o", color=ORANGE, markersize=4)
        axis.set(xlabel="epoch", xticks=range(1, EPOCHS + 1), ylabel=measure + " (%)" * (measure == "accuracy"))
    axes[0].legend(loc="lower right")
    figure.suptitle("Keras' images of clothing: ours as lines, published as points")
    return figure


def main(config: Config) -> dict[str, Any]:
    """Make the runs that have not been made yet, and compare all results with the published ones."""
    results = Results(config.out)
    data = nnfx.data.fashion_mnist(hold_out_test=True)
    if config.rows is not None:
        data = dataclasses.replace(data, train=jax.tree.map(lambda array: array[: config.rows], data.train))
    settings: dict[str, Any] = {"epochs": config.epochs, "batch_size": config.batch_size, "rows": config.rows}
    train = make_run(config)
    runs = [
        finished(config.out / f"run_{seed}.json", settings, partial(run, seed, data, train))
        for seed in tqdm(config.seeds, unit="run")
    ]
    rows = compare(runs)
    print_comparisons(rows)
    results.figure("curves", draw(runs))
    settings["seeds"] = config.seeds
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    command(main, Config, __doc__)
