import gzip
import io
import re
import tracemalloc

import numpy as np
import pytest

from nnfx.data.formats import read_idx
from nnfx.data.reading import reading, reading_text

IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def packed(data):
    return gzip.compress(data, 1, mtime=0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:12],
        lambda data: data + b"more",
        lambda data: data[:-8] + bytes(8),
        lambda data: data[:10] + bytes(len(data) - 10),
    ],
)
def test_a_damaged_gzip_file_is_named(damage, tmp_path):
    path = tmp_path / "train-images.gz"
    path.write_bytes(damage(packed(idx(IMAGES))))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected a complete gzip file, got a damaged one"):
        read_idx(path, ndim=3)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere", ndim=3)


def test_sources_may_be_relative_at_home_or_any_bytes(tmp_path, monkeypatch):
    (tmp_path / "images").write_bytes(idx(IMAGES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("images", "./images", "~/images", bytearray(idx(IMAGES)), memoryview(packed(idx(IMAGES)))):
        np.testing.assert_array_equal(read_idx(source), IMAGES)
    with pytest.raises(TypeError, match="source: expected a path, got 3"):
        read_idx(3)


@pytest.mark.parametrize("pack", [bytes, packed])
def test_bytes_are_taken_one_part_after_another(pack, tmp_path):
    content = bytes(range(200)) * 3000  # more than is read at a time
    (tmp_path / "file").write_bytes(pack(content))
    with reading(tmp_path / "file") as reader:
        assert reader.take(3, "the start") == content[:3]
        assert reader.take(500_000, "the middle") == content[3:500_003]
        with pytest.raises(
            ValueError, match=f"^{re.escape(reader.name)}: expected 100000 bytes for the end, got 99997"
        ):
            reader.take(100_000, "the end")
        assert (reader.some(), reader.is_packed) == (b"", pack is packed)


@pytest.mark.parametrize("pack", [bytes, packed])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_text_is_what_python_reads(pack, encoding):
    text = "Größe;1,5\r\nüber\n" * 50_000
    data = text.encode(encoding)
    with reading_text(pack(data), encoding) as (name, found):
        lines = list(found)
    assert name == "the bytes given"
    assert lines == list(io.TextIOWrapper(io.BytesIO(data), encoding, newline=""))


def test_a_damaged_byte_is_found_wherever_it_is():
    data = "ä".encode() * 200_000 + b"\xff"
    with (
        pytest.raises(ValueError, match="expected text in UTF-8, got invalid bytes from byte 400000 on"),
        reading_text(data),
    ):
        pass
    with (
        pytest.raises(ValueError, match="got invalid bytes from byte 399998 on"),
        reading_text(data[:-2]),
    ):  # half a letter
        pass


def test_text_that_unpacks_to_too_much_takes_no_memory():
    data = packed(bytes(64 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected text that unpacks to at most"), reading_text(data):
            pass
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
