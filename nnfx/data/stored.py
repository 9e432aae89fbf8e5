"""Examples in a folder, mapped into memory and read on demand, for data sets larger than memory.

The folder contains

- `inputs.npy`, `targets.npy` and `weights.npy`: NumPy files with one row per example;
- `checksums.npy`: uint64, one row per example, with a checksum for its bytes in each of these files;
- `stored.json`: the dtype, shape and checksum of each file, and a checksum of its own content.

It is written under a temporary name and renamed once complete, so a folder with the final name is complete. Rows are
compared with their checksums each time they are read, so altered rows are never trained on, even if they were altered
after opening; and the time to open a folder does not depend on the number of examples.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.arrays import as_numpy, narrowed, to_device
from nnfx.data.batching import Order, Orders, steps_per_epoch
from nnfx.data.rows import Names, in_parts
from nnfx.data.stored_files import NAMES, Column, Moments, checksums, mapped, spans
from nnfx.paths import absolute
from nnfx.types import Array, Batch

FORMAT = 2
"""The version of the layout described above; other versions are rejected."""
_ABOUT = "stored.json"
_LARGEST_ABOUT = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """Examples in a folder, opened by `nnfx.data.stored`.

    The methods verify checksums as they read; the arrays give access to the files without checks.

    Attributes:
        folder: the folder that contains the examples.
        inputs: `(rows, ...)`, mapped into memory.
        targets: `(rows, ...)`, mapped into memory.
        weights: `(rows,)`, mapped into memory.
        checksums: uint64 `(rows, 3)`, one for each row of inputs, targets and weights, mapped into memory.
        words: the dtype, shape and checksum of each array as written, as text, by name.
    """

    folder: Path
    inputs: Any
    targets: Any
    weights: Any
    checksums: Any
    words: dict[str, str]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.weights)

    def __repr__(self) -> str:
        """Return a summary: the number of examples, their shapes and dtypes, and the folder."""
        shapes = ", ".join(f"{name} {checks.describe(getattr(self, name))}" for name in ("inputs", "targets"))
        return f"Stored: {len(self)} examples in {self.folder}: {shapes}"

    def take(self, order: Order) -> Batch:
        """Read the batch of the given rows as NumPy arrays; positions that are not real become examples of weight zero.

        Raises:
            ValueError: for rows that differ from what was written; the error names the file.
        """
        rows = np.asarray(order.rows)
        read = Batch(*(self._read(name, rows) for name in NAMES))
        weights: Any = np.where(order.is_real, read.weights, np.zeros((), read.weights.dtype))
        return read._replace(weights=weights)

    def load(self) -> Batch:
        """Read all examples into memory, for example a held-out split that is small enough.

        Raises:
            ValueError: for rows that differ from what was written; the error names the file.
        """
        for name in NAMES:
            self._require_length(name)
        whole = {name: np.array(getattr(self, name)) for name in NAMES}
        for name, array in whole.items():
            for span in spans(array):
                self._require(name, span, array[span])
        return Batch(**{name: to_device(name, array) for name, array in whole.items()})

    def verify(self, names: Sequence[str] = NAMES) -> None:
        """Read all rows once, and compare them with their checksums.

        Args:
            names: the names of the arrays to check; all three by default.

        Raises:
            ValueError: for rows that differ from what was written; the error names the file and the first such row.
        """
        for name in names:
            checks.choice("names", name, NAMES)
            for span in spans(getattr(self, name)):
                self._read(name, span)

    def _read(self, name: str, rows: Any) -> Any:
        self._require_length(name)
        array = np.asarray(getattr(self, name))  # plain NumPy arrays are indexed several times faster
        read = array[rows].copy() if isinstance(rows, slice) else array[rows]
        self._require(name, rows, read)
        return read

    def _require_length(self, name: str) -> None:
        """Raise an error for a file that was truncated after it was opened; reading it would crash the process."""
        mapped_file = getattr(self, name)
        path = self.folder / f"{name}.npy"
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            size = 0
        if size < mapped_file.offset + mapped_file.nbytes:
            wanted = f"{mapped_file.dtype}[{','.join(map(str, mapped_file.shape))}]"
            raise ValueError(f"{path}: expected a file of {wanted}, as when it was opened, got a shorter one")

    def _require(self, name: str, rows: Any, read: np.ndarray) -> None:
        """Raise an error if the rows read differ from what was written."""
        self._require_length("checksums")
        is_wrong = checksums(read) != np.asarray(self.checksums)[rows, NAMES.index(name)]
        if is_wrong.any():
            first = int(np.argmax(is_wrong))
            at = rows.start + first if isinstance(rows, slice) else int(rows[first])
            raise ValueError(
                f"{self.folder / name}.npy: expected examples as they were written, got other bytes in row {at}"
                f" ({int(is_wrong.sum())} of the {len(read)} read): write them again with nnfx.data.store"
            )


def store(
    folder: str | os.PathLike[str],
    parts: Iterable[Any],
    *,
    inputs: Names | None = None,
    targets: Names | None = None,
    weights: Names | None = None,
) -> Stored:
    """Write examples to a folder part by part, so that at most one part is in memory at a time.

    With `inputs` and `targets`, the examples are read from a data set of another library: a Hugging Face
    data set, a Grain data set or data loader of single rows, or any other sequence or iterable of rows that are
    mappings or tuples. It must be finite; Pillow images become arrays `(height, width, channels)`.

    Args:
        folder: a folder that does not exist yet.
        parts: an iterable of `(inputs, targets)` or `(inputs, targets, weights)`, such as a generator: finite numbers
            or booleans, with the same dtype and shape in all parts except for the number of rows, and non-negative
            weights, 1 by default. Integers and floats are stored in 32 bits, unless JAX computes in 64. Or a data set
            whose values are such numbers.
        inputs: the name of the data set's column of inputs, or its position if the rows are tuples; or a
            sequence of names or positions, for columns of one number each.
        targets: the column of targets, given like `inputs`.
        weights: the column of weights, given like `inputs`; None for weights of 1.

    Returns:
        The examples, opened.

    Raises:
        TypeError: for arrays that do not contain real numbers, and data sets that have no rows or never end.
        ValueError: if there are no rows or no positive weight, for numbers that are not finite, or that 32 bits cannot
            represent or distinguish, for parts or rows that do not match, and for names that are missing from rows.
        FileExistsError: if a folder or file of that name already exists.
        OSError: if the folder cannot be written. After this or any other error, nothing is left behind.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "squares"
        >>> squares = store(folder, ((np.arange(i, i + 2.0)[:, None], np.arange(i, i + 2.0) ** 2) for i in (0, 2)))
        >>> squares
        Stored: 4 examples in ...squares: inputs float32[4,1], targets float32[4]
        >>> squares.targets
        memmap([0., 1., 4., 9.], dtype=float32)
        >>> rows = [{"side": i, "height": 2, "volume": 2 * i**2} for i in range(3)]
        >>> boxes = store(folder.with_name("boxes"), rows, inputs=("side", "height"), targets="volume")
        >>> boxes.inputs.tolist(), boxes.targets.tolist()
        ([[0, 2], [1, 2], [2, 2]], [0, 2, 8])
    """
    folder = absolute("folder", folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder}: expected a path that does not exist yet, got a file or folder")
    if inputs is not None or targets is not None or weights is not None:
        for name, given in (("inputs", inputs), ("targets", targets)):
            if given is None:
                raise ValueError(f"{name}: expected the name of a column, as for the other arguments, got None")
        assert inputs is not None
        assert targets is not None
        parts = in_parts(parts, inputs, targets, weights)
    if not isinstance(parts, Iterable):
        raise TypeError(f"parts: expected an iterable of (inputs, targets), got {checks.describe(parts)}")
    with contextlib.ExitStack() as made:
        lacking = [parent for parent in folder.parents if not parent.exists()]
        for parent in reversed(lacking):
            made.callback(_remove_empty, parent)  # innermost first, if storing fails
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        aside.mkdir()
        made.callback(shutil.rmtree, aside, ignore_errors=True)
        about = _write(aside, parts)
        with (aside / _ABOUT).open("wb") as file:
            file.write(about)
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(folder):
            raise FileExistsError(
                f"{folder}: expected a path that does not exist yet, got one that another process has written"
            )
        aside.rename(folder)
        made.pop_all()
    return stored(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _write(folder: Path, parts: Iterable[Sequence[Any]]) -> bytes:
    """Write all files except `stored.json`, and return the content of `stored.json`."""
    weight, label = 0.0, ""
    moments = [Moments("inputs", in_floats=True), Moments("targets", in_floats=False)]
    with contextlib.ExitStack() as files:
        columns = [Column(n, files.enter_context((folder / f"{n}.npy").open("wb"))) for n in (*NAMES, "checksums")]
        for number, part in enumerate(parts):
            label = f"parts[{number}]"
            given, kept = _checked(label, part)
            weight += float(kept[2].sum(dtype=np.float64))
            for column, array in zip(columns, [*kept, np.stack([*map(checksums, kept)], axis=1)], strict=True):
                column.append(f"{label}.{column.name}", array)
            for measured, array in zip(moments, given, strict=False):
                measured.add(array)
        if not weight:
            raise ValueError("parts: expected at least one row with positive weight, got none")
        for measured in moments:
            measured.require_resolution("parts")
        return _sealed({"format": FORMAT, "files": {column.name: column.finish() for column in columns}})


def _sealed(about: dict[str, Any]) -> bytes:
    """Return the text of a description, with its own checksum at the end."""
    seal = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return (json.dumps({**about, "seal": seal}, indent=2) + "\n").encode()


def stored(folder: str | os.PathLike[str]) -> Stored:
    """Open examples written by `nnfx.data.store`; they are read and checked on demand.

    Opening them checks only headers and sizes. Each row is compared with its checksum whenever it is read, which takes
    about as long as copying it; `Stored.verify` checks all rows at once.

    Args:
        folder: the folder that contains the examples.

    Raises:
        FileNotFoundError: for a folder without stored examples.
        OSError: for files that cannot be read.
        ValueError: for another format, files whose dtype, shape or length differs from what was written, or numbers
            in 64 bits if JAX computes in 32.
    """
    folder = absolute("folder", folder)
    path = folder / _ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a folder written by nnfx.data.store, got none")
    with path.open("rb") as file:
        content = file.read(_LARGEST_ABOUT)
    try:
        about = json.loads(content)
        version = about["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a description written by nnfx.data.store, got other text: {error!r}"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{folder}: expected examples of format {FORMAT}, got {version!r}")
    if content != _sealed({name: value for name, value in about.items() if name != "seal"}):
        raise ValueError(f"{path}: expected a description written by nnfx.data.store, got one that was altered")
    files = about["files"]
    arrays = {name: mapped(folder / f"{name}.npy", files[name]) for name in (*NAMES, "checksums")}
    for name in NAMES:
        if jax.dtypes.canonicalize_dtype(dtype := arrays[name].dtype) != dtype:
            raise ValueError(
                f"{folder / name}.npy: expected a dtype that JAX supports in its 32-bit mode, got {dtype};"
                " set jax_enable_x64 to read it unchanged"
            )
    return Stored(folder, **arrays, words={name: files[name]["array"] for name in NAMES})


class Batches:
    """All batches of a run, numbered across epochs; a data source for Grain.

    Args:
        examples: the examples to read.
        key: a typed key that determines the order of each epoch, as for data in memory.
        batch_size: rows per batch. Unused positions in the last batch of an epoch have weight zero.
        epochs: the number of epochs.
        share: the positions within each batch to read, such as those of this process; all by default.
    """

    def __init__(self, examples: Stored, key: Array, batch_size: int, epochs: int, share: slice = slice(None)) -> None:
        self.steps = steps_per_epoch(len(examples), batch_size)
        self._examples, self._epochs, self._share = examples, epochs, share
        self._orders = Orders(key, len(examples), batch_size, epochs)

    def __len__(self) -> int:
        """Return the total number of batches over all epochs."""
        return self._epochs * self.steps

    def __getitem__(self, number: int) -> Batch:
        """Read a batch."""
        rows, is_real = self._orders.batch(*divmod(int(number), self.steps))
        return self._examples.take(Order(rows[self._share], is_real[self._share]))


def prefetched(batches: Batches, ahead: int = 8, threads: int = 4) -> Any:
    """Return a Grain iterator that reads batches ahead in threads and keeps track of its position.

    Args:
        batches: the batches to read.
        ahead: the maximum number of batches to read ahead.
        threads: the number of threads, each of which reads one batch at a time.

    Returns:
        An iterator with `get_state`, which returns its position, and `set_state`, which moves it to a given
        position.

    Raises:
        ModuleNotFoundError: if Grain is not installed.
    """
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "grain: required to read data, but not installed: pip install 'nnfx[grain]'"
        ) from error
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(reading))


def _checked(label: str, part: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the arrays of a part in their original dtypes, and converted to the dtypes that JAX uses."""
    if not isinstance(part, Sequence) or isinstance(part, str) or len(part) not in (2, 3):
        raise ValueError(
            f"{label}: expected (inputs, targets) or (inputs, targets, weights), got {checks.describe(part)}"
        )
    named = {name: as_numpy(f"{label}.{name}", value) for name, value in zip(NAMES, part, strict=False)}
    rows = len(named["inputs"]) if named["inputs"].ndim else 0
    named.setdefault("weights", np.ones(rows, np.float32))
    if not jnp.issubdtype(named["weights"].dtype, np.floating):
        named["weights"] = named["weights"].astype(np.float32)
    kept = []
    for name, array in named.items():
        if array.ndim == 0 or len(array) != rows or array.size == 0:
            raise ValueError(
                f"{label}.{name}: expected non-empty rows, as many as inputs ({rows}), got {checks.describe(array)}"
            )
        if array.dtype.kind == "V":
            raise TypeError(f"{label}.{name}: expected a built-in NumPy dtype, got {checks.describe(array)}")
        checks.finite(f"{label}.{name}", array)
        kept.append(narrowed(f"{label}.{name}", array))
    inputs, _, weights = kept
    if inputs.ndim < 2:
        raise ValueError(f"{label}.inputs: expected (rows, features, ...), got {checks.describe(inputs)}")
    if weights.ndim != 1:
        raise ValueError(f"{label}.weights: expected one per row, ({rows},), got {checks.describe(weights)}")
    if weights.min() < 0:
        raise ValueError(f"{label}.weights: expected non-negative numbers, got {weights.min():g}")
    return list(named.values()), kept
