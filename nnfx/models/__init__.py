"""Models as pure `init` / `apply` pairs: the perceptron, deep networks, and adapters for Flax modules."""

from nnfx.models import initializers
from nnfx.models.adapters import from_linen, from_nnx
from nnfx.models.dense import mlp, perceptron
from nnfx.models.normalization import BatchNorm

__all__ = ["BatchNorm", "from_linen", "from_nnx", "initializers", "mlp", "perceptron"]
