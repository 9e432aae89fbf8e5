"""The loss landscape: three minima of one network, the loss between them, and the path to one of them.

    python -m experiments.loss_landscape [--out DIR] [--seed N]

A network with one hidden layer learns handwritten digits from three random starts. Three cuts through the space of its
1,210 weights then show the training loss: the plane through all three solutions; the plane in which the path to the
first solution varies most, and the path in it; and a random plane around the first solution, with normalised filters.
Expect three valleys, in which the loss, about 0.01 nats, keeps falling beyond the point where training ended. Expect
walls of 0.3 to 0.5 nats on the straight lines between them, and a path with 98 % of its variance in two directions.
The experiment works offline and takes about half a minute.
"""

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, Results, command, print_table
from nnfx.insight import curvature, landscape
from nnfx.insight.landscape import Cut, Landscape
from nnfx.types import Array, Batch, Params

COLOURS = (BLUE, ORANGE, GREEN)
LOSS = nnfx.losses.categorical_cross_entropy


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the loss landscape experiment."""

    out: Path = Path("runs/loss_landscape")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    hidden: int = 16
    """width of the hidden layer"""
    epochs: int = 40
    """number of epochs of each run"""
    batch_size: int = 64
    """number of digits in a minibatch"""
    learning_rate: float = 0.01
    """learning rate (Adam)"""
    points: int = 61
    """number of points along each axis of a plane"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    split_key, train_key, cut_key, curvature_key = jax.random.split(jax.random.key(config.seed), 4)
    data = nnfx.data.digits(key=split_key, valid_fraction=0.25)
    assert data.valid is not None
    model = nnfx.models.mlp((config.hidden,), 10, activation="tanh")
    paths = jax.vmap(lambda key: descend(key, data.train, model, config))(jax.random.split(train_key, len(COLOURS)))
    solutions = [jax.tree.map(lambda leaf, i=i: leaf[i, -1], paths) for i in range(len(COLOURS))]

    def measure(cut: Cut, x: Any, y: Any = None, batch: Batch = data.train) -> Landscape:
        return landscape.measure(model, LOSS, {"params": solutions[0]}, batch, cut, x, y)

    found = [describe(model, params, data.train, data.valid, curvature_key) for params in solutions]
    print_table(
        ["solution", "train loss", "held-out loss", "held-out accuracy", "sharpness", "trace"],
        [[str(i + 1), *numbers.values()] for i, numbers in enumerate(found)],
    )
    along = np.linspace(-0.25, 1.25, 2 * config.points + 1)
    lines = {}
    for i, j in itertools.combinations(range(len(solutions)), 2):
        cut = landscape.through(solutions[i], solutions[j])
        lines[f"{i + 1} to {j + 1}"] = {
            part: np.asarray(measure(cut, along, batch=batch).losses)
            for part, batch in (("train", data.train), ("held out", data.valid))
        }
    between = (along >= 0) & (along <= 1)
    walls = {name: float(losses["train"][between].max()) for name, losses in lines.items()}
    print()
    print_table(["straight line", "highest train loss"], walls.items())

    plane = landscape.through(*solutions)
    shown = [project(plane, jax.tree.map(lambda leaf, i=i: leaf[i], paths)) for i in range(len(solutions))]
    draw_minima(results, plane, shown, on_grid(measure, plane, plane.places, config.points))
    draw_lines(results, along, lines)
    first = jax.tree.map(lambda leaf: leaf[0], paths)
    principal = landscape.principal_cut(first)
    draw_path(results, principal, on_grid(measure, principal, principal.places, config.points))
    around = landscape.random_cut(cut_key, solutions[0])
    corners = jnp.array([[-1.0, -1.0], [1.0, 1.0]])
    draw_surface(results, on_grid(measure, around, corners, config.points, margin=0.0))
    assert principal.captured is not None
    return results.summary(
        {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(solutions[0])),
            "rows": {"train": len(data.train.targets), "held_out": len(data.valid.targets)},
            "solutions": found,
            "walls": walls,
            "distances": {
                f"{i + 1} to {j + 1}": float(jnp.linalg.norm(plane.places[i] - plane.places[j]))
                for i, j in itertools.combinations(range(len(solutions)), 2)
            },
            "path_captured": principal.captured,
            "seed": config.seed,
        }
    )


