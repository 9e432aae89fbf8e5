"""Data: arrays prepared on the host and kept on the device, data sources, and seeded batching."""

from nnfx.data.batching import Order, in_order, shuffled, take
from nnfx.data.formats import Examples
from nnfx.data.images import Images, cifar10, digits, fashion_mnist, images, mnist
from nnfx.data.prepare import Data, Preprocess, Report, prepare
from nnfx.data.series import (
    Series,
    airline_passengers,
    ett,
    exchange_rate,
    read_series,
    read_series_rows,
    sunspots,
)
from nnfx.data.stored import Stored, store, stored
from nnfx.data.titanic import titanic

__all__ = [
    "Data",
    "Examples",
    "Images",
    "Order",
    "Preprocess",
    "Report",
    "Series",
    "Stored",
    "airline_passengers",
    "cifar10",
    "digits",
    "ett",
    "exchange_rate",
    "fashion_mnist",
    "images",
    "in_order",
    "mnist",
    "prepare",
    "read_series",
    "read_series_rows",
    "shuffled",
    "store",
    "stored",
    "sunspots",
    "take",
    "titanic",
]
