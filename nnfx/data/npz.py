"""Named arrays in NumPy's `.npz` files, read without pickle and with limits on their size."""

import ast
import contextlib
import errno
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np

from nnfx import checks
from nnfx.data.reading import Reader, Source, most_unpacked, reading

__all__ = ["read_npz"]


def read_npz(source: Source, *, limit: int | None = None) -> dict[str, np.ndarray]:
    """Read the arrays in a file written by `numpy.savez` or `numpy.savez_compressed`.

    Nothing is unpickled, so a file from an untrusted source cannot run code. Memory use is bounded by the bytes
    actually present, whatever sizes the file declares, and by `limit`, so a small file cannot exhaust the memory.

    Args:
        source: the path or the bytes of the file.
        limit: the maximum total size of the arrays in bytes; by default, 100 times the size of the file, and at
            least 16 MiB.

    Returns:
        The arrays by name, in the order of the file and in the byte order of the machine.

    Raises:
        OSError: for a file that cannot be read.
        TypeError: for a limit that is not an integer.
        ValueError: for a file that is damaged, or not in NumPy's format; arrays larger than the limit in total; and
            arrays of Python objects or records. The error names the file and the array.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "digits.npz"
        >>> np.savez_compressed(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.array([3, 7]))
        >>> {name: array.shape for name, array in read_npz(path).items()}
        {'images': (2, 8, 8), 'labels': (2,)}

    References:
        Kern, *NEP 1: a simple file format for NumPy arrays*, 2007.
    """
    if limit is not None:
        checks.positive_integer("limit", limit)
    with reading(source) as reader, damage_named(reader.name, "file written by numpy.savez"):
        if reader.is_packed:
            raise ValueError(f"{reader.name}: expected a file written by numpy.savez, got a gzip file")
        with zipfile.ZipFile(reader.stream) as archive:
            members = archive.infolist()
            size, most = sum(each.file_size for each in members), limit or most_unpacked(reader.size)
            if size > most:
                raise ValueError(
                    f"{reader.name}: expected arrays of at most {most} bytes, got {size}; if that is intended, pass"
                    " limit="
                )
            found: dict[str, np.ndarray] = {}
            for each in members:
                name = each.filename.removesuffix(".npy")
                if name in found:
                    raise ValueError(f"{reader.name}: expected each array once, got {name!r} twice")
                found[name] = _member(reader.name, archive, each)
    if not found:
        raise ValueError(f"{reader.name}: expected at least one array, got none")
    return found


_DAMAGE = (
    EOFError,
    RuntimeError,  # unsupported features of zip files, such as encryption
    OverflowError,
    UnicodeDecodeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def damage_named(file: str, expected: str) -> Iterator[None]:
    """Convert the errors that `zipfile` raises for a damaged file to a ValueError that names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{file}: expected a complete {expected}, got a damaged one: {error}") from error
    except ValueError as error:
        if "negative seek" not in str(error):
            raise
        raise ValueError(f"{file}: expected a complete {expected}, got a damaged one: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{file}: expected a complete {expected}, got a damaged one: {error}") from error


_ENCRYPTED = 1


def _member(file: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = f"{file}: {member.filename}"
    is_plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & _ENCRYPTED
    if not member.filename.endswith(".npy") or not is_plain:
        raise ValueError(f"{name}: expected an array as written by numpy.savez, got another kind of file")
    with archive.open(member) as stream:
        reader = Reader(name, cast(BinaryIO, stream), member.file_size, is_packed=False)
        magic = bytes(reader.take(8, "the start of an array"))
        if magic not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
            raise ValueError(f"{name}: expected an array of numbers or text in NumPy's format, got {magic!r}")
        layout = "<H" if magic[6] == 1 else "<I"
        length = struct.unpack(layout, reader.take(struct.calcsize(layout), "the length of its header"))[0]
        if length > _LONGEST_HEADER:
            raise ValueError(f"{name}: expected a header of at most {_LONGEST_HEADER} bytes, got {length}")
        dtype, is_fortran, shape = _header(name, reader.take(length, "its header").decode("latin-1"))
        values = reader.take(dtype.itemsize * math.prod(shape), f"an array of shape {shape}")
        if reader.some():  # reading to the end also verifies the checksum
            raise ValueError(f"{name}: expected nothing after an array of shape {shape}, got further bytes")
    array = np.frombuffer(values, dtype, math.prod(shape)) if dtype.itemsize else np.zeros(math.prod(shape), dtype)
    array = array.reshape(shape, order="F" if is_fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


_LONGEST_HEADER = 10_000
_DTYPE = re.compile(r"[<>|=]?([biufcSU]\d{1,9}|[mM]8(\[\d{0,9}\w{1,2}\])?)", re.ASCII)
_MOST_AXES = 32


def _header(name: str, text: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """Return the dtype of an array, whether it is stored in Fortran order, and its shape."""
    try:
        header = ast.literal_eval(text.strip())
        described, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        is_known = isinstance(described, str) and isinstance(is_fortran, bool) and isinstance(shape, tuple)
        if not is_known or len(shape) > _MOST_AXES or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"got {text.strip()[:100]}")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name}: could not read the header of an array of numbers or text: {error}") from error
    if not _DTYPE.fullmatch(described):
        kind = "Python objects, which would be unpickled" if "O" in described else f"dtype {described!r}"
        raise ValueError(f"{name}: expected an array of numbers or text, got one of {kind}")
    try:
        return np.dtype(described), is_fortran, shape
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected an array of numbers or text, got one of dtype {described!r}") from error
