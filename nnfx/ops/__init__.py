"""Primitives whose formulation matters for speed or accuracy; all are differentiable and work under `jax.vmap`."""

from nnfx.ops.attention import attention, rotated
from nnfx.ops.cells import Cell, RecurrentWeights, gru_cell, lstm_cell, rnn_cell
from nnfx.ops.convolution import convolution
from nnfx.ops.dropout import dropout
from nnfx.ops.elementary import absolute, largest, log_softmax, softmax, square_root
from nnfx.ops.logistic import logistic_loss
from nnfx.ops.normalization import RunningStatistics, batch_norm, batch_statistics, layer_norm, update_statistics
from nnfx.ops.pooling import avg_pool, global_avg_pool, global_max_pool, max_pool
from nnfx.ops.product import dot_product
from nnfx.ops.recurrence import recurrence

__all__ = [
    "Cell",
    "RecurrentWeights",
    "RunningStatistics",
    "absolute",
    "attention",
    "avg_pool",
    "batch_norm",
    "batch_statistics",
    "convolution",
    "dot_product",
    "dropout",
    "global_avg_pool",
    "global_max_pool",
    "gru_cell",
    "largest",
    "layer_norm",
    "log_softmax",
    "logistic_loss",
    "lstm_cell",
    "max_pool",
    "recurrence",
    "rnn_cell",
    "rotated",
    "softmax",
    "square_root",
    "update_statistics",
]