@partial(jax.jit, static_argnums=(2, 3))
def descend(key: Array, digits: Batch, model: nnfx.Model, config: Config) -> Params:
    """Train as `nnfx.fit` does with this key, and return the parameters at the start and after every epoch."""
    optimizer = optax.adam(config.learning_rate)
    step = nnfx.make_step(model, LOSS, optimizer)
    start = nnfx.init_state(key, model, optimizer, digits.inputs[:1])
    order_key = nnfx.split_key(key).order

    def epoch(state: nnfx.TrainState, number: Array) -> tuple[nnfx.TrainState, Params]:
        order = nnfx.data.shuffled(order_key, number, len(digits.targets), config.batch_size)
        state, _ = jax.lax.scan(lambda state, rows: step(state, nnfx.data.take(digits, rows)), state, order)
        return state, state.params

    _, path = jax.lax.scan(epoch, start, jnp.arange(config.epochs))
    return jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), start.params, path)


def describe(model: nnfx.Model, params: Params, train: Batch, valid: Batch, key: Array) -> dict[str, float]:
    """Return the scores of a solution, and the curvature of the loss there."""
    variables = {"params": params}
    measures = {"loss": LOSS, "accuracy": nnfx.metrics.accuracy}
    held_out = nnfx.evaluate(model, measures, variables, valid)
    return {
        "train_loss": float(nnfx.evaluate(model, measures, variables, train)["loss"].value),
        "held_out_loss": float(held_out["loss"].value),
        "held_out_accuracy": float(held_out["accuracy"].value),
        "sharpness": float(curvature.sharpness(key, model, LOSS, variables, train)),
        "trace": float(curvature.trace(key, model, LOSS, variables, train).value),
    }


def project(cut: Cut, path: Params) -> np.ndarray:
    """Return the coordinates of a path's points, projected onto a plane with orthonormal directions."""

    def dot(directions: Array, places: Array, origin: Array) -> Array:
        moved = (places - origin[None]).reshape(len(places), -1)
        return moved @ directions.reshape(len(directions), -1).T

    parts = jax.tree.map(dot, cut.directions, path, cut.origin)
    return np.asarray(sum(jax.tree.leaves(parts)))


def on_grid(measure: Any, cut: Cut, places: Array, points: int, margin: float = 0.35) -> Landscape:
    """Measure the loss on a plane around these places; the margin is a fraction of the longer side."""
    low, high = np.asarray(places).min(0), np.asarray(places).max(0)
    edge = margin * float((high - low).max())
    found: Landscape = measure(cut, *(np.linspace(a - edge, b + edge, points) for a, b in zip(low, high, strict=True)))
    return found


def contours(axis: Axes, found: Landscape) -> Any:
    """Plot the loss on a plane as contours, evenly spaced on a logarithmic scale."""
    assert found.y is not None
    losses = np.asarray(found.losses).T
    levels = np.geomspace(losses.min(), losses.max(), 22)
    x, y = np.asarray(found.x), np.asarray(found.y)
    drawn = axis.contourf(x, y, losses, levels, norm=LogNorm(), cmap="viridis")
    axis.contour(x, y, losses, levels, colors="white", linewidths=0.4, alpha=0.5)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    return drawn


def label(figure: Any, drawn: Any, axis: Any) -> None:
    """Add a colour bar for the losses beside contours, with readable ticks."""
    low, high = drawn.levels[0], drawn.levels[-1]
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= tick <= high]
    bar = figure.colorbar(drawn, ax=axis, label="training loss (nats)", ticks=ticks, shrink=0.9)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()


