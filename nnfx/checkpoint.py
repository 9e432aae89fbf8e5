"""Checkpoints: trees of arrays on disk, whole or not there at all. The only file that knows Orbax.

A checkpoint is a folder of

- `arrays/`: the leaves by number, as Orbax writes them;
- `checkpoint.json`: the leaves' paths, dtypes and shapes, the versions it was made with, and what its maker notes;
- `SHA256SUMS` and `SHA256SUMS.sha256`: the checksum of every file, and that of the checksums, as `sha256sum -c` reads
  them; without, most altered bits of arrays are loaded without a word.

It is written aside and renamed when it is whole and on the disk, so that whatever has a checkpoint's name is one. It is
numbers and JSON: loading it executes nothing.
"""

import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks

__all__ = ["Checkpoints", "DamagedError", "Description", "load", "read", "save"]

FORMAT = 1
"""The number of the layout described above; another one is refused."""
_ARRAYS, _DESCRIPTION, _SUMS, _SEAL = "arrays", "checkpoint.json", "SHA256SUMS", "SHA256SUMS.sha256"
_SHOWN = 20
"""How many differences an error lists."""


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

    Args:
        path: a folder that is not there yet.
        tree: arrays of any shape and dtype, typed keys included.
        about: what else to note, of what JSON knows.

    Raises:
        TypeError: for leaves that are not arrays, or notes that JSON does not know.
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
    _write(Path(path), _on_host(tree), _describe(tree, about or {}))


