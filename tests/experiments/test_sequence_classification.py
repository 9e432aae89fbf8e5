import csv
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import sequence_classification
from experiments.sequence_classification import STREAMED, Reading


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys, monkeypatch):
    networks, kept = sequence_classification.networks, ("GRU", STREAMED)
    monkeypatch.setattr(
        sequence_classification,
        "networks",
        lambda *sizes: {name: model for name, model in networks(*sizes).items() if name in kept},
    )
    config = sequence_classification.Config(out=tmp_path, repeats=2, epochs=2, held_out=0.8, hidden=16)
    summary = sequence_classification.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"data", "rows", "repeats", "models", "accuracy_by_row", "seed", "wall_s"} <= set(written)
    assert written["rows"] == {"train": 359, "held_out": 1438}
    assert list(written["models"]) == list(kept)
    for numbers in written["models"].values():
        assert 0 <= numbers["accuracy"]["mean"] <= 1
        assert numbers["loss"]["mean"] > 0
    for name, by_row in summary["accuracy_by_row"].items():
        assert by_row.shape == (8,)
        # after the last row, the stream gives the output of the whole sequence
        assert by_row[-1] == pytest.approx(written["models"][name]["accuracy"]["mean"], abs=0.002)
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert {"GRU 1 valid_accuracy", f"{STREAMED} 0 train_loss"} <= set(rows[0])
    for name in ("learning_curves", "accuracy_by_row", "reading"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "held-out accuracy by rows read" in capsys.readouterr().out


def test_all_networks_are_about_as_large(key):
    image = jnp.zeros((1, 8, 8, 1))
    networks = sequence_classification.networks(10, 64)
    assert set(networks) == set(sequence_classification.COLOURS)
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, key, image)))
        for model in networks.values()
    ]
    assert max(sizes) < 1.1 * min(sizes)


def test_a_row_is_a_step_in_time():
    images = jnp.arange(2 * 3 * 4 * 1.0).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(sequence_classification.rows_of(images), images[..., 0])


@pytest.mark.slow
def test_the_loss_of_every_row_is_their_mean(key):
    logits, labels = jax.random.normal(key, (5, 3, 4)), jnp.array([0, 1, 2, 3, 0])
    each = [sequence_classification.cross_entropy(logits[:, t], labels) for t in range(3)]
    np.testing.assert_allclose(sequence_classification.cross_entropy(logits, labels), np.mean(each, 0), rtol=1e-6)
    last = sequence_classification.last_accuracy(logits, labels)
    np.testing.assert_array_equal(last, logits[:, -1].argmax(-1) == labels)
    np.testing.assert_array_equal(sequence_classification.last_accuracy(logits[:, -1], labels), last)


def test_accuracy_by_row():
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]])
    reading = Reading(np.zeros((2, 2, 2)), np.array([1, 0]), probabilities)
    assert reading.accuracy.tolist() == [0.5, 1.0]


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_files")
def test_the_test_set_of_fashion_mnist_is_held_out(key):
    images = sequence_classification.nnfx.data.images("fashion_mnist")
    data = sequence_classification.held_out(images, key, sequence_classification.Config())
    assert (len(data.train.targets), len(data.valid.targets)) == (60_000, 10_000)
