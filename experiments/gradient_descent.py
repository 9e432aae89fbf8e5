"""Full-batch, minibatch and stochastic gradient descent, drawn on the true loss surface of two weights.

    python -m experiments.gradient_descent [--out DIR] [--seed N]

The model predicts survival on the Titanic from fare and age. Its bias is fixed at its best value, so that two weights
are left, and the mean loss of all 714 passengers is a surface over a plane. From the same poor starting point, and
with the same learning rate, three paths lead down this surface: each step uses all passengers, 32 passengers, or one
passenger. Expect full-batch descent to go straight and never uphill, but to visit hundreds of times as many passengers
as stochastic descent. Expect stochastic descent to arrive within an epoch, and then to wander around the minimum
forever. The script takes about five seconds.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, Results, command, print_table
from nnfx.types import Apply, Array, Batch, Variables

START = (-2.0, 1.6)
"""The weights of fare and age from which every path starts, both with the wrong sign."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the gradient descent experiment."""

    out: Path = Path("runs/gradient_descent")
    """the folder for the results"""
    seed: int = 0
    """random seed for the order of the passengers"""
    learning_rate: float = 0.1
    """learning rate of all three paths"""
    batch_size: int = 32
    """number of passengers in a minibatch"""
    full_batch_epochs: int = 400
    """number of epochs of full-batch descent, one step each"""
    minibatch_epochs: int = 20
    """number of epochs of minibatch descent"""
    stochastic_epochs: int = 2
    """number of epochs of stochastic descent, on single passengers"""
    repeats: int = 15
    """how many times each path is repeated for timing"""


class Descent(NamedTuple):
    """One path down the surface.

    Attributes:
        batch_size: the number of passengers per step.
        weights: the two weights after each step, starting with the initial weights, `(steps + 1, 2)`.
        loss: the empirical loss over all passengers at these weights, `(steps + 1,)`.
        visited: the number of passengers visited before these weights were reached, `(steps + 1,)`.
        seconds_per_step: the median time over repeats, excluding compilation.
    """

    batch_size: int
    weights: np.ndarray
    loss: np.ndarray
    visited: np.ndarray
    seconds_per_step: float


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    passengers = nnfx.data.titanic("fare", "age").train
    minimum, bias = find_minimum()
    model = two_weights(bias)
    least = float(losses_at(model, passengers, minimum[None])[0])
    rows = len(passengers.targets)
    print(f"minimum: loss {least:.4f} nats at weights {minimum[0]:.3f} (fare) and {minimum[1]:.3f} (age)\n")

    plans = {
        "full batch": (rows, config.full_batch_epochs),
        "minibatch": (config.batch_size, config.minibatch_epochs),
        "stochastic": (1, config.stochastic_epochs),
    }
    paths = {
        name: walk(jax.random.key(config.seed), model, passengers, batch_size, epochs, config)
        for name, (batch_size, epochs) in plans.items()
    }
    found = {name: describe(path, minimum, least) for name, path in paths.items()}
    print_table(
        ["", "B", "steps", "visited", "loss", "above minimum", "distance", "µs per step"],
        [
            [
                name,
                *[numbers[part] for part in ("batch_size", "steps", "visited", "loss", "above_minimum", "distance")],
                numbers["seconds_per_step"] * 1e6,
            ]
            for name, numbers in found.items()
        ],
    )
    draw_paths(results, paths, minimum, model, passengers)
    draw_cost(results, paths, least)
    return results.summary(
        {
            "rows": rows,
            "minimum": {"fare": minimum[0], "age": minimum[1], "bias": bias, "loss": least},
            "start": {"fare": START[0], "age": START[1], "loss": paths["full batch"].loss[0]},
            "learning_rate": config.learning_rate,
            "paths": found,
            "seed": config.seed,
        }
    )


def find_minimum() -> tuple[Array, Array]:
    """Return the weights and the bias with the lowest loss, found by a quasi-Newton method on a perceptron."""
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.lbfgs, epochs=30)
    params = train(jax.random.key(0), nnfx.data.titanic("fare", "age")).state.params
    return params["kernel"][:, 0], params["bias"][0]


