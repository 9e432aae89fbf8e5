"""Lazy training: the wider a network, the more it trains like its linearisation, whose tangent kernel is constant.

    python -m experiments.lazy_training [--out DIR] [--seed N] [--widths 64 256 1024 4096]

Networks with one hidden layer, in the parameterisation of Jacot et al. (standard normal weights, sums divided by the
square root of their number of terms), learn by gradient descent whether a digit is even. Their linearisations, which
are the first-order Taylor expansions in the weights at the start, learn the same from the same weights with the same
steps. At the end, three quantities are measured for several random starts of each width:

- the root mean square difference between the outputs of the network and its linearisation on held-out digits. In
  theory, it is proportional to width^−1 (Dyer and Gur-Ari 2020; the bound that Lee et al. 2019 prove is width^−1/2);
- the relative change of the tangent kernel since the start, in Frobenius norm. In theory, it is also proportional to
  width^−1;
- the relative change of the weights, `‖w − w₀‖ / ‖w₀‖`. In theory, it is proportional to width^−1/2, which is why the
  network stays nearly linear.

These are leading terms for wide networks. In narrow networks, further terms matter, and the outputs differ by less
than the leading term predicts. Exponents are therefore fitted to two ranges of widths, for each start separately. From
256 units on, expect exponents within 0.15 of the theory. From 32 units on, expect the same for kernel and weights, but
about −0.8 for the outputs. The experiment works offline and takes less than a minute.

References:
    Jacot, Gabriel and Hongler, *Neural tangent kernel*, NeurIPS 2018. Lee et al., *Wide neural networks of any depth
    evolve as linear models under gradient descent*, NeurIPS 2019. Dyer and Gur-Ari, *Asymptotics of wide networks from
    Feynman diagrams*, ICLR 2020.
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
from nnfx.insight import tangent, trajectory
from nnfx.types import Array, Batch, Model

LOSS = nnfx.losses.mean_square_error
THEORY = {"outputs": -1.0, "kernel": -1.0, "weights": -0.5}
"""The quantities measured, each with the exponent of the width that theory predicts."""
LABELS = ("network − linearisation", "change of the kernel", "change of the weights")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the lazy training experiment."""

    out: Path = Path("runs/lazy_training")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rows: int = 16
    """number of digits to train on"""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    """widths of the hidden layer"""
    lazy_from: int = 256
    """the width from which theory is expected to hold"""
    starts: int = 6
    """number of random starts for each width"""
    steps: int = 100
    """number of steps of gradient descent"""
    learning_rate: float = 0.5
    """learning rate"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data_key, start_key = jax.random.split(jax.random.key(config.seed))
    data = nnfx.data.digits(key=data_key, valid_fraction=1 - config.rows / 1797)
    assert data.valid is not None
    train, held_out = (even(batch) for batch in (data.train, jax.tree.map(lambda leaf: leaf[:64], data.valid)))
    keys = jax.random.split(start_key, config.starts)
    every = [compare(width, keys, train, held_out, config) for width in config.widths]
    found = {name: np.stack([each[name] for each in every]) for name in (*THEORY, "loss")}  # widths × starts
    print_table(
        ["width", *THEORY, "training loss"],
        [[str(width), *(found[name][i].mean() for name in found)] for i, width in enumerate(config.widths)],
    )
    exponents, of_all = (fitted(found, config, least) for least in (config.lazy_from, min(config.widths)))
    print()
    print_table(
        ["exponent of the width", "theory", f"from {config.lazy_from} on", "±", "all widths", "±"],
        [[name, THEORY[name], *exponents[name].values(), *of_all[name].values()] for name in THEORY],
    )
    draw(results, found, exponents, config)
    means = {name: values.mean(1) for name, values in found.items()}
    return results.summary(
        {
            "exponents": exponents,
            "exponents_of_all_widths": of_all,
            "means": means,
            "widths": config.widths,
            "lazy_from": config.lazy_from,
            "seed": config.seed,
        }
    )


def fitted(found: dict[str, np.ndarray], config: Config, least: int) -> dict[str, dict[str, float]]:
    """Fit the exponents of the width, from this width on; return their mean over the starts, and its standard error."""
    widths = np.array(config.widths)
    chosen = widths >= least
    return {
        name: mean_and_error(np.polyfit(np.log(widths[chosen]), np.log(found[name][chosen]), 1)[0]) for name in THEORY
    }


def even(batch: Batch) -> Batch:
    """Standardise each image, and label it with 1 if its digit is even, or with −1 if it is odd."""
    pixels = batch.inputs.reshape(len(batch.targets), -1)
    return Batch(jax.nn.standardize(pixels), 1.0 - 2 * (batch.targets % 2), batch.weights)


def network(width: int) -> Model:
    """Return a network with standard normal weights and sums divided by the square root of their number of terms."""
    plain = nnfx.models.mlp((width,), activation="tanh", initializer="normal")

    def apply(variables: Any, inputs: Any, **options: Any) -> Any:
        scaled = jax.tree.map(lambda leaf: leaf / leaf.shape[0] ** 0.5 if leaf.ndim == 2 else leaf, variables)
        return plain.apply(scaled, inputs, **options)

    return plain._replace(apply=apply)


def compare(width: int, keys: Array, train: Batch, held_out: Batch, config: Config) -> dict[str, np.ndarray]:
    """Train networks of one width and their linearisations, and return the measurements at the end for each start."""
    model, optimizer = network(width), optax.sgd(config.learning_rate)

    def outcome(model: Model, key: Array) -> Any:
        step = nnfx.make_step(model, LOSS, optimizer)
        state = nnfx.init_state(key, model, optimizer, train.inputs)
        return trajectory.follow(step, state, train, lambda state: state.step, steps=config.steps)[0].variables

    def measure(key: Array) -> dict[str, Array]:
        start = model.init(nnfx.split_key(key).init, train.inputs)
        linear = tangent.linearize(model, start)
        end = outcome(model, key)
        outputs = model.apply(end, held_out.inputs), linear.apply(outcome(linear, key), held_out.inputs)
        before, after = (tangent.kernel(model, variables, held_out.inputs[:16]) for variables in (start, end))
        return {
            "outputs": jnp.sqrt(jnp.square(outputs[0] - outputs[1]).mean()),
            "kernel": optax.tree.norm(after - before) / optax.tree.norm(before),
            "weights": optax.tree.norm(jax.tree.map(jnp.subtract, end, start)) / optax.tree.norm(start),
            "loss": LOSS(model.apply(end, train.inputs), train.targets).mean(),
        }

    return jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(measure, keys))(keys))


def draw(results: Results, found: dict[str, np.ndarray], exponents: dict[str, Any], config: Config) -> None:
    """Plot the quantities measured against the width, with the slopes that theory predicts."""
    figure, axis = plt.subplots(figsize=(7.4, 4.8))
    widths = np.array(config.widths)
    for i, (name, label) in enumerate(zip(THEORY, LABELS, strict=True)):
        numbers, mean = exponents[name], np.exp(np.log(found[name]).mean(1))
        told = f"{label}: exponent {numbers['mean']:.2f} ± {numbers['error']:.2f}, in theory {THEORY[name]:g}"
        axis.plot(widths, found[name], ".", color=f"C{i}", alpha=0.35)
        axis.plot(widths, mean, "o", color=f"C{i}", label=told)
        axis.plot(widths, mean[-1] * (widths / widths[-1]) ** THEORY[name], "--", color=f"C{i}", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="width of the hidden layer, dashed: theory", ylim=(None, 0.6))
    axis.set_title(f"exponents from {config.lazy_from} units on")
    axis.set_xticks(widths, list(map(str, widths)), minor=False)
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=9, loc="upper right")
    results.figure("by_width", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
