"""Successive halving: the best of a random search for a fifth of its epochs.

    python -m experiments.successive_halving [--out DIR] [--seed N]

It draws 128 points at random (learning rate, momentum, weight decay, dropout) for a network on the Titanic data, and
trains all of them to the end, and then again by successive halving, which keeps the better half at epochs 4, 8, 16 and
32 of 64. All of this is repeated five times, each time with different points, seeds and held-out passengers. A point's
loss is its best held-out loss, averaged over seeds. Both searches choose by this number, so it does not estimate the
loss on other passengers.

Expect halving to find the same best point, or a point less than 1 % worse, with 19 % of the member-epochs (epochs of
single runs) and in about a quarter of the time. Two results count against halving here. A search with as many
member-epochs that trains fewer points to the end, also plotted, comes within 1 % too, since good points are common on
this data. Also, the first call of halving takes longer than the first call of the full search, since each smaller
table needs another program to be compiled. The experiment takes about a minute on two cores.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import nnfx
from experiments.common import BLUE, GREY, ORANGE, SKY, Results, command, print_table
from nnfx import sweeps


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on successive halving."""

    out: Path = Path("runs/successive_halving")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    repetitions: int = 5
    """the number of repetitions"""
    points: int = 128
    """number of points drawn"""
    seeds: int = 2
    """number of runs of each point"""
    epochs: int = 64
    """number of epochs of a full run"""
    rungs: tuple[int, ...] = (4, 8, 16, 32)
    """the epochs after which points are dropped"""
    keep: float = 0.5
    """the fraction of the points kept at each rung"""
    hidden: int = 16
    """width of the hidden layer"""
    batch_size: int = 32
    """number of passengers in a minibatch"""


