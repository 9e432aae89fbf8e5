"""From one perceptron to deep networks: its three steps, its decision line, and the purpose of an activation function.

    python -m experiments.perceptron [--out DIR] [--seed N]

The perceptron g(1 + 3x₁ − 2x₂) is followed step by step for one point, and its line is plotted. Then networks with two
hidden layers separate two classes of points, arranged in three ways, without an activation function and with tanh.
Without an activation function, the product of the layers is a single perceptron, which is compared with the network.
Finally, a perceptron with three outputs and networks with one to three hidden layers separate three spirals. Half of
the points are held out for scoring. Expect every network without an activation function to draw one line, which
separates the clouds, but classifies no more than three quarters of the points in the other two arrangements correctly.
Expect tanh to classify nearly all points correctly, and the spirals to be separated better with every layer up to the
second. The experiment works offline and takes about twenty seconds.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, SHADES, Results, command, print_table
from nnfx.data import Data
from nnfx.types import Array, Batch, Params

BIAS, WEIGHTS = 1.0, (3.0, -2.0)
"""The perceptron whose line is plotted."""
POINT, OTHER = (1.0, 1.0), (-1.0, 2.0)
"""The point that is followed, and a point on the other side of the line."""
CLASSES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))
"""The colour and the marker of each spiral."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the perceptron experiment."""

    out: Path = Path("runs/perceptron")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rows: int = 600
    """number of points in each arrangement, half of them held out"""
    epochs: int = 1000
    """number of full-batch training steps of each network"""
    learning_rate: float = 0.02
    """learning rate (Adam)"""
    width: int = 8
    """number of units in each hidden layer"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    split_key, key = jax.random.split(jax.random.key(config.seed))
    points = draw_points(config.seed, config.rows)
    spirals = points.pop("three spirals")
    two_classes = {name: split(split_key, *of_kind) for name, of_kind in points.items()}
    three_classes = split(split_key, *spirals)

    steps = follow(POINT)
    print_table(["step", "result"], steps.items())
    draw_steps(results, steps)
    draw_line(results)

    runs: dict[str, dict[str, nnfx.Run]] = {}
    for activation in ("identity", "tanh"):
        train = training(nnfx.models.mlp(2 * (config.width,), activation=activation), config)
        runs[activation] = {
            name: train(key, data, learning_rate=config.learning_rate) for name, data in two_classes.items()
        }
    networks = {"perceptron": nnfx.models.perceptron(outputs=3)} | {
        f"{layers} hidden": nnfx.models.mlp(layers * (config.width,), outputs=3, activation="tanh")
        for layers in (1, 2, 3)
    }
    deep = {
        name: training(network, config, outputs=3)(key, three_classes, learning_rate=config.learning_rate)
        for name, network in networks.items()
    }
    accuracies = {name: {kind: right(run) for kind, run in of.items()} for name, of in runs.items()}
    spirals_right = {name: {"weights": count(run), "accuracy": right(run)} for name, run in deep.items()}
    collapse = max(difference(runs["identity"][name], data) for name, data in two_classes.items())
    print("\nfraction of the held-out points classified correctly")
    print_table(["", *two_classes], [[name, *found.values()] for name, found in accuracies.items()])
    print()
    print_table(["three spirals", "weights", "right"], [[name, *of.values()] for name, of in spirals_right.items()])
    print(
        f"\nnetworks without a non-linearity differ by {collapse:.1e} from the product of their layers, one perceptron"
    )

    for activation, figure, title in (
        ("identity", "linear_decisions", "two hidden layers and no non-linearity: one line, however deep"),
        ("tanh", "nonlinearity", "the same networks with tanh in their hidden layers: curves"),
    ):
        draw_two_classes(results, figure, title, runs[activation], two_classes)
    draw_deep_networks(results, deep, three_classes)
    return results.summary(
        {
            "steps": steps,
            "right": accuracies,
            "spirals": spirals_right,
            "collapse": collapse,
            "rows": {"train": len(three_classes.train.targets), "held_out": len(held_out_of(three_classes).targets)},
            "seed": config.seed,
        }
    )


def course_params(bias: float = BIAS) -> Params:
    """Return the parameters of the perceptron that is followed."""
    return {"kernel": jnp.array(WEIGHTS)[:, None], "bias": jnp.array([bias])}


def follow(point: tuple[float, float]) -> dict[str, float]:
    """Return the result of each of the perceptron's three steps for a point."""
    linear, whole = (nnfx.models.perceptron(activation=name) for name in ("identity", "sigmoid"))
    inputs = jnp.array([point])
    outputs = {
        "dot product": linear.apply({"params": course_params(bias=0.0)}, inputs),
        "with bias": linear.apply({"params": course_params()}, inputs),
        "sigmoid": whole.apply({"params": course_params()}, inputs),
    }
    return {step: float(output[0, 0]) for step, output in outputs.items()}