def two_weights(bias: Array) -> nnfx.Model:
    """Return a hand-written model: `x·w + b` with two weights to train and a fixed bias.

    A model consists of two pure functions.
    """

    def init(key: Array, inputs: Array) -> Variables:  # noqa: ARG001 -- every path starts at the same place
        return {"params": {"weights": jnp.array(START)}}

    def apply(variables: Variables, inputs: Array, *, train: bool = False, **_: Any) -> Any:
        logits = inputs @ variables["params"]["weights"] + bias
        return (logits, {}) if train else logits

    return nnfx.Model(init, cast(Apply, apply))


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "epochs", "batch_size"))
def descend(
    key: Array,
    passengers: Batch,
    *,
    model: nnfx.Model,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
) -> Array:
    """Train like `nnfx.fit` with this key; return the weights at the start and after each step, `(steps + 1, 2)`."""
    rows = len(passengers.targets)
    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)
    start = nnfx.init_state(key, model, optimizer, passengers.inputs)
    order_key = nnfx.split_key(key).order

    def one_step(state: nnfx.TrainState, batch: Batch) -> tuple[nnfx.TrainState, Array]:
        state, _ = step(state, batch)
        return state, state.params["weights"]

    def one_epoch(state: nnfx.TrainState, epoch: Array) -> tuple[nnfx.TrainState, Array]:
        if batch_size == rows:
            return one_step(state, passengers)
        order = nnfx.data.shuffled(order_key, epoch, rows, batch_size)
        return jax.lax.scan(lambda state, chosen: one_step(state, nnfx.data.take(passengers, chosen)), state, order)

    _, weights = jax.lax.scan(one_epoch, start, jnp.arange(epochs))
    return jnp.concatenate([start.params["weights"][None], weights.reshape(-1, 2)])


def walk(key: Array, model: nnfx.Model, passengers: Batch, batch_size: int, epochs: int, config: Config) -> Descent:
    """Follow one path down, and time it."""
    optimizer = optax.sgd(config.learning_rate)
    go = functools.partial(
        descend, key, passengers, model=model, optimizer=optimizer, epochs=epochs, batch_size=batch_size
    )
    weights = jax.block_until_ready(go())
    seconds = []
    for _ in range(config.repeats):
        started = time.perf_counter()
        jax.block_until_ready(go())
        seconds.append(time.perf_counter() - started)
    steps, rows = len(weights) - 1, len(passengers.targets)
    per_epoch = steps // epochs
    epoch, step = np.divmod(np.arange(steps + 1), per_epoch)
    return Descent(
        batch_size=batch_size,
        weights=np.asarray(weights),
        loss=np.asarray(losses_at(model, passengers, weights)),
        visited=epoch * rows + np.minimum(step * batch_size, rows),
        seconds_per_step=float(np.median(seconds)) / steps,
    )


@functools.partial(jax.jit, static_argnames="model")
def losses_at(model: nnfx.Model, passengers: Batch, weights: Array) -> Array:
    """Return the empirical loss, `(places,)`, for each pair of weights, `(places, 2)`."""

    def loss_at(place: Array) -> Array:
        logits = model.apply({"params": {"weights": place}}, passengers.inputs)
        return nnfx.losses.empirical(nnfx.losses.binary_cross_entropy(logits, passengers.targets))

    return jax.lax.map(loss_at, weights, batch_size=256)


def describe(path: Descent, minimum: Array, least: float) -> dict[str, Any]:
    """Return the end of a path, and the work that it took."""
    return {
        "batch_size": path.batch_size,
        "steps": len(path.loss) - 1,
        "visited": int(path.visited[-1]),
        "loss": float(path.loss[-1]),
        "above_minimum": float(path.loss[-1]) - least,
        "distance": float(np.linalg.norm(path.weights[-1] - np.asarray(minimum))),
        "largest_rise": float(np.diff(path.loss).max()),
        "seconds_per_step": path.seconds_per_step,
        "seconds": path.seconds_per_step * (len(path.loss) - 1),
    }


