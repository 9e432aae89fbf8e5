"""Learning rates that are too small, just right and too large, for eleven optimizers.

    python -m experiments.learning_rates [--out DIR] [--seed N]

It trains one small network on the Titanic data (fare and age, a quarter of the passengers held out) with every rate of
a logarithmic grid, every seed and every optimizer: 3,135 runs, one sweep for each optimizer. A rate is just right for
an optimizer if the loss is within 5 % of the best that the optimizer reaches, and the width of that range in decades
shows how carefully the rate must be chosen. A run has diverged if its last training loss is NaN, or more than 5 %
above the loss of the untrained network.

Expect a range of about three decades for both SGD and Adam; the rates of Adam are some twenty times lower. LAMB
overflows once its rate is near a tenth: the hidden weights grow by nearly that fraction in each step. Schedules that
decay allow larger rates, and runs with such rates fit the training passengers better than all others. Relative to
their own best loss, the range of these schedules looks narrow, so the rates that come within 5 % of SGD's best are
plotted too. The held-out loss is the loss of a run's best epoch, which is selected using the same passengers: it
serves to compare rates, and does not estimate the loss on other passengers. The experiment takes about a minute on two
cores.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, PURPLE, Results, command, print_table
from nnfx.data import Data, batching

KINDS = {"fixed": BLUE, "scheduled": GREEN, "adaptive": ORANGE, "by the size of the weights": PURPLE}
"""The kinds of optimizers, and their colours."""

WORSE = 1.05
"""A run has diverged if its last training loss is more than this factor times the loss of the untrained network."""

SHOWN = (0.53, 0.80)
"""The range of losses in the figure; higher ones are marked at its upper edge."""

Factory = Callable[..., optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on learning rates."""

    out: Path = Path("runs/learning_rates")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    epochs: int = 60
    """number of epochs of each run"""
    hidden: int = 16
    """width of the hidden layer"""
    batch_size: int = 32
    """number of passengers in a minibatch"""
    lowest: float = 1e-5
    """the lowest learning rate"""
    highest: float = 1e2
    """the highest learning rate"""
    rates: int = 57
    """number of rates, evenly spaced on a logarithmic scale"""
    seeds: int = 5
    """number of runs of each optimizer at each rate"""
    within: float = 0.05
    """a rate is just right if its loss exceeds the optimizer's best by at most this fraction"""


class JustRight(NamedTuple):
    """The rates around the best one for which the median loss stays close to the best, or to another optimizer's best.

    Attributes:
        best_rate: the rate with the lowest median loss.
        best_loss: the lowest median loss.
        lowest: the lowest rate that is just right.
        highest: the highest rate that is just right.
        width_decades: the width of the range between them.
        is_cut: whether the range reaches an end of the grid, and so may be wider than it looks.
    """

    best_rate: float
    best_loss: float
    lowest: float
    highest: float
    width_decades: float
    is_cut: bool


