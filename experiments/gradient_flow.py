"""Why deep sigmoid networks did not learn: the gradient by layer, with sigmoid, tanh and ReLU.

    python -m experiments.gradient_flow [--out DIR] [--seed N]

Three networks with eight hidden layers learn handwritten digits by gradient descent, each from five random starts.
They differ only in their activation function and the initialiser that matches it. At every step, the norms of the
gradient that reaches each layer and of the change to its weights are measured. Expect the gradient to fall by a factor
of twenty thousand from the last hidden layer to the first with the sigmoid, which has learned nothing after 40 epochs,
and to stay within a factor of two with tanh and ReLU, which reach 94 % accuracy on held-out digits. It works offline
and takes less than a minute.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, Results, command, print_table
from nnfx.data import Data
from nnfx.data.batching import steps_per_epoch
from nnfx.insight import flow
from nnfx.insight.flow import Flow

NETWORKS = {"sigmoid": "glorot_normal", "tanh": "lecun_normal", "relu": "he_normal"}
"""Each activation and the initializer designed for it."""
LOOKS = {"sigmoid": (ORANGE, "s"), "tanh": (GREEN, "^"), "relu": (BLUE, "o")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the gradient flow experiment."""

    out: Path = Path("runs/gradient_flow")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    layers: int = 8
    """number of hidden layers"""
    width: int = 32
    """number of units in each hidden layer"""
    epochs: int = 40
    """number of epochs of each run"""
    batch_size: int = 32
    """number of digits in a minibatch"""
    learning_rate: float = 0.05
    """initial learning rate (plain gradient descent), which falls to zero along a cosine"""
    starts: int = 5
    """number of random starts of each network"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    split_key, key = jax.random.split(jax.random.key(config.seed))
    data = nnfx.data.digits(key=split_key, valid_fraction=0.25)
    keys = jax.random.split(key, config.starts)
    runs = {name: train(name, keys, data, config) for name in NETWORKS}
    flows = {name: flow.curves(run.history) for name, run in runs.items()}
    found = {name: describe(network(name, config), runs[name], flows[name], data) for name in NETWORKS}
    print_table(
        ["", "gradient, first layer", "last hidden", "first / last", "held-out accuracy", "noise scale, start"],
        [[name, *numbers.values()] for name, numbers in found.items()],
    )
    draw_layers(results, flows, config)
    draw_epochs(results, runs, flows)
    results.history(
        {
            f"{name} {metric}": np.asarray(values).mean(0)
            for name, run in runs.items()
            for metric, values in run.history.items()
        }
    )
    return results.summary({"networks": found, "starts": config.starts, "seed": config.seed})


def network(name: str, config: Config) -> nnfx.Model:
    """Return a deep network with this activation."""
    return nnfx.models.mlp((config.width,) * config.layers, 10, name, initializer=NETWORKS[name])


def train(name: str, keys: jax.Array, data: Data, config: Config) -> nnfx.Run:
    """Train a network from several random starts, in one program, and measure its gradient flow."""
    steps = config.epochs * steps_per_epoch(len(data.train.targets), config.batch_size)

    def descent(learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.sgd(nnfx.schedules.warmup_cosine(learning_rate, 0, steps))

    fit = nnfx.fit(
        network(name, config),
        nnfx.losses.categorical_cross_entropy,
        descent,
        epochs=config.epochs,
        batch_size=config.batch_size,
        metrics={"accuracy": nnfx.metrics.accuracy},
        make_step=flow.make_step,
    )
    return jax.vmap(lambda key: fit(key, data, learning_rate=config.learning_rate))(keys)


def hidden(found: Flow, quantity: str) -> np.ndarray:
    """Return a quantity of the hidden layers, `(layers, starts, epochs)`."""
    by_layer = getattr(found, quantity)
    return np.stack([np.asarray(by_layer[layer]) for layer in by_layer if layer.startswith("hidden")])


def describe(model: nnfx.Model, run: nnfx.Run, found: Flow, data: Data) -> dict[str, float]:
    """Return the norms of the gradient in the first and the last hidden layer in the first epoch, and final scores."""
    gradient = hidden(found, "gradient")[:, :, 0]
    first, last = (float(np.median(gradient[i])) for i in (0, -1))
    start = model.init(jax.random.key(0), data.train.inputs[:1])
    noise = flow.noise_scale(model, nnfx.losses.categorical_cross_entropy, start, data.train)
    return {
        "first": first,
        "last": last,
        "ratio": first / last,
        "accuracy": float(np.asarray(run.history["valid_accuracy"])[:, -1].mean()),
        "noise_scale": float(noise.scale),
    }


def draw_layers(results: Results, flows: dict[str, Flow], config: Config) -> None:
    """Plot the gradient, the activations, and the steps relative to the weights, by layer, in the first epoch."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    layers = np.arange(1, config.layers + 1)
    for name, found in flows.items():
        colour, marker = LOOKS[name]
        relative = hidden(found, "update")[:, :, 0] / hidden(found, "weight")[:, :, 0]
        quantities = (hidden(found, "gradient")[:, :, 0], hidden(found, "activation")[:, :, 0], relative)
        for axis, values in zip(axes, quantities, strict=True):
            axis.plot(layers, values, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(layers, np.median(values, axis=1), marker, linestyle="-", color=colour, label=name)
    titles = ("the gradient that reaches a layer", "the activations that leave it", "how far a step moves its weights")
    labels = ("‖∂L/∂W‖ (nats per unit of weight)", "root mean square", "‖ΔW‖ / ‖W‖")
    for axis, title, label in zip(axes, titles, labels, strict=True):
        axis.set(title=title, xlabel="hidden layer, from the input on", ylabel=label, yscale="log")
        axis.set_xticks(layers)
    axes[1].set(yscale="linear", ylim=(0, None))
    axes[0].legend(loc="lower right")
    figure.suptitle(f"means over the first epoch: {config.starts} random starts (thin) and their median")
    results.figure("by_layer", figure)


def draw_epochs(results: Results, runs: dict[str, nnfx.Run], flows: dict[str, Flow]) -> None:
    """Plot the gradient of the first and last hidden layers, and the held-out accuracy, by epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, found in flows.items():
        colour, _ = LOOKS[name]
        gradient = hidden(found, "gradient")
        epochs = np.arange(1, gradient.shape[-1] + 1)
        for layer, line in ((0, "-"), (-1, ":")):
            which = "first" if layer == 0 else "last"
            values = np.median(gradient[layer], axis=0)
            axes[0].plot(epochs, values, line, color=colour, label=f"{name}, {which} hidden layer")
        accuracy = np.asarray(runs[name].history["valid_accuracy"])
        axes[1].plot(epochs, accuracy.T, color=colour, alpha=0.3, linewidth=0.8)
        axes[1].plot(epochs, accuracy.mean(0), color=colour, linewidth=2, label=name)
    axes[0].set(title="the gradient", xlabel="epoch", ylabel="‖∂L/∂W‖ (nats per unit of weight)", yscale="log")
    axes[1].set(title="what is learned", xlabel="epoch", ylabel="held-out accuracy", ylim=(0, 1))
    axes[0].legend(fontsize=8)
    axes[1].legend()
    results.figure("by_epoch", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
