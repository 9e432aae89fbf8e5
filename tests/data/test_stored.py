import hashlib
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import nnfx
from nnfx.data import batching
from nnfx.data.stored import Batches, prefetched
from nnfx.data.stored_files import checksums

KEY = jax.random.key(0)


def numbered(rows):
    """Return examples whose values are their indices."""
    return np.arange(float(rows))[:, None], np.arange(rows)


@pytest.fixture
def examples(tmp_path):
    inputs, targets = numbered(50)
    return nnfx.data.store(tmp_path / "examples", [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])])


def test_what_is_written_in_parts_is_what_numpy_reads(examples, tmp_path):
    inputs, targets = numbered(50)
    for name, wanted in (("inputs", inputs.astype(np.float32)), ("targets", targets), ("weights", np.ones(50))):
        read = np.load(examples.folder / f"{name}.npy")
        np.testing.assert_array_equal(read, wanted)
        assert examples.words[name].split()[1] == hashlib.sha256(read.tobytes()).hexdigest()[:16]
        assert isinstance(getattr(examples, name), np.memmap)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples"]
    loaded = examples.load()
    np.testing.assert_array_equal(loaded.inputs, inputs)
    assert loaded.targets.dtype == np.int32
    assert len(nnfx.data.stored(examples.folder)) == 50


