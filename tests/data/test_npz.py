import io
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from nnfx.data.npz import read_npz

RNG = np.random.default_rng(0)
ARRAYS = {
    "images": RNG.integers(0, 256, (3, 4, 2), np.uint8),
    "labels": np.array([1, -2, 3]),
    "weights": np.asfortranarray(RNG.normal(size=(2, 3))).astype(">f4"),
}


def saved(arrays=None, save=np.savez):
    file = io.BytesIO()
    save(file, **(ARRAYS if arrays is None else arrays))
    return file.getvalue()


def archive(members, compression=zipfile.ZIP_STORED):
    """Return a zip file of these contents by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in members:
            written.writestr(name, content)
    return file.getvalue()


def npy(header, content=b"", version=1):
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


ONES = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_by_name(save, tmp_path):
    path = tmp_path / "arrays.npz"
    arrays = {
        **ARRAYS,
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3)),
        "text": np.array(["a", "größe"]),
        "bytes": np.array([b"ab", b"c"]),
        "blank": np.zeros(2, "S0"),
        "truth": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "times": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "halves": np.array([0.5], np.float16),
    }
    path.write_bytes(saved(arrays, save))
    for source in (path, str(path), path.read_bytes()):
        found = read_npz(source)
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype.newbyteorder("=")
            assert found[name].shape == array.shape
            assert found[name].flags.writeable


def test_a_header_of_version_two_is_read():
    data = archive([("a.npy", npy(ONES, np.float32([3, 4]).tobytes(), version=2))])
    np.testing.assert_array_equal(read_npz(data)["a"], [3, 4])


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a file was run')",))


def test_nothing_is_unpickled():
    objects = np.empty(1, object)
    objects[0] = Harmful()
    with pytest.raises(
        ValueError, match="a.npy: expected an array of numbers or text, got one of Python objects, which"
    ):
        read_npz(saved({"a": objects}))
    with pytest.raises(ValueError, match=r"a.npy: expected an array of numbers or text in NumPy's format, got"):
        read_npz(archive([("a.npy", pickle.dumps(Harmful()) * 9)]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a complete file written by numpy.savez, got a damaged one: File is not a zip file"),
        (saved()[:-30], "expected a complete file written by numpy.savez, got a damaged one"),
        (b"\x1f\x8b" + bytes(30), "expected a file written by numpy.savez, got a gzip file"),
        (archive([]), "expected at least one array, got none"),
        (archive([("a.txt", b"1")]), "a.txt: expected an array as written by numpy.savez, got another kind of file"),
        (archive([("a.npy", b"1")], zipfile.ZIP_LZMA), "a.npy: expected an array as written by numpy.savez"),
        (archive([("a.npy", npy(ONES, bytes(8))), ("a", b"")]), "expected each array once, got 'a' twice"),
        (archive([("a.npy", b"\x93NUMPY")]), "a.npy: expected 8 bytes for the start of an array, got a file"),
        (archive([("a.npy", npy(ONES, version=3))]), "a.npy: expected an array of numbers or text in NumPy's format"),
        (archive([("a.npy", npy(" " * 20_000))]), "a.npy: expected a header of at most 10000 bytes, got 20000"),
        (archive([("a.npy", npy("[1"))]), "a.npy: could not read the header of an array of numbers or text: .*closed"),
        (archive([("a.npy", npy("{}"))]), "a.npy: could not read the header of an array of numbers or text: 'descr'"),
        (archive([("a.npy", npy(ONES.replace("2", "-2")))]), r"a.npy: could not read .* got \{'descr'.*\(-2,\)"),
        (archive([("a.npy", npy(ONES.replace("2", "True")))]), "a.npy: could not read the header of an array"),
        (archive([("a.npy", npy(ONES.replace("<f4", "<f3")))]), "a.npy: expected an .* text, got one of dtype '<f3'"),
        (archive([("a.npy", npy(ONES.replace("'<f4'", "[('x', '<f4')]")))]), "a.npy: could not read the header"),
        (archive([("a.npy", npy(ONES, bytes(7)))]), r"a.npy: expected 8 bytes for an array of shape \(2,\), got"),
        (archive([("a.npy", npy(ONES, bytes(9)))]), r"a.npy: expected nothing after an array of shape \(2,\), got"),
        (archive([("a.npy", npy(ONES.replace("2", "9" * 30)))]), r"a.npy: expected \d{30,} bytes for an array"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data, message, tmp_path):
    path = tmp_path / "arrays.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_npz(path)


def test_a_wrong_checksum_is_found():
    data = bytearray(saved({"a": np.arange(100)}))
    data[data.index(np.arange(50, 51).tobytes())] ^= 1
    with pytest.raises(ValueError, match="a complete file written by numpy.savez, got a damaged one: Bad CRC-32"):
        read_npz(bytes(data))


def test_a_small_file_that_unpacks_to_much_takes_no_memory_unless_asked_for():
    array = np.zeros(40 * 2**20, np.uint8)
    data = saved({"zeros": array}, np.savez_compressed)
    assert len(data) < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"expected arrays of at most 16777216 bytes, got 4\d+; if .* limit="):
            read_npz(data)
        declared = archive([("a.npy", npy(ONES.replace("2", str(2**34))))])
        with pytest.raises(ValueError, match="bytes for an array of shape"):
            read_npz(declared, limit=2**40)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read_npz(data, limit=2**26)["zeros"], array)
    with pytest.raises(TypeError, match="limit: expected a positive integer, got 1000000000.0"):
        read_npz(data, limit=1e9)


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(trials, mutate, tmp_path):
    rng = np.random.default_rng(trials)
    files = [saved(), saved(save=np.savez_compressed)]
    accepted, refused = 0, []
    for trial in range(trials):
        data = files[trial % 2]
        starts = [at.start() for at in re.finditer(b"PK", data)]
        data = mutate(rng, data, [start + offset for start in starts for offset in range(80)])
        path = tmp_path / "mutated.npz"
        path.write_bytes(data)
        try:
            found = read_npz(path if trial % 4 > 1 else data)
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        with np.load(io.BytesIO(data), allow_pickle=False) as wanted:
            assert list(found) == wanted.files
            for name, array in found.items():
                np.testing.assert_array_equal(array, wanted[name])
    assert 0.02 * trials < accepted < 0.9 * trials
    assert all(re.match("(the bytes given|/.*/mutated.npz): .*expected", message) for message in refused)