@dataclasses.dataclass(frozen=True)
class Measured:
    """The results of one optimizer's runs.

    Attributes:
        kind: one of `KINDS`.
        losses: the losses for `"training"` (of the last epoch) and `"held_out"` (of the best epoch), `(seeds, rates)`.
        just_right: the rates that are just right, for each of the two losses.
        diverged: which runs diverged, `(seeds, rates)`.
        curves: median losses by epoch at the best rate for the training loss.
        seconds: the wall time of the sweep, including compilation.
    """

    kind: str
    losses: dict[str, np.ndarray]
    just_right: dict[str, JustRight]
    diverged: np.ndarray
    curves: dict[str, np.ndarray]
    seconds: float


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    key, split_key = jax.random.split(jax.random.key(config.seed))
    data = nnfx.data.titanic("fare", "age", key=split_key, valid_fraction=0.25)
    rates = np.logspace(np.log10(config.lowest), np.log10(config.highest), config.rates)
    steps = config.epochs * batching.steps_per_epoch(len(data.train.weights), config.batch_size)
    untrained = untrained_losses(key, data, config)
    print(f"{data.report}\n")

    everything = {
        name: measure(results, name, kind, factory, key, data, rates, untrained, config)
        for kind, factories in optimizers(steps).items()
        for name, factory in factories.items()
    }
    near_sgd = {
        name: find_near_sgd(measured, everything["SGD"], rates, config) for name, measured in everything.items()
    }
    print_table(
        ["", "best rate", "training loss", "decades", "best rate", "held-out loss", "decades", "diverged", "seconds"],
        [
            [
                name,
                *(
                    number
                    for found in measured.just_right.values()
                    for number in (found.best_rate, found.best_loss, in_decades(found))
                ),
                f"{measured.diverged.mean():.0%}",
                measured.seconds,
            ]
            for name, measured in everything.items()
        ],
    )
    draw_losses(results, everything, rates, float(untrained.mean()), config.within)
    draw_just_right(results, everything, near_sgd, rates, config.within)
    results.history(
        {
            f"{name} {metric}": curve
            for name, measured in everything.items()
            for metric, curve in measured.curves.items()
        }
    )
    return results.summary(
        {
            "runs": sum(measured.diverged.size for measured in everything.values()),
            "untrained_loss": untrained.mean(),
            "within": config.within,
            "optimizers": {
                name: {
                    "kind": measured.kind,
                    **{losses: found._asdict() for losses, found in measured.just_right.items()},
                    "near_sgd": {losses: found.width_decades for losses, found in near_sgd[name].items()},
                    "diverged": measured.diverged.mean(),
                    "runs": measured.diverged.size,
                    "wall_s": round(measured.seconds, 3),
                }
                for name, measured in everything.items()
            },
            "seed": config.seed,
        }
    )


