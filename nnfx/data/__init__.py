"""Data: arrays made ready on the host, then kept on the device; sources; seeded batching."""

from nnfx.data.batching import Order, in_order, shuffled, take
from nnfx.data.prepare import Data, Preprocess, Report, prepare
from nnfx.data.titanic import titanic

__all__ = ["Data", "Order", "Preprocess", "Report", "in_order", "prepare", "shuffled", "take", "titanic"]