def draw_points(seed: int, rows: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw points `(rows, 2)` and labels `(rows,)`: two classes in three arrangements, and three classes in spirals."""
    random = np.random.default_rng(seed)
    labels, arm = np.arange(rows) % 2, np.arange(rows) % 3
    noise = random.normal(size=(rows, 2))
    sign, side = 2.0 * labels - 1, random.choice([-1.0, 1.0], rows)
    turn = random.uniform(0, 2 * np.pi, rows)
    along = np.sqrt(random.uniform(0.02, 1, rows))
    spiral = 2 * np.pi * arm / 3 + 8 * along
    return {
        "two clouds": (0.9 * sign[:, None] + 0.6 * noise, labels),
        "exclusive or": (np.stack([side, side * sign], axis=1) + 0.3 * noise, labels),
        "a ring": (1.8 * (1 - labels)[:, None] * around(turn) + 0.3 * noise, labels),
        "three spirals": (2 * along[:, None] * around(spiral) + 0.06 * noise, arm),
    }


def around(angle: np.ndarray) -> np.ndarray:
    """Return the points on the unit circle at these angles, `(rows, 2)`."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def split(key: Array, points: np.ndarray, labels: np.ndarray) -> Data:
    """Hold out half of the points."""
    return nnfx.data.prepare(points, labels, key=key, valid_fraction=0.5, standardize=False)


def training(model: nnfx.Model, config: Config, outputs: int = 1) -> Any:
    """Return a function that trains by full-batch steps, for two classes or for more."""
    is_binary = outputs == 1
    return nnfx.fit(
        model,
        nnfx.losses.binary_cross_entropy if is_binary else nnfx.losses.categorical_cross_entropy,
        optax.adam,
        epochs=config.epochs,
        metrics={"accuracy": nnfx.metrics.binary_accuracy if is_binary else nnfx.metrics.accuracy},
    )


def right(run: nnfx.Run) -> float:
    """Return the fraction of held-out points that the last weights classify correctly."""
    return float(run.final["valid_accuracy"])


def count(run: nnfx.Run) -> int:
    """Count the weights, including biases."""
    return sum(leaf.size for leaf in jax.tree.leaves(run.state.params))


def collapse_layers(params: Params) -> tuple[Array, Array]:
    """Combine layers without activation functions into one: `(x W₁ + b₁) W₂ + b₂ = x (W₁ W₂) + (b₁ W₂ + b₂)`.

    Args:
        params: a kernel and a bias for each layer, under names that sort in the order of the layers.

    Returns:
        The kernel and the bias of the perceptron that is equivalent to all layers.
    """
    first, *others = (params[name] for name in sorted(params))
    kernel, bias = first["kernel"], first["bias"]
    for layer in others:
        kernel, bias = kernel @ layer["kernel"], bias @ layer["kernel"] + layer["bias"]
    return kernel, bias


def difference(run: nnfx.Run, data: Data) -> float:
    """Return the relative difference between a network without activation functions and the equivalent perceptron."""
    kernel, bias = collapse_layers(run.state.params)
    outputs = run.apply(data.train.inputs, run.state.variables)
    return float(jnp.abs(data.train.inputs @ kernel + bias[None] - outputs).max() / jnp.abs(outputs).max())


def plane(reach: float) -> tuple[np.ndarray, np.ndarray, Array]:
    """Return a grid over the square from −reach to reach, and its points `(places, 2)`."""
    ticks = np.linspace(-reach, reach, 201)
    x1, x2 = np.meshgrid(ticks, ticks)
    return x1, x2, jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=1), jnp.float32)


