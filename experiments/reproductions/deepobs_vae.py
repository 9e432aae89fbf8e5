"""DeepOBS's `fmnist_vae`: the first five epochs of a variational autoencoder of Fashion-MNIST.

    NNFX_DATA=... python -m experiments.reproductions.deepobs_vae [--seeds 0 1] [--epochs 2]

The problem is as in the suite's code. The encoder has three 4 × 4 × 64 convolutions, the first two of stride 2, each
followed by leaky ReLU of slope 0.3 and dropout of 0.2, and then linear maps to the mean and to half the log-variance
of 8 latent numbers. The decoder has dense layers of 24 and 49 units with the same leaky ReLU; three transposed 4 × 4 ×
64 convolutions on 7 × 7, the first of stride 2, with ReLU and, after the first two, dropout of 0.2; and a dense layer
of 784 units with the logistic function. Weights are initialised by Glorot's uniform method, and biases are zero. The
loss of an image is the sum of the squared errors of its pixels, divided by 255 beforehand, plus the divergence between
the distribution of the latent numbers and the standard normal distribution. Batches have 64 images; incomplete batches
are dropped, also from the test set. The test loss is measured without dropout, but with latent numbers drawn at
random.

The network is trained by Adam, at the rate tuned by the authors. The published runs of SGD leave the plateau at a loss
of 68, where only the mean image is learned, at any time between the first and the fourth epoch, so a few runs would
say little. The published runs of Momentum stay on this plateau for all of the first five epochs. A run takes about
twenty minutes on one core, so there are only three. Expect the mean of their losses to lie within two standard errors
of the published one before training and after one, two and five epochs. After the first epoch, however, expect more
variation than published: our losses are 30.25, 29.32 and 30.06, while the ten published ones lie between 29.50 and
29.87; we do not know why. Finished runs are kept under `runs/`, so an interrupted run continues when the command is
repeated. The record is next to this script.

Schneider, Balles and Hennig, *DeepOBS: a deep learning optimizer benchmark suite*, ICLR 2019. The losses are from its
published baselines, github.com/fsschneider/DeepOBS_Baselines at commit 3da285a, `fmnist_vae/AdamOptimizer`: mean and
standard deviation of the test losses over ten seeds.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import nnfx
from experiments.common import Results, command
from experiments.reproductions import deepobs
from experiments.reproductions.comparison import Comparison, Sample, finished, print_comparisons
from nnfx.activations import Activation
from nnfx.models import conv
from nnfx.models.convolutional import Convolution, ConvolutionLayer
from nnfx.types import Array, Batch, Variables

LEARNING_RATE = 1.5848931925e-4
PUBLISHED = {0: (132.994, 0.031), 1: (29.682, 0.130), 2: (27.651, 0.153), 5: (25.650, 0.097)}
"""Test loss by epoch, the first entry before training: mean and standard deviation over ten seeds."""
SEEDS = 10
"""The number of published seeds."""
LATENT = 8
"""The number of latent numbers."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/deepobs_vae")
    """where the results go"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """a run for each seed"""
    epochs: int = 5
    """epochs of each run"""
    batch_size: int = 64
    """images in a batch"""
    rows: int | None = None
    """number of training images, for a quick trial; all by default"""


class Autoencoder(nn.Module):
    """The encoder and the decoder, with latent numbers drawn between them."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return the image, the latent mean and half the latent log-variance, `(batch, 784 + 8 + 8)`."""
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros

        def leaky(x: Array) -> Array:
            return nn.leaky_relu(x, 0.3)

        def dense(units: int, x: Array) -> Array:
            return nn.Dense(units, kernel_init=glorot)(x)

        def convolved(layer: Convolution, activation: Activation, x: Array) -> Array:
            return ConvolutionLayer(layer, activation, glorot, zeros, batch_norm=False)(x)

        def dropped(x: Array) -> Array:
            return nnfx.ops.dropout(self.make_rng("dropout"), x, 0.2) if train else x

        x = x.reshape(len(x), 28, 28, 1)
        for strides in (2, 2, 1):
            x = dropped(convolved(conv(64, 4, strides), leaky, x))
        x = x.reshape(len(x), -1)
        mean, log_deviation = dense(LATENT, x), 0.5 * dense(LATENT, x)
        z = mean + jnp.exp(log_deviation) * jax.random.normal(self.make_rng("latent"), mean.shape, mean.dtype)
        x = leaky(dense(49, leaky(dense(24, z)))).reshape(-1, 7, 7, 1)
        x = dropped(convolved(conv(64, 4, padding=[(2, 2), (2, 2)]), nn.relu, spread(x)))
        for is_last in (False, True):
            x = convolved(conv(64, 4, padding=[(2, 1), (2, 1)]), nn.relu, x)
            x = x if is_last else dropped(x)
        image = nn.sigmoid(dense(784, x.reshape(len(x), -1)))
        return jnp.concatenate([image, mean, log_deviation], axis=-1)


