import functools
import gzip
import hashlib
import io
import re
import struct
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import nnfx
from nnfx.data import Examples, Images

RNG = np.random.default_rng(0)
MODULE = sys.modules["nnfx.data.images"]  # in the package, this name is the function


def some(rows, channels=3):
    return Examples(RNG.integers(0, 256, (rows, 5, 4, channels), np.uint8), RNG.integers(0, 10, rows).astype(np.int32))


IMAGES = Images(some(40), some(8), tuple("0123456789"), brightest=255)


def test_digits_are_scikit_learn_s():
    data, expected = nnfx.data.digits(), load_digits()
    np.testing.assert_array_equal(data.train.inputs[..., 0], expected.images / 16)
    np.testing.assert_array_equal(data.train.targets, expected.target)
    assert (data.train.inputs.dtype, data.train.targets.dtype) == (jnp.float32, jnp.int32)
    assert data.valid is None


@pytest.mark.slow
def test_digits_train_a_network_and_predictions_take_raw_images(key):
    data = nnfx.data.digits(key=key, valid_fraction=0.2, standardize=True)
    train = nnfx.fit(
        nnfx.models.mlp(hidden=(32,), outputs=10),
        nnfx.losses.categorical_cross_entropy,
        optax.adam,
        epochs=10,
        batch_size=64,
        metrics={"accuracy": nnfx.metrics.accuracy},
    )
    run = train(key, data, learning_rate=0.01)
    assert run.final["valid_accuracy"] > 0.93
    raw = nnfx.data.images("digits").train
    assert (run.predict(raw.inputs[:100]).argmax(-1) == raw.targets[:100]).mean() > 0.93