def draw_steps(results: Results, steps: dict[str, float]) -> None:
    """Plot the perceptron as a graph with its numbers, and its three steps along the sigmoid."""
    figure, (graph, curve) = plt.subplots(1, 2, figsize=(11.5, 4), width_ratios=(1.25, 1))
    graph.set_axis_off()
    graph.set(xlim=(-0.5, 5.6), ylim=(-1.9, 1.9))
    inputs = {
        "1": (1.0, BIAS),
        f"x₁ = {POINT[0]:g}": (POINT[0], WEIGHTS[0]),
        f"x₂ = {POINT[1]:g}": (POINT[1], WEIGHTS[1]),
    }
    node: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3}
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    circle = {"boxstyle": "circle,pad=0.45", "facecolor": "white", "edgecolor": "black"}
    line: dict[str, Any] = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 24, "shrinkB": 22}
    for height, (name, (value, weight)) in zip((1.3, 0.0, -1.3), inputs.items(), strict=True):
        graph.text(0, height, name, bbox=circle, **node)
        graph.annotate("", (2.4, 0), (0, height), arrowprops=line)
        kind = "bias" if name == "1" else "weight"
        product = f"{kind} {weight:g}: {value * weight:+g}".replace("-", "−")
        graph.text(1.15, 0.52 * height, product, fontsize=9, bbox=plain, **node)
    graph.text(2.4, 0, "Σ", fontsize=16, bbox=circle, **node)
    graph.annotate("", (3.9, 0), (2.4, 0), arrowprops=line)
    graph.text(3.1, 0.16, f"z = {steps['with bias']:g}", fontsize=9, **node)
    graph.text(3.9, 0, "g", fontsize=14, bbox=circle, **node)
    graph.annotate("", (5.1, 0), (3.9, 0), arrowprops={**line, "shrinkB": 4})
    graph.text(5.15, 0, f"{steps['sigmoid']:.3f}", ha="left", va="center")
    graph.text(1.1, -1.8, "1  dot product", color=BLUE, **node)
    graph.text(2.4, -1.8, "2  bias", color=BLUE, **node)
    graph.text(3.9, -1.8, "3  non-linearity", color=BLUE, **node)

    z = np.linspace(-5, 5, 201)
    dot, biased, output = steps.values()
    curve.plot(z, jax.nn.sigmoid(z), color=BLUE, linewidth=2)
    curve.annotate("", (biased, 0), (dot, 0), arrowprops={"arrowstyle": "-|>", "color": ORANGE, "linewidth": 2})
    curve.plot([biased, biased, -5], [0, output, output], color="black", linewidth=1, linestyle=":")
    curve.plot([dot, biased, biased], [0, 0, output], "o", color=ORANGE, markeredgecolor="black", clip_on=False)
    labels = {
        f"1  w·x = {dot:g}": ((dot, 0), (-0.7, 0.17)),
        f"2  w·x + {BIAS:g} = {biased:g}": ((biased, 0), (2.5, 0.2)),
        f"3  g(z) = {output:.3f}": ((biased, output), (-1.9, 0.93)),
    }
    for words, (place, beside) in labels.items():
        curve.annotate(words, place, beside, arrowprops={"arrowstyle": "-", "color": GREY})
    curve.set(title="the sigmoid g(z) = 1 / (1 + e⁻ᶻ)", xlabel="z", ylabel="g(z)", xlim=(-5, 5), ylim=(0, 1.02))
    figure.suptitle(f"the perceptron g(1 + 3x₁ − 2x₂) at the point ({POINT[0]:g}, {POINT[1]:g}), in three steps")
    results.figure("three_steps", figure)


