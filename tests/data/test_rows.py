from collections import namedtuple

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.data import store
from nnfx.data.rows import in_parts

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (600, 4, 3, 3), np.uint8)
LABELS = np.arange(600) % 7
ROWS = [{"image": image, "label": int(label), "text": "a"} for image, label in zip(IMAGES, LABELS, strict=True)]


class HuggingFace:
    """A stand-in for a data set of Hugging Face: batches of columns, as lists or as what the format makes of them."""

    def __init__(self, rows, of_list=list):
        self.rows, self.of_list, self.largest = rows, of_list, 0
        self.column_names = list(rows[0])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        raise AssertionError("one row at a time is slow")

    def iter(self, batch_size):
        self.largest = max(self.largest, batch_size)
        for start in range(0, len(self.rows), batch_size):
            some = self.rows[start : start + batch_size]
            yield {name: self.of_list([row[name] for row in some]) for name in self.column_names}


class Indexed:
    """Rows by number without an end, as PyTorch's data sets and Grain's sources may be."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number % len(self.rows)]


Row = namedtuple("Row", ["image", "label"])
TUPLES = [(row["image"], row["label"]) for row in ROWS]


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (HuggingFace(ROWS), ("image", "label")),
        (HuggingFace(ROWS, np.array), ("image", "label")),
        (Indexed(ROWS), ("image", "label")),
        (ROWS, ("image", "label")),
        (iter(ROWS), ("image", "label")),
        (Indexed(TUPLES), (0, 1)),
        (TUPLES, (-2, -1)),
        ([Row(*row) for row in TUPLES], (0, 1)),
        ([each for row in ROWS for each in (None, row)], ("image", "label")),
    ],
)
def test_the_rows_of_any_data_set_are_stored_as_they_are(dataset, names, tmp_path):
    examples = store(tmp_path / "examples", dataset, inputs=names[0], targets=names[1])
    loaded = examples.load()
    np.testing.assert_array_equal(loaded.inputs, IMAGES)
    np.testing.assert_array_equal(loaded.targets, LABELS)
    assert (loaded.inputs.dtype, loaded.targets.dtype) == (np.uint8, np.int32)
    if isinstance(dataset, HuggingFace):
        assert dataset.largest <= 256


def test_several_columns_become_features_and_weights_are_a_column(tmp_path):
    rows = [{"fare": i / 2, "age": i, "survived": i % 2, "weight": 0.5} for i in range(300)]
    examples = store(tmp_path / "a", rows, inputs=["age", "fare"], targets="survived", weights="weight").load()
    np.testing.assert_array_equal(examples.inputs, np.stack([np.arange(300), np.arange(300) / 2], 1))
    np.testing.assert_array_equal(examples.weights, np.full(300, 0.5))


def test_pictures_are_arrays_with_channels():
    pillow = pytest.importorskip("PIL.Image")
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4), ("F", 1)):
        pictures = [pillow.fromarray(image).convert(mode) for image in IMAGES[:3]]
        ((inputs, _),) = in_parts([{"x": picture, "y": 0} for picture in pictures], "x", "y")
        wanted = np.array([np.asarray(picture) for picture in pictures]).reshape(3, 4, 3, channels)
        np.testing.assert_array_equal(inputs, wanted)
    rows = [{"x": pillow.fromarray(IMAGES[0]).convert("P"), "y": 0}]
    with pytest.raises(ValueError, match=r"inputs of row 0: .* image in one of the modes .* got P; .*convert\('RGB'\)"):
        list(in_parts(rows, "x", "y"))


class Endless(Indexed):
    def __len__(self):
        return 2**63 - 1


class Frames(HuggingFace):
    def iter(self, batch_size):
        yield np.zeros(3)


def with_row(number, **changes):
    return [{**row, **changes} if at == number else row for at, row in enumerate(ROWS[:400])]


@pytest.mark.parametrize(
    ("dataset", "names", "error", "message"),
    [
        (3, {}, TypeError, "parts: expected an iterable of rows, got 3"),
        ("rows", {}, TypeError, "parts: expected an iterable of rows, got 'rows'"),
        (np.float64(3), {}, TypeError, "parts: expected an iterable of rows, got 3"),
        ({"train": ROWS, "test": ROWS}, {}, TypeError, "parts: expected a single data set, got a mapping of 'train'"),
        (Endless(ROWS), {}, TypeError, "parts: expected a data set of finite length, got one that repeats"),
        (Frames(ROWS), {}, TypeError, "parts: expected batches that are mappings, got a ndarray; first convert"),
        ([1, 2], {}, TypeError, "parts: expected rows that are mappings or tuples, got 1"),
        (ROWS, {"inputs": "imag"}, ValueError, "inputs: expected one of 'image', .*got 'imag'; did you mean 'image'?"),
        (HuggingFace(ROWS), {"targets": "y"}, ValueError, "targets: expected one of 'image', 'label', 'text', got 'y'"),
        (TUPLES, {}, ValueError, "inputs: expected a position in rows of 2 values, got 'image'"),
        (TUPLES, {"inputs": 0, "targets": 2}, ValueError, "targets: expected a position in rows of 2 values, got 2"),
        (ROWS, {"targets": None}, ValueError, "targets: expected the name of a column, as for the other a"),
        (ROWS, {"inputs": None}, ValueError, "inputs: expected the name of a column, as for the other arguments, got"),
        (ROWS, {"targets": "text"}, TypeError, "targets of row 0: expected an array of real numbers, got <U1"),
        (with_row(300, label=None), {}, TypeError, "targets of row 300: expected an array of real numbers, got"),
        (with_row(300, image=IMAGES[0, :2]), {}, ValueError, r"inputs of row 300: .*shape \(4, 3, 3\) of row 256, got"),
        (with_row(7, label=[1, 2]), {}, ValueError, r"targets of row 7: expected the shape \(\) of row 0, got \(2,\)"),
        ([], {}, ValueError, "parts: expected at least one row with positive weight, got none"),
        (ROWS, {"inputs": "label"}, ValueError, r"parts\[0\].inputs: expected \(rows, features, ...\), got int32"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_leaves_nothing_behind(dataset, names, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}"):
        store(tmp_path / "examples", dataset, **{"inputs": "image", "targets": "label", **names})
    assert not list(tmp_path.iterdir())


def test_frames_are_parts_and_no_data_sets(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "b": [0, 1]})
    with pytest.raises(TypeError, match="parts: expected an iterable of rows, got"):
        store(tmp_path / "examples", frame, inputs="a", targets="b")


# The packages themselves


def test_data_sets_of_grain(tmp_path):
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(ROWS)
    sampler = grain.samplers.IndexSampler(600, grain.sharding.NoSharding(), shuffle=False, num_epochs=1, seed=0)
    loader = grain.DataLoader(data_source=ROWS, sampler=sampler, worker_count=0)
    for number, dataset in enumerate([source, source.to_iter_dataset(), loader]):
        loaded = store(tmp_path / str(number), dataset, inputs="image", targets="label").load()
        np.testing.assert_array_equal(loaded.inputs, IMAGES)
        np.testing.assert_array_equal(loaded.targets, LABELS)
    some = source.filter(lambda row: row["label"] != 3).map(lambda row: (row["image"][..., 0], row["label"]))
    loaded = store(tmp_path / "some", some, inputs=0, targets=1).load()
    np.testing.assert_array_equal(loaded.inputs, IMAGES[LABELS != 3][..., 0])
    with pytest.raises(TypeError, match="expected a data set of finite length"):
        store(tmp_path / "endless", source.repeat(), inputs="image", targets="label")


@pytest.mark.filterwarnings("ignore")
def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    pillow = pytest.importorskip("PIL.Image")
    columns = {"image": [pillow.fromarray(image) for image in IMAGES[:300]], "label": LABELS[:300].tolist()}
    dataset = datasets.Dataset.from_dict(columns).cast_column("label", datasets.ClassLabel(num_classes=7))
    for number, each in enumerate(
        [dataset, dataset.with_format("numpy"), dataset.to_iterable_dataset(), dataset.select(range(300))]
    ):
        loaded = store(tmp_path / str(number), each, inputs="image", targets="label").load()
        np.testing.assert_array_equal(loaded.inputs, IMAGES[:300])
        np.testing.assert_array_equal(loaded.targets, LABELS[:300])
    with pytest.raises(TypeError, match="parts: expected a single data set, got a mapping of 'train'"):
        store(tmp_path / "dict", datasets.DatasetDict(train=dataset), inputs="image", targets="label")
    with pytest.raises(TypeError, match="parts: expected batches that are mappings, got a DataFrame"):
        store(tmp_path / "frame", dataset.with_format("pandas"), inputs="image", targets="label")


@pytest.mark.slow
def test_a_session_trains_on_a_stored_data_set_as_on_data_in_memory(tmp_path, key):
    pytest.importorskip("grain")
    x = RNG.normal(size=(40, 2)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    rows = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    examples = store(tmp_path / "examples", HuggingFace(rows), inputs="x", targets="y")
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=3, batch_size=8)
    streamed = nnfx.session(train, tmp_path / "run", progress=False)(key, examples, learning_rate=0.5)
    in_memory = train(key, nnfx.data.prepare(x, y, standardize=False), learning_rate=0.5)
    jax.tree.map(np.testing.assert_array_equal, streamed.best.variables, in_memory.best.variables)
