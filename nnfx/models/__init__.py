"""Models as pure `init` / `apply` pairs: the perceptron, deep networks, and adapters for Flax modules."""

from nnfx.models import initializers
from nnfx.models.adapters import from_linen, from_nnx
from nnfx.models.dense import mlp, perceptron

__all__ = ["from_linen", "from_nnx", "initializers", "mlp", "perceptron"]
