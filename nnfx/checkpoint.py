"""Checkpoints: trees of arrays on disk, whole or not there at all. The only file that knows Orbax.

A checkpoint is a folder of

- `arrays/`: the leaves by number, as Orbax writes them;
- `checkpoint.json`: the leaves' paths, dtypes and shapes, the versions it was made with, and what its maker notes;
- `SHA256SUMS` and `SHA256SUMS.sha256`: the checksum of every file, and that of the checksums, as `sha256sum -c` reads
  them; without, most altered bits of arrays are loaded without a word.

It is written aside and renamed when it is whole and on the disk, so that whatever has a checkpoint's name is one. It is
numbers and JSON: loading it executes nothing.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, distributed, paths

__all__ = ["DamagedError", "Description", "load", "read", "save"]

FORMAT = 2
"""The number of the layout described above; another one is refused."""
DESCRIPTION = "checkpoint.json"
"""The file in which a checkpoint tells of itself."""
_ARRAYS, _SUMS, _SEAL = "arrays", "SHA256SUMS", "SHA256SUMS.sha256"
_SHOWN = 20
"""How many differences an error lists."""
_PATIENCE_SECONDS = 30 * 24 * 3600
"""How long Orbax may wait for itself: it looks at the clock of the day, which may be set while it writes."""
_NUMBER = "__float__"
"""What stands in JSON, which has no infinities and no NaN, for a number that is one of them."""


class DamagedError(ValueError):
    """A checkpoint whose files are not those that were written."""


class Description(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        leaves: dtype and shape of each leaf by its path, such as `{".params['kernel']": "float32[2,1]"}`.
        versions: of the packages and of Python that made it, by name.
        about: what its maker noted.
    """

    leaves: dict[str, str]
    versions: dict[str, str]
    about: dict[str, Any]


def save(path: str | os.PathLike[str], tree: Any, about: Mapping[str, Any] | None = None) -> None:
    """Write a tree of arrays as a checkpoint.

    Of several processes the first writes; `nnfx.distributed.wait` lets the others load what it has written.

    Args:
        path: a folder that is not there yet.
        tree: arrays of any shape and dtype, typed keys included.
        about: what else to note, of what JSON knows; numbers that are not finite come back as they were.

    Raises:
        TypeError: for leaves that are not arrays, notes that JSON does not know, or something else than a path.
        ValueError: for arrays of which this process has only a part.
        FileExistsError: for a path that is there.
        OSError: where it cannot be written; nothing is left behind then.

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
        raise FileExistsError(f"{path}: expected nothing there yet, got a file, folder or link")
    aside = paths.aside(path)
    try:
        aside.mkdir(parents=True)
        if arrays:
            _write(aside / _ARRAYS, arrays)
        (aside / DESCRIPTION).write_text(as_json(description))
        (aside / _SUMS).write_text(_lines(_checksums(aside)))
        (aside / _SEAL).write_text(_lines({_SUMS: _checksum(aside / _SUMS)}))
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
    """Return what a checkpoint says of itself, once every file has the checksum it was written with.

    Raises:
        FileNotFoundError: for a path where nothing is.
        DamagedError: for a file that is missing, additional, or not as it was written.
        TypeError: for something else than a path.
        ValueError: for a checkpoint of another format than this version knows.
    """
    path = paths.absolute("path", path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a checkpoint, which is a folder, got none")
    _verify(path)
    try:
        return described(path)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(
            f"{path}: expected {DESCRIPTION} as nnfx writes it, got {type(error).__name__}: {error}"
        ) from error


def described(path: Path) -> Description:
    """Return what a checkpoint says of itself, without looking at its other files.

    Raises:
        Exception: of some kind, where it is not as it was written.
    """
    written = from_json((path / DESCRIPTION).read_text())
    if written["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected a checkpoint of format {FORMAT}, got {written['format']},"
            f" made by nnfx {written['versions'].get('nnfx')}"
        )
    return Description(written["leaves"], written["versions"], written["about"])


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Load a checkpoint into a tree of this structure.

    Args:
        path: a checkpoint.
        like: a tree of arrays, or of their shapes (`jax.ShapeDtypeStruct`). Arrays come back as NumPy's where they are
            NumPy's in it, on the devices that it names where it does, and on the default device elsewhere.

    Raises:
        FileNotFoundError, DamagedError: as `read` does.
        ValueError: for another format, or leaves of other paths, dtypes or shapes; it lists them.
    """
    return load_as(path, lambda _: like)[1]


