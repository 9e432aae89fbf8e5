"""Five problems that are small enough to be searched thousands of times; see `experiments.search_methods`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn
from scipy.optimize import minimize

import nnfx
from nnfx.data import Data
from nnfx.forecasting import forecasters
from nnfx.sweeps import LogUniform, Uniform
from nnfx.training.fit import Fit
from nnfx.types import Array

CURVATURES = np.geomspace(0.01, 1.0, 6)
"""The eigenvalues of the quadratic."""


class Problem(NamedTuple):
    """Runs whose held-out loss is searched.

    Attributes:
        name: its name.
        train: the run.
        data: its data.
        space: the ranges of the numbers that are searched.
        optimum: the lowest loss, if it is known.
    """

    name: str
    train: Fit
    data: Data
    space: dict[str, LogUniform | Uniform]
    optimum: float | None = None


def sgd(learning_rate: float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Gradient descent with momentum; `weight_decay ‖W‖² / 2` is added to the loss."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))


def adam(learning_rate: float, b1: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(learning_rate, b1=b1, weight_decay=weight_decay)


OF_SGD: dict[str, LogUniform | Uniform] = {
    "learning_rate": LogUniform(1e-3, 10.0),
    "momentum": Uniform(0.0, 0.99),
    "weight_decay": LogUniform(1e-6, 0.1),
}
"""The hyper-parameters of gradient descent, and their ranges."""
OF_ADAM: dict[str, LogUniform | Uniform] = {
    "learning_rate": LogUniform(1e-4, 1.0),
    "b1": Uniform(0.0, 0.99),
    "weight_decay": LogUniform(1e-4, 1.0),
}
"""The hyper-parameters of Adam, and their ranges."""


def titanic(key: Array, epochs: int) -> Problem:
    """Survival by fare and age, with 16 hidden units and dropout."""
    train = nnfx.fit(
        lambda dropout: nnfx.models.mlp(hidden=(16,), activation="tanh", dropout=dropout),
        nnfx.losses.binary_cross_entropy,
        sgd,
        epochs=epochs,
        batch_size=32,
    )
    data = nnfx.data.titanic("fare", "age", key=key, valid_fraction=0.25)
    return Problem("Titanic", train, data, OF_SGD | {"dropout": Uniform(0.0, 0.5)})


def digits(key: Array, epochs: int) -> Problem:
    """Handwritten digits as 64 numbers, with 32 hidden units."""
    model, loss = nnfx.models.mlp(hidden=(32,), outputs=10), nnfx.losses.categorical_cross_entropy
    train = nnfx.fit(model, loss, sgd, epochs=epochs, batch_size=64)
    return Problem("digits, dense", train, nnfx.data.digits(key=key, valid_fraction=0.25), OF_SGD)


def digit_images(key: Array, epochs: int) -> Problem:
    """Handwritten digits as images, with two convolutional layers; runs are a third as long, since they are slow."""
    layers = [nnfx.models.conv(4), nnfx.models.max_pool(), nnfx.models.conv(8), nnfx.models.max_pool()]
    model, loss = nnfx.models.cnn(layers, outputs=10), nnfx.losses.categorical_cross_entropy
    train = nnfx.fit(model, loss, adam, epochs=max(1, epochs // 3), batch_size=64)
    data = nnfx.data.images("digits").prepare(key=key, valid_fraction=0.5)
    return Problem("digits, convolutional", train, data, OF_ADAM)


def sunspots(key: Array, epochs: int) -> Problem:
    """The next year's sunspot number from the last eleven, with an LSTM of eight units; the last years are held out."""
    del key
    model = forecasters.direct(partial(nnfx.models.lstm, hidden=(8,)), horizon=1)
    train = nnfx.fit(model, nnfx.losses.mean_square_error, adam, epochs=epochs, batch_size=32)
    data = nnfx.forecasting.prepare(nnfx.data.sunspots(), lookback=11, horizon=1, valid_windows=60)
    return Problem("sunspots, LSTM", train, data, OF_ADAM)


class Point(nn.Module):
    """A point in the space of the quadratic, which starts at a distance of one from the minimum in each direction."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the point for each example, `(batch, dimensions)`."""
        return self.param("point", nn.initializers.ones, (1, len(CURVATURES))) + 0 * x


def quadratic(key: Array, epochs: int) -> Problem:
    """Gradient descent with momentum on `½ Σ λᵢ θᵢ²`, whose loss after any step is known for any rate and momentum."""
    del key

    def loss(outputs: Array, targets: Array) -> Array:
        del targets
        return (outputs**2 @ CURVATURES.astype(np.float32)) / 2

    def momentum(learning_rate: float, momentum: float) -> optax.GradientTransformation:
        return optax.sgd(learning_rate, momentum)

    nothing = np.zeros((2, 1), np.float32)
    data = nnfx.data.prepare(nothing, nothing, valid=(nothing, nothing), standardize=False)
    train = nnfx.fit(nnfx.models.from_linen(Point()), loss, momentum, epochs=epochs)
    space: dict[str, LogUniform | Uniform] = {"learning_rate": LogUniform(1e-3, 10.0), "momentum": Uniform(0.0, 0.99)}
    return Problem("quadratic", train, data, space, lowest_loss(epochs))


def losses_of(learning_rate: float, momentum: float, epochs: int) -> np.ndarray:
    """Return the loss of the quadratic after each step, `(epochs,)`, in float64.

    >>> losses_of(1.0, 0.0, 1).round(4).item()  # ½ Σ λ (1 − λ)²
    0.1728
    """
    theta, velocity, found = np.ones(len(CURVATURES)), np.zeros(len(CURVATURES)), []
    for _ in range(epochs):
        velocity = momentum * velocity + CURVATURES * theta
        theta = theta - learning_rate * velocity
        found.append(float((CURVATURES * theta**2).sum() / 2))
    return np.array(found)


def lowest_loss(epochs: int) -> float:
    """Return the lowest loss of the quadratic within a number of steps, over all rates and momenta."""

    def lowest(numbers: np.ndarray) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.log(np.nan_to_num(losses_of(numbers[0], numbers[1], epochs), nan=np.inf).min()))

    starts = [(rate, momentum) for rate in np.geomspace(0.03, 8, 40) for momentum in np.linspace(0, 0.98, 40)]
    best = sorted(starts, key=lambda start: lowest(np.array(start)))[:10]
    ends: list[Any] = [minimize(lowest, start, method="Nelder-Mead", options={"xatol": 1e-8}) for start in best]
    return float(np.exp(min(end.fun for end in ends)))


PROBLEMS = (titanic, digits, digit_images, sunspots, quadratic)
"""Functions that return the problems, given a key and the number of epochs of a run."""


def problems(key: jax.Array, epochs: int) -> list[Problem]:
    """Return the five problems."""
    return [make(jax.random.fold_in(key, i), epochs) for i, make in enumerate(PROBLEMS)]
