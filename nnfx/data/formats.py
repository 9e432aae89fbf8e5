"""Image files, read in bounded memory: IDX, the format of MNIST and its variants, and the binary archives of CIFAR.

The sizes that a file declares are not trusted: memory use is bounded by the bytes actually present, and reading stops
at the first surplus byte, so neither a false header nor a gzip bomb can exhaust memory.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnfx import checks
from nnfx.data.reading import Reader, Source, name_of, reading


class Examples(NamedTuple):
    """Raw images and their labels, on the host.

    Attributes:
        inputs: uint8 `(rows, height, width, channels)`.
        targets: the labels, int32 `(rows,)`, starting at 0.
    """

    inputs: np.ndarray
    targets: np.ndarray


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_AXES = 32


def read_idx(source: Source, ndim: int | None = None) -> np.ndarray:
    """Read an array from an IDX file.

    The file consists of two zero bytes, a code for the type of the values, the number of axes, their sizes as
    big-endian 32-bit numbers, and the values, also big-endian, with the last axis varying fastest. The codes are 0x08
    for unsigned and 0x09 for signed bytes, 0x0B for 16-bit and 0x0C for 32-bit integers, and 0x0D for 32-bit and 0x0E
    for 64-bit floats.

    Args:
        source: the path or the bytes of the file, plain or compressed with gzip.
        ndim: the number of axes to expect, such as 3 for images and 1 for labels; any number by default.

    Returns:
        The array, with the dtype of the file and the byte order of the machine.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: if the file does not contain exactly one array, complete, non-empty and with that many axes; the
            error names the file.

    Example:
        >>> read_idx(bytes([0, 0, 0x08, 1, 0, 0, 0, 3]) + bytes([7, 8, 9]), ndim=1)
        array([7, 8, 9], dtype=uint8)
        >>> read_idx(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2]) + bytes([1, 0, 255, 254]))
        array([256,  -2], dtype=int16)

    References:
        LeCun, Cortes and Burges, *The MNIST database of handwritten digits*, section on the file formats.
    """
    if ndim is not None:
        checks.positive_integer("ndim", ndim)
    with reading(source) as reader:
        zeros, code, axes = struct.unpack(">HBB", reader.take(4, "the start of an IDX file"))
        if zeros:
            raise ValueError(f"{reader.name}: expected an IDX file, beginning with two zero bytes, got 0x{zeros:04x}")
        if code not in _IDX_TYPES:
            known = ", ".join(f"0x{each:02x}" for each in _IDX_TYPES)
            raise ValueError(f"{reader.name}: expected one of the type codes {known}, got 0x{code:02x}")
        if axes != (axes if ndim is None else ndim) or axes == 0:
            raise ValueError(f"{reader.name}: expected {'one or more' if ndim is None else ndim} axes, got {axes}")
        if axes > _MOST_AXES:
            raise ValueError(f"{reader.name}: expected at most {_MOST_AXES} axes, got {axes}")
        shape = struct.unpack(f">{axes}I", reader.take(4 * axes, "the sizes of the axes"))
        if 0 in shape:
            raise ValueError(f"{reader.name}: expected at least one value, got an array of shape {shape}")
        dtype = np.dtype(_IDX_TYPES[code])
        values = reader.take(dtype.itemsize * math.prod(shape), f"an array of shape {shape}")
        if reader.some():
            raise ValueError(f"{reader.name}: expected nothing after an array of shape {shape}, got further bytes")
    array = np.frombuffer(values, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


_QMNIST_COLUMNS = 8


def read_idx_examples(
    images: Source, labels: Source, *, classes: int = 10, first: int = 0, transposed: bool = False
) -> Examples:
    """Read greyscale images and their labels from a pair of IDX files, such as MNIST and its variants.

    - MNIST, Fashion-MNIST, KMNIST, and the EMNIST data sets `digits` and `mnist`: 10 classes.
    - The other EMNIST data sets: `classes=26, first=1` for `letters`, `classes=47` for `balanced` and `bymerge`,
      `classes=62` for `byclass`. All images of EMNIST, digits included, are transposed: `transposed=True` puts them
      upright.
    - QMNIST: pass its table of labels unchanged; the class is the first of its eight columns.

    Args:
        images: the file of the images, unsigned bytes `(rows, height, width)`.
        labels: the file of their labels: unsigned bytes `(rows,)`, or QMNIST's 32-bit integers `(rows, 8)`.
        classes: the number of classes.
        first: the label of the first class in the file; the targets begin at 0 in any case.
        transposed: whether the images are transposed; if so, their axes are swapped.

    Returns:
        Images of one channel, `(rows, height, width, 1)`, and targets from 0 to `classes` − 1.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is incomplete or of another type, or labels that are out of range or not one per
            image; see `read_idx`.

    Example:
        >>> images = bytes([0, 0, 0x08, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1]) + bytes([0, 255])
        >>> labels = bytes([0, 0, 0x08, 1, 0, 0, 0, 1]) + bytes([9])
        >>> examples = read_idx_examples(images, labels)
        >>> examples.inputs.shape, examples.targets
        ((1, 2, 1, 1), array([9], dtype=int32))

    References:
        Cohen, Afshar, Tapson and van Schaik, *EMNIST: extending MNIST to handwritten letters*, IJCNN 2017.
        Yadav and Bottou, *Cold case: the lost MNIST digits*, NeurIPS 2019.
    """
    checks.positive_integer("classes", classes)
    checks.non_negative_integer("first", first)
    inputs, targets = read_idx(images, ndim=3), read_idx(labels)
    if inputs.dtype != np.uint8:
        raise ValueError(f"{name_of(images)}: expected images of unsigned bytes, got {checks.describe(inputs)}")
    if targets.dtype == np.int32 and targets.shape[1:] == (_QMNIST_COLUMNS,):
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise ValueError(f"{name_of(labels)}: expected 1 axis, got {targets.ndim}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"{name_of(labels)}: expected integer labels, got {checks.describe(targets)}")
    if len(inputs) != len(targets):
        raise ValueError(
            f"{name_of(labels)}: expected one label for each of the {len(inputs)} images of {name_of(images)},"
            f" got {len(targets)}"
        )
    if transposed:
        inputs = np.ascontiguousarray(inputs.swapaxes(1, 2))
    low, high = int(targets.min()), int(targets.max())
    if low < first or high >= first + classes:
        raise ValueError(
            f"{name_of(labels)}: expected labels from {first} to {first + classes - 1}, got labels from {low} to"
            f" {high}; pass the number of classes as classes=, and the lowest label as first="
        )
    return Examples(inputs[..., None], targets.astype(np.int32) - np.int32(first))


_PIXELS = 3 * 32 * 32
_CIFAR10 = "cifar-10-batches-bin"
_CIFAR10_TRAIN = tuple(f"{_CIFAR10}/data_batch_{i}.bin" for i in range(1, 6))
_CIFAR10_TEST = f"{_CIFAR10}/test_batch.bin"
_CIFAR100 = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")


def read_cifar10(source: Source, records: int = 10_000) -> tuple[Examples, Examples]:
    """Read the binary archive of CIFAR-10, a tar file.

    The six members needed are found by their exact names, and nothing is unpacked to disk. Each contains records
    of a label and 32 × 32 pixels: first all red values, then all green, then all blue.

    Args:
        source: the path or the bytes of the archive, plain or compressed with gzip.
        records: the number of records in each member.

    Returns:
        The training set, with images `(5 × records, 32, 32, 3)`, and the test set.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is not a complete tar archive, members that are missing, duplicated, or of another
            size or kind, and labels out of range; the error names the file.

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, technical report, Toronto 2009.
    """
    checks.positive_integer("records", records)
    sizes = dict.fromkeys((*_CIFAR10_TRAIN, _CIFAR10_TEST), records * (1 + _PIXELS))
    with reading(source) as reader:
        parts = {name: _records(f"{reader.name}: {name}", values, [10])[0] for name, values in _members(reader, sizes)}
    test = parts.pop(_CIFAR10_TEST)
    inputs = np.concatenate([parts[name].inputs for name in _CIFAR10_TRAIN])
    return Examples(inputs, np.concatenate([parts[name].targets for name in _CIFAR10_TRAIN])), test


def read_cifar100(
    source: Source, *, coarse: bool = False, records: tuple[int, int] = (50_000, 10_000)
) -> tuple[Examples, Examples]:
    """Read the binary archive of CIFAR-100, a tar file.

    The two members needed are found by their exact names, in the same way as by `read_cifar10`. Their records begin
    with two labels: one of 20 groups of classes, such as fish, and one of 100 classes, such as trout.

    Args:
        source: the path or the bytes of the archive, plain or compressed with gzip.
        coarse: whether the targets are the groups instead of the classes.
        records: the numbers of training and test records.

    Returns:
        The training set and the test set, each with images `(rows, 32, 32, 3)` and labels `(rows,)`.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is not a complete tar archive, members that are missing, duplicated, or of another
            size or kind, and labels of either kind out of range; the error names the file.

    Example:
        >>> import io, pathlib, tarfile, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "cifar-100-binary.tar"
        >>> with tarfile.open(path, "w") as archive:
        ...     for name in ("train", "test"):
        ...         member = tarfile.TarInfo(f"cifar-100-binary/{name}.bin")
        ...         member.size = 2 + 32 * 32 * 3
        ...         archive.addfile(member, io.BytesIO(bytes([1, 91]) + bytes(member.size - 2)))
        >>> train, test = read_cifar100(path, records=(1, 1))
        >>> train.inputs.shape, train.targets, read_cifar100(path, records=(1, 1), coarse=True)[0].targets
        ((1, 32, 32, 3), array([91], dtype=int32), array([1], dtype=int32))

    References:
        Krizhevsky, *Learning multiple layers of features from tiny images*, technical report, Toronto 2009.
    """
    for count in records:
        checks.positive_integer("records", count)
    sizes = {name: count * (2 + _PIXELS) for name, count in zip(_CIFAR100, records, strict=True)}
    with reading(source) as reader:
        parts = {
            name: _records(f"{reader.name}: {name}", values, [20, 100])[0 if coarse else 1]
            for name, values in _members(reader, sizes)
        }
    return parts[_CIFAR100[0]], parts[_CIFAR100[1]]


def _records(name: str, values: bytearray, classes: Sequence[int]) -> list[Examples]:
    """Return one `Examples` for each kind of label, all with the same images, after checking the labels."""
    table = np.frombuffer(values, np.uint8).reshape(-1, len(classes) + _PIXELS)
    channels_first = table[:, len(classes) :].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))
    for column, count in enumerate(classes):
        checks.class_labels(name, table[:, column], count)
    return [Examples(images, table[:, column].astype(np.int32)) for column in range(len(classes))]


_BLOCK = 512
_BESIDE = 1 << 20
"""How many bytes of a tar archive may be used for anything other than the requested members."""


def _members(reader: Reader, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytearray]]:
    """Yield members of a tar archive with their contents, in the archive's order, each exactly once.

    Members must be regular files with exactly the given sizes. Everything else is skipped, including extended headers,
    which names as short as these do not need.
    """
    missing, beside = set(sizes), _BESIDE
    while any(header := reader.take(_BLOCK, "the header of a tar member")):
        name, size = _tar_header(reader.name, header)
        padded = size + -size % _BLOCK
        if name not in sizes:
            beside -= _BLOCK + padded
            if beside < 0:
                raise ValueError(
                    f"{reader.name}: expected few bytes besides {', '.join(sizes)}, got {name!r} ({size} bytes)"
                )
            reader.take(padded, name)
            continue
        if name not in missing:
            raise ValueError(f"{reader.name}: expected {name!r} once, got it twice")
        if header[156] not in b"0\0" or size != sizes[name]:
            kind = f"{size} bytes of type {chr(header[156])!r}"
            raise ValueError(f"{reader.name}: expected {name!r} to be a file of {sizes[name]} bytes, got {kind}")
        missing.remove(name)
        values = reader.take(padded, name)
        del values[size:]
        yield name, values
    if missing:
        raise ValueError(
            f"{reader.name}: expected an archive that contains {', '.join(sorted(missing))}, got one without"
        )
    while rest := reader.some():  # to the end, where gzip stores its checksum
        beside -= len(rest)
        if beside < 0 or rest.strip(b"\0"):
            raise ValueError(f"{reader.name}: expected nothing after the end of the archive, got further bytes")


def _tar_header(file: str, header: bytearray) -> tuple[str, int]:
    """Return a member's name and size from its header, after verifying the header's checksum."""
    blank = header[:148] + b" " * 8 + header[156:]
    if _octal(header[148:156]) != sum(blank):
        raise ValueError(f"{file}: expected a tar archive, got a header with a wrong checksum")
    size = _octal(header[124:136])
    if size is None:
        raise ValueError(f"{file}: expected the size of a tar member, got {bytes(header[124:136])!r}")
    return header[:100].split(b"\0")[0].decode("ascii", "replace"), size


def _octal(field: bytearray) -> int | None:
    digits = re.fullmatch(rb" *([0-7]+)[ \0]*", field)
    return int(digits[1], 8) if digits else None