def draw_minima(results: Results, plane: Cut, shown: list[np.ndarray], found: Landscape) -> None:
    """Plot the plane through the three solutions, with the end of the path to each."""
    figure, axis = plt.subplots(figsize=(7.6, 6))
    drawn = contours(axis, found)
    assert found.y is not None
    for i, (path, colour) in enumerate(zip(shown, COLOURS, strict=True)):
        axis.plot(*path.T, ".-", color=colour, markersize=4, linewidth=1, markeredgecolor="black", markeredgewidth=0.3)
        axis.plot(*np.asarray(plane.places[i]), "*", color=colour, markeredgecolor="black", markersize=16)
        axis.annotate(f" {i + 1}", tuple(np.asarray(plane.places[i])), color="white", fontsize=13, weight="bold")
    axis.set(
        title="the plane through three solutions (★), with their paths projected onto it, one dot per epoch",
        xlabel="distance along the line from 1 to 2 (length of the weights)",
        ylabel="distance from that line",
        xlim=(float(found.x[0]), float(found.x[-1])),
        ylim=(float(found.y[0]), float(found.y[-1])),
    )
    label(figure, drawn, axis)
    results.figure("three_minima", figure)


def draw_lines(results: Results, along: np.ndarray, lines: dict[str, dict[str, np.ndarray]]) -> None:
    """Plot the loss on the straight lines between solutions."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    for (name, losses), colour in zip(lines.items(), COLOURS, strict=True):
        axis.plot(along, losses["train"], color=colour, label=f"{name}, train")
        axis.plot(along, losses["held out"], "--", color=colour, linewidth=1, label=f"{name}, held out")
    for end in (0, 1):
        axis.axvline(end, color="black", linewidth=0.7, linestyle=":")
    axis.set(
        title="the loss on straight lines between solutions",
        xlabel="position on the line: 0 is one solution, 1 the other",
        ylabel="cross-entropy (nats)",
        ylim=(0, None),
    )
    figure.legend(ncols=3, fontsize=9, loc="outside lower center")
    results.figure("between_minima", figure)


def draw_path(results: Results, cut: Cut, found: Landscape) -> None:
    """Plot a path in the plane in which it varies most, with contours of the loss."""
    figure, axis = plt.subplots(figsize=(8, 5.4))
    drawn = contours(axis, found)
    places, captured = np.asarray(cut.places), np.asarray(cut.captured)
    axis.plot(*places.T, ".-", color="white", markersize=5, linewidth=1)
    axis.plot(*places[0], "s", color="black", markersize=8, label="start", linestyle="")
    axis.plot(*places[-1], "*", color=ORANGE, markeredgecolor="black", markersize=16, label="end", linestyle="")
    axis.set(
        title=f"the way down, one dot per epoch, in the plane that contains {captured.sum():.0%} of its variance",
        xlabel=f"first principal direction ({captured[0]:.0%} of the variance)",
        ylabel=f"second ({captured[1]:.0%})",
    )
    axis.legend(frameon=True, framealpha=0.9)
    label(figure, drawn, axis)
    results.figure("path", figure)


def draw_surface(results: Results, found: Landscape) -> None:
    """Plot the loss on a random plane around a solution as a surface."""
    figure = plt.figure(figsize=(7.4, 5.6))
    axis: Any = figure.add_subplot(projection="3d")
    assert found.y is not None
    x, y = np.meshgrid(np.asarray(found.x), np.asarray(found.y), indexing="ij")
    losses = np.asarray(found.losses)
    axis.plot_surface(x, y, losses, cmap="viridis", norm=LogNorm(losses.min(), losses.max()), rcount=80, ccount=80)
    axis.contour(x, y, losses, 14, zdir="z", offset=0, cmap="viridis", linewidths=0.8)
    axis.set(
        title="a random plane about the first solution, filters normalised",
        xlabel="first direction (lengths of the filters)",
        ylabel="second direction",
        zlabel="training loss (nats)",
    )
    axis.set_zlim(0, float(losses.max()))
    axis.view_init(elev=28, azim=-55)
    axis.set_box_aspect(None, zoom=0.9)
    results.figure("random_plane", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up()
    command(main, Config, __doc__)
