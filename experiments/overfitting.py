"""Overfitting on 150 passengers of the Titanic: ways to prevent it, and the bias and variance behind it.

    python -m experiments.overfitting [--out DIR] [--seed N]

A wide network nearly memorises 150 passengers. Four variants of training, on several random splits of the
passengers, run as one program: no regularisation, 50 % dropout, decoupled weight decay, and early stopping. Half of
the held-out passengers are used for the learning curves and to decide when to stop, and the other half for scoring.
Then networks of growing width are trained on training sets drawn with replacement, and the Brier score of held-out
passengers is decomposed into variance and the rest. Expect the held-out loss to fall for ten epochs, and then to rise
without end. Expect dropout to prevent about half of that rise, and weight decay and early stopping nearly all of it.
Expect the variance to grow with width and with training time. The experiment takes about a minute, most of it for
compilation.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREY, ORANGE, PURPLE, Results, command, mean_and_error, print_table
from nnfx.data import Data
from nnfx.types import Array, Batch

COLUMNS = ("class", "sex", "age", "siblings_spouses", "parents_children", "fare")
"""All columns except the port. Its value is unknown for two passengers: the few training sets that contain one of them
would have an additional feature."""
PASSENGERS = 891
UNREGULARISED, STOPPED = "no regularisation", "early stopping"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the overfitting experiment."""

    out: Path = Path("runs/overfitting")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rows: int = 150
    """number of passengers to train on"""
    splits: int = 8
    """number of random splits for comparing the variants; at least 2 for a standard error"""
    hidden: int = 256
    """width of the hidden layer"""
    epochs: int = 256
    """number of epochs of each run"""
    batch_size: int = 32
    """number of passengers in a minibatch"""
    learning_rate: float = 0.003
    """learning rate (Adam)"""
    dropout: float = 0.5
    """dropout rate of the hidden layer in the variant with dropout"""
    weight_decay: float = 3.0
    """decoupled weight decay of the variant that uses it, chosen from 0.1, 1 and 3 by looking at these passengers"""
    patience: int = 20
    """number of epochs without improvement after which the variant with early stopping ends"""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """hidden widths for which bias and variance are separated"""
    pool: int = 520
    """number of passengers from whom training sets are drawn to separate bias and variance; the rest are held out"""
    resamples: int = 48
    """number of training sets drawn from these passengers, with replacement"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    key, split_key, pool_key, resample_key = jax.random.split(jax.random.key(config.seed), 4)
    splits = [split(key, config) for key in jax.random.split(split_key, config.splits)]
    pool = titanic(pool_key, config.pool)

    variants: dict[str, dict[str, float]] = {
        UNREGULARISED: {},
        f"dropout {config.dropout:.0%}": {"dropout": config.dropout},
        f"weight decay {config.weight_decay:g}": {"weight_decay": config.weight_decay},
        STOPPED: {"patience": config.patience},
    }
    runs, scores = compare(key, splits, list(variants.values()), config)
    found = {name: describe(name, i, runs, scores) for i, name in enumerate(variants)}
    rows = {"train": config.rows, "score": len(splits[0][1].targets), "pool": config.pool}
    print(
        f"{config.splits} splits: {rows['train']} passengers to train on, {rows['score']} to score; ± standard error\n"
    )
    shown = [(part, of) for part in ("loss", "accuracy", "loss_against_none") for of in ("mean", "error")]
    print_table(
        ["", "loss", "±", "accuracy", "±", "loss minus none", "±", "lowest at epoch"],
        [
            [name, *(numbers[part][of] for part, of in shown), numbers["best_epoch"]["mean"]]
            for name, numbers in found.items()
        ],
    )

    by_width = {"width": np.array(config.widths), **by_widths(resample_key, pool, config)}
    epochs = sorted({2**i for i in range(config.epochs.bit_length())} | {config.epochs})
    by_epoch = {"epoch": np.array(epochs), **take_apart(resample_key, pool, config.hidden, epochs, config)}
    print(f"\nBrier score of held-out passengers, over {config.resamples} training sets of {config.rows}\n")
    for table in (by_width, by_epoch):
        print_table(
            list(table), [[str(first), *map(float, parts)] for first, *parts in zip(*table.values(), strict=True)]
        )
        print()

    draw_learning_curves(results, runs, list(found))
    draw_scores(results, found)
    draw_bias_and_variance(results, by_width, by_epoch, config)
    results.history(
        {f"{name} {metric}": values[i, 0] for i, name in enumerate(variants) for metric, values in runs.history.items()}
    )
    return results.summary(
        {
            "rows": rows,
            "splits": config.splits,
            "variants": found,
            "by_width": by_width,
            "by_epoch": by_epoch,
            "resamples": config.resamples,
            "seed": config.seed,
        }
    )


def titanic(key: Array, rows: int) -> Data:
    """Draw this many passengers for training, and hold out the others."""
    return nnfx.data.titanic(*COLUMNS, key=key, valid_fraction=1 - rows / PASSENGERS, missing="median")


def split(key: Array, config: Config) -> tuple[Data, Batch]:
    """Draw passengers for training; hold out half of the others for early stopping, and half for scoring."""
    data = titanic(key, config.rows)
    stop_by, score_by = (jax.tree.map(lambda array, i=i: array[i::2], data.valid) for i in (0, 1))
    return dataclasses.replace(data, valid=stop_by), score_by


def compare(
    key: Array, splits: list[tuple[Data, Batch]], variants: list[dict[str, float]], config: Config
) -> tuple[nnfx.Run, dict[str, dict[str, Array]]]:
    """Train every variant on every split, all in one program.

    Returns:
        The runs, `(variants, splits)`, and the scores of the last weights and of the weights with the lowest loss on
        the passengers held out for early stopping.
    """
    train = nnfx.fit(
        functools.partial(nnfx.models.mlp, (config.hidden,)),
        nnfx.losses.binary_cross_entropy,
        optax.adamw,
        epochs=config.epochs,
        batch_size=config.batch_size,
        stop=nnfx.stopping.patience,
        metrics={"accuracy": nnfx.metrics.binary_accuracy},
    )
    neutral = {"dropout": 0.0, "weight_decay": 0.0, "patience": config.epochs + 1}
    columns = {name: jnp.array([{**neutral, **variant}[name] for variant in variants], float) for name in neutral}
    data, score_by = jax.tree.map(lambda *parts: jnp.stack(parts), *splits)

    def one(hyper: dict[str, Array], key: Array, data: Data, score_by: Batch) -> Any:
        run = train(key, data, learning_rate=config.learning_rate, **hyper)
        return run, {"last": run.evaluate(score_by, run.state.variables), "best": run.evaluate(score_by)}

    on_every_split = jax.vmap(one, in_axes=(None, 0, 0, 0))
    every_variant = jax.vmap(on_every_split, in_axes=(0, None, None, None))
    return jax.jit(every_variant)(columns, jax.random.split(key, len(splits)), data, score_by)


def describe(name: str, i: int, runs: nnfx.Run, scores: dict[str, dict[str, Array]]) -> dict[str, Any]:
    """Summarise the results of variant number i; only early stopping may keep the best weights of a run."""
    loss, accuracy = (scores["best" if name == STOPPED else "last"][metric] for metric in ("loss", "accuracy"))
    return {
        "loss": mean_and_error(loss[i]),
        "accuracy": mean_and_error(accuracy[i]),
        "loss_against_none": mean_and_error(loss[i] - scores["last"]["loss"][0]),
        "train_loss": mean_and_error(runs.final["train_loss"][i]),
        "best_epoch": mean_and_error(runs.best.epoch[i]),
        "epochs": mean_and_error(runs.epochs[i]),
        "losses": np.asarray(loss[i]),
        "accuracies": np.asarray(accuracy[i]),
        "best_epochs": np.asarray(runs.best.epoch[i]),
    }


def after(last_epoch: ArrayLike) -> nnfx.stopping.StoppingRule:
    """Stop after this many epochs; this custom rule makes the length of a run a hyper-parameter."""

    def update(epochs: Array, _: nnfx.stopping.Epoch) -> tuple[Array, Array]:
        return epochs + 1, epochs + 1 >= last_epoch

    return nnfx.stopping.StoppingRule(lambda: jnp.asarray(0, jnp.int32), update)


def by_widths(key: Array, pool: Data, config: Config) -> dict[str, np.ndarray]:
    """Decompose the Brier score of networks of every width, trained to the end."""
    found = [take_apart(key, pool, width, [config.epochs], config) for width in config.widths]
    return {part: np.concatenate([parts[part] for parts in found]) for part in found[0]}


def take_apart(key: Array, pool: Data, width: int, epochs: list[int], config: Config) -> dict[str, np.ndarray]:
    """Decompose the Brier score after each of these numbers of epochs.

    Every run has its own training set, drawn from the pool, and its own initial weights: the variance is due to
    both. All runs, for all numbers of epochs, are one program.
    """
    train = nnfx.fit(
        functools.partial(nnfx.models.mlp, (width,)),
        nnfx.losses.binary_cross_entropy,
        optax.adam,
        epochs=config.epochs,
        batch_size=config.batch_size,
        stop=after,
    )
    run_key, draw_key = jax.random.split(key)
    keys = jax.random.split(run_key, config.resamples)
    drawn = jax.random.randint(draw_key, (config.resamples, config.rows), 0, len(pool.train.targets))
    assert pool.valid is not None
    held_out = pool.valid

    def probabilities(last_epoch: Array, key: Array, rows: Array) -> Array:
        resampled = dataclasses.replace(pool, train=jax.tree.map(lambda array: array[rows], pool.train))
        run = train(key, resampled, learning_rate=config.learning_rate, last_epoch=last_epoch)
        return jax.nn.sigmoid(run.apply(held_out.inputs, run.state.variables))[:, 0]

    def after_epochs(last_epoch: Array) -> dict[str, Array]:
        return decompose(jax.vmap(probabilities, (None, 0, 0))(last_epoch, keys, drawn), held_out.targets)

    found = jax.jit(functools.partial(jax.lax.map, after_epochs))(jnp.array(epochs, float))
    return {part: np.asarray(values) for part, values in found.items()}


def decompose(probabilities: Array, targets: Array) -> dict[str, Array]:
    """Decompose the mean Brier score: `E(p − y)² = (p̄ − y)² + E(p − p̄)²`, averaged over passengers.

    The targets are 0 or 1 and the true probabilities are unknown, so the noise in the targets cannot be separated
    from the square of the bias: the first term contains both.

    Args:
        probabilities: p, `(resamples, passengers)`.
        targets: y, `(passengers,)`.

    Example:
        >>> parts = decompose(jnp.array([[0.25], [0.75]]), jnp.array([1]))
        >>> float(parts["bias_and_noise"]), float(parts["variance"]), float(parts["brier"])
        (0.25, 0.0625, 0.3125)
    """
    mean = probabilities.mean(0)
    return {
        "bias_and_noise": jnp.square(mean - targets).mean(),
        "variance": jnp.square(probabilities - mean[None]).mean(),
        "brier": jnp.square(probabilities - targets[None]).mean(),
    }


def draw_learning_curves(results: Results, runs: nnfx.Run, names: list[str]) -> None:
    """Plot the learning curves of the variants on the first split."""
    figure, axes = plt.subplots(1, len(names), figsize=(13, 4.2), sharey=True)
    train, held_out = (np.asarray(runs.history[f"{part}_loss"])[:, 0] for part in ("train", "valid"))
    epochs = np.arange(1, train.shape[1] + 1)
    for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
        if name == STOPPED:
            axis.plot(epochs, np.stack([train[0], held_out[0]], axis=1), color=GREY, alpha=0.5, linewidth=1)
            last = int(runs.epochs[i, 0])
            axis.plot(last, held_out[i, last - 1], "X", color="black", markersize=8, label="stopped (grey: had it not)")
        axis.plot(epochs, train[i], color=BLUE, label="train" if i == 0 else None)
        axis.plot(epochs, held_out[i], color=ORANGE, linestyle="--", label="held out" if i == 0 else None)
        best = int(runs.best.epoch[i, 0])
        label = f"lowest: {held_out[i, best - 1]:.3f}, epoch {best}"
        axis.plot(best, held_out[i, best - 1], "o", color=PURPLE, markeredgecolor="black", label=label)
        axis.set(title=name, xlabel="epoch", ylim=(0, 1.2 * float(np.nanmax(held_out))))
        axis.legend(loc="upper left")
    axes[0].set_ylabel("binary cross-entropy (nats)")
    figure.suptitle("the loss by epoch, on the first split", fontsize=11)
    results.figure("learning_curves", figure)


def draw_scores(results: Results, found: dict[str, dict[str, Any]]) -> None:
    """Plot the scores of every variant on every split, with the mean and its standard error."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 3.6))
    labels = {"losses": "held-out loss (nats)", "accuracies": "held-out accuracy"}
    for axis, (part, label) in zip(axes, labels.items(), strict=True):
        for place, numbers in enumerate(found.values()):
            values = numbers[part]
            beside = np.linspace(-0.12, 0.12, len(values)) + place
            axis.plot(beside, values, "o", color=GREY, alpha=0.45, markersize=4)
            error = values.std(ddof=1) / np.sqrt(len(values))
            axis.errorbar(place, values.mean(), error, fmt="D", color=BLUE, capsize=6, markersize=6)
        axis.set_xticks(range(len(found)), list(found))
        axis.set(ylabel=label, xlim=(-0.5, len(found) - 0.5))
        axis.grid(visible=False, axis="x")
    figure.suptitle("scored on further passengers: every split (grey), and the mean ± its standard error", fontsize=11)
    results.figure("scores", figure)


def draw_bias_and_variance(
    results: Results, by_width: dict[str, np.ndarray], by_epoch: dict[str, np.ndarray], config: Config
) -> None:
    """Plot the terms of the Brier score against the width of the network and against the epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for axis, table, title in (
        (axes[0], by_width, f"as the network grows (after {config.epochs} epochs)"),
        (axes[1], by_epoch, f"as training goes on ({config.hidden} wide)"),
    ):
        (name, places), *_ = table.items()
        axis.plot(places, table["brier"], "o-", color="black", label="Brier score: the sum")
        axis.plot(places, table["bias_and_noise"], "s--", color=BLUE, label="bias² + noise")
        axis.plot(places, table["variance"], "^-", color=ORANGE, label="variance")
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [str(place) for place in places])
        axis.minorticks_off()
        axis.set(title=title, xlabel=name if name == "epoch" else "hidden units")
    axes[0].set(ylabel="mean squared error of probabilities", ylim=(0, None))
    axes[0].legend(loc="center left")
    figure.suptitle(
        f"Brier score of held-out passengers over {config.resamples} training parts of {config.rows}", fontsize=11
    )
    results.figure("bias_and_variance", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
