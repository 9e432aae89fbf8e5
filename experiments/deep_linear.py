"""How a deep linear network learns: one mode after another, each along a sigmoid known in closed form.

    python -m experiments.deep_linear [--out DIR] [--seed N]

A linear network with one hidden layer learns which properties eight living things have. The properties form a tree:
some are shared by all things, others by half of them, by a quarter, or by none. The modes are the singular vectors of
this table; the broad distinctions have the largest singular values s. If the weights start small, balanced and along
the modes, gradient descent learns each mode independently of the others. After t steps, the strength of a mode, which
starts at a₀, is `a(t) = s E / (E − 1 + s / a₀)` with `E = exp(2 s t / τ)`, where τ is half the number of outputs
divided by the learning rate. Expect the measured strengths to be within 1 % of s of that curve. From small random
weights, expect the same sigmoids within a few per cent, if a₀ is the growing part of each mode in the initial weights,
`‖(W₁v + W₂ᵀu) / 2‖²`, where u and v are the mode's singular vectors. The experiment works offline and takes a few
seconds.

References:
    Saxe, McClelland and Ganguli, *Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks*, ICLR 2014.
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
from experiments.common import Results, command, print_table
from nnfx.insight import trajectory
from nnfx.types import Array, Batch, Params, TrainState

LABELS = ("all", "halves", "quarters", "single things")
"""Which things share the properties at each level of the tree."""
FIRST = [0, 1, 2, 4]
"""The first mode of each level."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the deep linear experiment."""

    out: Path = Path("runs/deep_linear")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    hidden: int = 64
    """width of the hidden layer, at least the number of things"""
    start: float = 0.001
    """strength a₀ of each mode at the start"""
    starts: int = 5
    """number of random starts"""
    step_size: float = 0.01
    """the learning rate, as the length of a step in units of τ times the largest singular value"""
    records: int = 200
    """number of points along each curve"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    table = hierarchy()
    things, properties = table.shape
    batch = Batch(jnp.eye(things) * things**0.5, jnp.asarray(table, float), jnp.ones(things))  # white inputs
    left, strengths, right = np.linalg.svd(table.T / things**0.5, full_matrices=False)
    tau = strengths[0] / config.step_size  # in steps
    duration = 2 * np.log(strengths[-1] / config.start) / (2 * strengths[-1]) * tau
    every = int(np.ceil(duration / config.records))
    times = np.arange(config.records + 1) * every / tau
    optimizer = nnfx.optimizers.freeze(optax.sgd(properties / (2 * tau)), "*.bias")
    model = nnfx.models.mlp((config.hidden,), properties, activation="identity")
    step = nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer)

    def modes(state: TrainState) -> Array:
        first, second = (state.params[layer]["kernel"] for layer in ("hidden_0", "output"))
        return jnp.einsum("am,ah,hb,bm->m", right.T, first, second, left)

    def descend(params: Params) -> Array:
        given = nnfx.models.pretrained(model, {"params": params})
        state = nnfx.init_state(jax.random.key(0), given, optimizer, batch.inputs)
        return trajectory.follow(step, state, batch, modes, steps=config.records * every, every=every)[1]

    turn_key, first_key, second_key = jax.random.split(jax.random.key(config.seed), 3)
    hidden = jax.random.orthogonal(turn_key, config.hidden)[:, :things]
    along = weights(config.start**0.5 * right.T @ hidden.T, config.start**0.5 * hidden @ left.T)
    draw_weights = jax.nn.initializers.normal((2 * config.start / config.hidden) ** 0.5)  # a₀ is then about the same
    first = draw_weights(first_key, (config.starts, things, config.hidden))
    second = draw_weights(second_key, (config.starts, config.hidden, properties))
    aligned, free = np.asarray(descend(along)), np.asarray(jax.vmap(descend)(weights(first, second)))
    growing = (first.mT @ right.T + second @ left) / 2
    expected = sigmoid(times, strengths, np.full(things, config.start))
    predicted = np.stack([sigmoid(times, strengths, a) for a in np.square(np.asarray(growing)).sum(1)])

    off = np.maximum.reduceat(np.abs(aligned - expected).max(0) / strengths, FIRST)
    by_start = np.maximum.reduceat(np.abs(free - predicted).max(1) / strengths, FIRST, axis=1)
    mean, error = by_start.mean(0), by_start.std(0, ddof=1) / config.starts**0.5
    half = times[(aligned < strengths / 2).sum(0)][FIRST]
    rows = zip(LABELS, strengths[FIRST], half, off, mean, error, strict=True)
    print_table(["mode", "s", "half at t/τ", "error, along the modes", "error, random starts", "±"], rows)
    draw(results, times, (expected[None], aligned[None]), (predicted, free))
    found = {"along_the_modes": off.max(), "random_starts": {"mean": mean, "error": error}}
    return results.summary(
        {
            "singular_values": strengths,
            "half_learned_at": half,
            "off": found,
            "starts": config.starts,
            "seed": config.seed,
        }
    )


def hierarchy() -> np.ndarray:
    """Return the table of eight things by 15 properties, one for each node of the tree above the things."""
    return np.concatenate([np.kron(np.eye(size), np.ones((8 // size, 1))) for size in (1, 2, 4, 8)], axis=1)


def weights(first: Array, second: Array) -> Params:
    """Return the kernels of both layers as parameters of the network."""
    return {"hidden_0": {"kernel": jnp.asarray(first)}, "output": {"kernel": jnp.asarray(second)}}


def sigmoid(times: np.ndarray, strengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the closed form of each mode's strength, `(times, modes)`, for times in units of τ."""
    grown = np.exp(2 * np.outer(times, strengths))
    return strengths * grown / (grown - 1 + strengths / starts)


def draw(results: Results, times: np.ndarray, *panels: tuple[np.ndarray, np.ndarray]) -> None:
    """Plot one mode of each level, closed form and measured, each `(starts, times, modes)`, for both kinds of start."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    titles = ("from weights along the modes", f"from {len(panels[1][0])} random starts")
    for axis, title, (closed, measured) in zip(axes, titles, panels, strict=True):
        for level, mode in enumerate(FIRST):
            axis.plot(times, measured[:, :, mode].T, color=f"C{level}", linewidth=1.3)
            axis.plot(times[::8], closed[:, ::8, mode].T, "o", color=f"C{level}", markersize=3.5, alpha=0.7)
        axis.set(title=title, xlabel="time t/τ")
    axes[0].set_ylabel("strength of the mode")
    for level, (mode, text) in enumerate(zip(FIRST, LABELS, strict=True)):
        axes[0].text(times[-1], panels[0][1][0, -1, mode] + 0.02, text, ha="right", color=f"C{level}")
    axes[1].plot([], [], color="black", label="gradient descent")
    axes[1].plot([], [], "o", color="black", markersize=3.5, label="closed form")
    axes[1].legend(loc="upper right", bbox_to_anchor=(1, 0.92))
    results.figure("modes", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
