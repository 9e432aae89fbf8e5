"""The problems on which systems are timed: the same arrays, architecture, batch size, optimizer and epochs for all."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

RATE = 1e-3
"""The learning rate of all systems."""


class Problem(NamedTuple):
    """Classification by a network of dense layers, trained by Adam with a learning rate of 0.001.

    Attributes:
        inputs: the inputs, float32 `(rows, features)`.
        labels: the classes, integers `(rows,)`.
        hidden: widths of the hidden layers.
        activation: "tanh" or "relu".
        batch_size: rows in a minibatch.
        epochs: the number of times that each row is used.
    """

    inputs: np.ndarray
    labels: np.ndarray
    hidden: tuple[int, ...]
    activation: str
    batch_size: int
    epochs: int

    @property
    def outputs(self) -> int:
        """The number of outputs: one logit for two classes, otherwise one per class."""
        classes = int(self.labels.max()) + 1
        return 1 if classes == 2 else classes


def titanic() -> Problem:
    """714 × 2, 2-16-1, batch 32, 200 epochs."""
    import nnfx

    data = nnfx.data.titanic("fare", "age").train
    return Problem(np.asarray(data.inputs), np.asarray(data.targets), (16,), "tanh", 32, 200)


def digits() -> Problem:
    """1797 × 64, 64-128-10, batch 32, 50 epochs."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return Problem((inputs / 16).astype(np.float32), labels.astype(np.int32), (128,), "relu", 32, 50)


def fashion_mnist() -> Problem | None:
    """60000 × 784, 784-512-512-10, batch 128, one epoch; None if the files are not under `NNFX_DATA`."""
    if not (Path(os.environ.get("NNFX_DATA", "")) / "fashion-mnist").exists():
        return None
    import nnfx

    pixels, classes = nnfx.data.images("fashion_mnist").train
    return Problem((pixels / 255).astype(np.float32).reshape(-1, 784), classes, (512, 512), "relu", 128, 1)