def spread(x: Array) -> Array:
    """Return images with zeros between all rows and columns, the first step of a transposed convolution of stride 2.

    >>> spread(jnp.ones((1, 2, 2, 1)))[0, :, :, 0].tolist()
    [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    """
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0)))


def loss(outputs: Array, targets: Array) -> Array:
    """`Σ (x̂ − x)² + ½ Σ (μ² + σ² − 1 − log σ²)`, `(batch,)`."""
    image, mean, log_deviation = jnp.split(outputs, (784, 784 + LATENT), axis=-1)
    errors = jnp.square(image - targets.reshape(len(targets), -1)).sum(-1)
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_deviation) - 1 - 2 * log_deviation).sum(-1)
    return errors + divergence


MODEL = nnfx.models.from_linen(Autoencoder())


@partial(jax.jit, static_argnames="batch_size")
def loss_on(key: Array, variables: Variables, images: Array, batch_size: int) -> Array:
    """Return the mean loss of all complete batches of the images."""
    count = len(images) // batch_size
    batches = images[: count * batch_size].reshape(count, batch_size, *images.shape[1:])

    def mean(each: tuple[Array, Array]) -> Array:
        batch_key, batch = each
        return loss(MODEL.apply(variables, batch, key=batch_key), batch).mean()

    return jax.lax.map(mean, (jax.random.split(key, count), batches)).mean()


def run(seed: int, data: nnfx.data.Data, config: Config) -> dict[str, list[float]]:
    """Train once; return the training loss of each epoch, and the test loss before training and after each epoch."""
    assert data.valid is not None
    key, optimizer, test_images = jax.random.key(seed), optax.adam(LEARNING_RATE), data.valid.inputs
    epoch = jax.jit(deepobs.make_epoch(MODEL, loss, optimizer, config.batch_size), donate_argnums=0)
    images = Batch(data.train.inputs, data.train.inputs, data.train.weights)
    state = nnfx.init_state(key, MODEL, optimizer, images.inputs[:1])
    test_keys = jax.random.split(jax.random.fold_in(key, 1), config.epochs + 1)

    def measured(number: int) -> float:
        return float(loss_on(test_keys[number], state.variables, test_images, config.batch_size))

    curves: dict[str, list[float]] = {"train_loss": [], "test_loss": [measured(0)]}
    for number in range(config.epochs):
        state, value = epoch(state, images, jax.random.fold_in(nnfx.split_key(key).order, number))
        curves["train_loss"].append(float(value))
        curves["test_loss"].append(measured(number + 1))
    return curves


def compare(runs: list[dict[str, list[float]]]) -> list[Comparison]:
    """Return the test loss next to the published one, for each published epoch that all runs reached."""
    reached = min(len(curves["test_loss"]) for curves in runs) - 1
    return [
        Comparison(
            f"epoch {epoch}, test loss" if epoch else "before training, test loss",
            Sample.of([curves["test_loss"][epoch] for curves in runs]),
            Sample(mean, deviation, SEEDS),
        )
        for epoch, (mean, deviation) in PUBLISHED.items()
        if epoch <= reached
    ]


def main(config: Config) -> dict[str, Any]:
    """Make the runs that have not been made yet, and compare all results with the published ones."""
    results = Results(config.out)
    data = nnfx.data.fashion_mnist(hold_out_test=True)
    if config.rows is not None:
        data = dataclasses.replace(data, train=jax.tree.map(lambda array: array[: config.rows], data.train))
    settings: dict[str, Any] = {"epochs": config.epochs, "batch_size": config.batch_size, "rows": config.rows}
    runs = [
        finished(config.out / f"run_{seed}.json", settings, partial(run, seed, data, config))
        for seed in tqdm(config.seeds, unit="run")
    ]
    rows = compare(runs)
    print_comparisons(rows)
    settings["seeds"] = config.seeds
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    nnfx.cpu.set_up()
    command(main, Config, __doc__)
