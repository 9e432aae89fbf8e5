"""EMNIST: handwritten letters and digits, six data sets stored as IDX files in one zip file."""

import string
import zipfile

from nnfx import checks
from nnfx.data.formats import Examples, read_idx_examples
from nnfx.data.npz import damage_named
from nnfx.data.reading import Source, reading

__all__ = ["CLASSES", "read_emnist"]

_DIGITS, _UPPER = tuple(string.digits), tuple(string.ascii_uppercase)
_MERGED = (*_DIGITS, *_UPPER, *"abdefghnqrt")
"""Lower-case letters that look like their capitals share a class with them."""

CLASSES = {
    "balanced": _MERGED,
    "byclass": (*_DIGITS, *_UPPER, *string.ascii_lowercase),
    "bymerge": _MERGED,
    "digits": _DIGITS,
    "letters": _UPPER,
    "mnist": _DIGITS,
}
"""The data sets, with the names of their classes."""


def read_emnist(source: Source, name: str) -> tuple[Examples, Examples]:
    """Read one of the data sets of EMNIST from its zip file, `gzip.zip`, with all images upright.

    The four members needed are found by their exact names, such as `gzip/emnist-letters-train-images-idx3-ubyte.gz`,
    and nothing is unpacked to disk.

    Args:
        source: the zip file, given as its path or its bytes.
        name: `"balanced"`, `"byclass"`, `"bymerge"`, `"digits"`, `"letters"` or `"mnist"`.

    Returns:
        The training set and the test set, each with images `(rows, 28, 28, 1)` and labels `(rows,)`.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for an unknown name; a file that is not a complete zip file or lacks a member; and members that are
            damaged or not valid IDX files; see `read_idx_examples`.

    References:
        Cohen, Afshar, Tapson and van Schaik, *EMNIST: extending MNIST to handwritten letters*, IJCNN 2017.
    """
    checks.choice("name", name, CLASSES)
    first = 1 if name == "letters" else 0
    with reading(source) as reader:
        with damage_named(reader.name, "EMNIST zip file"), zipfile.ZipFile(reader.stream) as archive:
            files = [_member(reader.name, archive, reader.size, f"gzip/emnist-{name}-{part}") for part in _PARTS]
        count = len(CLASSES[name])
        try:
            train, test = (
                read_idx_examples(*pair, classes=count, first=first, transposed=True) for pair in (files[:2], files[2:])
            )
        except ValueError as error:
            raise ValueError(f"{reader.name}: {name}: {error}") from error
    return train, test


_PARTS = tuple(
    f"{part}-ubyte.gz" for part in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
)


def _member(file: str, archive: zipfile.ZipFile, size: int, name: str) -> bytes:
    """Return the bytes of a member; since it is a gzip file itself, it cannot be larger than the archive."""
    if name not in archive.namelist():
        raise ValueError(f"{file}: expected a zip file that contains {name}, got one without")
    found = archive.getinfo(name)
    if found.file_size > size:
        raise ValueError(f"{file}: expected {name} to be smaller than the zip file, got {found.file_size} bytes")
    with archive.open(found) as stream:
        return stream.read(size)
