"""Backpropagation step by step: the forward pass of one Titanic passenger, and every factor of the backward pass.

    python -m experiments.backpropagation [--out DIR] [--seed N]

A network of two inputs (fare and age), three hidden units and one output predicts whether a survivor survives, before
and after the network is trained on all 714 passengers. The tables list every factor of the chain rule: inputs,
pre-activations, local derivatives, and the error that flows back; the graphs draw them. The product of the factors is
compared with `jax.grad`, in single and double precision. The change of the loss in one step is compared with the
change that the gradient predicts. Expect the factors and `jax.grad` to differ by about 10⁻⁷ in single precision and
10⁻¹⁶ in double precision. The experiment works offline and takes about ten seconds.
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
from experiments.common import BLUE, ORANGE, Results, command, print_table
from experiments.titanic import PASSENGER
from nnfx.insight import backpropagation, graph
from nnfx.insight.backpropagation import Backpropagation
from nnfx.types import Batch, Params

LOSS = nnfx.losses.binary_cross_entropy


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the backpropagation experiment."""

    out: Path = Path("runs/backpropagation")
    """the folder for the results"""
    seed: int = 0
    """the random seed of the weights"""
    hidden: tuple[int, ...] = (3,)
    """widths of the hidden layers"""
    activation: str = "tanh"
    """activation of the hidden layers"""
    epochs: int = 300
    """number of full-batch training steps (Adam)"""
    learning_rate: float = 0.02
    """learning rate of training"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    data = nnfx.data.titanic("fare", "age")
    model = nnfx.models.mlp(config.hidden, activation=config.activation)
    train = nnfx.fit(model, LOSS, optax.adam, epochs=config.epochs)
    key = jax.random.key(config.seed)
    run = train(key, data, learning_rate=config.learning_rate)
    untrained = nnfx.init_state(key, model, optax.identity(), data.train.inputs[:1]).params
    passenger = Batch(data.preprocess(PASSENGER), jnp.ones((1, 1)), jnp.ones(1))

    states = {"untrained": untrained, "trained": run.state.params}
    found = {
        name: backpropagation.lay_open(model, LOSS, {"params": params}, passenger) for name, params in states.items()
    }
    fare, age = PASSENGER[0]
    print(f"a survivor, {age:.0f} years old, who paid {fare:.2f} pounds; in the network's units {passenger.inputs[0]}")
    for name, each in found.items():
        survival = float(jax.nn.sigmoid(each.layers[-1].outputs[0, 0]))
        print(f"\n=== {name}: predicted probability of survival {survival:.3f} ===\n{each}")
        results.figure(f"graph_{name}", graph.draw(each))

    differences = {
        precision: difference_from_grad(model, untrained, data.train, dtype)
        for precision, dtype in (("float32", jnp.float32), ("float64", jnp.float64))
    }
    print("\nall passengers at once: the product of the factors against jax.grad, relative to the largest derivative")
    print_table(["", "largest difference"], differences.items())
    steps = follow(model, untrained, passenger, found["untrained"])
    draw_step(results, steps)
    return results.summary(
        {
            "passenger": {"fare": fare, "age": age},
            "loss": {name: float(each.loss) for name, each in found.items()},
            "differences": differences,
            "promised": steps["promised"],
            "seed": config.seed,
        }
    )


def difference_from_grad(model: nnfx.Model, params: Params, passengers: Batch, dtype: Any) -> float:
    """Return the difference between the product of the factors and `jax.grad`, relative to the largest derivative."""
    with jax.enable_x64(dtype == jnp.float64):
        params, passengers = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), dtype if leaf.dtype == jnp.float32 else None),
            (params, passengers),
        )
        found = backpropagation.lay_open(model, LOSS, {"params": params}, passengers)

        @jax.jit
        def gradient(params: Params) -> Params:
            return jax.grad(
                lambda p: nnfx.losses.empirical(
                    LOSS(model.apply({"params": p}, passengers.inputs), passengers.targets), passengers.weights
                )
            )(params)

        pairs = zip(jax.tree.leaves(found.gradient), jax.tree.leaves(gradient(params)), strict=True)
        ours, grads = (np.concatenate([np.ravel(leaf) for leaf in part]) for part in zip(*pairs, strict=True))
        return float(np.abs(ours - grads).max() / np.abs(grads).max())


def follow(model: nnfx.Model, params: Params, passenger: Batch, found: Backpropagation) -> dict[str, Any]:
    """Step against the gradient at many rates; return the losses reached and the losses that the gradient predicts."""
    gradient = found.gradient
    square = optax.tree.norm(gradient, squared=True)
    rates = np.linspace(0, 4, 81)

    @jax.jit
    @jax.vmap
    def loss_after(rate: Any) -> jax.Array:
        moved = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
        return LOSS(model.apply({"params": moved}, passenger.inputs), passenger.targets)[0]

    losses = np.asarray(loss_after(jnp.asarray(rates, jnp.float32)))
    return {"rates": rates, "losses": losses, "promised": float(square), "line": losses[0] - rates * float(square)}


def draw_step(results: Results, steps: dict[str, Any]) -> None:
    """Plot the loss of the passenger along the gradient, and its tangent at the start."""
    figure, axis = plt.subplots(figsize=(6.2, 4))
    axis.plot(steps["rates"], steps["losses"], color=BLUE, linewidth=2, label="loss after one step")
    axis.plot(steps["rates"], steps["line"], "--", color=ORANGE, label="L − η |∇L|², predicted by the gradient")
    axis.set(
        title="one step along the gradient in the untrained network",
        xlabel="learning rate η",
        ylabel="loss of the passenger (nats)",
        ylim=(min(0.0, float(steps["losses"].min())), float(steps["losses"].max()) * 1.1),
    )
    axis.legend()
    results.figure("step", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
