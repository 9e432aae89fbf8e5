"""Checkpoints: trees of arrays on disk, complete or absent. This is the only module that uses Orbax.

A checkpoint is a folder that contains

- `arrays/`: the numbered leaves, in Orbax's format;
- `checkpoint.json`: the leaves' paths, dtypes and shapes, the package versions in use, and the caller's notes;
- `SHA256SUMS` and `SHA256SUMS.sha256`: checksums (see `nnfx.checksums`), without which most corrupted bits would be
  loaded silently.

It is written under a temporary name and renamed once it is complete and on disk, so a folder with the name of a
checkpoint is always complete. It contains only numbers and JSON: loading it executes nothing.
"""

import contextlib
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, checksums, distributed, paths
from nnfx.checksums import DamagedError

__all__ = ["DamagedError", "Description", "load", "read", "save"]

FORMAT = 2
"""The version of the layout described above; any other is rejected."""
DESCRIPTION = "checkpoint.json"
"""The file in which a checkpoint describes itself."""
_ARRAYS = "arrays"
_PATIENCE_SECONDS = 30 * 24 * 3600
"""Orbax's timeout for its own tasks: it reads the wall clock, which may be changed during a write."""
_ONE_AT_A_TIME = threading.Lock()
"""Two threads that save with Orbax at once interfere with each other: one finds its own files missing."""
_NUMBER = "__float__"
"""The JSON key that marks infinities and NaN, which JSON lacks."""


class Description(NamedTuple):
    """The description stored in a checkpoint.

    Attributes:
        leaves: the dtype and shape of each leaf by its path, such as `{".params['kernel']": "float32[2,1]"}`.
        versions: the versions of Python and of the packages that wrote the checkpoint, by name.
        about: the caller's notes.
    """

    leaves: dict[str, str]
    versions: dict[str, str]
    about: dict[str, Any]


def save(path: str | os.PathLike[str], tree: Any, about: Mapping[str, Any] | None = None) -> None:
    """Write a tree of arrays as a checkpoint.

    With several processes, the first one writes; call `nnfx.distributed.wait` before the others load the checkpoint.

    Args:
        path: a folder that does not exist yet.
        tree: arrays of any shape and dtype, typed keys included.
        about: notes to store with it, of JSON types; NaN and infinities are allowed, and restored as such.

    Raises:
        TypeError: for leaves that are not arrays, notes that JSON cannot represent, or a `path` that is neither a
            string nor a path.
        ValueError: for arrays that are only partly on this process.
        FileExistsError: if the path already exists.
        OSError: if the checkpoint cannot be written; no partial files remain.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "first"
        >>> save(path, {"w": jnp.arange(3.0), "key": jax.random.key(1)}, {"epoch": 7})
        >>> load(path, {"w": jnp.zeros(3), "key": jax.random.key(0)})["w"]
        Array([0., 1., 2.], dtype=float32)
        >>> read(path).leaves, read(path).about
        ({"['key']": 'key<fry>[]', "['w']": 'float32[3]'}, {'epoch': 7})
    """
    path = paths.absolute("path", path)
    arrays, description = _on_host(tree), _describe(tree, about or {})
    if not distributed.is_first():
        return
    if os.path.lexists(path):
        raise FileExistsError(f"{path}: expected a path that does not exist yet, got a file, folder or link")
    aside = paths.aside(path)
    try:
        aside.mkdir(parents=True)
        if arrays:
            _write(aside / _ARRAYS, arrays)
        (aside / DESCRIPTION).write_text(as_json(description))
        checksums.write(aside)
        for file in aside.rglob("*"):
            paths.sync(file)
        paths.sync(aside)
        aside.rename(path)
        paths.sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            paths.remove(aside)
        raise


def read(path: str | os.PathLike[str]) -> Description:
    """Return a checkpoint's description, after verifying the checksum of every file.

    Raises:
        FileNotFoundError: if there is no folder at the path.
        DamagedError: for a missing, unexpected or altered file.
        TypeError: for a `path` that is neither a string nor a path.
        ValueError: for a checkpoint in a format that this version does not support.
    """
    path = paths.absolute("path", path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a checkpoint folder, got none")
    checksums.verify(path)
    try:
        return described(path)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path}: could not read {DESCRIPTION}: {type(error).__name__}: {error}") from error


