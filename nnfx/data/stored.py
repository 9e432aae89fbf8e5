"""Examples in a folder, mapped into memory and read as they are needed: data sets larger than memory.

A folder of

- `inputs.npy`, `targets.npy` and `weights.npy`: NumPy's own files, one row an example;
- `stored.json`: the dtype, shape and checksum of each.

It is written aside and renamed when it is whole, so that whatever has its name is.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.data.batching import Order, Orders, steps_per_epoch
from nnfx.types import Array, Batch

FORMAT = 1
"""The number of the layout described above; another one is refused."""
_ABOUT = "stored.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Examples in a folder, as `nnfx.data.stored` opens them.

    Attributes:
        folder: where they are.
        inputs: `(rows, ...)`, mapped into memory.
        targets: `(rows, ...)`, mapped into memory.
        weights: `(rows,)`, mapped into memory.
        words: the dtype, shape and checksum of each array by its name, as they were written.
    """

    folder: Path
    inputs: Any
    targets: Any
    weights: Any
    words: dict[str, str]

    def __len__(self) -> int:
        """Return how many examples there are."""
        return len(self.weights)

    def take(self, order: Order) -> Batch:
        """Read the batch of these rows, of NumPy's arrays; a place that is not real gives an example of weight zero."""
        rows = np.asarray(order.rows)
        weights: Any = np.where(order.is_real, self.weights[rows], np.zeros((), self.weights.dtype))
        return Batch(self.inputs[rows], self.targets[rows], weights)

    def load(self) -> Batch:
        """Read all of them into memory, such as a held-out part that is small enough."""
        return Batch(*(jnp.array(np.asarray(array)) for array in (self.inputs, self.targets, self.weights)))


