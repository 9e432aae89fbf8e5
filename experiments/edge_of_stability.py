"""Gradient descent at the edge of stability: the curvature of the loss rises to 2 / rate, and stays there.

    python -m experiments.edge_of_stability [--out DIR] [--seed N] [--rates 1.5 2 3]

Gradient descent on a quadratic diverges if the largest eigenvalue of its Hessian, the sharpness, exceeds 2 over the
learning rate. A tanh network with two hidden layers learns 300 handwritten digits by full-batch gradient descent on the
mean square error, with a few learning rates, each from several random starts. The sharpness is measured along the way
by the Lanczos method. Expect the sharpness to rise to 2 / rate, or to fall to it from above, and to stay there, within
5 % on average over the second half of the run. The loss then goes up and down, but falls in the long run. It works
offline and takes about half a minute.

References:
    Cohen, Kaur, Li, Kolter and Talwalkar, *Gradient descent on neural networks typically occurs at the edge of
    stability*, ICLR 2021.
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
from experiments.common import Results, command, mean_and_error, print_table
from nnfx.insight import curvature, trajectory
from nnfx.types import Array, Batch, TrainState

LOSS = nnfx.losses.mean_square_error


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the edge of stability experiment."""

    out: Path = Path("runs/edge_of_stability")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rows: int = 300
    """number of digits to train on"""
    hidden: tuple[int, ...] = (32, 32)
    """widths of the hidden layers"""
    rates: tuple[float, ...] = (1.5, 2.0, 3.0)
    """learning rates"""
    starts: int = 3
    """number of random starts with each rate"""
    steps: int = 2000
    """number of steps of gradient descent"""
    every: int = 40
    """number of steps between two measurements"""
    products: int = 20
    """number of products with the Hessian in each measurement"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data_key, start_key, lanczos_key = jax.random.split(jax.random.key(config.seed), 3)
    batch = digits(data_key, config.rows)
    model = nnfx.models.mlp(config.hidden, 10, activation="tanh")

    def look(state: TrainState) -> dict[str, Array]:
        arguments = model, LOSS, state.variables, batch
        return {
            "sharpness": curvature.sharpness(lanczos_key, *arguments, steps=config.products),
            "loss": nnfx.evaluate(model, {"loss": LOSS}, state.variables, batch)["loss"].value,
        }

    def descend(rate: Array, key: Array) -> dict[str, Array]:
        optimizer = optax.sgd(rate)
        step = nnfx.make_step(model, LOSS, optimizer)
        state = nnfx.init_state(key, model, optimizer, batch.inputs)
        return trajectory.follow(step, state, batch, look, steps=config.steps, every=config.every)[1]

    each_start = jax.vmap(descend, in_axes=(None, 0))
    rates, keys = jnp.asarray(config.rates), jax.random.split(start_key, config.starts)
    seen = jax.tree.map(np.asarray, jax.jit(jax.vmap(each_start, in_axes=(0, None)))(rates, keys))  # rates × starts
    settled = seen["sharpness"][:, :, seen["sharpness"].shape[-1] // 2 :].mean(-1)
    found = [
        {
            "rate": rate,
            "bound": 2 / rate,
            "start": each.mean(),
            **mean_and_error(after),
            "ratio": after.mean() * rate / 2,
        }
        for rate, each, after in zip(config.rates, seen["sharpness"][:, :, 0], settled, strict=True)
    ]
    print("largest eigenvalue of the Hessian, at the start and on average over the second half of the run\n")
    print_table(
        ["rate", "2 / rate", "start", "settled", "±", "settled / (2 / rate)"],
        [[f"{each['rate']:g}", *list(each.values())[1:]] for each in found],
    )
    falls = np.diff(seen["loss"], axis=-1) < 0  # between two measurements
    draw(results, seen, config)
    return results.summary(
        {"rates": found, "loss_falls": falls.mean((1, 2)), "starts": config.starts, "seed": config.seed}
    )


def digits(key: Array, rows: int) -> Batch:
    """Draw digits with their pixels centred, and targets of 0 and 1 for each class."""
    drawn = nnfx.data.digits(key=key, valid_fraction=1 - rows / 1797).train
    pixels = drawn.inputs.reshape(rows, -1)
    return Batch(pixels - pixels.mean(0, keepdims=True), jax.nn.one_hot(drawn.targets, 10), drawn.weights)


def draw(results: Results, seen: dict[str, np.ndarray], config: Config) -> None:
    """Plot the sharpness with its bound, and the loss, by step."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    steps = np.arange(seen["loss"].shape[-1]) * config.every
    for i, rate in enumerate(config.rates):
        axes[0].axhline(2 / rate, color=f"C{i}", linestyle="--", linewidth=1)
        axes[0].plot(steps, seen["sharpness"][i].T, color=f"C{i}", linewidth=1.2)
        axes[1].plot(steps, seen["loss"][i].T, color=f"C{i}", linewidth=1.2)
        axes[1].plot([], [], color=f"C{i}", label=f"rate {rate:g}")
    axes[0].plot([], [], "--", color="black", linewidth=1, label="2 / rate")
    axes[0].set(
        title=f"curvature, {config.starts} random starts", xlabel="step", ylabel="largest eigenvalue of the Hessian"
    )
    axes[1].set(title="training loss", xlabel="step", ylabel="mean square error", yscale="log")
    for axis in axes:
        axis.legend()
    results.figure("sharpness", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
