import csv
import dataclasses
import json

import jax
import matplotlib.image
import numpy as np
import pytest

import nnfx
from experiments import fashion_mnist
from nnfx.data import Examples, Images

QUICK = fashion_mnist.Config(model="mlp", epochs=1, batch_size=16, held_out=0.25)


@pytest.fixture
def stripes():
    """Images of 8 × 8 pixels whose class is the direction of their stripes, with a test set."""
    generator = np.random.default_rng(0)

    def draw(rows):
        labels = generator.integers(0, 2, rows).astype(np.int32)
        waves = 100 * (1 + np.sin(np.pi / 2 * np.arange(8) + generator.uniform(0, 6, (rows, 1))))
        down = np.broadcast_to(waves[:, :, None], (rows, 8, 8))
        images = np.where(labels[:, None, None] == 0, down, down.swapaxes(1, 2)) + generator.uniform(
            0, 55, (rows, 8, 8)
        )
        return Examples(images[..., None].astype(np.uint8), labels)

    return Images(draw(128), draw(64), ("lying", "standing"), brightest=255)


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, stripes, capsys):
    config = dataclasses.replace(QUICK, out=tmp_path, epochs=2)
    summary = fashion_mnist.run(stripes, config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"held_out", "test", "confusion", "best_epoch", "seed", "versions", "device", "wall_s"} <= set(written)
    assert written["rows"] == {"train": 96, "held_out": 32, "test": 64}
    assert 1 <= written["best_epoch"] <= written["epochs"] == 2
    confusion = np.array(written["confusion"])
    assert confusion.sum() == 64
    assert written["test"]["accuracy"] == pytest.approx(confusion.trace() / 64)
    recall = [written["test"]["right_by_class"][name] for name in stripes.classes]
    np.testing.assert_allclose(recall, confusion.diagonal() / confusion.sum(1))

    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    kept = rows[written["best_epoch"] - 1]
    assert float(kept["valid_loss"]) == min(float(row["valid_loss"]) for row in rows)
    assert float(kept["valid_accuracy"]) == pytest.approx(summary["held_out"]["accuracy"], rel=1e-6)
    checkpoint = tmp_path / "checkpoints" / "epoch-00000002"
    leaves = nnfx.checkpoint.read(checkpoint).leaves
    assert leaves[".state.run.best.params['output']['kernel']"] == "float32[256,2]"
    assert leaves[".state.history['valid_loss']"] == "float32[2]"
    for name in ("learning_curves", "confusion", "worst_mistakes"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    captured = capsys.readouterr()
    assert "examples/s" in captured.err
    assert "epoch 2 of 2" in captured.err
    assert "standing" in captured.out

    with pytest.raises(ValueError, match="use a different folder for each run"):
        fashion_mnist.run(stripes, dataclasses.replace(config, seed=1))


@pytest.mark.parametrize(("name", "shape"), [("cnn", (28, 28, 1)), ("lenet", (32, 32, 3)), ("resnet", (28, 28, 1))])
def test_every_network_takes_the_images(key, name, shape):
    model = fashion_mnist.network(dataclasses.replace(QUICK, model=name), classes=10)
    images = np.zeros((2, *shape), np.float32)
    outputs = jax.eval_shape(lambda: model.apply(model.init(key, images), images))
    assert outputs.shape == (2, 10)


@pytest.mark.parametrize(("data", "is_mirrored"), [("fashion_mnist", True), ("cifar10", True), ("mnist", False)])
def test_digits_are_not_mirrored(data, is_mirrored):
    varied = fashion_mnist.augmentations(dataclasses.replace(QUICK, data=data))
    assert (nnfx.augment.flip in varied) == is_mirrored


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_files")
def test_the_images_themselves(tmp_path):
    summary = fashion_mnist.main(dataclasses.replace(QUICK, out=tmp_path, rows=512))
    assert summary["rows"] == {"train": 384, "held_out": 128, "test": 10_000}
    assert 0.2 < summary["test"]["accuracy"] < 0.9
    assert list(summary["test"]["right_by_class"])[-1] == "Ankle boot"
