"""The few primitives whose formulation matters, each differentiable and mappable."""

from nnfx.ops.dropout import dropout
from nnfx.ops.normalization import RunningStatistics, batch_norm, batch_statistics, update_statistics

__all__ = ["RunningStatistics", "batch_norm", "batch_statistics", "dropout", "update_statistics"]