def store(folder: str | os.PathLike[str], parts: Iterable[Sequence[ArrayLike]]) -> Stored:
    """Write examples to a folder, part after part, so that never more than a part is in memory.

    Args:
        folder: a folder that is not there yet.
        parts: `(inputs, targets)` or `(inputs, targets, weights)` of some rows each, such as a generator makes them:
            numbers or booleans, finite, all parts of one dtype and shape but for the rows; weights that are not
            negative, 1 unless given. Integers and floats are kept in 32 bits, unless JAX computes in 64.

    Returns:
        The examples, opened.

    Raises:
        TypeError: for arrays that are not of real numbers.
        ValueError: for no rows, numbers that are not finite or that 32 bits cannot hold, or parts that do not match.
        FileExistsError: for a folder that is there.
        OSError: where it cannot be written; nothing is left behind then, nor after any other error.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "squares"
        >>> squares = store(folder, ((np.arange(i, i + 2.0)[:, None], np.arange(i, i + 2.0) ** 2) for i in (0, 2)))
        >>> len(squares), squares.targets
        (4, memmap([0., 1., 4., 9.], dtype=float32))
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: expected nothing there yet, got a file or folder")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        with contextlib.ExitStack() as files:
            columns = [
                _Column(name, files.enter_context((aside / f"{name}.npy").open("wb")))
                for name in ("inputs", "targets", "weights")
            ]
            weight = 0.0
            for number, part in enumerate(parts):
                arrays = _checked(number, part)
                weight += float(arrays[2].sum(dtype=np.float64))
                for column, array in zip(columns, arrays, strict=True):
                    column.append(number, array)
            if weight == 0:
                raise ValueError("parts: expected rows, some of positive weight, got none")
            about = {"format": FORMAT, "arrays": {column.name: column.finish() for column in columns}}
        (aside / _ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return stored(folder)


def stored(folder: str | os.PathLike[str]) -> Stored:
    """Open examples that `nnfx.data.store` has written; they are read as they are needed.

    Raises:
        FileNotFoundError: for a folder without such examples.
        ValueError: for another format, or files that are not as they were written, by dtype, shape and length.
    """
    folder = Path(folder)
    if not (folder / _ABOUT).is_file():
        raise FileNotFoundError(f"{folder}: expected a folder written by nnfx.data.store, got none")
    about = json.loads((folder / _ABOUT).read_text())
    if about["format"] != FORMAT:
        raise ValueError(f"{folder}: expected examples of format {FORMAT}, got {about['format']}")
    arrays = {}
    for name, words in about["arrays"].items():
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected {words.split()[0]} as written, got {error}") from error
        if checks.describe(arrays[name]) != words.split()[0]:
            raise ValueError(f"{path}: expected {words.split()[0]} as written, got {checks.describe(arrays[name])}")
    return Stored(folder, **arrays, words=about["arrays"])


class Batches:
    """All batches of a run by number, epoch after epoch; a source for Grain.

    Args:
        examples: what they are made of.
        key: a typed key; it decides the order of each epoch, as it does for data in memory.
        batch_size: rows of a batch. The last one of an epoch has places left over, of weight zero.
        epochs: for how many epochs.
        share: which rows of each batch to read, such as those of this process.
    """

    def __init__(self, examples: Stored, key: Array, batch_size: int, epochs: int, share: slice = slice(None)) -> None:
        self.steps = steps_per_epoch(len(examples), batch_size)
        self._examples, self._epochs, self._share = examples, epochs, share
        self._orders = Orders(key, len(examples), batch_size, epochs)

    def __len__(self) -> int:
        """Return how many there are in all epochs."""
        return self._epochs * self.steps

    def __getitem__(self, number: int) -> Batch:
        """Read a batch."""
        rows, is_real = self._orders.batch(*divmod(int(number), self.steps))
        return self._examples.take(Order(rows[self._share], is_real[self._share]))


def prefetched(batches: Batches, ahead: int = 8, threads: int = 4) -> Any:
    """Return an iterator of Grain over batches, that reads ahead in threads and knows its position.

    Args:
        batches: what to read.
        ahead: how many batches at most are read before they are asked for.
        threads: how many of them at once.

    Returns:
        An iterator with `get_state`, its position, and `set_state`, which goes on from one.

    Raises:
        ModuleNotFoundError: where Grain is not installed.
    """
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("grain: needed to read data; not installed: pip install 'nnfx[grain]'") from error
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(reading))


def _checked(number: int, part: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Return the arrays of a part in the dtypes that JAX has for them."""
    if not isinstance(part, Sequence) or len(part) not in (2, 3):
        raise ValueError(
            f"parts[{number}]: expected (inputs, targets) or (inputs, targets, weights), got {checks.describe(part)}"
        )
    named = dict(zip(("inputs", "targets", "weights"), map(np.asarray, part), strict=False))
    rows = len(named["inputs"]) if named["inputs"].ndim else 0
    named.setdefault("weights", np.ones(rows, np.float32))
    kept = []
    for name, array in named.items():
        label = f"parts[{number}].{name}"
        checks.numeric(label, array)
        if array.ndim == 0 or len(array) != rows or rows == 0:
            raise ValueError(f"{label}: expected rows, as many as inputs ({rows}), got {checks.describe(array)}")
        if array.dtype.kind == "V":
            raise TypeError(f"{label}: expected a dtype of NumPy's own, got {checks.describe(array)}")
        with np.errstate(over="ignore"):  # what overflows is found below
            held = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        if jnp.issubdtype(array.dtype, np.integer) and (held != array).any():
            raise ValueError(f"{label}: expected integers that {held.dtype} can hold, got {array[held != array][0]}")
        checks.finite(label, held)
        kept.append(held)
    inputs, targets, weights = kept
    if inputs.ndim < 2:
        raise ValueError(f"parts[{number}].inputs: expected (rows, features, ...), got {checks.describe(inputs)}")
    if weights.ndim != 1:
        raise ValueError(f"parts[{number}].weights: expected one per row, ({rows},), got {checks.describe(weights)}")
    if not jnp.issubdtype(weights.dtype, np.floating):
        weights = weights.astype(np.float32)
    if weights.min() < 0:
        raise ValueError(f"parts[{number}].weights: expected none negative, got {weights.min():g}")
    return [inputs, targets, weights]


class _Column:
    """One of the files, to which rows are appended."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self._file = name, file
        self._hash = hashlib.sha256()
        self._rows = 0
        self._like = np.zeros(0)

    def append(self, number: int, array: np.ndarray) -> None:
        """Write further rows, like those before."""
        if not self._rows:
            self._like = array[:0]
            self._write_header()
        if (array.dtype, array.shape[1:]) != (self._like.dtype, self._like.shape[1:]):
            wanted = f"{self._like.dtype}{list(self._like.shape[1:])}"
            got = f"{array.dtype}{list(array.shape[1:])}"
            raise ValueError(f"parts[{number}].{self.name}: expected rows of {wanted} as before, got {got}")
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._hash.update(content)
        self._rows += len(array)

    def finish(self) -> str:
        """Have the file on the disk, and return its dtype, shape and checksum."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        shape = ",".join(map(str, (self._rows, *self._like.shape[1:])))
        return f"{self._like.dtype}[{shape}] {self._hash.hexdigest()[:16]}"

    def _write_header(self) -> None:
        """Write what NumPy writes before an array; it leaves room for more rows."""
        header = np.lib.format.header_data_from_array_1_0(self._like)
        header["shape"] = (self._rows, *self._like.shape[1:])
        np.lib.format.write_array_header_1_0(self._file, header)
