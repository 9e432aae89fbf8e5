"""DeepOBS's `quadratic_deep`: a noisy quadratic in 100 dimensions, minimised by SGD, Momentum and Adam.

    python -m experiments.reproductions.deepobs_quadratic [--seeds 10] [--epochs 100]

The loss of an example x is `½ (θ − x)ᵀ Q (θ − x)`. Examples are drawn from a normal distribution with a standard
deviation of 0.6. Q is fixed, and its spectrum resembles the spectrum of a deep network's Hessian: 90 eigenvalues are
below 1, and ten between 30 and 60. There are 1,000 training examples and as many test examples, both in batches of 128
without the incomplete one; θ starts at one in every dimension. Q and the examples are the same for all seeds and the
same as in the paper, drawn from the same generator. A seed determines the order of the examples, which is the same in
all epochs: the published loader starts over from its seed, so it leaves out the same examples every time, and the
deviation over seeds does not shrink during training. With a new order in each epoch (`--reshuffle`), four of the
fifteen losses differ by more than two standard errors.

The learning rates were tuned by the authors. Expect the test loss before training to agree in every digit, and most of
the others to lie within two standard errors of the published ones. It takes less than a minute; the record is next to
this script.

Schneider, Balles and Hennig, *DeepOBS: a deep learning optimizer benchmark suite*, ICLR 2019. The losses are from its
published baselines, github.com/fsschneider/DeepOBS_Baselines at commit 3da285a, `quadratic_deep`: mean and standard
deviation over ten seeds.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import nnfx
from experiments.common import BLUE, GREEN, ORANGE, Results, command
from experiments.reproductions.comparison import Comparison, Sample, print_comparisons
from experiments.reproductions.deepobs import make_epoch
from nnfx.types import Array

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(1.5848931925e-2),
    "momentum": optax.sgd(2.5118864315e-3, momentum=0.99),
    "adam": optax.adam(3.9810717055e-2),
}
INITIAL = 353.44676
"""The published test loss before training, the same for all seeds."""
EPOCHS = (1, 2, 5, 10, 100)
MEANS = {
    "sgd": (105.3304, 102.9216, 97.6952, 92.9784, 87.3975),
    "momentum": (271.1580, 137.8846, 217.3810, 134.2614, 87.0450),
    "adam": (141.8246, 110.8286, 101.3543, 94.7304, 87.1119),
}
DEVIATIONS = {
    "sgd": (0.1659, 0.1681, 0.1681, 0.1685, 0.1690),
    "momentum": (2.4383, 1.1241, 0.5073, 0.3894, 0.0252),
    "adam": (0.2358, 0.2072, 0.0871, 0.0919, 0.0242),
}
"""The published test losses after these epochs: mean and standard deviation over ten seeds."""
SEEDS = 10
"""The number of published seeds."""
COLOURS = {"sgd": BLUE, "momentum": ORANGE, "adam": GREEN}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/deepobs_quadratic")
    """where the results go"""
    seeds: int = 10
    """runs of each optimizer"""
    epochs: int = 100
    """epochs of each run"""
    batch_size: int = 128
    """rows in a minibatch"""
    dimensions: int = 100
    """number of dimensions, a tenth of which have large eigenvalues; results were published only for the default"""
    rows: int = 1000
    """examples to train on, and to test on"""
    reshuffle: bool = False
    """whether each epoch has its own order of examples"""


class Offset(nn.Module):
    """The difference θ − x."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return `(batch, dimensions)`."""
        return self.param("theta", nn.initializers.ones, (1, *x.shape[1:])) - x


def hessian(dimensions: int) -> np.ndarray:
    """Return the Hessian Q: random eigenvalues, in a random basis.

    The basis is a random rotation, drawn by the subgroup method: a rotation in n dimensions becomes one in n + 1 by
    adding an axis and reflecting it to a random direction.
    """
    draw = np.random.RandomState(42)  # the generator of the paper
    large = dimensions // 10
    eigenvalues = np.concatenate([draw.uniform(0, 1, dimensions - large), draw.uniform(30, 60, large)])
    angle = 2 * np.pi * draw.uniform()
    basis = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, dimensions + 1):
        direction = draw.normal(size=size)
        mirror = np.eye(size)[0] - direction / np.linalg.norm(direction)
        larger = np.eye(size)
        larger[1:, 1:] = basis
        basis = larger - 2 * np.outer(mirror, mirror @ larger) / (mirror @ mirror)
    return basis.T @ (eigenvalues[:, None] * basis)


