"""Rows of data sets from other libraries (Hugging Face, Grain, PyTorch), decoded and stacked in parts."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.arrays import as_numpy

__all__ = ["Names", "in_parts"]

Names = str | int | Sequence[str | int]
"""Where to find an array in a row: a column name or a position in a tuple; or several of them, for one number each."""

_ROWS = 256
"""How many rows to yield at a time."""


def in_parts(
    dataset: Iterable[Any], inputs: Names, targets: Names, weights: Names | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the rows of a data set in parts for `nnfx.data.store`, which documents the arguments.

    Raises:
        TypeError: for data sets that have no rows or never end, and values that are not real numbers.
        ValueError: for names that rows do not have, and values of different shapes; the error names the row.

    Example:
        >>> rows = [{"image": np.full((2, 2), i), "label": i} for i in range(300)]
        >>> [(images.shape, labels[-1]) for images, labels in in_parts(rows, "image", "label")]
        [((256, 2, 2), np.int64(255)), ((44, 2, 2), np.int64(299))]
    """
    if isinstance(dataset, Mapping):
        raise TypeError(f"parts: expected a single data set, got a mapping of {', '.join(map(repr, dataset))}")
    if (
        hasattr(dataset, "to_numpy")
        or isinstance(dataset, str)
        or not (isinstance(dataset, Iterable) or _is_indexed(dataset))
    ):
        raise TypeError(f"parts: expected an iterable of rows, got {checks.describe(dataset)}")
    if isinstance(dataset, Sized) and len(dataset) == sys.maxsize:
        raise TypeError("parts: expected a data set of finite length, got one that repeats forever")
    asked = {"inputs": inputs, "targets": targets, **({} if weights is None else {"weights": weights})}
    return _parts(dataset, asked)


def _parts(dataset: Any, asked: dict[str, Names]) -> Iterator[tuple[np.ndarray, ...]]:
    start = 0
    for count, columns in _columns(dataset):
        yield tuple(_array(argument, names, columns, start) for argument, names in asked.items())
        start += count


def _columns(dataset: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number of rows in each part, and a function `(argument, name)` that returns the values of a column."""
    if hasattr(dataset, "column_names") and callable(getattr(dataset, "iter", None)):  # a Hugging Face data set
        for batch in dataset.iter(batch_size=_ROWS):
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"parts: expected batches that are mappings, got a {type(batch).__name__}; first"
                    " convert the data set with dataset.with_format('numpy')"
                )
            yield len(next(iter(batch.values()))), lambda argument, name, batch=batch: _value(argument, batch, name)
        return
    rows = map(dataset.__getitem__, range(len(dataset))) if _is_indexed(dataset) else iter(dataset)
    real = (row for row in rows if row is not None)  # Grain yields None where a row was filtered out
    while some := list(itertools.islice(real, _ROWS)):
        yield len(some), lambda argument, name, some=some: [_value(argument, row, name) for row in some]


def _is_indexed(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _value(argument: str, row: Any, name: str | int) -> Any:
    if isinstance(row, Mapping):
        checks.choice(argument, name, row)
        return row[name]
    if not isinstance(row, Sequence) or isinstance(row, str):
        raise TypeError(f"parts: expected rows that are mappings or tuples, got {checks.describe(row)}")
    if not isinstance(name, int) or not -len(row) <= name < len(row):
        raise ValueError(f"{argument}: expected a position in rows of {len(row)} values, got {name!r}")
    return row[name]


def _array(argument: str, names: Names, columns: Any, start: int) -> np.ndarray:
    """Stack the values of the given rows into one array."""
    if isinstance(names, str | int):
        return _stacked(argument, columns(argument, names), start)
    return np.stack([_stacked(f"{argument}, {name!r}", columns(argument, name), start) for name in names], axis=-1)


def _stacked(label: str, values: Any, start: int) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    arrays = [_decoded(f"{label} of row {number}", value) for number, value in enumerate(values, start)]
    for number, array in enumerate(arrays, start):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{label} of row {number}: expected the shape {arrays[0].shape} of row {start}, got {array.shape}; map"
                " the data set to one shape first"
            )
    return np.stack(arrays)


_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "F")


def _decoded(label: str, value: Any) -> np.ndarray:
    """Return a value as an array; a Pillow image becomes `(height, width, channels)`."""
    if not (hasattr(value, "mode") and hasattr(value, "getbands")):
        return as_numpy(label, value)
    if value.mode not in _MODES:
        raise ValueError(
            f"{label}: expected an image in one of the modes {', '.join(_MODES)}, got {value.mode}; first convert"
            " the images of the data set, for example with image.convert('RGB')"
        )
    array = np.asarray(value)
    return array[..., None] if array.ndim == 2 else array