def read(path: str | os.PathLike[str]) -> Description:
    """Return what a checkpoint says of itself, once every file has the checksum it was written with.

    Raises:
        FileNotFoundError: for a path where nothing is.
        DamagedError: for a file that is missing, additional, or not as it was written.
        ValueError: for a checkpoint of another format than this version knows.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a checkpoint, which is a folder, got none")
    _verify(path)
    written = json.loads((path / _DESCRIPTION).read_text())
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
    return _load(Path(path), read(path), like)


class Checkpoints:
    """A folder of checkpoints of one run, saved in the background: the last ones and the best ones are kept.

    Open it with `with`: it locks the folder, removes what a killed save has left over, and waits at the end. A
    checkpoint is called after its epoch, such as `epoch-00000012`.

    Args:
        folder: made where it is lacking.
        keep_last: how many of the newest to keep, at least 1.
        keep_best: how many of those of the lowest loss to keep besides.

    Raises:
        OSError: for a folder that cannot be made or written, or that another process has open.

    Example:
        >>> import tempfile
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     for epoch, loss in enumerate((3.0, 1.0, 2.0, 2.5), start=1):
        ...         checkpoints.save(epoch, {"w": jnp.full(2, loss)}, loss=loss)
        ...     checkpoints.wait()
        ...     [path.name for path in checkpoints.paths()]
        ['epoch-00000002', 'epoch-00000003', 'epoch-00000004']
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep_last: int = 2, keep_best: int = 1) -> None:
        checks.positive_integer("keep_last", keep_last)
        checks.non_negative_integer("keep_best", keep_best)
        self.folder = Path(folder)
        self.keep_last, self.keep_best = keep_last, keep_best
        self._pending: tuple[Path, concurrent.futures.Future[None]] | None = None

    def __enter__(self) -> "Checkpoints":
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: expected a folder for checkpoints, got a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        for left_over in self.folder.glob(".epoch-*"):
            shutil.rmtree(left_over)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self.wait()
        except OSError as unsaved:
            if error is None:
                raise
            error.add_note(str(unsaved))
        finally:
            self._writer.shutdown()
            self._lock.close()

    def paths(self) -> list[Path]:
        """Return the checkpoints in the folder, the newest last."""
        named = (path for path in self.folder.glob("epoch-*") if re.fullmatch(r"epoch-\d{8,}", path.name))
        return sorted(named, key=lambda path: int(path.name.removeprefix("epoch-")))

    def save(self, epoch: int, tree: Any, *, loss: float, about: Mapping[str, Any] | None = None) -> None:
        """Save a tree in the background, after the save before.

        The arrays may be replaced at once, but not be donated or changed in place.

        Args:
            epoch: after how many epochs; there must be no checkpoint of it yet.
            tree: as for `nnfx.checkpoint.save`.
            loss: what the best are the lowest of; NaN ranks last.
            about: as for `nnfx.checkpoint.save`; the epoch and the loss are noted besides.

        Raises:
            OSError: where the save before has failed.
        """
        self.wait()
        noted = {**(about or {}), "epoch": epoch, "loss": float(loss)}
        path = self.folder / f"epoch-{epoch:08d}"
        self._pending = path, self._writer.submit(self._publish, path, _on_host(tree), _describe(tree, noted))

    def wait(self) -> None:
        """Wait until what was to be saved is on the disk.

        Raises:
            OSError: where it could not be; what was saved before is as it was.
        """
        if self._pending is None:
            return
        (path, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            left = self.paths()
            rest = f"the newest checkpoint is {left[-1]}" if left else "there is no checkpoint"
            raise OSError(f"{path}: expected a checkpoint to be written, got {error}; {rest}") from error

    def resume(
        self, expected: Callable[[Description], Any], *, skip_damaged: bool = False
    ) -> tuple[Path, Description, Any] | None:
        """Load the newest checkpoint; None where there is none.

        Args:
            expected: returns the tree that is expected of a checkpoint, as for `load`.
            skip_damaged: whether to warn of checkpoints that cannot be used, put them aside, and take the newest good
                one; else they raise an error that names it.

        Raises:
            ValueError: as `load` does.
        """
        refused: list[tuple[Path, ValueError]] = []
        found = None
        for path in reversed(self.paths()):
            try:
                description = read(path)
                found = path, description, _load(path, description, expected(description))
                break
            except ValueError as error:
                refused.append((path, error))
        if not refused:
            return found
        _, first = refused[0]
        if found is None:
            raise type(first)(f"{first}; no checkpoint in {self.folder} can be used") from first
        if not skip_damaged:
            raise type(first)(
                f"{first}; the newest good checkpoint is {found[0]}: skip_damaged=True goes on from there"
            ) from first
        for path, reason in refused:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(f"{reason}; it is kept as {aside.name}, and {found[0]} taken", stacklevel=2)
        return found

    def _publish(self, path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
        """Write a checkpoint, and then drop those that are no longer wanted."""
        _write(path, arrays, description)
        losses = {path: _loss(path) for path in self.paths()}
        ranked = sorted(losses, key=losses.__getitem__)
        kept = {*list(losses)[-self.keep_last :], *ranked[: self.keep_best]}
        for path in losses.keys() - kept:
            # what has a checkpoint's name is whole, while it goes as well
            aside = path.rename(path.with_name(f".{path.name}.dropped"))
            shutil.rmtree(aside)


def _locked(folder: Path) -> IO[str]:
    """Keep other processes out of a folder for as long as a file is open, also where this one is killed."""
    file = (folder / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # on Windows
        pass
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(f"{folder}: expected no other run to be saved here, got one that is going on") from error
    return file


def _loss(path: Path) -> float:
    """Return the loss noted in a checkpoint; infinity for none, one that is not a number, or that cannot be read."""
    try:
        loss = float(json.loads((path / _DESCRIPTION).read_bytes())["about"]["loss"])
    except (OSError, ValueError, KeyError):
        loss = np.nan
    return np.inf if np.isnan(loss) else loss


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
        "about": json.loads(json.dumps(dict(about))),
    }


def _on_host(tree: Any) -> dict[str, np.ndarray]:
    """Return every leaf on the host, by its number; empty ones are known by their shape alone."""
    if jax.process_count() > 1:
        raise RuntimeError(f"tree: expected the arrays of one process, got {jax.process_count()} processes")
    leaves = _leaves(tree).values()
    if not checks.is_concrete(tree):
        raise TypeError("tree: expected arrays with values, got shapes or traced arrays")
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    # JAX's arrays never change; NumPy's may, while they are written
    arrays = [np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in plain]
    return {str(i): array for i, array in enumerate(arrays) if array.size}


def _write(path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Write a checkpoint aside, and give it its name."""
    if path.exists():
        raise FileExistsError(f"{path}: expected nothing there yet, got a file or folder")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        if arrays:
            from orbax.checkpoint import v1 as orbax

            orbax.save(aside / _ARRAYS, arrays)
        (aside / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        (aside / _SUMS).write_text(_lines(_checksums(aside)))
        (aside / _SEAL).write_text(_lines({_SUMS: _checksum(aside / _SUMS)}))
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        aside.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Have a file or folder on the disk before what comes next."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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


def _load(path: Path, description: Description, like: Any) -> Any:
    """Load a checkpoint whose files are as they were written."""
    wanted = _leaves(like)
    expected, got = {name: _words(leaf) for name, leaf in wanted.items()}, description.leaves
    differing = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    if differing:
        lines = [
            f"{name}: expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in differing
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

        stored = orbax.load(path / _ARRAYS, stored)
    leaves = [_placed(stored.get(numbers[name], hosts[name]), leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


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
