"""Activation functions and their derivatives: the values passed forward, and the gradients passed back.

    python -m experiments.activations [--out DIR] [--seed N]

It plots every activation of the library with its derivative as computed by JAX, overlaid with finite differences.
Maxout, which is learned, is plotted three times: with two pieces that make ReLU, two that make the absolute value, and
six fitted to a parabola. A table lists the range of values and derivatives of each activation, and the fraction of a
gradient that remains after ten layers if pre-activations are normally distributed. Expect the sigmoid to pass a fifth
of the gradient at each layer, and only two ten-millionths through ten layers. ReLU passes all of a gradient or nothing;
expect it to pass three hundredths through ten layers. The experiment works offline and takes about ten seconds.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREY, ORANGE, Results, command, print_table
from nnfx import activations
from nnfx.types import Array

REACH = 4.0
"""Activations are plotted for pre-activations from −REACH to REACH."""
NORMAL = 2001
"""The number of points in the average over normally distributed pre-activations."""
LEFT_OUT = "maxout", "gelu_exact"
"""Activations left out of the common figure: maxout has its own, and the exact GELU looks like its approximation."""
STARTS = 16
"""The number of random starts of the maxout fit."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the activations experiment."""

    out: Path = Path("runs/activations")
    """the folder for the results"""
    seed: int = 0
    """the random seed of the maxout fit"""
    pieces: int = 6
    """number of maxout pieces fitted to the parabola"""
    epochs: int = 2000
    """number of steps of the maxout fit"""
    layers: int = 10
    """number of layers after which the remaining fraction of a gradient is reported"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    names = [name for name in activations.names() if name not in LEFT_OUT]
    found = {name: describe(activations.get(name), config.layers) for name in names}
    print_table(
        ["", "g from", "g to", "g′ from", "g′ to", "mean square g′", f"left after {config.layers}", "saturated"],
        [[name, *numbers.values()] for name, numbers in found.items()],
    )
    fit = fit_maxout(config)
    error = float(jnp.abs(fit["values"] - fit["target"]).max())
    print(f"\nmaxout of {config.pieces} pieces follows x² on [−1, 1] to {error:.3f}")
    draw_functions(results, names)
    draw_maxout(results, fit, config)
    return results.summary({"activations": found, "maxout_error": error, "seed": config.seed})


def slope(activation: activations.Activation, x: Array) -> Array:
    """Return the derivative at each point."""
    return jax.vmap(jax.grad(lambda z: activation(z[None])[0]))(x)


def describe(activation: activations.Activation, layers: int) -> dict[str, float]:
    """Return the range of an activation's values and derivatives, and the fraction of a gradient that it passes on.

    Let v be the mean square of the derivative g' over normally distributed pre-activations. If the factors due to the
    weights are ignored, v is the fraction of a gradient's variance that one layer passes on. After n layers, the
    remaining fraction of the gradient's magnitude is therefore `√v` to the power of n. Pre-activations with
    `|g'| < 0.01` count as saturated.
    """
    x = jnp.linspace(-REACH, REACH, NORMAL)
    y, g = activation(x), slope(activation, x)
    # the midpoints of equally probable parts of the normal distribution
    normal = jax.scipy.stats.norm.ppf((jnp.arange(NORMAL) + 0.5) / NORMAL)
    passed = slope(activation, normal)
    square = jnp.square(passed).mean()
    numbers = [y.min(), y.max(), g.min(), g.max(), square, square ** (layers / 2), (jnp.abs(passed) < 0.01).mean()]
    parts = ("value_from", "value_to", "slope_from", "slope_to", "mean_square_slope", "left", "saturated")
    return dict(zip(parts, map(float, numbers), strict=True))


def fit_maxout(config: Config) -> dict[str, Array]:
    """Fit a maxout unit to a parabola, and return its pieces and their maximum.

    A piece that is not the largest for any input is never trained, so the best of several starts is kept.
    """
    activation = functools.partial(activations.maxout, pieces=config.pieces)
    model = nnfx.models.perceptron(activation=activation, initializer="normal", bias_initializer="normal")
    x = np.linspace(-1, 1, 201)[:, None]
    data = nnfx.data.prepare(x, x[:, 0] ** 2, standardize=False)
    train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.adam, epochs=config.epochs)
    keys = jax.random.split(jax.random.key(config.seed), STARTS)
    runs = jax.vmap(lambda key: train(key, data, learning_rate=0.02))(keys)
    best = runs.history["train_loss"][:, -1].argmin()
    params = jax.tree.map(lambda leaf: leaf[best], runs.state.params)
    pieces = data.train.inputs @ params["kernel"] + params["bias"][None]
    return {"x": data.train.inputs[:, 0], "target": data.train.targets, "pieces": pieces, "values": pieces.max(1)}


def draw_functions(results: Results, names: list[str]) -> None:
    """Plot each activation and its derivative, overlaid with finite differences."""
    columns = 3
    figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(11, 9), sharex=True, sharey=True)
    x = jnp.linspace(-REACH, REACH, 801)
    few = jnp.linspace(-REACH, REACH, 26)  # an even number, so that no point is at the kink
    for name, axis in zip(names, axes.flat, strict=True):
        activation, h = activations.get(name), 1e-2
        differences = (activation(few + h) - activation(few - h)) / (2 * h)
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.axvline(0, color=GREY, linewidth=0.6)
        axis.plot(x, activation(x), color=BLUE, linewidth=2, label="g(z)")
        axis.plot(x, slope(activation, x), color=ORANGE, linewidth=2, label="g′(z), by JAX")
        axis.plot(few, differences, "o", color="black", markersize=2.5, label="g′(z), by differences")
        axis.set(title=name, ylim=(-1.4, 2.4))
    for axis in axes[-1]:
        axis.set_xlabel("pre-activation z")
    for axis in axes[:, 0]:
        axis.set_ylabel("g, g′")
    axes.flat[0].legend(fontsize=8, loc="upper left")
    results.figure("activations", figure)


def draw_maxout(results: Results, fit: dict[str, Array], config: Config) -> None:
    """Plot maxout as ReLU, as the absolute value, and as tangents of a parabola, each with its derivative."""
    x = jnp.linspace(-1, 1, 401)
    by_hand = {
        "two pieces, 0 and z: ReLU": jnp.stack([0 * x, x], axis=1),
        "two pieces, −z and z: |z|": jnp.stack([-x, x], axis=1),
    }
    panels = {name: (x, pieces) for name, pieces in by_hand.items()}
    used = len(np.unique(fit["pieces"].argmax(1)))
    panels[f"{config.pieces} pieces fitted to z², {used} of them used"] = (fit["x"], fit["pieces"])
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, height_ratios=(1.3, 1))
    for (name, (z, pieces)), (above, below) in zip(panels.items(), axes.T, strict=True):
        values = activations.maxout(pieces, pieces.shape[1])[:, 0]
        above.plot(z, pieces, color=GREY, linewidth=0.8, linestyle="--")
        above.plot(z, values, color=BLUE, linewidth=2)
        if "fitted" in name:
            above.plot(z, fit["target"], color="black", linewidth=1, linestyle=":", label="z²")
            above.legend()
            below.plot(z, 2 * z, color="black", linewidth=1, linestyle=":", label="2z")
            below.legend()
        slopes = (pieces[-1] - pieces[0]) / (z[-1] - z[0])
        below.step(z, slopes[pieces.argmax(1)], color=ORANGE, linewidth=2)
        above.set(title=name, ylim=(-1.1, 1.2))
        below.set(xlabel="input z", ylim=(-2.3, 2.3))
    axes[0, 0].set_ylabel("maxout (bold) and its pieces")
    axes[1, 0].set_ylabel("derivative of the largest piece")
    results.figure("maxout", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