def load_as(path: str | os.PathLike[str], expected: Callable[[Description], Any]) -> tuple[Description, Any]:
    """Load a checkpoint into a tree whose structure depends on what it says of itself; its files are verified once.

    Args:
        path: a checkpoint.
        expected: returns the tree that is expected, as for `load`.

    Raises:
        FileNotFoundError, DamagedError, ValueError: as `load` does, and whatever `expected` raises.
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
        raise ValueError(f"{path}: expected the leaves of this run, got others:\n  {_listed(lines, chr(10) + '  ')}\n")
    plain = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for name, leaf in wanted.items()
    }
    numbers = {name: str(i) for i, name in enumerate(got)}
    # only shapes and dtypes are asked of these: they take no memory
    hosts = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in plain.items()}
    stored = {numbers[name]: array for name, array in hosts.items() if array.size}
    if stored:
        from orbax.checkpoint import v1 as orbax

        with _alone():
            stored = orbax.load(path / _ARRAYS, stored)
    leaves = [_placed(stored.get(numbers[name], hosts[name]), leaf) for name, leaf in wanted.items()]
    return description, jax.tree.unflatten(jax.tree.structure(like), leaves)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that make a checkpoint, by name."""
    found = {"python": platform.python_version()}
    for name in ("nnfx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # imported from where it lies
            found[name] = "unknown"
    return found


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, all of them arrays or their shapes."""
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
    """Return the content of `checkpoint.json`."""
    return {
        "format": FORMAT,
        "leaves": {path: _words(leaf) for path, leaf in _leaves(tree).items()},
        "versions": versions(),
        "about": from_json(as_json(dict(about))),
    }


def as_json(notes: Any) -> str:
    """Write notes as JSON that every reader knows, with words in place of NaN and infinities.

    >>> from_json(as_json({"losses": [0.5, float("inf")]}))
    {'losses': [0.5, inf]}
    """
    return json.dumps(_strict(notes), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Any:
    """Read what `as_json` has written."""
    return json.loads(text, object_hook=_as_number)


def _strict(notes: Any) -> Any:
    """Return notes with words in place of the numbers that JSON does not know."""
    if isinstance(notes, Mapping):
        return {name: _strict(value) for name, value in notes.items()}
    if isinstance(notes, list | tuple):
        return [_strict(value) for value in notes]
    if isinstance(notes, float) and not math.isfinite(notes):
        return {_NUMBER: str(float(notes))}
    return notes


def _as_number(read: dict[str, Any]) -> Any:
    """Undo `_strict` on an object that was read."""
    return float(read[_NUMBER]) if read.keys() == {_NUMBER} else read


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Have Orbax write arrays, again where it took a clock that was set in the meantime for a time too long."""
    from orbax.checkpoint import v1 as orbax

    with _alone():
        try:
            orbax.save(folder, arrays)
        except TimeoutError:
            for left_over in folder.parent.glob(f"{folder.name}*"):
                paths.remove(left_over)
            orbax.save(folder, arrays)


def _on_host(tree: Any) -> dict[str, np.ndarray]:
    """Return every leaf on the host, by its number; empty ones are known by their shape alone."""
    if not checks.is_concrete(tree):
        raise TypeError("tree: expected arrays with values, got shapes or traced arrays")
    leaves = _leaves(distributed.local(tree)).values()
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    # JAX's arrays never change; NumPy's may, while they are written
    arrays = [np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in plain]
    return {str(i): array for i, array in enumerate(arrays) if array.size}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let Orbax read or write in this process alone, without waiting for others."""
    from orbax.checkpoint import v1 as orbax

    context = orbax.Context()
    context.asynchronous.timeout_secs = _PATIENCE_SECONDS
    if jax.process_count() > 1:
        from orbax.checkpoint.experimental.v1._src.saving import execution

        # the one place where Orbax asks all processes, also those that are not to take part
        execution._check_directory_consistency = lambda _: None
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        yield


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if not file.is_dir())
    named = {file.relative_to(path).as_posix(): file for file in files}
    return {name: _checksum(file) for name, file in sorted(named.items()) if name not in (_SUMS, _SEAL)}


def _lines(checksums: Mapping[str, str]) -> str:
    """Write checksums as `sha256sum` does."""
    return "".join(f"{checksum}  {name}\n" for name, checksum in checksums.items())


def _verify(path: Path) -> None:
    """Raise unless every file is there, none besides, and all with the bytes that were written."""
    for name in (_SUMS, _SEAL):
        if not (path / name).is_file():
            raise DamagedError(f"{path}: expected a whole checkpoint, got one without {name}")
    if (path / _SEAL).read_bytes() != _lines({_SUMS: _checksum(path / _SUMS)}).encode():
        raise DamagedError(f"{path}: expected {_SUMS} with the checksum in {_SEAL}, got another")
    lines = (path / _SUMS).read_text().splitlines()
    wanted = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
    got = _checksums(path)
    problems = [
        *(f"{name} is missing" for name in sorted(wanted.keys() - got.keys())),
        *(f"{name} is additional" for name in sorted(got.keys() - wanted.keys())),
        *(f"{name} is altered" for name in sorted(wanted.keys() & got.keys()) if wanted[name] != got[name]),
    ]
    if problems:
        raise DamagedError(f"{path}: expected the files as they were written, got others: {_listed(problems, ', ')}")


def _listed(lines: list[str], separator: str) -> str:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return separator.join([*lines[:_SHOWN], *more])


def _placed(array: np.ndarray, like: Any) -> Any:
    """Return an array of the kind, and on the devices, of another."""
    if isinstance(like, np.ndarray | np.generic):
        return array
    if _is_key(like):
        found: list[Any] = []
        jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), like)
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=found[0])
    is_placed = isinstance(like, jax.ShapeDtypeStruct) or like.committed
    return jax.device_put(array, like.sharding if is_placed else None)
