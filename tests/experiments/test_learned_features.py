import csv
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import nnfx
from experiments import learned_features
from nnfx.insight import features
from nnfx.types import Batch

TINY = {"rows": 160, "size": 8, "field": 14, "copies": 1, "splits": 2, "widths": (2, 3, 4), "epochs": 2, "units": 2}


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = learned_features.Config(out=tmp_path, probe_epochs=3, **TINY)
    summary = learned_features.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"data", "rows", "splits", "probes", "gains", "network", "seed", "wall_s"} <= set(written)
    assert written["rows"] == {"train": 96, "choose": 24, "score": 40}
    probes = written["probes"]
    layers = {f"conv_{i}, {state}" for i in range(3) for state in ("trained", "untrained")}
    assert set(probes) == {"raw pixels", "HOG"} | layers
    assert [probes[name]["features"] for name in ("raw pixels", "conv_0, trained", "conv_1, trained")] == [
        196,
        392,
        147,
    ]
    for numbers in probes.values():
        assert 0 <= numbers["mean"] <= 1
        assert numbers["deviation"] >= 0
    gain = written["gains"]["conv_1, trained to conv_2, trained"]["mean"]
    assert gain == pytest.approx(probes["conv_2, trained"]["mean"] - probes["conv_1, trained"]["mean"])
    assert summary["network"]["accuracy"]["mean"] <= 1
    for name in ("probes", "filters_and_maps", "units", "class_activation_maps"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert len(list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))) == TINY["epochs"]
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "conv_2, untrained" in capsys.readouterr().out


@pytest.mark.slow
def test_a_probe_tells_apart_what_can_be_told_apart(key):
    config = learned_features.Config(probe_epochs=8)
    labels = jnp.arange(300) % 10
    batches = [Batch(jnp.zeros((100, 1)), labels[:100], jnp.ones(100)) for _ in range(3)]
    data = nnfx.data.digits(key=key, valid_fraction=0.5)
    data = type(data)(batches[0], batches[1], data.preprocess, data.report)
    probe = learned_features.make_probe(config)
    one_hot = (jax.nn.one_hot(labels[:100], 10),) * 3
    assert probe(data, batches[2], learned_features.standardised(one_hot)) == 1
    nothing = (jnp.ones((100, 4)),) * 3
    assert probe(data, batches[2], learned_features.standardised(nothing)) == pytest.approx(0.1)


def test_a_placed_digit_is_the_digit_enlarged_and_moved(key):
    config = learned_features.Config()
    images = nnfx.data.digits().train
    few = jax.tree.map(lambda array: array[:20], images)
    placed = learned_features.place(key, few, 3, config)
    assert placed.inputs.shape == (60, 20, 20, 1)
    np.testing.assert_array_equal(placed.targets, np.repeat(few.targets, 3))
    enlarged = jax.image.resize(few.inputs, (20, 12, 12, 1), "bilinear")
    expected = np.repeat(np.sort(enlarged.reshape(20, -1))[:, -80:], 3, axis=0)
    np.testing.assert_array_equal(np.sort(placed.inputs.reshape(60, -1))[:, -80:], expected)
    assert len({tuple(np.argwhere(image[..., 0] > 0)[0]) for image in np.asarray(placed.inputs)}) > 20


@pytest.mark.slow
@pytest.mark.parametrize("layer", learned_features.LAYERS)
def test_a_unit_sees_the_part_of_the_image_that_is_cut_out(layer, key):
    config = learned_features.Config(epochs=1, widths=(1, 1, 1))
    model = learned_features.network(config)
    variables = model.init(key, jnp.zeros((1, 28, 28, 1)))
    positive = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, variables)
    pixels = jnp.eye(784).reshape(784, 28, 28, 1)
    dark = features.layer_outputs(model, positive, jnp.zeros((1, 28, 28, 1)))[layer]
    maps = features.layer_outputs(model, positive, pixels)[layer]
    row, column = (size // 2 for size in maps.shape[1:3])
    is_seen = np.asarray(maps[:, row, column, 0] != dark[:, row, column, 0]).reshape(28, 28, 1)
    patch = learned_features.seen(is_seen, layer, row, column)
    assert patch.all()
    assert patch.size == is_seen.sum()