LOOKS: dict[str, dict[str, Any]] = {
    "stochastic": {"color": ORANGE, "linewidth": 0.7},
    "minibatch": {"color": GREEN, "linewidth": 1.1},
    "full batch": {"color": BLUE, "linewidth": 2.2},
}
"""The style of each path; the noisiest path comes first, so that it is drawn below the others."""


def label_of(name: str, path: Descent) -> str:
    """Return the label of a path, with its batch size."""
    return f"{name}, B = {path.batch_size}"


def draw_paths(
    results: Results, paths: dict[str, Descent], minimum: Array, model: nnfx.Model, passengers: Batch
) -> None:
    """Plot the three paths on the contours of the loss."""
    places = np.concatenate([path.weights for path in paths.values()])
    low, high = places.min(0), places.max(0)
    margin = 0.08 * (high - low)
    fares, ages = np.meshgrid(*np.linspace(low - margin, high + margin, 121).T)
    grid = jnp.asarray(np.stack([fares.ravel(), ages.ravel()], axis=1), jnp.float32)
    surface = np.asarray(losses_at(model, passengers, grid)).reshape(fares.shape)

    figure, axis = plt.subplots(figsize=(8.6, 5.4))
    levels = surface.min() + (surface.max() - surface.min()) * np.linspace(0, 1, 16) ** 2
    shades = axis.contourf(fares, ages, surface, levels, cmap="Greys", alpha=0.5)
    axis.contour(fares, ages, surface, levels, colors="black", linewidths=0.6, alpha=0.45)
    figure.colorbar(shades, label="empirical loss (nats)", format="%.2f", shrink=0.85, pad=0.02)
    for name, look in LOOKS.items():
        path = paths[name]
        steps = f"{label_of(name, path)}: {len(path.loss) - 1:,} steps"
        axis.plot(*path.weights.T, label=steps, **look)
    axis.plot(*START, "s", color="black", markersize=7, linestyle="", label="start")
    axis.plot(*np.asarray(minimum), "*", color="white", markeredgecolor="black", markersize=15, label="minimum")
    axis.set(
        title=f"three ways down the empirical loss of {len(passengers.targets)} passengers",
        xlabel="weight of fare (per standard deviation)",
        ylabel="weight of age (per standard deviation)",
    )
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.legend(loc="lower left", frameon=True, framealpha=0.95)
    results.figure("paths", figure)


def draw_cost(results: Results, paths: dict[str, Descent], least: float) -> None:
    """Plot the loss by passengers visited and by time, and the cost of a step."""
    figure, (by_visits, by_time, costs) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1, 1, 0.7))
    for name, look in LOOKS.items():
        path = paths[name]
        above = path.loss[1:] - least
        microseconds = np.arange(1, len(path.loss)) * path.seconds_per_step * 1e6
        by_visits.plot(path.visited[1:], above, label=label_of(name, path), **look)
        by_time.plot(microseconds, above, **look)
    by_visits.set(
        title="by passengers visited", xlabel="passengers visited", ylabel="empirical loss above its minimum (nats)"
    )
    by_time.set(title="by time: steps × median time of one", xlabel="time (µs)")
    for axis in (by_visits, by_time):
        axis.set(xscale="log", yscale="log", ylim=(1e-5, None))
    by_visits.legend(loc="lower left")

    bars = costs.bar(
        [f"B = {paths[name].batch_size}" for name in LOOKS],
        [paths[name].seconds_per_step * 1e6 for name in LOOKS],
        color=[look["color"] for look in LOOKS.values()],
    )
    costs.bar_label(bars, fmt="%.2g", padding=2)
    costs.margins(y=0.12)
    costs.set(title="one step (median, compiled)", ylabel="time (µs)")
    costs.grid(visible=False, axis="x")
    results.figure("cost", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