def test_as_many_rows_as_one_likes_and_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    parts = ((pixels, np.full(7, i), np.full(7, 0.5)) for i in range(30))
    images = nnfx.data.store(tmp_path / "images", parts)
    assert images.words["inputs"].startswith("uint8[210,4,4,3] ")
    np.testing.assert_array_equal(images.inputs, np.tile(pixels, (30, 1, 1, 1)))
    np.testing.assert_array_equal(images.targets, np.repeat(np.arange(30), 7))
    assert images.weights.dtype == np.float32


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([], "parts: expected at least one row with positive weight, got none"),
        ([(np.ones((2, 1)), np.ones(2), np.zeros(2))], "parts: expected at least one row with positive weight, got"),
        ([np.ones((2, 1))], "parts[0]: expected (inputs, targets) or (inputs, targets, weights), got float64[2,1]"),
        (
            [(np.ones((2, 1)), np.ones(3))],
            "parts[0].targets: expected non-empty rows, as many as inputs (2), got float64[3]",
        ),
        (
            [(np.ones((0, 1)), np.ones(0))],
            "parts[0].inputs: expected non-empty rows, as many as inputs (0), got float64[0,1]",
        ),
        ([(np.ones(2), np.ones(2))], "parts[0].inputs: expected (rows, features, ...), got float32[2]"),
        ([(np.array([[1.0], [np.nan]]), np.ones(2))], "parts[0].inputs: expected finite numbers, got 1 not finite"),
        ([(np.array([[1e300]]), np.ones(1))], "parts[0].inputs: expected numbers that float32 can hold, got 1e+300"),
        (
            [(np.ones((2, 0)), np.ones(2))],
            "parts[0].inputs: expected non-empty rows, as many as inputs (2), got float64[2,0]",
        ),
        ([(np.ones((1, 1)), np.array([np.inf]))], "parts[0].targets: expected finite numbers, got 1 not finite"),
        ([(np.ones((1, 1)), np.ones(1), np.array([np.nan]))], "parts[0].weights: expected finite numbers, got 1 not"),
        ([(np.ma.masked_equal([[1, 2]], 2), np.ones(1))], "parts[0].inputs: expected no masked or missing values"),
        ([([[1.0], [1.0, 2.0]], np.ones(2))], "parts[0].inputs: expected an array of real numbers, got rows of differ"),
        (["ab"], "parts[0]: expected (inputs, targets) or (inputs, targets, weights), got 'ab'"),
        ([(np.ones((1, 1)), np.array([2**40]))], "parts[0].targets: expected integers that int32 can hold, got 109"),
        ([(np.ones((1, 1)), np.ones(1), -np.ones(1))], "parts[0].weights: expected non-negative numbers, got -1"),
        ([(np.ones((1, 1)), np.ones(1), np.ones((1, 1)))], "parts[0].weights: expected one per row, (1,), got"),
        ([(np.ones((1, 1)), np.ones(1)), (np.ones((1, 2)), np.ones(1))], "parts[1].inputs: expected rows of float32"),
        ([(np.ones((1, 3)), np.ones(1)), (np.ones((1, 2)), np.ones(1))], "parts[1].inputs: expected rows of f"),
        ([(np.ones((1, 1)), np.ones(1)), (np.ones((1, 1)), np.ones(1, int))], "parts[1].targets: expected rows of "),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_leaves_nothing_behind(tmp_path, parts, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        nnfx.data.store(tmp_path / "examples", parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [np.array([["a"]]), np.ones((1, 1), complex), np.array([[1.0]], "bfloat16")])
def test_other_kinds_of_numbers_are_refused(tmp_path, values):
    with pytest.raises(TypeError, match=re.escape("parts[0].inputs: expected a")):
        nnfx.data.store(tmp_path / "examples", [(values, np.ones(1))])


def test_files_that_are_not_as_written_are_refused(examples):
    with pytest.raises(FileExistsError, match="expected a path that does not exist yet"):
        nnfx.data.store(examples.folder, [numbered(3)])
    with pytest.raises(FileNotFoundError, match=r"expected a folder written by nnfx.data.store, got none"):
        nnfx.data.stored(examples.folder / "nowhere")
    path = examples.folder / "inputs.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"inputs.npy: expected float32\[50,1\] as written, of 328 bytes, got"):
        nnfx.data.stored(examples.folder)
    np.save(path, np.ones((50, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"inputs.npy: expected float32\[50,1\] as written, of 328 bytes, got 528 bytes"
    ):
        nnfx.data.stored(examples.folder)
    path.write_bytes(content)
    about = json.loads((examples.folder / "stored.json").read_text())
    (examples.folder / "stored.json").write_text(json.dumps({**about, "format": 3}))
    with pytest.raises(ValueError, match="expected examples of format 2, got 3"):
        nnfx.data.stored(examples.folder)


def seen(batches):
    """Return the indices of the examples of some batches, without padding."""
    return np.concatenate([batch.targets[batch.weights > 0] for batch in batches])


def test_the_order_is_that_of_data_in_memory(examples):
    batches = Batches(examples, KEY, batch_size=16, epochs=3)
    assert len(batches) == 12
    for epoch in range(3):
        order = batching.shuffled(KEY, epoch, 50, 16)
        for i in range(4):
            batch = batches[4 * epoch + i]
            np.testing.assert_array_equal(batch.targets, order.rows[i])
            np.testing.assert_array_equal(batch.weights, order.is_real[i])


@pytest.mark.parametrize(
    "rows", [1, 16, 17, 70_000, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (7, 15, 300))]
)
def test_orders_on_the_host_are_those_on_the_device(rows):
    orders = batching.Orders(KEY, rows, batch_size=5, epochs=2)
    whole = batching.shuffled(KEY, 1, rows, 5)
    for number in {0, len(whole.rows) // 2, len(whole.rows) - 1}:
        batch = orders.batch(1, number)
        np.testing.assert_array_equal(batch.rows, whole.rows[number])
        np.testing.assert_array_equal(batch.is_real, whole.is_real[number])


def test_processes_share_each_batch(examples):
    whole = Batches(examples, KEY, 16, 1)
    shares = [Batches(examples, KEY, 16, 1, slice(8 * i, 8 * i + 8)) for i in range(2)]
    for i in range(4):
        both = [share[i].targets for share in shares]
        np.testing.assert_array_equal(np.concatenate(both), whole[i].targets)


def test_a_reader_that_goes_on_elsewhere_sees_every_example_once_an_epoch(examples):
    reader = prefetched(Batches(examples, KEY, 16, epochs=2))
    first = [next(reader) for _ in range(3)]
    position = json.loads(json.dumps(reader.get_state()))
    reader.close()
    other = prefetched(Batches(examples, KEY, 16, epochs=2), ahead=3, threads=1)
    other.set_state(position)
    rest = list(other)
    assert len(rest) == 5
    numbers = seen([*first, *rest])
    for epoch in (numbers[:50], numbers[50:]):
        assert sorted(epoch) == list(range(50))
    assert list(numbers[:50]) != list(numbers[50:])


def test_without_grain_it_says_what_is_lacking(examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"grain: required to read data, but not installed: pip install 'nnfx\[grain\]'"
    ):
        prefetched(Batches(examples, KEY, 16, 1))


# Files altered after writing


@pytest.mark.parametrize(
    ("name", "alter", "row"),
    [
        ("inputs", lambda array: array.__imul__(100), 1),  # row 0 is 0
        ("inputs", lambda array: array.__setitem__(37, np.nan), 37),
        ("inputs", lambda array: array.__setitem__(slice(None), array[::-1].copy()), 0),
        ("targets", lambda array: array.__setitem__(49, 7), 49),
        ("weights", lambda array: array.__setitem__(3, -5), 3),
        ("weights", lambda array: array.__imul__(0), 0),
        ("checksums", lambda array: array.__setitem__((12, 1), array[12, 1] ^ np.uint64(1)), 12),
    ],
)
def test_rows_altered_in_place_are_refused_when_they_are_read(examples, name, alter, row):
    opened = nnfx.data.stored(examples.folder)
    order = batching.Order(np.arange(50), np.ones(50, bool))
    assert seen([opened.take(order)]).tolist() == list(range(50))
    array = np.load(examples.folder / f"{name}.npy", mmap_mode="r+")
    alter(array)
    array.flush()
    shown = "targets" if name == "checksums" else name
    message = rf"{shown}.npy: expected examples as they were written, got other bytes in row {row} "
    for read in (opened.verify, opened.load, lambda: opened.take(order), nnfx.data.stored(examples.folder).verify):
        with pytest.raises(ValueError, match=message):
            read()
    if row > 2:  # the other rows are read unchanged
        others = np.delete(np.arange(50), row)
        taken = opened.take(batching.Order(others, np.ones(len(others), bool)))
        np.testing.assert_array_equal(taken.targets, others)


def test_a_file_cut_off_while_it_is_open_is_an_error_and_not_the_end_of_the_process(examples):
    path = examples.folder / "targets.npy"
    with path.open("r+b") as file:
        file.truncate(130)
    with pytest.raises(ValueError, match=r"targets.npy: .* of int32\[50\], as when it was opened, got a shorter"):
        examples.take(batching.Order(np.arange(50), np.ones(50, bool)))
    with pytest.raises(ValueError, match=r"targets.npy: .* of int32\[50\], as when it was opened, got a shorter"):
        examples.load()
    with (examples.folder / "checksums.npy").open("r+b") as file:
        file.truncate(130)
    with pytest.raises(ValueError, match=r"checksums.npy: .* of uint64\[50,3\], as when it was opened, got a shorter"):
        examples.verify(["inputs"])


def test_checksums_are_the_sums_that_they_are_said_to_be():
    rows = np.random.default_rng(0).integers(0, 256, (5, 3, 7), np.uint8)
    multipliers, state = [], 0
    for _ in range(6):  # SplitMix64, as published
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        multipliers.append((z ^ (z >> 31)) | 1)
    for row, found in zip(rows, checksums(rows), strict=True):
        content = row.tobytes() + bytes(3)
        words = [int.from_bytes(content[i : i + 4], "little") for i in range(0, 24, 4)]
        assert int(found) == sum(m * b for m, b in zip(multipliers, words, strict=True)) % 2**64


def test_every_flipped_bit_changes_a_checksum():
    row = np.random.default_rng(1).integers(0, 256, 14, np.uint8)
    flipped = np.tile(row, (8 * 14, 1))
    flipped[np.arange(8 * 14), np.arange(8 * 14) // 8] ^= np.uint8(1) << np.arange(8 * 14, dtype=np.uint8) % np.uint8(8)
    assert len({*checksums(flipped).tolist(), *checksums(row[None]).tolist()}) == 8 * 14 + 1


def mutated(rng, folder):
    """Flip, overwrite, delete or repeat bytes of a file; truncate, remove or replace it; or swap two files."""
    paths = sorted(folder.iterdir())
    path = paths[rng.integers(len(paths))]
    content = bytearray(path.read_bytes())
    at = int(rng.integers(len(content)))
    kind = rng.integers(8)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        content[at] = int(rng.integers(256))
    elif kind == 3:
        del content[at : at + int(rng.integers(1, 9))]
    elif kind == 4:
        content += content[at:]
    elif kind == 5:
        content[at : at + 8] = bytes(len(content[at : at + 8]))
    elif kind == 6:
        other = paths[rng.integers(len(paths))]
        content, swapped = other.read_bytes(), bytes(content)
        other.write_bytes(swapped)
    else:
        content = content if rng.random() < 0.5 else bytearray()
        path.unlink()
        if content:
            path.mkdir()
        return
    path.write_bytes(content)


@pytest.mark.parametrize("trials", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_folders_are_refused_or_read_right(trials, tmp_path):
    rng = np.random.default_rng(trials)
    inputs, targets = rng.normal(size=(6, 3)).astype(np.float32), rng.integers(0, 3, 6)
    whole = nnfx.data.store(tmp_path / "whole", [(inputs, targets, rng.uniform(0.5, 1, 6))])
    wanted = whole.load()
    accepted, refused = 0, []
    for trial in range(trials):
        folder = tmp_path / str(trial)
        shutil.copytree(whole.folder, folder)
        mutated(rng, folder)
        try:
            opened = nnfx.data.stored(folder)
            found = opened.load()
        except (ValueError, FileNotFoundError) as error:
            refused.append(str(error))
        else:
            accepted += 1
            assert opened.words == whole.words
            for ours, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        shutil.rmtree(folder)
    assert accepted < 0.1 * trials  # such as those that wrote the same bytes
    assert all(re.search(r"\d+(/\w+.\w+)?: expected ", message) for message in refused)


@pytest.mark.parametrize("name", ["stored.json", "inputs.npy", "targets.npy", "weights.npy", "checksums.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 50_000, b"null", b'{"format": 2}', b"\x93NUMPY\x01\x00"])
def test_files_of_other_content_are_refused_by_name(examples, name, content):
    (examples.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(examples.folder / name))}: expected "):
        nnfx.data.stored(examples.folder)


# Writing


def test_a_writer_that_fails_leaves_nothing_not_even_new_parents(tmp_path):
    def parts():
        yield numbered(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nnfx.data.store(tmp_path / "a" / "b" / "examples", parts())
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="parts: expected an iterable of .*, got 3"):
        nnfx.data.store(tmp_path / "examples", 3)
    with pytest.raises(TypeError, match="folder: expected a path, got 3"):
        nnfx.data.store(3, [numbered(3)])
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "dangling"):
        with pytest.raises(FileExistsError, match=f"{name}: expected a path that does not exist yet"):
            nnfx.data.store(tmp_path / name, [numbered(3)])

    def slowly():
        yield numbered(3)
        nnfx.data.store(tmp_path / "both", [numbered(4)])  # by another process in the meantime

    with pytest.raises(
        FileExistsError, match="both: expected a path that does not exist yet, got one that another process"
    ):
        nnfx.data.store(tmp_path / "both", slowly())
    assert len(nnfx.data.stored(tmp_path / "both")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "dangling", "empty"]


def test_relative_folders_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    relative = nnfx.data.store("data/examples", [numbered(3)])
    at_home = nnfx.data.store("~/examples", [numbered(4)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(relative.load().weights) == 3
    assert len(nnfx.data.stored("../data/examples")) == 3
    assert at_home.folder == tmp_path / "home" / "examples"


def test_lists_frames_and_the_byte_order_of_others_are_taken(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.5, 2.5], "b": [3, 4]})
    parts = [(frame, frame["b"]), ([[5.5, 6], [7, 8]], [9, 10]), (np.ones((1, 2), ">f8"), np.ones(1, ">i8"))]
    examples = nnfx.data.store(tmp_path / "examples", parts)
    np.testing.assert_array_equal(examples.load().inputs, [[1.5, 3], [2.5, 4], [5.5, 6], [7, 8], [1, 1]])
    np.testing.assert_array_equal(examples.load().targets, [3, 4, 9, 10, 1])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros((200, 1)), 1.7e9 + 60 * np.arange(200.0), "parts.targets: .* got 1.70001e.09 ± 3464.06; subtract"),
        (1e9 * np.eye(2)[1] + np.arange(200.0)[:, None], np.zeros(200), "parts.inputs: .* 1e.09 ± 57.7343 in feature"),
        (1e-50 * np.arange(200.0)[:, None], np.zeros(200), "parts.inputs: .* float32 can tell apart, got"),
    ],
)  # fmt: skip
def test_numbers_that_float32_cannot_tell_apart_are_refused(tmp_path, inputs, targets, message):
    parts = [(inputs[i : i + 40], targets[i : i + 40]) for i in range(0, 200, 40)]
    with pytest.raises(ValueError, match=message):
        nnfx.data.store(tmp_path / "examples", parts)
    assert not list(tmp_path.iterdir())
    with jax.enable_x64(True):
        examples = nnfx.data.store(tmp_path / "examples", parts)
        np.testing.assert_array_equal(examples.load().targets, targets)
        np.testing.assert_array_equal(examples.load().inputs, inputs)
    with pytest.raises(
        ValueError, match=r"inputs.npy: expected a dtype that JAX supports in its 32-bit mode, got float64"
    ):
        nnfx.data.stored(tmp_path / "examples")


def test_whole_numbers_are_looked_at_as_what_they_become(tmp_path):
    large = 2**30 + np.arange(40)
    with pytest.raises(
        ValueError, match=r"parts.inputs: expected numbers that float32 can tell apart, got 1.07374e.09"
    ):
        nnfx.data.store(tmp_path / "inputs", [(large[:, None], np.ones(40))])
    examples = nnfx.data.store(tmp_path / "targets", [(np.ones((40, 1)), large)])  # labels are not standardised
    np.testing.assert_array_equal(examples.load().targets, large)


def test_a_constant_and_a_large_offset_that_float32_holds_are_taken(tmp_path):
    inputs = np.stack([np.full(50, 0.1), 1e5 + np.arange(50.0)], 1)
    examples = nnfx.data.store(tmp_path / "examples", [(inputs[i : i + 1], np.ones(1)) for i in range(50)])
    np.testing.assert_array_equal(examples.inputs, inputs.astype(np.float32))