@dataclasses.dataclass(frozen=True)
class Search:
    """A search, with the epochs and the time that it took.

    Attributes:
        best: the best held-out loss of each point up to each epoch, `(points, epochs)`, averaged over seeds.
        lengths: the number of epochs after which each point was dropped or finished, `(points,)`.
        spent: member-epochs spent up to each epoch, `(epochs,)`.
        seconds: the wall time of the search.
        sweep: the sweep itself.
    """

    best: np.ndarray
    lengths: np.ndarray
    spent: np.ndarray
    seconds: float
    sweep: sweeps.Sweep

    @property
    def best_so_far(self) -> np.ndarray:
        """The loss of the best point by epoch, `(epochs,)`."""
        return self.best.min(0)

    @property
    def winner(self) -> int:
        """The index of the best point."""
        return int(self.best[:, -1].argmin())


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    train = nnfx.fit(
        lambda dropout: nnfx.models.mlp(hidden=(config.hidden,), activation="tanh", dropout=dropout),
        nnfx.losses.binary_cross_entropy,
        decayed_sgd,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    key = jax.random.key(config.seed)
    warm_up = search_both_ways(train, key, config)
    first_call = {name: search.seconds for name, search in warm_up.items()}
    pairs = [search_both_ways(train, jax.random.fold_in(key, i), config) for i in range(config.repetitions)]
    repetitions = [compare(pair["full"], pair["halving"]) for pair in pairs]

    means = {name: float(np.mean([numbers[name] for numbers in repetitions])) for name in repetitions[0]}
    print_table(
        ["", "full", "halving", "excess", "rank", "excess, same budget", "member-epochs", "wall time"],
        [
            [
                name,
                numbers["full"],
                numbers["halving"],
                f"{numbers['ratio'] - 1:.2%}",
                numbers["rank"],
                f"{numbers['same_budget_ratio'] - 1:.2%}",
                f"{numbers['epochs_fraction']:.1%}",
                f"{numbers['wall_fraction']:.1%}",
            ]
            for name, numbers in [*((str(i + 1), numbers) for i, numbers in enumerate(repetitions)), ("mean", means)]
        ],
    )
    print(
        f"\nfirst call, including compilation: full {first_call['full']:.1f} s, halving {first_call['halving']:.1f} s;"
        f" later calls {means['wall_full_s']:.2f} s and {means['wall_halving_s']:.2f} s"
    )

    draw(results, pairs, config)
    for name, search in pairs[0].items():
        search.sweep.save(config.out / f"{name}.csv")
    results.history(
        {f"{name} {i + 1}": search.best_so_far for i, pair in enumerate(pairs) for name, search in pair.items()}
    )
    return results.summary(
        {
            "members": config.points * config.seeds,
            "epochs": config.epochs,
            "rungs": config.rungs,
            "keep": config.keep,
            "repetitions": repetitions,
            "means": means,
            "worst_ratio": max(numbers["ratio"] for numbers in repetitions),
            "first_call_s": first_call,
            "seed": config.seed,
        }
    )


def decayed_sgd(learning_rate: float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Descend the gradient of the loss and of `weight_decay ‖W‖² / 2`, with momentum."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))


def search_both_ways(train: Any, key: jax.Array, config: Config) -> dict[str, Search]:
    """Draw points, and search them by full training and by successive halving, with the same seeds."""
    data_key, points_key, sweep_key = jax.random.split(key, 3)
    data = nnfx.data.titanic("fare", "age", key=data_key, valid_fraction=0.25)
    points = sweeps.draw(
        points_key,
        config.points,
        learning_rate=sweeps.LogUniform(1e-4, 10.0),
        momentum=sweeps.Uniform(0.0, 0.99),
        weight_decay=sweeps.LogUniform(1e-5, 0.1),
        dropout=sweeps.Uniform(0.0, 0.5),
    )
    common: dict[str, Any] = {"key": sweep_key, "seeds": config.seeds, "points": points}
    return {
        "full": timed(
            config,
            lambda: sweeps.sweep(
                train,
                data,
                epochs_per_chunk=max(1, config.epochs // 8),
                progress="full training",
                **common,
            ),
        ),
        "halving": timed(
            config,
            lambda: sweeps.sweep(
                train, data, halving=sweeps.Halving(config.rungs, config.keep), progress="halving", **common
            ),
        ),
    }


def timed(config: Config, search: Callable[[], sweeps.Sweep]) -> Search:
    """Run a search, and measure its time and member-epochs."""
    started = time.perf_counter()
    sweep = search()
    seconds = time.perf_counter() - started
    by_member = sweep.histories["valid_loss"]
    by_point = by_member.reshape(config.seeds, config.points, config.epochs)
    best = np.fmin.accumulate(by_point, axis=-1)
    lengths = np.zeros(len(by_member), int)
    for row in sweep.rows:
        lengths[row["member"]] = row["epochs"]
    running = (lengths[:, None] > np.arange(config.epochs)).sum(0)
    return Search(
        best=np.where(np.isnan(best), np.inf, best).mean(0),
        lengths=lengths.reshape(config.seeds, config.points)[0],
        spent=running.cumsum(),
        seconds=seconds,
        sweep=sweep,
    )


def compare(full: Search, halving: Search) -> dict[str, float]:
    """Compare the two searches of one repetition.

    Returns:
        The losses of the best points and their ratio; the rank of halving's choice in the full search, from 1; the
        ratio for a search that trains fewer points to the end with as many member-epochs; halving's member-epochs and
        time as fractions of the full search; and the times of both.
    """
    losses = full.best[:, -1]
    fraction = float(halving.spent[-1] / full.spent[-1])
    affordable = max(1, int(fraction * len(losses)))
    best, found = float(losses.min()), float(halving.best[:, -1].min())
    return {
        "full": best,
        "halving": found,
        "ratio": found / best,
        "rank": 1 + int((losses < losses[halving.winner]).sum()),
        "same_budget_ratio": best_of_some(losses)[affordable - 1] / best,
        "epochs_fraction": fraction,
        "wall_fraction": halving.seconds / full.seconds,
        "wall_full_s": full.seconds,
        "wall_halving_s": halving.seconds,
    }


def best_of_some(losses: np.ndarray) -> np.ndarray:
    """Return the expected minimum of n of these losses, drawn without replacement, for each n from 1 upwards.

    >>> best_of_some(np.array([3.0, 1.0, 2.0])).round(3).tolist()
    [2.0, 1.333, 1.0]
    """
    ordered, count = np.sort(losses), len(losses)
    chance = [
        [math.comb(count - i - 1, n - 1) / math.comb(count, n) for i in range(count)] for n in range(1, count + 1)
    ]
    finite = np.where(np.isfinite(ordered), ordered, np.finfo(float).max / count)
    return np.array(chance) @ finite


def draw(results: Results, pairs: list[dict[str, Search]], config: Config) -> None:
    """Plot the losses of all points of the first repetition, and the best loss against the member-epochs spent."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    draw_points(axes[0], pairs[0]["halving"], config)
    draw_spending(axes[1], pairs, config)
    results.figure("successive_halving", figure)


def draw_points(axis: Axes, halving: Search, config: Config) -> None:
    """Plot the loss by which each point is ranked, up to the rung at which it was dropped."""
    lengths = halving.lengths
    order = sorted(range(config.points), key=lambda point: (lengths[point], point == halving.winner))
    for point in order:
        length = lengths[point]
        epochs, losses = np.arange(1, length + 1), halving.best[point, :length]
        if point == halving.winner:
            axis.plot(epochs, losses, color=ORANGE, linewidth=2.4, label="the best")
        elif length == config.epochs:
            axis.plot(epochs, losses, color=BLUE, linewidth=1.2, label="kept to the end")
        else:
            axis.plot(epochs, losses, color=GREY, linewidth=0.7, alpha=0.5, label="dropped at a rung (×)")
            axis.plot(length, losses[-1], "x", color=GREY, markersize=4, markeredgewidth=0.8)
    first = halving.best[:, 0]
    low, high = halving.best.min(), np.quantile(first, 0.8, method="lower")
    beyond = int((first > high).sum())
    axis.set(ylim=(low - 0.05 * (high - low), high), xlim=(0.95, 1.05 * config.epochs))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    for rung in config.rungs:
        left = int((lengths > rung).sum())
        axis.axvline(rung, color="black", linewidth=0.7, linestyle=":")
        axis.annotate(str(left), (rung, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    axis.annotate(
        "left:", (0, 1), (-2, 3), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=9
    )
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(list(unique.values())[::-1], list(unique)[::-1], loc="upper right", frameon=True, framealpha=1)
    axis.set_title(
        f"{config.points} points, one line each (mean of {config.seeds} seeds); {beyond} start above the plotted range",
        pad=18,
    )
    axis.set(xlabel="epoch", ylabel="best held-out loss so far (nats)")


def draw_spending(axis: Axes, pairs: list[dict[str, Search]], config: Config) -> None:
    """Plot the best loss so far, relative to the best loss of the full search, against member-epochs."""
    some = [100 * (best_of_some(pair["full"].best[:, -1]) / pair["full"].best[:, -1].min() - 1) for pair in pairs]
    one_by_one = np.arange(1, config.points + 1) * config.seeds * config.epochs
    axis.plot(
        one_by_one, np.mean(some, 0), color=GREY, linestyle="--", label="fewer points, each to the end (expected)"
    )
    for name, colour, label, width in (("full", SKY, "all points, all epochs", 4.0), ("halving", BLUE, "halving", 1.8)):
        excess = [100 * (pair[name].best_so_far / pair["full"].best_so_far[-1] - 1) for pair in pairs]
        for values in excess:
            axis.plot(pairs[0][name].spent, values, color=colour, linewidth=0.6, alpha=0.6)
        spent, mean = pairs[0][name].spent, np.mean(excess, 0)
        axis.plot(spent, mean, color=colour, linewidth=width, label=label)
        axis.plot(spent[-1], mean[-1], "o", color=colour, markeredgecolor="black", markersize=7, zorder=5)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.annotate("1 %", (1, 1), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")
    axis.set_title(f"thick: mean of {len(pairs)} repetitions; thin: each", pad=18)
    axis.set(xlabel="member-epochs spent", ylabel="best held-out loss, excess over the full search (%)", xscale="log")
    axis.set(ylim=(-0.1, 3))
    axis.legend(loc="upper right")


if __name__ == "__main__":
    command(main, Config, __doc__)
