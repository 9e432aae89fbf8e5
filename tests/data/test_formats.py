import gzip
import io
import re
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from nnfx.data.formats import read_cifar10, read_cifar100, read_idx, read_idx_examples

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 3, 2), np.uint8)
LABELS = np.array([0, 9, 5, 1], np.uint8)
HUGE = 2**32 - 1
MEBIBYTE = 2**20


def idx_header(*shape, code=0x08):
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)


def idx(array):
    return idx_header(*array.shape) + array.tobytes()


def packed(data):
    return gzip.compress(data, 1, mtime=0)


MEMBERS = [f"cifar-10-batches-bin/{name}.bin" for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]]


def batches(records=2):
    """Return the members of an archive, in an order other than that of the batches."""
    labels = RNG.integers(0, 10, (6, records, 1), np.uint8)
    pixels = RNG.integers(0, 256, (6, records, 3072), np.uint8)
    return dict(zip(MEMBERS, np.concatenate([labels, pixels], axis=2), strict=True))


def archive(files, extra=()):
    """Return a tar archive of these files, in a folder as in CIFAR-10, with a description among them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in [*files.items(), ("cifar-10-batches-bin/readme.html", b"<html>"), *extra]:
            member = tarfile.TarInfo(name)
            member.size = len(bytes(content))
            tar.addfile(member, io.BytesIO(bytes(content)))
    return buffer.getvalue()


def peak_memory(function):
    """Return the peak memory of Python during a call, in bytes; a ValueError is ignored."""
    tracemalloc.start()
    try:
        function()
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


# IDX


@pytest.mark.parametrize("pack", [bytes, packed])
def test_an_idx_array_comes_back_from_bytes_and_from_a_file(pack, tmp_path):
    for array in (IMAGES, LABELS):
        data = pack(idx(array))
        (tmp_path / "file").write_bytes(data)
        for source in (data, tmp_path / "file", str(tmp_path / "file")):
            found = read_idx(source, ndim=array.ndim)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == np.uint8


def test_images_and_labels_get_the_shapes_and_types_of_the_library():
    examples = read_idx_examples(idx(IMAGES), packed(idx(LABELS)))
    np.testing.assert_array_equal(examples.inputs, IMAGES[..., None])
    np.testing.assert_array_equal(examples.targets, LABELS)
    assert examples.targets.dtype == np.int32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected 4 bytes for the start of an IDX file, got a file of at most 0"),
        (b"\x00\x00\x08", "expected 4 bytes for the start of an IDX file"),
        (b"PK\x03\x04" * 9, "beginning with two zero bytes, got 0x504b"),
        (idx_header(4, 3, 2, code=0x0A) + bytes(24), "expected one of the type codes 0x08, .* 0x0e, got 0x0a"),
        (idx_header(4, 3, 2, code=0x0D) + bytes(95), "expected 96 bytes for an array of shape"),
        (idx_header(*[1] * 33) + bytes(1), "expected 3 axes, got 33"),
        (idx(LABELS), "expected 3 axes, got 1"),
        (idx_header(4, 3, 2)[:-1], "expected 12 bytes for the sizes of the axes"),
        (idx_header(0, 3, 2), r"expected at least one value, got an array of shape \(0, 3, 2\)"),
        (idx(IMAGES)[:-1], r"expected 24 bytes for an array of shape \(4, 3, 2\), got 23"),
        (idx(IMAGES) + b"\x00", "expected nothing after an array of shape .* got further bytes"),
        (idx_header(HUGE, HUGE, HUGE) + bytes(99), r"expected \d{29} bytes for an array .*, got a file of at most"),
    ],
)
def test_what_is_wrong_with_an_idx_file_is_said(data, message, tmp_path):
    path = tmp_path / "train-images"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_idx(path, ndim=3)
    path.write_bytes(packed(data))  # the number of bytes is then known only later
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message.split(', got')[0]}"):
        read_idx(path, ndim=3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:3], "expected one label for each of the 4 images of .*images, got 3"),
        (np.append(LABELS, LABELS[:1]), "expected one label for each of the 4 images of .*images, got 5"),
        (LABELS + np.uint8(1), "expected labels from 0 to 9, got labels from 1 to 10"),
        (IMAGES, "expected 1 axis, got 3"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(labels, message, tmp_path):
    for name, array in (("images", IMAGES), ("labels", labels)):
        (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=f"labels: {message}"):
        read_idx_examples(tmp_path / "images", tmp_path / "labels")


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True])
def test_counts_are_positive_integers(wrong):
    with pytest.raises((TypeError, ValueError), match="ndim: expected a positive integer"):
        read_idx(idx(IMAGES), ndim=wrong)
    with pytest.raises((TypeError, ValueError), match="records: expected a positive integer"):
        read_cifar10(archive(batches()), records=wrong)


TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 3), (1, 2, 3, 2)])
def test_idx_files_of_any_type_and_rank(code, shape):
    dtype = np.dtype(TYPES[code])
    letter = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}[TYPES[code]]
    numbers = [-7, 100, 3, -128, 127, 0] if dtype.kind != "u" else [7, 200, 255, 0, 1, 128]
    count = int(np.prod(shape))
    numbers = [number / 4 if dtype.kind == "f" else number for number in (2 * numbers)[:count]]
    content = idx_header(*shape, code=code) + b"".join(struct.pack(f">{letter}", number) for number in numbers)
    for data in (content, packed(content)):
        found = read_idx(data)
        assert (found.dtype, found.shape, found.dtype.isnative) == (dtype, shape, True)
        assert found.ravel().tolist() == numbers
        np.testing.assert_array_equal(read_idx(data, ndim=len(shape)), found)
    with pytest.raises(ValueError, match=f"expected {len(shape) + 1} axes, got {len(shape)}"):
        read_idx(content, ndim=len(shape) + 1)


def test_more_axes_than_numpy_has_are_refused():
    for axes in (0, 33, 255):
        with pytest.raises(ValueError, match=f"expected (one or more|at most 32) axes, got {axes}"):
            read_idx(idx_header(*[1] * axes) + bytes(1))


def test_the_letters_of_emnist_are_read_upright():
    letters = np.array([1, 26, 13, 2], np.uint8)
    stored = IMAGES.swapaxes(1, 2)
    examples = read_idx_examples(idx(stored), idx(letters), classes=26, first=1, transposed=True)
    np.testing.assert_array_equal(examples.inputs[..., 0], IMAGES)
    np.testing.assert_array_equal(examples.targets, letters - 1)
    with pytest.raises(
        ValueError, match="expected labels from 0 to 9, got labels from 1 to 26; pass the number of classes as classes="
    ):
        read_idx_examples(idx(stored), idx(letters))
    with pytest.raises(ValueError, match="expected labels from 0 to 25, got labels from 1 to 26"):
        read_idx_examples(idx(stored), idx(letters), classes=26)
    by_class = np.array([0, 61, 13, 2], np.uint8)
    np.testing.assert_array_equal(read_idx_examples(idx(IMAGES), idx(by_class), classes=62).targets, by_class)


def test_the_table_of_labels_of_qmnist_is_read():
    table = np.random.default_rng(3).integers(0, 4000, (4, 8)).astype(np.int32)
    table[:, 0] = [5, 0, 9, 1]
    labels = idx_header(4, 8, code=0x0C) + table.astype(">i4").tobytes()
    examples = read_idx_examples(idx(IMAGES), packed(labels))
    np.testing.assert_array_equal(examples.targets, table[:, 0])
    assert examples.targets.dtype == np.int32


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx_header(4, 3, 2, code=0x09) + bytes(24), idx(LABELS), "expected images of unsigned bytes, got int8"),
        (idx(IMAGES), idx_header(4, code=0x0D) + bytes(16), "expected integer labels, got float32"),
        (idx(IMAGES), idx_header(4, 7, code=0x0C) + bytes(112), "expected 1 axis, got 2"),
        (idx(IMAGES), idx_header(4, 8, code=0x08) + bytes(32), "expected 1 axis, got 2"),
        (idx(IMAGES), idx_header(4, code=0x09) + b"\xff\0\0\0", "expected labels from 0 to 9, got labels from -1 to 0"),
    ],
)
def test_images_and_labels_of_other_types_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        read_idx_examples(images, labels)


# CIFAR-10


@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_cifar_archive_comes_back_with_its_channels_last(pack):
    files = batches()
    train, test = read_cifar10(pack(archive(files)), records=2)
    records = np.concatenate([files[name] for name in MEMBERS[1:]])
    np.testing.assert_array_equal(train.targets, records[:, 0])
    np.testing.assert_array_equal(test.targets, files[MEMBERS[0]][:, 0])
    assert train.inputs.shape == (10, 32, 32, 3)
    assert train.inputs.dtype == np.uint8
    assert train.inputs.flags.c_contiguous
    assert train.targets.dtype == np.int32
    for row, column, channel in [(0, 0, 0), (0, 1, 2), (31, 5, 1)]:
        np.testing.assert_array_equal(
            train.inputs[:, row, column, channel], records[:, 1 + 1024 * channel + 32 * row + column]
        )
    np.testing.assert_array_equal(test.inputs[1, ..., 2].ravel(), files[MEMBERS[0]][1, 2049:])


def without(files, name):
    return {other: content for other, content in files.items() if other != name}


def as_link(data, name):
    """Return the archive with one file turned into a symbolic link and its checksum corrected."""
    start = data.index(name.encode())
    return with_checksum(data[: start + 156] + b"2" + data[start + 157 :], start)


def with_checksum(data, start):
    header = bytearray(data[start : start + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + header + data[start + 512 :]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda files: b"", "expected 512 bytes for the header of a tar member"),
        (lambda files: b"not a tar file" * 100, "a header with a wrong checksum"),
        (lambda files: archive(without(files, MEMBERS[2])), "that contains .*data_batch_2.bin, got one without"),
        (lambda files: archive(files, [(MEMBERS[3], b"again")]), "expected '.*data_batch_3.bin' once, got it twice"),
        (lambda files: archive(files | {MEMBERS[1]: b"short"}), "to be a file of 6146 bytes, got 5 bytes of type '0'"),
        (lambda files: archive(files | {MEMBERS[0]: bytes(6147)}), "to be a file of 6146 bytes, got 6147 bytes"),
        (lambda files: archive(files | {MEMBERS[0]: b"\x0a" + bytes(6145)}), "test_batch.bin: expected labels from 0"),
        (lambda files: as_link(archive(files), MEMBERS[4]), "to be a file of 6146 bytes, got 6146 bytes of type '2'"),
        (lambda files: archive(files)[:20_000], "expected 6656 bytes for .*, got"),
        (lambda files: archive(files) + b"more", "expected nothing after the end of the archive"),
        (lambda files: archive(files, [("../x", bytes(2**21))]), r"few bytes besides .*, got '../x' \(2097152"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_cifar_archive_is_said(make, message, tmp_path):
    path = tmp_path / "cifar.tar.gz"
    for pack in (bytes, packed):
        path.write_bytes(pack(make(batches())))
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
            read_cifar10(path, records=2)


def test_names_are_compared_whole_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = [(f"../{MEMBERS[0]}", b"x"), (f"/{MEMBERS[1]}", b"x"), ("data_batch_1.bin", b"x")]
    train, _ = read_cifar10(archive(batches(), extra), records=2)
    assert len(train.targets) == 10
    assert not list(tmp_path.iterdir())


MEMBERS_100 = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")


def records_100(records=(3, 2)):
    """Return the members of an archive of CIFAR-100: a group, a class, and the pixels."""
    rng = np.random.default_rng(5)
    columns = [
        [rng.integers(0, high, (count, size), np.uint8) for high, size in ((20, 1), (100, 1), (256, 3072))]
        for count in records
    ]
    return dict(zip(MEMBERS_100, map(np.hstack, columns), strict=True))


@pytest.mark.parametrize("pack", [bytes, packed])
@pytest.mark.parametrize("coarse", [False, True])
def test_an_archive_of_cifar_100_has_two_kinds_of_labels(pack, coarse):
    files = records_100()
    names = [(f"cifar-100-binary/{name}_label_names.txt", b"apple\n") for name in ("fine", "coarse")]
    parts = read_cifar100(pack(archive(files, names)), coarse=coarse, records=(3, 2))
    for found, name in zip(parts, MEMBERS_100, strict=True):
        np.testing.assert_array_equal(found.targets, files[name][:, 0 if coarse else 1])
        np.testing.assert_array_equal(found.inputs, files[name][:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert (found.inputs.dtype, found.targets.dtype, found.inputs.flags.c_contiguous) == (np.uint8, np.int32, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: without(files, MEMBERS_100[1]), "that contains .*test.bin, got one without"),
        (lambda files: files | {MEMBERS_100[0]: b"short"}, "train.bin' to be a file of 9222 bytes, got 5 bytes"),
        (lambda files: files | {MEMBERS_100[0]: bytes([20, 0]) + bytes(9220)}, "train.bin: expected labels .* 0 to 19"),
        (lambda files: files | {MEMBERS_100[1]: bytes([0, 100]) + bytes(6146)}, "test.bin: expected labels .* 0 to 99"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_wrong_with_an_archive_of_cifar_100_is_said(change, message, coarse):
    with pytest.raises(ValueError, match=f"^the bytes given: .*{message}"):
        read_cifar100(archive(change(records_100())), coarse=coarse, records=(3, 2))
    with pytest.raises(ValueError, match="records: expected a positive integer, got 0"):
        read_cifar100(b"", records=(1, 0))