def described(path: Path) -> Description:
    """Return the description of a checkpoint without reading its other files.

    Raises:
        Exception: of any type, if the description is damaged.
    """
    written = from_json((path / DESCRIPTION).read_text())
    if written["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected a checkpoint of format {FORMAT}, got {written['format']},"
            f" written by nnfx {written['versions'].get('nnfx')}"
        )
    return Description(written["leaves"], written["versions"], written["about"])


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Load a checkpoint into a tree of a given structure.

    Args:
        path: a checkpoint.
        like: a tree of arrays, or of their shapes (`jax.ShapeDtypeStruct`). Leaves that are NumPy arrays in `like`
            are loaded as NumPy arrays; others go to the devices given in `like`, or to the default device.

    Raises:
        FileNotFoundError: if there is no folder at the path.
        DamagedError: if a file is missing, unexpected or altered.
        ValueError: for an unsupported format, or leaves whose paths, dtypes or shapes differ; the message lists them.
    """
    return load_as(path, lambda _: like)[1]


def load_as(path: str | os.PathLike[str], expected: Callable[[Description], Any]) -> tuple[Description, Any]:
    """Load a checkpoint into a tree whose structure depends on its description; its files are verified once.

    Args:
        path: a checkpoint.
        expected: a function that returns the tree for a description, to be used as `like` in `load`.

    Raises:
        FileNotFoundError: if there is no folder at the path.
        DamagedError: if a file is missing, unexpected or altered.
        ValueError: for an unsupported format, or leaves whose paths, dtypes or shapes differ. Errors that `expected`
            raises are passed on.
    """
    path = paths.absolute("path", path)
    description = read(path)
    like = expected(description)
    wanted, got = _leaves(like), description.leaves
    wished = {name: _words(leaf) for name, leaf in wanted.items()}
    differing = [name for name in {**wished, **got} if wished.get(name) != got.get(name)]
    if differing:
        lines = [
            f"{name}: expected {wished.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in differing
        ]
        raise ValueError(
            f"{path}: expected the leaves of this run, got different ones:\n  {checks.listed(lines, chr(10) + '  ')}\n"
        )
    leaves = _stored(path, got, wanted)
    return description, jax.tree.unflatten(jax.tree.structure(like), leaves)


def load_by_path(path: str | os.PathLike[str]) -> tuple[Description, dict[str, np.ndarray]]:
    """Load the leaves of a checkpoint by their paths, as NumPy arrays, without knowing the tree they were saved from.

    Raises:
        FileNotFoundError: if there is no folder at the path.
        DamagedError: if a file is missing, unexpected or altered.
        ValueError: for an unsupported format, or leaves that are random keys.
    """
    path = paths.absolute("path", path)
    description = read(path)
    keys = [name for name, words in description.leaves.items() if words.startswith("key<")]
    if keys:
        raise ValueError(f"{path}: expected a checkpoint without random keys, got one at {keys[0]}")
    wanted = {name: _placeholder(words) for name, words in description.leaves.items()}
    return description, dict(zip(wanted, _stored(path, description.leaves, wanted), strict=True))


def _placeholder(words: str) -> np.ndarray:
    """Return an array of the dtype and shape described by `_words`, without allocating memory."""
    dtype, _, sizes = words.removesuffix("]").partition("[")
    return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), [int(size) for size in sizes.split(",") if size])


def _stored(path: Path, names: Iterable[str], wanted: Mapping[str, Any]) -> list[Any]:
    """Load the arrays of a checkpoint that has the leaves `names`, each as the type of its counterpart in `wanted`."""
    plain = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for name, leaf in wanted.items()
    }
    numbers = {name: str(i) for i, name in enumerate(names)}
    # Orbax uses only the shapes and dtypes of these placeholders, which take no memory
    hosts = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in plain.items()}
    stored = {numbers[name]: array for name, array in hosts.items() if array.size}
    if stored:
        from orbax.checkpoint import v1 as orbax

        with _alone():
            stored = orbax.load(path / _ARRAYS, stored)
    return [_placed(stored.get(numbers[name], hosts[name]), leaf) for name, leaf in wanted.items()]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that checkpoints are written with, by name."""
    found = {"python": platform.python_version()}
    for name in ("nnfx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # the package is imported from a folder without being installed
            found[name] = "unknown"
    return found


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, after checking that they are arrays or shapes."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise TypeError(f"tree: expected arrays, got {checks.describe(leaf)} at {path}")
        if not (_is_key(leaf) or jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
            raise TypeError(f"tree: expected arrays of numbers or keys, got {checks.describe(leaf)} at {path}")
    return leaves


def _words(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _describe(tree: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of `checkpoint.json`."""
    return {
        "format": FORMAT,
        "leaves": {path: _words(leaf) for path, leaf in _leaves(tree).items()},
        "versions": versions(),
        "about": from_json(as_json(dict(about))),
    }


def as_json(notes: Any) -> str:
    """Return notes as standard JSON, with NaN and infinities as strings.

    >>> from_json(as_json({"losses": [0.5, float("inf")]}))
    {'losses': [0.5, inf]}
    """
    return json.dumps(_strict(notes), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Any:
    """Return the notes written by `as_json`."""
    return json.loads(text, object_hook=_as_number)


def _strict(notes: Any) -> Any:
    """Return notes with NaN and infinities, which JSON does not have, as marked strings."""
    if isinstance(notes, Mapping):
        return {name: _strict(value) for name, value in notes.items()}
    if isinstance(notes, list | tuple):
        return [_strict(value) for value in notes]
    if isinstance(notes, float) and not math.isfinite(notes):
        return {_NUMBER: str(float(notes))}
    return notes


def _as_number(read: dict[str, Any]) -> Any:
    """Undo `_strict` for one parsed JSON object."""
    return float(read[_NUMBER]) if read.keys() == {_NUMBER} else read


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays with Orbax, and retry once if it timed out because the clock was changed in the meantime."""
    from orbax.checkpoint import v1 as orbax

    with _alone():
        try:
            orbax.save(folder, arrays)
        except TimeoutError:
            _remove_left_over(folder)
            orbax.save(folder, arrays)


def _remove_left_over(folder: Path) -> None:
    """Remove the files of a failed attempt, whose threads may still be writing and removing some of them.

    Raises:
        OSError: if they cannot be removed within a few seconds.
    """
    for is_last in (*[False] * 100, True):
        try:
            for left_over in folder.parent.glob(f"{folder.name}*"):
                paths.remove(left_over)
            return
        except OSError:
            if is_last:
                raise
            time.sleep(0.05)


def _on_host(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves on the host, keyed by number, without empty ones, which their shapes fully describe."""
    if not checks.is_concrete(tree):
        raise TypeError("tree: expected concrete arrays, got shapes or traced arrays")
    leaves = _leaves(distributed.local(tree)).values()
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    # JAX arrays never change; NumPy arrays may while they are written, so they are copied
    arrays = [np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in plain]
    return {str(i): array for i, array in enumerate(arrays) if array.size}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let Orbax read or write without waiting for other processes, and in one thread at a time."""
    from orbax.checkpoint import v1 as orbax

    context = orbax.Context()
    context.asynchronous.timeout_secs = _PATIENCE_SECONDS
    with _ONE_AT_A_TIME, contextlib.ExitStack() as closing:
        if jax.process_count() > 1:
            from orbax.checkpoint._src.multihost import multihost
            from orbax.checkpoint.experimental.v1._src.saving import execution
            from orbax.checkpoint.experimental.v1._src.synchronization import multihost as multihost_v1

            # the only place where Orbax involves all processes, even those that do not take part
            execution._check_directory_consistency = lambda _: None
            # Orbax writes NumPy arrays only in the first process, so every process that saves takes that role
            for module in (multihost, multihost_v1):
                closing.callback(setattr, module, "process_index", module.process_index)
                module.process_index = lambda: 0
            context.multiprocessing.primary_host = 0
            context.multiprocessing.active_processes = {0}
        closing.enter_context(context)
        yield


def _placed(array: np.ndarray, like: Any) -> Any:
    """Return an array as the type of `like`, on the same devices."""
    if isinstance(like, np.ndarray | np.generic):
        return array
    if _is_key(like):
        found: list[Any] = []
        jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), like)
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=found[0])
    is_placed = isinstance(like, jax.ShapeDtypeStruct) or like.committed
    return jax.device_put(array, like.sharding if is_placed else None)
