"""Files read in bounded memory, plain or compressed with gzip, as bytes or as text.

Memory use is bounded by the bytes actually present, and reading stops at the first surplus byte, so neither a false
header nor a gzip bomb can exhaust memory.
"""

import codecs
import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TextIO, cast

from nnfx.paths import absolute

__all__ = ["Reader", "Source", "most_unpacked", "name_of", "reading", "reading_text"]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview
"""The path or the bytes of a file, plain or compressed with gzip."""

_CHUNK = 1 << 18
"""How many bytes to read at a time; a reader may allocate this much memory before it knows how many bytes there are."""
_GZIP_RATIO = 1032
"""Deflate needs at least two bits for 258 bytes, so a file unpacks to at most this many times its size."""


class Reader(NamedTuple):
    """The bytes of a file, unpacked.

    Attributes:
        name: the name of the file, for error messages.
        stream: the unpacked bytes.
        size: the size of the file.
        is_packed: whether the file is compressed with gzip.
    """

    name: str
    stream: BinaryIO
    size: int
    is_packed: bool

    @property
    def most(self) -> int:
        """The largest number of bytes to which the file can unpack."""
        return self.size * _GZIP_RATIO if self.is_packed else self.size

    def take(self, count: int, what: str) -> bytearray:
        """Return exactly the next `count` bytes; memory is allocated only for bytes that are present."""
        if count > self.most:
            raise ValueError(f"{self.name}: expected {count} bytes for {what}, got a file of at most {self.most}")
        values = bytearray()
        while len(values) < count:
            chunk = self.stream.read(min(count - len(values), _CHUNK))
            if not chunk:
                raise ValueError(f"{self.name}: expected {count} bytes for {what}, got {len(values)}")
            values += chunk
        return values

    def some(self) -> bytes:
        """Return the next bytes, at most a chunk; empty at the end."""
        return self.stream.read(_CHUNK)


@contextlib.contextmanager
def reading(source: Source) -> Iterator[Reader]:
    """Open a file, unpack it if it is compressed with gzip, and raise errors that name the file if unpacking fails."""
    name = name_of(source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file: BinaryIO = io.BytesIO(source)
        else:
            file = stack.enter_context(absolute("source", source).open("rb"))
        is_gzip = file.read(2) == b"\x1f\x8b"
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not is_gzip:
            yield Reader(name, file, size, is_packed=False)
            return
        try:
            yield Reader(name, cast(BinaryIO, gzip.GzipFile(fileobj=file)), size, is_packed=True)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: expected a complete gzip file, got a damaged one: {error}") from error


_RATIO = 100
_SMALL = 1 << 24


def most_unpacked(size: int) -> int:
    """Return the default limit on the unpacked size of a file: 100 times its size, and at least 16 MiB.

    >>> most_unpacked(10), most_unpacked(10**6)
    (16777216, 100000000)
    """
    return max(_SMALL, _RATIO * size)


@contextlib.contextmanager
def reading_text(source: Source, encoding: str = "utf-8") -> Iterator[tuple[str, TextIO]]:
    """Open a text file, plain or compressed with gzip, after checking all of it for errors in a first pass.

    Only part of the text is in memory at a time, so neither a gzip bomb nor a large file can exhaust memory.

    Args:
        source: the file.
        encoding: the encoding of its text; a UTF-8 byte-order mark is skipped.

    Yields:
        The name of the file, for error messages, and its text.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a damaged file, text in another encoding, and text that unpacks to more than 16 MiB and more
            than 100 times the size of its file (tables of numbers usually unpack to about ten times). The error names
            the file.
    """
    try:
        codec = codecs.lookup(encoding).name
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"encoding: expected an encoding that Python knows, such as 'latin-1', got {encoding!r}"
        ) from error
    codec = "utf-8-sig" if codec == "utf-8" else codec
    with reading(source) as reader:
        most = most_unpacked(reader.size) if reader.is_packed else reader.size
        decoder, size = codecs.getincrementaldecoder(codec)(), 0
        while True:
            chunk = reader.some()
            if size + len(chunk) > most:
                raise ValueError(
                    f"{reader.name}: expected text that unpacks to at most {most} bytes ({_RATIO} times its size),"
                    " got more; if that is intended, unpack it first"
                )
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{reader.name}: expected text in {encoding.upper()}, got invalid bytes from byte"
                    f" {size - pending + error.start} on; pass the encoding of the file, such as 'latin-1' or 'utf-16'"
                ) from error
            size += len(chunk)
            if not chunk:
                break
        reader.stream.seek(0)
        yield reader.name, io.TextIOWrapper(reader.stream, codec, newline="")


def name_of(source: Source) -> str:
    """Return the name by which errors refer to a file."""
    return "the bytes given" if isinstance(source, bytes | bytearray | memoryview) else str(source)
