"""Grokking: long after a network has memorised its examples, it suddenly learns modular addition.

    python -m experiments.grokking [--out DIR] [--seed N] [--modulus 23]

A network with one hidden layer and the square as its activation function (Gromov 2023) is trained on half of the sums
`a + b` modulo a prime, as one-hot vectors, by full-batch AdamW. It gets all of these right after a few dozen steps,
and hardly any of the others. Expect it to get 99 % of the others right in the end, but only after tens of
times as many steps, for at least four of five random starts. By then the weights of each hidden unit have become
periodic: most of their power is in one frequency. It works offline and takes half a minute.

References:
    Power et al., *Grokking: generalization beyond overfitting on small algorithmic datasets*, 2022. Gromov, *Grokking
    modular arithmetic*, 2023.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, ORANGE, Results, command, mean_and_error, print_table
from nnfx.data import Data
from nnfx.types import Array

LEARNED = 0.99
"""The accuracy from which sums count as learned."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the grokking experiment."""

    out: Path = Path("runs/grokking")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    modulus: int = 23
    """the modulus, a prime"""
    share: float = 0.5
    """fraction of all sums to train on"""
    width: int = 128
    """width of the hidden layer"""
    starts: int = 5
    """number of random starts"""
    steps: int = 2500
    """number of full-batch training steps"""
    learning_rate: float = 0.005
    """learning rate (AdamW)"""
    weight_decay: float = 1.0
    """decoupled weight decay"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data_key, key = jax.random.split(jax.random.key(config.seed))
    data, keys = sums(data_key, config.modulus, config.share), jax.random.split(key, config.starts)
    initializer = jax.nn.initializers.normal(0.1)
    model = nnfx.models.mlp((config.width,), config.modulus, activation=jnp.square, initializer=initializer)
    train = nnfx.fit(
        model, nnfx.losses.mean_square_error, optax.adamw, epochs=config.steps, metrics={"accuracy": accuracy}
    )
    hyper = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    runs = jax.vmap(lambda key: train(key, data, **hyper))(keys)
    curves = {part: np.asarray(runs.history[f"{part}_accuracy"]) for part in ("train", "valid")}  # starts × steps
    first = {part: [first_step(each) for each in values] for part, values in curves.items()}
    begun = jax.vmap(lambda key: model.init(nnfx.split_key(key).init, data.train.inputs))(keys)
    waves = [
        concentration(params["hidden_0"]["kernel"], config.modulus) for params in (begun["params"], runs.state.params)
    ]
    print_table(
        ["start", "sums learned at step", "others at step", "times later", "accuracy on others, then", "at the end"],
        [
            [str(i + 1), a, b, b / a, curves["valid"][i, int(min(a, config.steps)) - 1], curves["valid"][i, -1]]
            for i, (a, b) in enumerate(zip(first["train"], first["valid"], strict=True))
        ],
    )
    late = np.array(first["valid"]) > 10 * np.array(first["train"])
    grokked = int((late & np.isfinite(first["valid"])).sum())
    print(f"\n{grokked} of {config.starts} generalise, more than ten times later")
    print(
        f"power in the units' strongest frequencies: {waves[0].mean():.0%} at first, {waves[1].mean():.0%} at the end"
    )
    draw(results, curves, config)
    return results.summary(
        {
            "grokked": grokked,
            "learned_at": first["train"],
            "understood_at": first["valid"],
            "final_accuracy": mean_and_error(curves["valid"][:, -1]),
            "concentration": {"start": mean_and_error(waves[0]), "end": mean_and_error(waves[1])},
            "seed": config.seed,
        }
    )


def sums(key: Array, modulus: int, share: float) -> Data:
    """Return all sums of two numbers modulo `modulus`, as one-hot vectors; a fraction of them is for training."""
    first, second = np.divmod(np.arange(modulus**2), modulus)
    one_hot = np.eye(modulus)
    inputs, targets = np.concatenate([one_hot[first], one_hot[second]], axis=1), one_hot[(first + second) % modulus]
    return nnfx.data.prepare(inputs, targets, key=key, valid_fraction=1 - share, standardize=False)


def accuracy(outputs: Array, targets: Array) -> Array:
    """Return whether the largest output is at the correct class."""
    return outputs.argmax(-1) == targets.argmax(-1)


def first_step(accuracies: np.ndarray) -> float:
    """Return the first step after which the sums count as learned; infinity if there is none."""
    reached = np.flatnonzero(accuracies >= LEARNED)
    return float(reached[0] + 1) if len(reached) else float("inf")


def concentration(kernels: Array, modulus: int) -> np.ndarray:
    """Return the fraction of the power of hidden units' weights in their strongest frequency, averaged by start."""
    waves = np.fft.rfft(np.asarray(kernels)[:, :modulus], axis=1)[:, 1:]
    power = np.abs(waves) ** 2  # starts × frequencies × units; since powers are added, dead units hardly count
    return power.max(1).sum(-1) / power.sum((1, 2))


def draw(results: Results, curves: dict[str, np.ndarray], config: Config) -> None:
    """Plot the accuracy on the sums to learn and on the others, by step."""
    figure, axis = plt.subplots(figsize=(7.6, 4.4))
    steps = np.arange(1, config.steps + 1)
    for part, colour, label in (("train", BLUE, "sums to learn"), ("valid", ORANGE, "other sums")):
        axis.plot(steps, 100 * curves[part].T, color=colour, alpha=0.35, linewidth=0.9)
        axis.plot(steps, 100 * curves[part].mean(0), color=colour, linewidth=2, label=label)
    axis.set(
        xscale="log",
        xlabel="step",
        ylabel="accuracy (%)",
        title=f"a + b modulo {config.modulus}, {config.starts} starts",
    )
    axis.legend(loc="center left")
    results.figure("accuracy", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
