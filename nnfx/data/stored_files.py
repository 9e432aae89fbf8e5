"""The files of stored examples: one NumPy file per array, with a checksum for each row."""

import functools
import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.arrays import WORST_ROUNDING, is_exact

__all__ = ["NAMES", "Column", "Moments", "checksums", "mapped", "spans"]

NAMES = ("inputs", "targets", "weights")
"""The arrays of stored examples; the array of checksums has one column for each."""

_BLOCK = 1 << 24
"""The approximate number of bytes to read at a time when reading all rows."""


def checksums(rows: np.ndarray) -> np.ndarray:
    """Return a checksum of the bytes of each row.

    The bytes of a row are read as 32-bit numbers `b_i` (padded with zeros), and its checksum is `Σ m_i b_i` modulo 2⁶⁴
    with fixed, pseudorandom odd multipliers `m_i`. Any change to a single number changes the checksum, since
    odd multipliers are invertible; other changes go undetected with a probability of at most 2⁻³².

    Args:
        rows: `(rows, ...)`.

    Returns:
        uint64 `(rows,)`.

    Example:
        >>> first, second = checksums(np.array([[1.0, 2.0], [1.0, 2.0]]))
        >>> bool(first == second), bool(first == checksums(np.array([[2.0, 1.0]]))[0])
        (True, False)

    References:
        Lemire and Kaser, *Strongly universal string hashing is fast*, The Computer Journal 2014, the multilinear hash.
    """
    content = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    if spare := -content.shape[1] % 4:
        content = np.pad(content, ((0, 0), (0, spare)))
    words = content.view("<u4")
    return np.einsum("ij,j->i", words, _multipliers(words.shape[1]), dtype=np.uint64)


@functools.lru_cache(maxsize=8)
def _multipliers(count: int) -> np.ndarray:
    """Return odd 64-bit numbers from the SplitMix64 generator, the same on every machine and in every release."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


def spans(array: np.ndarray) -> Iterator[slice]:
    """Return slices of about 16 MiB each that together cover the rows of an array."""
    size = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
    rows = max(1, _BLOCK // size)
    return (slice(start, start + rows) for start in range(0, len(array), rows))


class Column:
    """The file of one array while it is being written, by appending rows.

    Args:
        name: the name of the array.
        file: the file, open for writing.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self._file = name, file
        self._hash = hashlib.sha256()
        self._rows = 0
        self._like = np.zeros(0)

    def append(self, label: str, array: np.ndarray) -> None:
        """Append rows of the same dtype and shape as the earlier rows.

        Raises:
            ValueError: for rows of another dtype or shape.
        """
        if not self._rows:
            self._like = array[:0]
            self._file.write(self._header())
        if (array.dtype, array.shape[1:]) != (self._like.dtype, self._like.shape[1:]):
            wanted = f"{self._like.dtype}{list(self._like.shape[1:])}"
            got = f"{array.dtype}{list(array.shape[1:])}"
            raise ValueError(f"{label}: expected rows of {wanted} as before, got {got}")
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._hash.update(content)
        self._rows += len(array)

    def finish(self) -> dict[str, str]:
        """Complete the file on disk, and return the description that `mapped` compares the file with."""
        header = self._header()
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        shape = ",".join(map(str, (self._rows, *self._like.shape[1:])))
        return {
            "array": f"{self._like.dtype}[{shape}] {self._hash.hexdigest()[:16]}",
            "header": f"{len(header)} bytes {_checksum(header)}",
        }

    def _header(self) -> bytes:
        """Return the header that NumPy writes before an array, padded so that the number of rows can grow."""
        described = np.lib.format.header_data_from_array_1_0(self._like)
        described["shape"] = (self._rows, *self._like.shape[1:])
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()


def mapped(path: Path, written: dict[str, str]) -> Any:
    """Map a file into memory, after checking that its header and size match its description.

    Args:
        path: the path of the file.
        written: the description returned by `Column.finish`.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is missing or does not match its description; the error names the file.
    """
    wanted = written["array"].split()[0]
    dtype, _, sizes = wanted.removesuffix("]").partition("[")
    shape = tuple(map(int, sizes.split(",")))
    length, _, header = written["header"].partition(" bytes ")
    offset = int(length)
    size = offset + np.dtype(dtype).itemsize * math.prod(shape)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of {wanted}, got none")
    if (found := path.stat().st_size) != size:
        raise ValueError(f"{path}: expected {wanted} as written, of {size} bytes, got {found} bytes")
    with path.open("rb") as file:
        if _checksum(file.read(offset)) != header:
            raise ValueError(f"{path}: expected {wanted} as written, got a file with a different header")
    return np.memmap(path, dtype, "r", offset, shape)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Moments:
    """The mean, the spread and the largest rounding error of each feature, accumulated over several parts.

    Args:
        name: the name of the array.
        in_floats: whether integers may become floats too, as inputs do.
    """

    def __init__(self, name: str, *, in_floats: bool) -> None:
        self._name, self._in_floats = name, in_floats
        self._rows = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._lost: Any = 0.0
        self._dtype: Any = None

    def add(self, given: np.ndarray) -> None:
        """Include more rows, in their original dtype."""
        is_float = jnp.issubdtype(given.dtype, np.floating)
        self._dtype = jax.dtypes.canonicalize_dtype(given.dtype if is_float else float)
        if is_exact(given.dtype, self._dtype) or not (is_float or self._in_floats):
            return
        exact = given.astype(np.float64)
        with np.errstate(over="ignore"):
            lost = np.abs(exact - exact.astype(self._dtype)).max(0)
        rows, mean = self._rows + len(exact), exact.mean(0)
        shift = mean - self._mean
        self._squares = self._squares + ((exact - mean) ** 2).sum(0) + shift**2 * (self._rows * len(exact) / rows)
        self._mean = self._mean + shift * (len(exact) / rows)
        self._lost = np.maximum(self._lost, lost)
        self._rows = rows

    def require_resolution(self, label: str) -> None:
        """Raise an error for features whose spread is lost to rounding.

        Raises:
            ValueError: if there is such a feature; the error names the first one.
        """
        if not self._rows:
            return
        spread = np.sqrt(self._squares / self._rows)
        # a constant feature loses nothing
        is_lost = (self._lost > WORST_ROUNDING * spread) & (spread > 1e-12 * np.abs(self._mean))
        if is_lost.any():
            first = np.unravel_index(int(np.argmax(is_lost)), is_lost.shape)
            place = f" in feature {', '.join(map(str, first))}" if first else ""
            raise ValueError(
                f"{label}.{self._name}: expected numbers that {self._dtype} can tell apart, got"
                f" {np.asarray(self._mean)[first]:g} ± {spread[first]:g}{place}; subtract an offset"
            )
