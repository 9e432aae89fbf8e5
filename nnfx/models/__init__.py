"""Models as pure `init` / `apply` pairs: dense, convolutional and recurrent networks, transformers, and adapters.

`CONVENTIONS.md`, in this folder, compares the defaults of the models with those of Flax, Haiku, Keras and PyTorch.
"""

from nnfx.models import conversion, initializers
from nnfx.models.adapters import from_equinox, from_haiku, from_linen, from_nnx
from nnfx.models.attention import transformer
from nnfx.models.convolutional import avg_pool, cnn, conv, lenet, max_pool, reshaped, resnet
from nnfx.models.dense import mlp, perceptron
from nnfx.models.normalization import BatchNorm, LayerNorm
from nnfx.models.pruning import magnitude_masks, masked
from nnfx.models.recurrent import gru, lstm, rnn
from nnfx.models.safetensors import load_safetensors, save_safetensors
from nnfx.models.time_series import time_series_fcn, time_series_resnet
from nnfx.models.tokens import embedding
from nnfx.models.weights import merge, pretrained
from nnfx.types import Sequences

__all__ = [
    "BatchNorm",
    "LayerNorm",
    "Sequences",
    "avg_pool",
    "cnn",
    "conv",
    "conversion",
    "embedding",
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "gru",
    "initializers",
    "lenet",
    "load_safetensors",
    "lstm",
    "magnitude_masks",
    "masked",
    "max_pool",
    "merge",
    "mlp",
    "perceptron",
    "pretrained",
    "reshaped",
    "resnet",
    "rnn",
    "save_safetensors",
    "time_series_fcn",
    "time_series_resnet",
    "transformer",
]