@pytest.mark.parametrize("standardize", [False, True])
def test_the_kept_map_takes_raw_images_to_the_prepared_ones(standardize):
    data = IMAGES.prepare(hold_out_test=True, standardize=standardize)
    for raw, batch in ((IMAGES.train, data.train), (IMAGES.test, data.valid)):
        np.testing.assert_array_equal(data.preprocess(raw.inputs), batch.inputs)
        np.testing.assert_allclose(data.preprocess(raw.inputs.astype(np.float32)), batch.inputs, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(raw.targets, batch.targets)
        np.testing.assert_array_equal(batch.weights, np.ones(len(raw.targets)))
    assert data.classes == IMAGES.classes
    if not standardize:
        np.testing.assert_allclose(data.train.inputs, IMAGES.train.inputs / 255, rtol=1e-6)


def test_channels_are_standardised_by_the_training_part_alone(key):
    data = IMAGES.prepare(key=key, valid_fraction=0.25, standardize=True)
    np.testing.assert_allclose(data.train.inputs.mean((0, 1, 2)), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(data.train.inputs.std((0, 1, 2)), np.ones(3), rtol=1e-6)
    assert data.preprocess.mean.shape == (1, 1, 1, 3)
    assert abs(data.valid.inputs.mean((0, 1, 2))).max() > 1e-3


def test_a_constant_channel_becomes_zero_and_not_infinite():
    images = IMAGES._replace(train=Examples(np.full((4, 5, 4, 2), 77, np.uint8), np.zeros(4, np.int32)))
    np.testing.assert_array_equal(images.prepare(standardize=True).train.inputs, np.zeros((4, 5, 4, 2)))


def test_the_split_is_the_one_of_prepare(key):
    ours = IMAGES.prepare(key=key, valid_fraction=0.25)
    inputs, targets = IMAGES.train
    theirs = nnfx.data.prepare(inputs, targets, key=key, valid_fraction=0.25, standardize=False)
    for part in ("train", "valid"):
        np.testing.assert_array_equal(getattr(ours, part).inputs, getattr(theirs, part).inputs / 255)
        np.testing.assert_array_equal(getattr(ours, part).targets, getattr(theirs, part).targets)
    assert ours.report == theirs.report


def test_preparing_changes_no_raw_image():
    copies = jax.tree.map(np.copy, (IMAGES.train, IMAGES.test))
    IMAGES.prepare(hold_out_test=True, standardize=True)
    jax.tree.map(np.testing.assert_array_equal, copies, (IMAGES.train, IMAGES.test))


def test_with_double_precision_images_are_doubles():
    with jax.enable_x64(True):
        data = IMAGES.prepare()
        assert (data.train.inputs.dtype, data.train.targets.dtype) == (jnp.float64, jnp.int32)
        np.testing.assert_allclose(data.train.inputs, IMAGES.train.inputs / 255, rtol=1e-15)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nnfx.data.images("fashion-mnist"), ValueError, "name: expected one of 'digits', .*'fashion_mnist'?"),
        (lambda: nnfx.data.digits(valid_fraction=0.1), TypeError, "key: expected a typed key"),
        (lambda: nnfx.data.digits(valid_fraction=1), ValueError, "valid_fraction: .* below 1, got 1"),
        (lambda: IMAGES.prepare(hold_out_test=True, valid_fraction=0.5), ValueError, "valid_fraction: .* 0 .* 0.5"),
        (lambda: nnfx.data.images("digits").prepare(hold_out_test=True), ValueError, "hold_out_test: expected images"),
        (lambda: nnfx.data.digits().preprocess(np.ones((2, 8, 8))), ValueError, r"raw features \(batch, 8, 8, 1\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnfx\[datasets\]'"):
        nnfx.data.digits()


# Sources on the web, replaced by small files


def test_the_files_of_the_sources():
    files = [file for source in MODULE._SOURCES.values() for file in source.files if file.name != "emnist/gzip.zip"]
    assert [file.name for file in files if "train-images" in file.name] == [
        "mnist/train-images-idx3-ubyte.gz",
        "fashion-mnist/train-images-idx3-ubyte.gz",
    ]
    assert len({file.name for file in files}) == len({file.sha256 for file in files}) == 10
    for file in files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.url.endswith(file.name.rpartition("/")[2])
    counts = {
        name: len(set(source.classes)) for name, source in MODULE._SOURCES.items() if not name.startswith("emnist_")
    }
    assert counts == {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "cifar100_coarse": 20}
    for name in ("cifar100", "cifar100_coarse"):  # in alphabetical order
        assert list(MODULE._SOURCES[name].classes) == sorted(MODULE._SOURCES[name].classes)


def install(monkeypatch, folder, name, contents):
    """Replace the files of a source by these."""
    source = MODULE._SOURCES[name]
    known = []
    for file, content in zip(source.files, contents, strict=True):
        path = folder / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        known.append(file._replace(sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setenv("NNFX_DATA", str(folder))
    monkeypatch.setitem(MODULE._SOURCES, name, source._replace(files=tuple(known)))


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape) + array.tobytes()


TEN = [f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]


def cifar_archive(records, names=TEN):
    """Return the archive of these records, of which the last are the test set."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in zip(names, records, strict=True):
            member = tarfile.TarInfo(name)
            member.size = content.nbytes
            tar.addfile(member, io.BytesIO(content.tobytes()))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_become_data(name, tmp_path, monkeypatch):
    arrays = [RNG.integers(0, 10, shape, np.uint8) for shape in [(12, 28, 28), (12,), (5, 28, 28), (5,)]]
    install(monkeypatch, tmp_path, name, [gzip.compress(idx(array)) for array in arrays])
    data = getattr(nnfx.data, name)(hold_out_test=True)
    assert data.train.inputs.shape == (12, 28, 28, 1)
    np.testing.assert_array_equal(data.train.targets, arrays[1])
    np.testing.assert_allclose(data.valid.inputs[..., 0], arrays[2] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.valid.targets, arrays[3])
    held_out = getattr(nnfx.data, name)(key=jax.random.key(0), valid_fraction=0.25, standardize=True)
    assert (len(held_out.train.targets), len(held_out.valid.targets)) == (9, 3)


def test_the_archive_of_cifar_becomes_data(tmp_path, monkeypatch):
    records = RNG.integers(0, 10, (6, 2, 3073), np.uint8)
    install(monkeypatch, tmp_path, "cifar10", [cifar_archive(records)])
    monkeypatch.setattr(MODULE, "read_cifar10", functools.partial(MODULE.read_cifar10, records=2))
    data = nnfx.data.cifar10(hold_out_test=True)
    assert (data.train.inputs.shape, data.valid.inputs.shape) == ((10, 32, 32, 3), (2, 32, 32, 3))
    np.testing.assert_array_equal(data.train.targets, records[:5, :, 0].ravel())
    np.testing.assert_array_equal(data.valid.targets, records[5, :, 0])
    assert nnfx.data.images("cifar10").classes[9] == "truck"


@pytest.mark.parametrize("coarse", [False, True])
def test_the_archive_of_cifar_100_becomes_data(coarse, tmp_path, monkeypatch):
    records = [RNG.integers(0, 20, (rows, 3074), np.uint8) for rows in (4, 2)]
    names = [f"cifar-100-binary/{part}.bin" for part in ("train", "test")]
    install(monkeypatch, tmp_path, "cifar100", [cifar_archive(records, names)])
    file = MODULE._SOURCES["cifar100"].files[0]
    monkeypatch.setattr(MODULE, "_CIFAR100", file)
    monkeypatch.setitem(MODULE._SOURCES, "cifar100_coarse", MODULE._SOURCES["cifar100_coarse"]._replace(files=(file,)))
    monkeypatch.setattr(MODULE, "read_cifar100", functools.partial(MODULE.read_cifar100, records=(4, 2)))
    data = nnfx.data.cifar100(hold_out_test=True, coarse=coarse)
    assert (data.train.inputs.shape, data.valid.inputs.shape) == ((4, 32, 32, 3), (2, 32, 32, 3))
    np.testing.assert_array_equal(data.train.targets, records[0][:, 0 if coarse else 1])
    assert nnfx.data.images("cifar100").classes[99] == "worm"
    assert nnfx.data.images("cifar100_coarse").classes[19] == "vehicles_2"


# The real Fashion-MNIST


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_files")
def test_fashion_mnist_is_as_published():
    images = nnfx.data.images("fashion_mnist")
    assert images.classes[0] == "T-shirt/top"
    for examples, rows in ((images.train, 60_000), (images.test, 10_000)):
        assert examples.inputs.shape == (rows, 28, 28, 1)
        assert np.bincount(examples.targets).tolist() == [rows // 10] * 10
    data = images.prepare(hold_out_test=True)
    assert data.train.inputs.shape == (60_000, 28, 28, 1)
    assert data.train.inputs.mean() == pytest.approx(0.2860, abs=5e-5)
    assert data.train.inputs.std() == pytest.approx(0.3530, abs=5e-5)
    standardised = images.prepare(standardize=True)
    assert float(standardised.preprocess.mean[0, 0, 0, 0]) / 255 == pytest.approx(0.2860, abs=5e-5)
    assert float(standardised.preprocess.scale[0, 0, 0, 0]) / 255 == pytest.approx(0.3530, abs=5e-5)
