"""Predict who survived the Titanic from fare and age, by a perceptron, a linear network and a network with tanh.

    python -m experiments.titanic [--out DIR] [--seed N]

It trains a perceptron on all 714 passengers of known age until its weights no longer change much, and two networks by
minibatches with a quarter of the passengers held out. Expect an accuracy of about 0.65 (always predicting the majority
gives 0.59) and an area under the ROC curve of about 0.70: fare and age are informative, but only weakly. It takes
about ten seconds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, ORANGE, SHADES, Results, command, print_table
from nnfx.data import Data
from nnfx.training.fit import Fit

FARE_SHOWN = 300.0
PASSENGER = np.array([[71.2833, 38.0]])
"""Fare and age of a passenger who survived."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the Titanic experiment."""

    out: Path = Path("runs/titanic")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    epochs: int = 200
    """number of epochs of the two networks"""
    hidden: int = 16
    """width of the hidden layer of each network"""
    learning_rate: float = 0.01
    """learning rate of the two networks (Adam)"""
    batch_size: int = 32
    """number of passengers in a minibatch"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    key, split_key, perceptron_key = jax.random.split(jax.random.key(config.seed), 3)
    passengers = nnfx.data.titanic("fare", "age")
    split = nnfx.data.titanic("fare", "age", key=split_key, valid_fraction=0.25)
    print(f"all passengers: {passengers.report}\nwith held-out passengers: {split.report}\n")

    perceptron = train_perceptron(perceptron_key, passengers)
    linear = network_of(config, "identity")(key, split, learning_rate=config.learning_rate)
    network = network_of(config, "tanh")(key, split, learning_rate=config.learning_rate)

    show_one_passenger(key, network)
    kernel, bias = jax.device_get(passengers.preprocess.raw_units(**perceptron.best.params))
    print(
        f"perceptron: {perceptron.reason} after {int(perceptron.epochs)} epochs of full-batch gradient descent;\n"
        f"  survival = σ({float(bias[0]):.4g} + {float(kernel[0, 0]):.4g} fare − {-float(kernel[1, 0]):.4g} age),"
        " fare in pounds, age in years\n"
    )

    everyone, parts = {"all": passengers.train}, {"train": split.train, "test": split.valid}
    scores = {
        "perceptron": score(everyone, outputs_of(perceptron)),
        "linear network": score(parts, outputs_of(linear)),
        "network (tanh)": score(parts, outputs_of(network)),
        "majority class": score(everyone, majority_of(passengers.train)) | score(parts, majority_of(split.train)),
    }
    print_table(
        ["", "part", "rows", "loss", "accuracy", "ROC AUC"],
        [
            [name, part, numbers["rows"], numbers["loss"], numbers["accuracy"], numbers["auc"]]
            for name, parts in scores.items()
            for part, numbers in parts.items()
        ],
    )

    runs = {"perceptron": perceptron, "linear network": linear, "network (tanh)": network}
    draw_decision_regions(results, runs, passengers)
    draw_learning_curves(results, runs)
    results.history(
        {
            f"{name} {metric}": values
            for name, run in runs.items()
            for metric, values in run.history.items()
            if name != "perceptron" or metric.startswith("train")
        }
    )
    return results.summary(
        {
            "rows": scores["perceptron"]["all"]["rows"],
            "perceptron": {
                "bias": bias[0],
                "weights": {"fare": kernel[0, 0], "age": kernel[1, 0]},
                **without_rows(scores["perceptron"]["all"]),
                "epochs": perceptron.epochs,
                "converged": perceptron.reason == "small_change",
            },
            "linear": {part: without_rows(numbers) for part, numbers in scores["linear network"].items()},
            "mlp": {part: without_rows(numbers) for part, numbers in scores["network (tanh)"].items()},
            "majority": {part: without_rows(numbers) for part, numbers in scores["majority class"].items()},
            "seed": config.seed,
        }
    )


def train_perceptron(key: jax.Array, data: Data) -> nnfx.Run:
    """Train by full-batch gradient descent until the weights no longer change much."""
    train = nnfx.fit(
        nnfx.models.perceptron(),
        nnfx.losses.binary_cross_entropy,
        optax.sgd,
        epochs=10_000,
        stop=nnfx.stopping.small_change,
        metrics={"accuracy": nnfx.metrics.binary_accuracy},
    )
    return train(key, data, learning_rate=2.0, tolerance=1e-6)


def network_of(config: Config, activation: str) -> Fit:
    """Return a function that uses minibatches to train a network with one hidden layer."""
    return nnfx.fit(
        nnfx.models.mlp(hidden=(config.hidden,), activation=activation),
        nnfx.losses.binary_cross_entropy,
        optax.adam,
        epochs=config.epochs,
        batch_size=config.batch_size,
        metrics={"accuracy": nnfx.metrics.binary_accuracy},
    )


def show_one_passenger(key: jax.Array, run: nnfx.Run) -> None:
    """Print the network's prediction for one survivor before and after training."""
    fare, age = PASSENGER[0]
    print(f"one passenger, {age:.0f} years old, who paid {fare:.2f} pounds and survived:")
    untrained = nnfx.init_state(key, run.model, optax.identity(), run.preprocess(PASSENGER)).variables
    for name, variables in (("untrained", untrained), ("trained", run.state.variables)):
        probability = sigmoid(run.predict(PASSENGER, variables)).item()
        print(f"  {name} network: predicted {probability:.1f}, actual 1.0")
    print()