def examples(seed: int, config: Config) -> nnfx.Batch:
    """Return normal examples; they have no targets."""
    drawn = np.random.RandomState(seed).normal(0, 0.6, (config.rows, config.dimensions))
    return nnfx.Batch(jnp.asarray(drawn, jnp.float32), jnp.zeros(config.rows), jnp.ones(config.rows))


def make_loss(curvature: Array) -> Callable[[Array, Array], Array]:
    """Return the loss per example, `½ δᵀ Q δ` of outputs δ."""

    def quadratic(outputs: Array, targets: Array) -> Array:
        del targets
        return ((outputs @ curvature) * outputs).sum(1) / 2

    return quadratic


def train(optimizer: optax.GradientTransformation, config: Config) -> Array:
    """Return the test loss before training and after each epoch, `(seeds, epochs + 1)`; all seeds are one program."""
    loss = make_loss(jnp.asarray(hessian(config.dimensions), jnp.float32))
    model = nnfx.models.from_linen(Offset())
    data, test = examples(42, config), examples(43, config)
    full = config.rows // config.batch_size * config.batch_size
    epoch = make_epoch(model, loss, optimizer, config.batch_size)

    def test_loss(state: nnfx.TrainState) -> Array:
        return loss(model.apply(state.variables, test.inputs[:full]), test.targets[:full]).mean()

    def run(key: Array) -> Array:
        state = nnfx.init_state(key, model, optimizer, data.inputs[:1])

        def advance(state: nnfx.TrainState, number: Array) -> tuple[nnfx.TrainState, Array]:
            order_key = nnfx.split_key(key).order
            state, _ = epoch(state, data, jax.random.fold_in(order_key, number) if config.reshuffle else order_key)
            return state, test_loss(state)

        _, losses = jax.lax.scan(advance, state, jnp.arange(config.epochs))
        return jnp.concatenate([test_loss(state)[None], losses])

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), config.seeds))


def compare(curves: dict[str, list[list[float]]]) -> list[Comparison]:
    """Return the test loss next to the published one, for each optimizer and published epoch."""
    return [
        Comparison(
            f"{name}, epoch {epoch}, test loss",
            Sample.of([curve[epoch] for curve in curves[name]]),
            Sample(mean, deviation, SEEDS),
        )
        for name in OPTIMIZERS
        for epoch, mean, deviation in zip(EPOCHS, MEANS[name], DEVIATIONS[name], strict=True)
        if epoch < len(curves[name][0])
    ]


def draw(curves: dict[str, list[list[float]]]) -> Figure:
    """Plot our curves over the published points."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, colour in COLOURS.items():
        axes.plot(np.transpose(curves[name]), color=colour, alpha=0.6, linewidth=1)
        spread = 2 * np.asarray(DEVIATIONS[name])
        style: dict[str, Any] = {"color": colour, "capsize": 3, "markersize": 4, "label": f"{name}, published ± 2 sd"}
        axes.errorbar(EPOCHS, MEANS[name], spread, fmt="o", **style)
    axes.set(xlabel="epoch", xscale="symlog", ylabel="test loss", yscale="log")
    axes.set_title("quadratic_deep: ours as lines, published as points")
    axes.legend(fontsize=8)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Run every optimizer, and compare with the published losses."""
    results = Results(config.out)
    curves = {name: train(optimizer, config).tolist() for name, optimizer in OPTIMIZERS.items()}
    rows = compare(curves)
    print_comparisons(rows)
    results.figure("test_loss", draw(curves))
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": curves})


if __name__ == "__main__":
    command(main, Config, __doc__)
