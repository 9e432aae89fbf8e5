"""Data: arrays preprocessed on the host and kept on the device, data sources, and seeded batching."""

from nnfx.data.arrow import read_arrow, read_parquet
from nnfx.data.batching import Order, in_order, shuffled, take
from nnfx.data.emnist import read_emnist
from nnfx.data.formats import Examples, read_cifar10, read_cifar100, read_idx, read_idx_examples
from nnfx.data.images import Images, cifar10, cifar100, digits, fashion_mnist, images, mnist
from nnfx.data.npz import read_npz
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
from nnfx.data.tokens import next_tokens
from nnfx.data.ts import LabelledSeries, read_ts
from nnfx.data.tsf import Collection, read_tsf

__all__ = [
    "Collection",
    "Data",
    "Examples",
    "Images",
    "LabelledSeries",
    "Order",
    "Preprocess",
    "Report",
    "Series",
    "Stored",
    "airline_passengers",
    "cifar10",
    "cifar100",
    "digits",
    "ett",
    "exchange_rate",
    "fashion_mnist",
    "images",
    "in_order",
    "mnist",
    "next_tokens",
    "prepare",
    "read_arrow",
    "read_cifar10",
    "read_cifar100",
    "read_emnist",
    "read_idx",
    "read_idx_examples",
    "read_npz",
    "read_parquet",
    "read_series",
    "read_series_rows",
    "read_ts",
    "read_tsf",
    "shuffled",
    "store",
    "stored",
    "sunspots",
    "take",
    "titanic",
]
