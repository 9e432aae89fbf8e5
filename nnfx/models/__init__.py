"""Models as pure `init` / `apply` pairs: perceptrons, deep and convolutional networks, adapters for Flax modules."""

from nnfx.models import initializers
from nnfx.models.adapters import from_linen, from_nnx
from nnfx.models.convolutional import avg_pool, cnn, conv, lenet, max_pool, resnet
from nnfx.models.dense import mlp, perceptron
from nnfx.models.normalization import BatchNorm

__all__ = [
    "BatchNorm",
    "avg_pool",
    "cnn",
    "conv",
    "from_linen",
    "from_nnx",
    "initializers",
    "lenet",
    "max_pool",
    "mlp",
    "perceptron",
    "resnet",
]