def draw_line(results: Results) -> None:
    """Plot the perceptron g(1 + 3x₁ − 2x₂): a line, with the plane on its two sides."""
    x1, x2, places = plane(4.0)
    model = nnfx.models.perceptron(activation="sigmoid")
    outputs = np.asarray(model.apply({"params": course_params()}, places)).reshape(x1.shape)
    figure, axis = plt.subplots(figsize=(5.8, 4.8))
    shades = axis.contourf(x1, x2, outputs, np.linspace(0, 1, 11), cmap=SHADES)
    ends = np.array([-3.0, 7 / 3])
    axis.plot(ends, (1 + 3 * ends) / 2, color="black", label="1 + 3x₁ − 2x₂ = 0")
    for point, beside in ((POINT, (0.3, -0.9)), (OTHER, (-3.8, 2.8))):
        _, z, output = follow(point).values()
        words = f"({point[0]:g}, {point[1]:g}): g({z:g}) = {output:.3f}".replace("-", "−")
        axis.annotate(words, point, beside, arrowprops={"arrowstyle": "-"})
        axis.plot(*point, "o", color="white", markeredgecolor="black")
    axis.text(-3.6, 0.6, "g < 0.5", fontsize=12)
    axis.text(1.6, -2.4, "g > 0.5", fontsize=12)
    axis.set(title="the perceptron g(1 + 3x₁ − 2x₂)", xlabel="x₁", ylabel="x₂", xlim=(-4, 4), ylim=(-4, 4))
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.legend(loc="lower right", frameon=True, framealpha=0.9)
    figure.colorbar(shades, label="output g, the sigmoid")
    results.figure("line", figure)


def draw_two_classes(
    results: Results, name: str, title: str, runs: dict[str, nnfx.Run], arranged: dict[str, Data]
) -> None:
    """Plot the probability that each network assigns to class 1, and the held-out points of both classes."""
    figure, axes = plt.subplots(1, len(runs), figsize=(12, 4.2))
    for axis, (kind, run) in zip(axes, runs.items(), strict=True):
        held_out = held_out_of(arranged[kind])
        x1, x2, places = plane(1.05 * float(jnp.abs(held_out.inputs).max()))
        logits = run.apply(places, run.state.variables)
        probability = np.asarray(jax.nn.sigmoid(logits)).reshape(x1.shape)
        shades = axis.contourf(x1, x2, probability, np.linspace(0, 1, 11), cmap=SHADES)
        axis.contour(x1, x2, probability, [0.5], colors="black", linewidths=1.5)
        points, is_one = np.asarray(held_out.inputs), np.asarray(held_out.targets) == 1
        axis.scatter(*points[~is_one].T, s=12, c="black", marker="x", linewidths=0.8, label="class 0")
        axis.scatter(*points[is_one].T, s=14, c="white", edgecolors="black", linewidths=0.7, label="class 1")
        finish(axis, f"{kind}: {right(run):.0%} correct (held out)")
    axes[0].legend(loc="upper left", frameon=True, framealpha=0.9)
    figure.colorbar(shades, ax=axes, label="predicted probability of class 1", shrink=0.9, pad=0.01)
    figure.suptitle(f"{title} (black: probability 0.5)", fontsize=11)
    results.figure(name, figure)


def draw_deep_networks(results: Results, runs: dict[str, nnfx.Run], data: Data) -> None:
    """Plot the class of the largest output over the plane, and the held-out points."""
    held_out = held_out_of(data)
    x1, x2, places = plane(1.05 * float(jnp.abs(held_out.inputs).max()))
    points, targets = np.asarray(held_out.inputs), np.asarray(held_out.targets)
    colours = [colour for colour, _ in CLASSES]
    figure, axes = plt.subplots(1, len(runs), figsize=(13, 4))
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        largest = np.asarray(run.apply(places, run.state.variables).argmax(-1)).reshape(x1.shape)
        axis.contourf(x1, x2, largest, [-0.5, 0.5, 1.5, 2.5], colors=colours, alpha=0.25)
        axis.contour(x1, x2, largest, [0.5, 1.5], colors="black", linewidths=1)
        for i, (colour, marker) in enumerate(CLASSES):
            axis.scatter(*points[targets == i].T, s=12, c=colour, marker=marker, edgecolors="black", linewidths=0.4)
        layers = "a perceptron, 3 outputs" if name == "perceptron" else f"{name} layer{'s' * (name[0] != '1')}"
        finish(axis, f"{layers}: {right(run):.0%}\n{count(run)} weights")
    figure.suptitle("three outputs, the largest wins: fraction of held-out points classified correctly", fontsize=11)
    results.figure("deep_networks", figure)


def held_out_of(data: Data) -> Batch:
    """Return the held-out points."""
    assert data.valid is not None
    return data.valid


def finish(axis: Axes, title: str) -> None:
    """Label the axes of a plane of points, and give both the same scale."""
    axis.set(title=title, xlabel="x₁", ylabel="x₂")
    axis.set_aspect("equal")
    axis.grid(visible=False)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
