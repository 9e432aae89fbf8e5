"""Convolutional time series classifiers: the standard baselines, a plain and a residual network."""

from collections.abc import Sequence

import flax.linen as nn

from nnfx import activations, checks, ops
from nnfx.activations import Activation
from nnfx.models.adapters import from_linen
from nnfx.models.convolutional import Convolution, ConvolutionLayer, cnn, conv
from nnfx.models.dense import Perceptron
from nnfx.models.normalization import BatchNorm
from nnfx.types import Array, Model

KERNELS = (8, 5, 3)
"""The kernel sizes of three successive convolutions, in both networks."""


def time_series_fcn(outputs: int = 2, features: Sequence[int] = (128, 256, 128)) -> Model:
    """The fully convolutional network of Wang, Yan and Oates: three convolutions, then the mean over time.

    The kernels span 8, 5 and 3 steps, each convolution is followed by batch norm and ReLU, and a dense layer maps the
    means to logits. The convolutions have no bias, since batch norm would cancel it.

    Args:
        outputs: the number of classes.
        features: the numbers of features of the three convolutions.

    Returns:
        A model from series `(batch, time, channels)` of equal length to logits `(batch, outputs)`; its state consists
        of the running statistics of batch norm.

    Raises:
        ValueError: for a number that is not positive, or if there are not three numbers of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = time_series_fcn(outputs=3)
        >>> series = jnp.zeros((5, 60, 1))
        >>> model.apply(model.init(jax.random.key(0), series), series).shape
        (5, 3)

    References:
        Wang, Yan and Oates, *Time series classification from scratch with deep neural networks*, IJCNN 2017.
    """
    _check(outputs, features)
    layers = [conv(width, kernel) for width, kernel in zip(features, KERNELS, strict=True)]
    return cnn([*layers, ops.global_avg_pool], outputs, batch_norm=True, axes=1)


class TimeSeriesResNet(nn.Module):
    """Three residual blocks of three convolutions each, the mean over time, and a dense layer."""

    features: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return logits, `(batch, outputs)`."""
        checks.one_array("inputs", x, "(batch, time, channels)")
        if x.ndim != 3:
            raise ValueError(f"inputs: expected (batch, time, channels), got {checks.describe(x)}")

        def layer(name: str, x: Array, features: int, kernel: int, activation: Activation) -> Array:
            module = ConvolutionLayer(
                Convolution(features, kernel, 1, "SAME", 1),
                activation,
                nn.initializers.he_normal(),
                nn.initializers.zeros,
                batch_norm=True,
                name=name,
            )
            return module(x, weights=weights, train=train)

        for block, width in enumerate(self.features):
            inner = x
            for i, kernel in enumerate(KERNELS):
                activation = activations.identity if i == len(KERNELS) - 1 else activations.relu
                inner = layer(f"block_{block}_conv_{i}", inner, width, kernel, activation)
            if x.shape[-1] == width:
                shortcut = BatchNorm(name=f"block_{block}_shortcut")(x, weights=weights, train=train)
            else:
                shortcut = layer(f"block_{block}_shortcut", x, width, 1, activations.identity)
            x = activations.relu(inner + shortcut)
        return Perceptron(self.outputs, name="output")(ops.global_avg_pool(x))


def time_series_resnet(outputs: int = 2, features: Sequence[int] = (64, 128, 128)) -> Model:
    """The residual network of Wang, Yan and Oates: three blocks of three convolutions, then the mean over time.

    The kernels of each block span 8, 5 and 3 steps, and each convolution is followed by batch norm and, except for the
    last of a block, ReLU. The shortcut of a block has batch norm too, after a convolution with a kernel of size 1 if
    the number of features changes; ReLU follows the sum.

    Args:
        outputs: the number of classes.
        features: the numbers of features of the three blocks.

    Returns:
        A model from series `(batch, time, channels)` of equal length to logits `(batch, outputs)`; its state consists
        of the running statistics of batch norm.

    Raises:
        ValueError: for a number that is not positive, or if there are not three numbers of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> shapes = jax.eval_shape(time_series_resnet().init, jax.random.key(0), jnp.zeros((1, 60, 1)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        503106

    References:
        Wang, Yan and Oates, *Time series classification from scratch with deep neural networks*, IJCNN 2017.
        Ismail Fawaz et al., *Deep learning for time series classification: a review*, Data Mining and Knowledge
        Discovery 2019, for the shortcuts.
    """
    _check(outputs, features)
    return from_linen(TimeSeriesResNet(tuple(features), outputs))


def _check(outputs: int, features: Sequence[int]) -> None:
    checks.positive_integer("outputs", outputs)
    if not isinstance(features, Sequence) or len(features) != len(KERNELS):
        raise ValueError(f"features: expected three numbers, such as (128, 256, 128), got {features!r}")
    for i, width in enumerate(features):
        checks.positive_integer(f"features[{i}]", width)
