import hashlib
import json
import re
import sys

import jax
import numpy as np
import pytest

import nnfx
from nnfx.data import batching
from nnfx.data.stored import Batches, prefetched

KEY = jax.random.key(0)


def numbered(rows):
    """Examples that are their own numbers."""
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
        ([], "parts: expected rows, some of positive weight, got none"),
        ([(np.ones((2, 1)), np.ones(2), np.zeros(2))], "parts: expected rows, some of positive weight, got none"),
        ([np.ones((2, 1))], "parts[0]: expected (inputs, targets) or (inputs, targets, weights), got float64[2,1]"),
        ([(np.ones((2, 1)), np.ones(3))], "parts[0].targets: expected rows, as many as inputs (2), got float64[3]"),
        ([(np.ones((0, 1)), np.ones(0))], "parts[0].inputs: expected rows, as many as inputs (0), got float64[0,1]"),
        ([(np.ones(2), np.ones(2))], "parts[0].inputs: expected (rows, features, ...), got float32[2]"),
        ([(np.array([[1.0], [np.nan]]), np.ones(2))], "parts[0].inputs: expected finite numbers, got 1 not finite"),
        ([(np.array([[1e300]]), np.ones(1))], "parts[0].inputs: expected finite numbers, got 1 not finite"),
        ([(np.ones((1, 1)), np.array([2**40]))], "parts[0].targets: expected integers that int32 can hold, got 109"),
        ([(np.ones((1, 1)), np.ones(1), -np.ones(1))], "parts[0].weights: expected none negative, got -1"),
        ([(np.ones((1, 1)), np.ones(1), np.ones((1, 1)))], "parts[0].weights: expected one per row, (1,), got"),
        ([(np.ones((1, 1)), np.ones(1)), (np.ones((1, 2)), np.ones(1))], "parts[1].inputs: expected rows of float32"),
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
    with pytest.raises(FileExistsError, match="expected nothing there yet"):
        nnfx.data.store(examples.folder, [numbered(3)])
    with pytest.raises(FileNotFoundError, match=r"expected a folder written by nnfx.data.store, got none"):
        nnfx.data.stored(examples.folder / "nowhere")
    path = examples.folder / "inputs.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"inputs.npy: expected float32\[50,1\] as written, got"):
        nnfx.data.stored(examples.folder)
    np.save(path, np.ones((50, 2), np.float32))
    with pytest.raises(ValueError, match=r"inputs.npy: expected float32\[50,1\] as written, got float32\[50,2\]"):
        nnfx.data.stored(examples.folder)
    path.write_bytes(content)
    about = json.loads((examples.folder / "stored.json").read_text())
    (examples.folder / "stored.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ValueError, match="expected examples of format 1, got 2"):
        nnfx.data.stored(examples.folder)


def seen(batches):
    """The numbers of the examples of some batches, without places left over."""
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


@pytest.mark.parametrize("rows", [1, 7, 15, 16, 17, 300, 70_000])
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
        ModuleNotFoundError, match=r"grain: needed to read data; not installed: pip install 'nnfx\[grain\]'"
    ):
        prefetched(Batches(examples, KEY, 16, 1))
