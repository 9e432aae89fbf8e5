"""Files of images that declare more than they hold, and files with random changes."""

import gzip
import re

import numpy as np
import pytest

from nnfx.data.formats import read_cifar10, read_cifar100, read_idx, read_idx_examples
from tests.data.test_formats import (
    HUGE,
    IMAGES,
    LABELS,
    MEBIBYTE,
    MEMBERS,
    MEMBERS_100,
    RNG,
    archive,
    batches,
    idx,
    idx_header,
    packed,
    peak_memory,
    records_100,
    with_checksum,
)

# Memory: at most twice the declared size and 16 MiB, and nothing for declared data that are missing


def test_memory_of_reading_idx(tmp_path):
    array = np.zeros((40, 1024, 1024), np.uint8)
    (tmp_path / "images.gz").write_bytes(packed(idx(array)))
    assert peak_memory(lambda: read_idx(tmp_path / "images.gz", ndim=3)) <= 2 * array.size + 16 * MEBIBYTE


@pytest.mark.slow
def test_memory_of_reading_cifar_in_full(tmp_path):
    with gzip.open(tmp_path / "cifar.tar.gz", "wb", 1) as file:
        file.write(archive(dict.fromkeys(MEMBERS, bytes(30_730_000))))
    assert peak_memory(lambda: read_cifar10(tmp_path / "cifar.tar.gz")) <= 2 * 6 * 30_730_000 + 16 * MEBIBYTE


@pytest.mark.parametrize("shape", [(HUGE, HUGE, HUGE), (60_000, 28, 28), (100, 1000, 1000)])
@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_header_that_declares_too_much_takes_no_memory(pack, shape):
    noise = RNG.integers(0, 256, 200_000, np.uint8).tobytes()
    data = pack(idx_header(*shape) + noise)
    with pytest.raises(ValueError, match="bytes for an array of shape"):
        read_idx(data, ndim=3)
    # the data, a second copy while they grow, and one read: since Python 3.12, gzip reads more at a time
    assert peak_memory(lambda: read_idx(data, ndim=3)) < 2 * MEBIBYTE


def test_a_gzip_bomb_takes_no_memory():
    bomb = packed(idx_header(2, 5) + bytes(128 * MEBIBYTE))
    with pytest.raises(ValueError, match="expected nothing after"):
        read_idx(bomb, ndim=2)
    assert peak_memory(lambda: read_idx(bomb, ndim=2)) < 4 * MEBIBYTE
    for files, tail in ((batches(), bytes(128 * MEBIBYTE)), ({"large": bytes(128 * MEBIBYTE)}, b"")):
        bomb = packed(archive(files) + tail)
        with pytest.raises(ValueError, match="expected (nothing after|few bytes besides)"):
            read_cifar10(bomb, records=2)
        assert peak_memory(lambda bomb=bomb: read_cifar10(bomb, records=2)) < 4 * MEBIBYTE


# Mutations: 10,000 nearly valid files


def unpacked(data):
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def idx_contents(data):
    """Return the array in a valid IDX file, read with NumPy alone."""
    data = unpacked(data)
    shape = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def test_mutated_idx_files_are_refused_or_read_right(mutate):
    rng = np.random.default_rng(1)
    accepted, refused = 0, []
    for trial in range(5000):
        pack = packed if trial % 3 == 0 else bytes
        files = [pack(idx(IMAGES)), pack(idx(LABELS))]
        chosen = trial % 2
        files[chosen] = mutate(rng, files[chosen], hot=range(20))
        try:
            examples = read_idx_examples(*files)
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        np.testing.assert_array_equal(examples.inputs[..., 0], idx_contents(files[0]))
        np.testing.assert_array_equal(examples.targets, idx_contents(files[1]))
        assert examples.targets.max() <= 9
    assert 250 < accepted < 2500
    assert all(re.match("the bytes given: .*expected", message) for message in refused)


def cifar_contents(data, name):
    """Return the records of a member of a valid uncompressed archive: the bytes after its header."""
    return np.frombuffer(data, np.uint8, count=6146, offset=data.index(name.encode()) + 512).reshape(2, 3073)


@pytest.mark.parametrize("trials", [50, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_cifar_archives_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(2)
    plain = archive(batches())
    packed_up = packed(plain)
    headers = [start for start in range(0, len(plain), 512) if plain[start + 257 : start + 262] == b"ustar"]
    accepted, refused = 0, []
    for trial in range(trials):
        if trial % 5 == 0:
            data = mutate(rng, packed_up, hot=range(30))
        else:
            start = int(rng.choice(headers))
            data = mutate(rng, plain, hot=[*range(start, start + 12), *range(start + 120, start + 160), start + 513])
            if trial % 2:  # also test faults that the checksum would reveal
                data = with_checksum(data, start)
        try:
            train, test = read_cifar10(data, records=2)
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        found = [cifar_contents(unpacked(data), name) for name in MEMBERS]
        expected = np.concatenate(found[1:])
        np.testing.assert_array_equal(train.targets, expected[:, 0])
        np.testing.assert_array_equal(train.inputs, expected[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(test.targets, found[0][:, 0])
        assert max(train.targets.max(), test.targets.max()) <= 9
    assert 0.05 * trials < accepted < 0.5 * trials
    assert all(re.match("the bytes given: .*expected", message) for message in refused)


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_archives_of_cifar_100_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    files = records_100()
    plain = archive(files)
    starts = [plain.index(name.encode()) for name in MEMBERS_100]
    accepted, refused = 0, []
    for trial in range(trials):
        start = starts[trial % 2]
        data = mutate(rng, plain, hot=[*range(start + 120, start + 160), *range(start + 512, start + 600)])
        try:
            parts = read_cifar100(with_checksum(data, start) if trial % 4 > 1 else data, records=(3, 2))
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        for found, name in zip(parts, MEMBERS_100, strict=True):
            rows = len(found.targets)
            content = np.frombuffer(data, np.uint8, rows * 3074, data.index(name.encode()) + 512).reshape(rows, 3074)
            np.testing.assert_array_equal(found.targets, content[:, 1])
            np.testing.assert_array_equal(found.inputs.transpose(0, 3, 1, 2).reshape(rows, -1), content[:, 2:])
    assert 0.05 * trials < accepted < 0.9 * trials
    assert all(re.match("the bytes given: .*expected", message) for message in refused)
