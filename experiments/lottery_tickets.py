"""Lottery tickets: a small part of a network's weights learns as well as all, if started from its initial values.

    python -m experiments.lottery_tickets [--out DIR] [--seed N] [--rounds 10]

A dense network learns half of the digits. Then, round by round, the smallest weights of each layer are pruned, and
those that remain are reset to their initial values and trained again: iterative magnitude pruning. For comparison,
the remaining weights are also drawn anew. A network that is pruned and reset is called a ticket. All rounds of one
start are a scan over runs, and all starts run in one program.

For a network of these widths on MNIST, Frankle and Carbin report that tickets learn faster than the whole network, are
more accurate until few weights remain, and are as accurate with 3.6 % of the weights. They report that tickets drawn
anew learn more slowly than the whole network, and are less accurate with 21.1 % of the weights. In this experiment,
expect tickets to learn as fast as the whole network down to 40 % of its weights, and to lose less than a point of
accuracy down to 7 %. Drawn anew, they learn more slowly from the first round on, and lose a point below 26 %. On these
digits, and in 25 epochs, tickets are not more accurate than the whole network. The experiment works offline and takes
about a minute.

References:
    Frankle and Carbin, *The lottery ticket hypothesis: finding sparse, trainable neural networks*, ICLR 2019.
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
from experiments.common import BLUE, GREY, ORANGE, Results, command, mean_and_error, print_table
from nnfx import models
from nnfx.data import Data
from nnfx.types import Array, Params

LOSS = nnfx.losses.categorical_cross_entropy
KINDS = {"initial": "with their initial values", "redrawn": "with values drawn anew"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment with lottery tickets."""

    out: Path = Path("runs/lottery_tickets")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    hidden: tuple[int, ...] = (300, 100)
    """widths of the hidden layers"""
    prune: float = 0.36
    """the fraction of each layer's weights that is pruned before each round except the first"""
    rounds: int = 10
    """number of rounds of training"""
    starts: int = 5
    """number of random starts"""
    epochs: int = 25
    """number of epochs of each run"""
    batch_size: int = 60
    """number of digits in a minibatch"""
    learning_rate: float = 1.2e-3
    """learning rate (Adam)"""
    loss: float = 0.3
    """a held-out loss; the number of epochs until a network reaches it measures how fast it learns"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data_key, key = jax.random.split(jax.random.key(config.seed))
    data = nnfx.data.digits(key=data_key, valid_fraction=0.5)
    left = (1 - config.prune) ** np.arange(config.rounds)
    rounds = jax.jit(lambda keys: jax.lax.map(lambda key: prune_by_rounds(key, data, left, config), keys))
    histories = jax.tree.map(np.asarray, rounds(jax.random.split(key, config.starts)))  # starts × rounds × epochs
    accuracy = {kind: 100 * of["valid_accuracy"][:, :, -1].T for kind, of in histories.items()}  # rounds × starts
    epochs = {kind: first_below(of["valid_loss"], config.loss).T for kind, of in histories.items()}
    found = {
        f"{what}, {kind}": [mean_and_error(each) for each in values[kind]]
        for what, values in (("accuracy", accuracy), ("epochs", epochs))
        for kind in KINDS
    }
    print(f"accuracy on held-out digits in per cent, and epochs to a loss of {config.loss:g}; {config.starts} starts\n")
    print_table(
        ["weights left, %", *(head for name in found for head in (name, "±"))],
        [
            [f"{100 * share:.1f}", *(n for several in found.values() for n in several[i].values())]
            for i, share in enumerate(left)
        ],
    )
    smallest = {kind: 100 * smallest_share(left, several) for kind, several in accuracy.items()}
    print("\nat most one point less accurate than the whole network, down to")
    print(*(f"  {smallest[kind]:.1f} % of its weights, {words}" for kind, words in KINDS.items()), sep="\n")
    draw(results, left, accuracy, epochs, config)
    better = (accuracy["initial"] > accuracy["redrawn"]).sum(1)
    return results.summary({"left": left, **found, "smallest": smallest, "better": better, "seed": config.seed})


def prune_by_rounds(key: Array, data: Data, left: np.ndarray, config: Config) -> dict[str, dict[str, Array]]:
    """Train and prune in turn, and return the history of each round, for tickets and for weights drawn anew."""
    model = models.mlp(config.hidden, 10, initializer="glorot_normal")
    *keys, run_key = jax.random.split(key, 3)
    initial, redrawn = (model.init(each, data.train.inputs)["params"] for each in keys)

    def trained(start: Params, masks: Params) -> nnfx.Run:
        ticket = models.masked(models.pretrained(model, {"params": start}), masks)
        fit = nnfx.fit(
            ticket, LOSS, optax.adam, epochs=config.epochs, batch_size=config.batch_size, metrics=["accuracy"]
        )
        return fit(run_key, data, learning_rate=config.learning_rate)

    def one_round(params: Params, share: Array) -> tuple[Params, dict[str, dict[str, Array]]]:
        masks = models.magnitude_masks(params, share, per_layer=True)
        run = trained(initial, masks)
        return run.state.params, {"initial": run.history, "redrawn": trained(redrawn, masks).history}

    return jax.lax.scan(one_round, initial, jnp.asarray(left))[1]


def first_below(losses: np.ndarray, loss: float) -> np.ndarray:
    """Return the first epoch, along the last axis, whose loss is lower than this; NaN if there is none."""
    is_below = losses < loss
    return np.where(is_below.any(-1), is_below.argmax(-1) + 1, np.nan)


def smallest_share(left: np.ndarray, accuracy: np.ndarray, margin: float = 1.0) -> float:
    """Return the smallest fraction of its weights to which the network can be pruned at little cost.

    Down to this fraction, the mean accuracy stays within `margin` of that of the whole network.
    """
    is_worse = accuracy.mean(1) < accuracy[0].mean() - margin
    return float(left[~np.logical_or.accumulate(is_worse)][-1])


def draw(results: Results, left: np.ndarray, accuracy: dict[str, Any], epochs: dict[str, Any], config: Config) -> None:
    """Plot the accuracy, and the number of epochs to a given loss, against the fraction of weights remaining."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for axis, values in zip(axes, (accuracy, epochs), strict=True):
        for (kind, words), colour in zip(KINDS.items(), (BLUE, ORANGE), strict=True):
            axis.plot(100 * left, values[kind], color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(100 * left, values[kind].mean(1), "o-", color=colour, markersize=4, label=f"weights {words}")
        axis.axhline(values["initial"][0].mean(), color=GREY, linestyle="--", linewidth=1, label="the whole network")
        axis.set(xscale="log", xlabel="weights left (%)")
        axis.set_xticks([100, 50, 20, 10, 5, 2], ["100", "50", "20", "10", "5", "2"])
        axis.minorticks_off()
        axis.set_xlim(120, 80 * left.min())
    axes[0].set(ylabel="accuracy on held-out digits (%)", ylim=(max(0, accuracy["initial"].min() - 5), 100))
    axes[1].set(ylabel=f"epochs to a held-out loss of {config.loss:g}")
    axes[0].legend()
    results.figure("by_share", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