def optimizers(steps: int) -> dict[str, dict[str, Factory]]:
    """Return factories that take a learning rate, by kind and name, for runs of this many steps."""
    warm_up = max(1, steps // 10)

    def warmed_up(learning_rate: float) -> optax.GradientTransformation:
        rise = optax.linear_schedule(0.0, learning_rate, warm_up)
        fall = optax.cosine_decay_schedule(learning_rate, max(1, steps - warm_up))
        return optax.sgd(optax.join_schedules([rise, fall], [warm_up]))

    return {
        "fixed": {
            "SGD": optax.sgd,
            "SGD, momentum 0.9": functools.partial(optax.sgd, momentum=0.9),
        },
        "scheduled": {
            "SGD, exponential to 1 %": lambda learning_rate: optax.sgd(
                optax.exponential_decay(learning_rate, steps, decay_rate=0.01)
            ),
            "SGD, cosine": lambda learning_rate: optax.sgd(optax.cosine_decay_schedule(learning_rate, steps)),
            "SGD, warm-up and cosine": warmed_up,
        },
        "adaptive": {
            "Adagrad": optax.adagrad,
            "RMSprop": optax.rmsprop,
            "Adam": optax.adam,
            "AdamW, decay 0.01": functools.partial(optax.adamw, weight_decay=0.01),
        },
        "by the size of the weights": {"LARS": optax.lars, "LAMB": optax.lamb},
    }


def untrained_losses(key: jax.Array, data: Data, config: Config) -> np.ndarray:
    """Return the training loss of each seed's network before its first step, `(seeds,)`."""
    model = nnfx.models.mlp(hidden=(config.hidden,), activation="tanh")

    def loss(seed: jax.Array) -> jax.Array:
        state = nnfx.init_state(jax.random.fold_in(key, seed), model, optax.identity(), data.train.inputs)
        measures = {"loss": nnfx.losses.binary_cross_entropy}
        return nnfx.evaluate(model, measures, state.variables, data.train)["loss"].value

    return np.asarray(jax.jit(jax.vmap(loss))(np.arange(config.seeds)))


def measure(
    results: Results,
    name: str,
    kind: str,
    factory: Factory,
    key: jax.Array,
    data: Data,
    rates: np.ndarray,
    untrained: np.ndarray,
    config: Config,
) -> Measured:
    """Train with one optimizer at every rate and with every seed, as one sweep, and save its table."""
    train = nnfx.fit(
        nnfx.models.mlp(hidden=(config.hidden,), activation="tanh"),
        nnfx.losses.binary_cross_entropy,
        factory,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    started = time.perf_counter()
    sweep = nnfx.sweeps.sweep(
        train,
        data,
        key=key,
        seeds=config.seeds,
        epochs_per_chunk=max(1, config.epochs // 10),
        progress=name,
        learning_rate=rates,
    )
    seconds = time.perf_counter() - started

    shape = config.seeds, len(rates)
    losses = {
        "training": sweep.histories["train_loss"][:, -1].reshape(shape),
        "held_out": np.fmin.reduce(sweep.histories["valid_loss"], axis=1).reshape(shape),
    }
    diverged = ~(losses["training"] <= WORSE * untrained[:, None])
    just_right = {part: find_just_right(rates, values, config.within) for part, values in losses.items()}
    at_best = np.argmin(np.abs(rates - just_right["training"].best_rate))
    curves = {metric: quantile(values.reshape(*shape, -1)[:, at_best]) for metric, values in sweep.histories.items()}

    further = {"last_train_loss": losses["training"].ravel().tolist(), "diverged": diverged.ravel().tolist()}
    rows = [row | {column: values[row["member"]] for column, values in further.items()} for row in sweep.rows]
    folder = results.out / "sweeps"
    folder.mkdir(exist_ok=True)
    words = "".join(letter if letter.isalnum() or letter == "." else " " for letter in name.lower()).split()
    dataclasses.replace(sweep, rows=rows).save(folder / f"{'_'.join(words)}.csv")
    return Measured(kind, losses, just_right, diverged, curves, seconds)


def quantile(values: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Return the median, or another quantile, over the seeds, as the nearest measured value; NaN counts as infinite."""
    ordered = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    return ordered[round(share * (len(ordered) - 1))]


def find_just_right(rates: np.ndarray, losses: np.ndarray, within: float, near: float | None = None) -> JustRight:
    """Extend the range in both directions while the median loss is close to the best, or to `near`."""
    middle = quantile(losses)
    best = int(middle.argmin())
    too_bad = np.flatnonzero(~(middle <= (1 + within) * (middle[best] if near is None else near)))
    first = int(max(too_bad[too_bad < best], default=-1)) + 1
    last = int(min(too_bad[too_bad > best], default=len(rates))) - 1
    return JustRight(
        best_rate=float(rates[best]),
        best_loss=float(middle[best]),
        lowest=float(rates[first]),
        highest=float(rates[last]),
        width_decades=float(np.log10(rates[last] / rates[first])),
        is_cut=first == 0 or last == len(rates) - 1,
    )


def find_near_sgd(measured: Measured, sgd: Measured, rates: np.ndarray, config: Config) -> dict[str, JustRight]:
    """Find the rates at which an optimizer comes close to the best loss of plain SGD."""
    return {
        part: find_just_right(rates, losses, config.within, near=sgd.just_right[part].best_loss)
        for part, losses in measured.losses.items()
    }


def in_decades(found: JustRight) -> str:
    """Return the width of the range as text."""
    return f"{'≥ ' if found.is_cut else ''}{found.width_decades:.1f}"


def draw_losses(
    results: Results, everything: dict[str, Measured], rates: np.ndarray, untrained: float, within: float
) -> None:
    """Plot losses and the fraction of diverged runs against the rate, one column for each kind."""
    figure, axes = plt.subplots(
        3, len(KINDS), figsize=(14, 8.4), sharex=True, sharey="row", height_ratios=(1.5, 1.5, 1)
    )
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    sgd = everything["SGD"]
    for column, kind in enumerate(KINDS):
        chosen = {name: measured for name, measured in everything.items() if measured.kind == kind}
        for row, part in enumerate(("training", "held_out")):
            axis: Axes = axes[row, column]
            if kind != "fixed":
                axis.plot(rates, quantile(sgd.losses[part]), color=GREY, linestyle=":", label="SGD, to compare")
            for place, (name, measured) in enumerate(chosen.items()):
                draw_loss(axis, rates, measured.losses[part], colours[place], name, place)
            axis.axhline(untrained, color="black", linewidth=0.8, linestyle="--")
            axis.set(xscale="log", ylim=SHOWN)
        for place, measured in enumerate(chosen.values()):
            axes[2, column].plot(rates, 100 * measured.diverged.mean(0), color=colours[place], drawstyle="steps-mid")
        axes[0, column].set_title(kind)
        axes[1, column].legend(loc="lower left", fontsize=8, labelspacing=0.2)
        axes[2, column].set(xlabel="learning rate", ylim=(-4, 104))
    for row, part in enumerate(("training", "held_out")):
        name_ranges(axes[row, 0], rates, sgd.just_right[part])
    axes[0, 0].set_ylabel("training loss,\nlast epoch (nats)")
    axes[1, 0].set_ylabel("held-out loss,\nbest epoch (nats)")
    axes[2, 0].set_ylabel("runs diverged (%)")
    seeds = len(sgd.diverged)
    figure.suptitle(
        f"Loss against learning rate: median of {seeds} seeds, quartiles shaded; ▲ above what is shown, or no number;"
        f"\ndashed: the untrained network; in the first column, the rates at which SGD is within {within:.0%} of its"
        " best",
        fontsize=11,
    )
    results.figure("loss_by_rate", figure)


def draw_loss(axis: Axes, rates: np.ndarray, losses: np.ndarray, colour: str, name: str, place: int) -> None:
    """Plot the median and the quartiles; where the median is above the upper edge of the plot, put a mark there."""
    middle = quantile(losses)
    axis.plot(rates, np.where(np.isfinite(middle), middle, np.nan), color=colour, linewidth=1.6, label=name)
    low, high = (np.minimum(quantile(losses, share), 10 * SHOWN[1]) for share in (0.25, 0.75))
    axis.fill_between(rates, low, high, color=colour, alpha=0.25, linewidth=0)
    beyond = rates[~(middle <= SHOWN[1])]
    height = SHOWN[1] - (0.02 + 0.04 * place) * (SHOWN[1] - SHOWN[0])
    axis.plot(beyond, np.full(len(beyond), height), "^", color=colour, markersize=3.5)


def name_ranges(axis: Axes, rates: np.ndarray, found: JustRight) -> None:
    """Shade and label the rates that are just right, and label the rates on either side."""
    axis.axvspan(found.lowest, found.highest, color=GREY, alpha=0.12, linewidth=0)
    height = SHOWN[0] + 0.86 * (SHOWN[1] - SHOWN[0])
    ends = {
        "too\nsmall": (rates[0], found.lowest),
        "just right": (found.lowest, found.highest),
        "too\nlarge": (found.highest, rates[-1]),
    }
    for words, (low, high) in ends.items():
        axis.text(np.sqrt(low * high), height, words, ha="center", va="center", fontsize=9, color="black")


def draw_just_right(
    results: Results,
    everything: dict[str, Measured],
    near_sgd: dict[str, dict[str, JustRight]],
    rates: np.ndarray,
    within: float,
) -> None:
    """Plot each optimizer's range of rates that are just right: the length of a bar is the width in decades."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, sharex=True)
    places = np.arange(len(everything))[::-1]
    for axis, part in zip(axes, ("training", "held_out"), strict=True):
        for place, (name, measured) in zip(places, everything.items(), strict=True):
            found, near = measured.just_right[part], near_sgd[name][part]
            colour = KINDS[measured.kind]
            axis.plot([near.lowest, near.highest], [place - 0.3] * 2, color=GREY, linewidth=2, solid_capstyle="butt")
            axis.plot([found.lowest, found.highest], [place] * 2, color=colour, linewidth=9, solid_capstyle="butt")
            axis.plot(found.best_rate, place, "o", color="white", markeredgecolor="black", markersize=6)
            axis.text(rates[-1] * 2, place, in_decades(found), va="center", ha="left")
        axis.text(rates[-1] * 2, len(places) - 0.35, "decades", ha="left", fontsize=9)
        axis.set(xscale="log", xlim=(rates[0], rates[-1]), xlabel="learning rate", yticks=places)
        axis.set_yticklabels(list(everything))
    axes[0].set_title("training loss of the last epoch")
    axes[1].set_title("held-out loss of the best epoch")
    handles = [Line2D([], [], color=colour, linewidth=7, label=kind) for kind, colour in KINDS.items()]
    handles.append(Line2D([], [], linestyle="", marker="o", color="white", markeredgecolor="black", label="best"))
    handles.append(Line2D([], [], color=GREY, linewidth=2, label=f"within {within:.0%} of SGD's best"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(f"Learning rates whose median loss is within {within:.0%} of the optimizer's best", fontsize=11)
    results.figure("just_right", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
