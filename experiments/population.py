"""Population-based training: a schedule of learning rates found within one training run.

    python -m experiments.population [--out DIR] [--seed N]

Twenty networks learn scikit-learn's digits side by side, each with its own learning rate and dropout rate. Every two
epochs the worst fifth copy the weights and the two rates of the best, and perturb the rates; all of this is one
compiled program. A random search trains as many networks with fixed rates for as many epochs. Both select by the same
held-out digits, and are scored on other digits, on five random splits.

The figure shows the members' rates by epoch, and the schedule that led to the best member. Expect the population's
loss to be about 0.03 nats lower than the loss of the random search, which picks among twenty fixed draws, while the
population continues from its best members and refines their rates. The experiment takes about half a minute on two
cores.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREY, ORANGE, Results, command, mean_and_error, print_table
from nnfx.data import Data
from nnfx.sweeps import LogUniform, Population, Sweep, Uniform, population, sweep

RANGES: dict[str, Any] = {"learning_rate": LogUniform(1e-3, 3.0), "dropout": Uniform(0.0, 0.6)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on population-based training."""

    out: Path = Path("runs/population")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    splits: int = 5
    """number of random splits; at least 2 for a standard error"""
    size: int = 20
    """number of members of a population, and of points of a random search"""
    epochs: int = 40
    """number of epochs of each member"""
    epochs_per_round: int = 2
    """number of epochs between replacements"""
    hidden: int = 32
    """width of the hidden layer"""
    batch_size: int = 32
    """number of digits in a minibatch"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    train = nnfx.fit(
        lambda dropout: nnfx.models.mlp(hidden=(config.hidden,), outputs=10, dropout=dropout),
        nnfx.losses.categorical_cross_entropy,
        optax.sgd,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    evolve = population(train, size=config.size, epochs_per_round=config.epochs_per_round, **RANGES)
    found: list[tuple[Population, Sweep]] = []
    losses: dict[str, list[float]] = {"population": [], "fixed numbers": []}
    for key in jax.random.split(jax.random.key(config.seed), config.splits):
        split_key, population_key, sweep_key = jax.random.split(key, 3)
        data, others = three_parts(split_key)
        members = evolve(population_key, data)
        search = sweep(train, data, key=sweep_key, points=config.size, **RANGES)
        found.append((members, search))
        for name, best in (("population", members.best), ("fixed numbers", search.best)):
            losses[name].append(float(best.evaluate(others)["loss"]))

    difference = mean_and_error(np.subtract(losses["population"], losses["fixed numbers"]))
    scores = {name: mean_and_error(np.array(values)) for name, values in losses.items()}
    print_table(
        ["", "loss on digits used by neither", "±"], [[name, *score.values()] for name, score in scores.items()]
    )
    replaced = float(np.mean([np.mean(np.asarray(each.parents)[1:] != np.arange(config.size)) for each, _ in found]))
    print(
        f"\na population's loss minus the loss of fixed rates: {difference['mean']:.4f} ± {difference['error']:.4f};"
        f" {replaced:.0%} of the members were replaced after a round"
    )
    draw(results, *found[0], config)
    return results.summary(
        {
            "losses": scores,
            "difference": difference,
            "replaced": replaced,
            "schedule": found[0][0].schedule(best_of(found[0][0])),
            "seed": config.seed,
        }
    )


def three_parts(key: jax.Array) -> tuple[Data, nnfx.Batch]:
    """Return digits for training and selection, and the quarter of the digits that is used for neither."""
    data = nnfx.data.digits(key=key, valid_fraction=0.5)
    assert data.valid is not None
    half = len(data.valid.targets) // 2
    parts = np.s_[:half], np.s_[half:]
    chosen_by, others = (jax.tree.map(lambda rows, part=part: rows[part], data.valid) for part in parts)
    return dataclasses.replace(data, valid=chosen_by), others


def best_of(members: Population) -> int:
    """Return the member with the best weights."""
    return int(np.nanargmin(np.asarray(members.runs.best.loss)))


def draw(results: Results, members: Population, search: Sweep, config: Config) -> None:
    """Plot the members' rates and losses by epoch, with the lineage of the best member, beside the random search."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    rounds, best = np.arange(len(members.parents)), best_of(members)
    epochs = (rounds + 1) * config.epochs_per_round
    for axis, name in zip(axes, RANGES, strict=False):
        axis.plot(epochs, np.asarray(members.hyper[name]), color=GREY, alpha=0.35, linewidth=0.8)
        axis.plot(epochs, members.schedule(best)[name], color=BLUE, linewidth=2.5, label="ancestors of the best member")
        axis.axhline(search.best.row[name], color=ORANGE, linestyle="--", label="the best fixed rate")
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.legend(fontsize=8)
    axes[0].set_yscale("log")
    losses = np.asarray(members.losses)
    axes[2].plot(epochs, losses, color=GREY, alpha=0.35, linewidth=0.8)
    axes[2].plot(epochs, losses[rounds, members.lineage(best)], color=BLUE, linewidth=2.5, label="its ancestors")
    fixed = search.histories["valid_loss"][search.best.row["member"]]
    axes[2].plot(np.arange(1, config.epochs + 1), fixed, color=ORANGE, linestyle="--", label="the best fixed rates")
    axes[2].set(title="held-out loss (nats)", xlabel="epoch", yscale="log")
    axes[2].legend(fontsize=8)
    figure.suptitle(
        f"A population of {config.size} networks; the worst fifth copy the best fifth every"
        f" {config.epochs_per_round} epochs",
        fontsize=11,
    )
    results.figure("population", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
