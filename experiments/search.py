"""A search over architectures and learning rates: the best point, and the points that cannot be distinguished from it.

    python -m experiments.search [--out DIR] [--seed N]

Eight networks (one or two hidden layers of 16 or 32 units, with tanh or ReLU) learn scikit-learn's digits by
stochastic gradient descent, each with 16 learning rates and six seeds. The layers are a static choice, so there are
eight programs; each trains its 96 runs side by side. All points have the same seeds, so their losses are compared in
pairs.

The figure shows the mean held-out loss by learning rate, one line for each architecture; circles mark the points that
six seeds cannot distinguish from the best. Expect tanh with 32 units per layer to be best, at a rate near 1, where
most networks with ReLU no longer learn; and about 7 of the 128 points, with one layer and with two, to be
indistinguishable from it. With six seeds, a point is distinguished from the best only if it is worse for every seed.
It takes about a minute on two cores, nearly all of it for compiling the programs.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, PURPLE, Results, command, print_table
from nnfx.search import Choice, Grid, LogUniform, Search, search
from nnfx.search.space import Range
from nnfx.training.fit import Fit


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on searches."""

    out: Path = Path("runs/search")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rates: int = 16
    """the number of learning rates"""
    seeds: int = 6
    """number of runs of each point"""
    epochs: int = 10
    """number of epochs of each run"""
    batch_size: int = 64
    """number of digits in a minibatch"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data_key, key = jax.random.split(jax.random.key(config.seed))
    data = nnfx.data.digits(key=data_key, valid_fraction=0.25)
    space: dict[str, Range] = {
        "hidden": Choice((16,), (32,), (16, 16), (32, 32)),
        "activation": Choice("tanh", "relu"),
        "learning_rate": LogUniform(0.01, 3.0),
    }
    found = search(
        functools.partial(make, config),
        data,
        space,
        key=key,
        points=Grid(config.rates),
        seeds=config.seeds,
        progress=True,
    )
    best, unsure = found.by_point(), found.indistinguishable()
    names = ("rank", "hidden", "activation", "learning_rate", "valid_loss", "standard_error", "worst")
    print("\nthe ten best points, by their mean held-out loss in nats\n")
    print_table(names, [[row[name] for name in names] for row in best.rows[:10]], words=3)
    columns = ("hidden", "activation", "learning_rate", "valid_loss", "difference", "p_value")
    print(
        f"\npoints that {config.seeds} seeds cannot distinguish from the best at 5 %:"
        f" {len(unsure.rows)} of {len(best.rows)}\n"
    )
    print_table(columns, [[row[name] for name in columns] for row in unsure.rows], words=2)

    draw(results, found, set(unsure.numbers))
    found.save(results.out / "members.csv")
    best.save(results.out / "points.csv")
    return results.summary(
        {
            "best": best.rows[0],
            "indistinguishable": unsure.rows,
            "points": len(found.points),
            "programs": len(found.programs),
            "runs": len(found.rows),
            "seed": config.seed,
        }
    )


def make(config: Config, hidden: tuple[int, ...], activation: str) -> Fit:
    """Return the function that trains an architecture."""
    return nnfx.fit(
        nnfx.models.mlp(hidden, outputs=10, activation=activation),
        nnfx.losses.categorical_cross_entropy,
        optax.sgd,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )


def draw(results: Results, found: Search, unsure: set[int]) -> None:
    """Plot the mean loss by learning rate, and mark the points that cannot be distinguished from the best."""
    figure, axis = plt.subplots(figsize=(9, 5.5))
    colours = dict(zip([(16,), (32,), (16, 16), (32, 32)], (BLUE, ORANGE, GREEN, PURPLE), strict=True))
    of_point = {row["point"]: row for row in found.by_point().rows}
    for program in found.programs:
        rows = sorted((of_point[number] for number in program.numbers), key=lambda row: float(row["learning_rate"]))
        rates, losses, errors = (
            np.array([row[name] for row in rows]) for name in ("learning_rate", "valid_loss", "standard_error")
        )
        colour, style = colours[program.static["hidden"]], "-" if program.static["activation"] == "tanh" else "--"
        layers = " and ".join(map(str, program.static["hidden"]))
        axis.errorbar(
            rates,
            losses,
            errors,
            color=colour,
            linestyle=style,
            label=f"{layers} units, {program.static['activation']}",
        )
        marked = [row["point"] in unsure for row in rows]
        axis.plot(rates[marked], losses[marked], "o", color=colour, markeredgecolor="black", markersize=8)
    axis.plot([], [], "o", color="white", markeredgecolor="black", label="cannot be distinguished from the best")
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="held-out loss (nats)")
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_title("mean over seeds, with its standard error")
    axis.legend()
    results.figure("search", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