Outputs = Callable[[Any], Any]
"""A function from preprocessed inputs to the logits of survival, `(passengers, 2) -> (passengers, 1)`."""


def outputs_of(run: nnfx.Run) -> Outputs:
    """Return a function that computes logits with the weights of the last epoch.

    No epoch is selected, since that would use the held-out passengers.
    """
    return lambda inputs: run.apply(inputs, run.state.variables)


def majority_of(train: nnfx.Batch) -> Outputs:
    """Return a function whose output is constant: the logit of the fraction of survivors among the training rows."""
    share = np.asarray(train.targets).mean()
    return lambda inputs: np.full((len(inputs), 1), np.log(share / (1 - share)), np.float32)


def score(parts: Mapping[str, nnfx.Batch | None], outputs: Outputs) -> dict[str, dict[str, Any]]:
    """Score predictions on each split; all splits are predicted together, since each size needs its own program."""
    batches = {name: batch for name, batch in parts.items() if batch is not None}
    inputs: Any
    labels: Any
    inputs, labels = (
        np.concatenate([np.asarray(of(batch)) for batch in batches.values()])
        for of in (attrgetter("inputs"), attrgetter("targets"))
    )
    logits: Any = np.asarray(outputs(inputs))
    losses = np.asarray(nnfx.losses.binary_cross_entropy(jax.device_put(logits), jax.device_put(labels)))
    hits = (logits[:, 0] > 0) == (labels == 1)
    scores, start = {}, 0
    for name, batch in batches.items():
        here = slice(start, start := start + len(batch.targets))
        scores[name] = {
            "rows": len(batch.targets),
            "loss": float(losses[here].mean()),
            "accuracy": float(hits[here].mean()),
            "auc": float(nnfx.metrics.roc_auc(logits[here], labels[here])),
        }
    return scores


def sigmoid(logits: Any) -> np.ndarray:
    """Return probabilities, on the host."""
    return 1 / (1 + np.exp(-np.asarray(logits)))


def without_rows(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers without the number of rows."""
    return {name: value for name, value in numbers.items() if name != "rows"}


def draw_decision_regions(results: Results, runs: dict[str, nnfx.Run], data: Data) -> None:
    """Plot each model's probability of survival over the plane of fare and age, with the passengers."""
    scale, mean = np.asarray(data.preprocess.scale), np.asarray(data.preprocess.mean)
    raw = np.asarray(data.train.inputs) * scale + mean
    survived = np.asarray(data.train.targets) == 1
    fares, ages = np.meshgrid(np.linspace(0, FARE_SHOWN, 301), np.linspace(0, 82, 165))
    plane = np.stack([fares.ravel(), ages.ravel()], axis=1)

    figure, axes = plt.subplots(1, len(runs), figsize=(12, 4.2), sharey=True)
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        logits = run.predict(plane, run.state.variables)
        probability = sigmoid(logits).reshape(fares.shape)
        regions = axis.contourf(fares, ages, probability, np.linspace(0, 1, 11), cmap=SHADES)
        axis.contour(fares, ages, probability, [0.5], colors="black", linewidths=1.5)
        axis.scatter(*raw[~survived].T, s=12, c="black", marker="x", linewidths=0.8, label="died")
        axis.scatter(*raw[survived].T, s=14, c="white", edgecolors="black", linewidths=0.7, label="survived")
        axis.set(title=name, xlabel="fare (pounds)", xlim=(0, FARE_SHOWN), ylim=(0, 82))
        axis.grid(visible=False)
    axes[0].set_ylabel("age (years)")
    axes[-1].legend(loc="upper right", frameon=True, framealpha=0.9)
    figure.colorbar(regions, ax=axes, label="predicted probability of survival", shrink=0.9, pad=0.01)
    beyond = int((raw[:, 0] > FARE_SHOWN).sum())
    figure.suptitle(
        f"Survival by fare and age: {len(raw)} passengers ({beyond} paid more than is shown);"
        " the black line is probability 0.5",
        fontsize=11,
    )
    results.figure("decision_regions", figure)


def draw_learning_curves(results: Results, runs: dict[str, nnfx.Run]) -> None:
    """Plot the loss of each model by epoch, on training and on held-out passengers."""
    figure, axes = plt.subplots(1, len(runs), figsize=(12, 3.4), sharey=True)
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        epochs, history = np.arange(1, int(run.epochs) + 1), jax.device_get(run.history)
        axis.plot(epochs, history["train_loss"][: len(epochs)], color=BLUE, label="train")
        if "valid_loss" in history:
            held_out = history["valid_loss"][: len(epochs)]
            axis.plot(epochs, held_out, color=ORANGE, linestyle="--", label="held out")
        axis.set(title=f"{name}: ended by {run.reason}", xlabel="epoch")
        axis.legend()
    axes[0].set_ylabel("binary cross-entropy (nats)")
    results.figure("learning_curves", figure)


if __name__ == "__main__":
    command(main, Config, __doc__, is_short=True)
