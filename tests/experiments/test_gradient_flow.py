import csv
import json

import jax
import matplotlib.image
import numpy as np
import pytest

import nnfx
from experiments import gradient_flow

TINY = {"layers": 3, "width": 4, "epochs": 2, "starts": 2, "batch_size": 128}


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys, monkeypatch):
    kept = ("sigmoid", "tanh")
    monkeypatch.setattr(gradient_flow, "NETWORKS", {name: gradient_flow.NETWORKS[name] for name in kept})
    summary = gradient_flow.main(gradient_flow.Config(out=tmp_path, **TINY))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written["networks"]) == set(kept)
    for numbers in summary["networks"].values():
        np.testing.assert_allclose(numbers["ratio"], numbers["first"] / numbers["last"])
        assert 0 <= numbers["accuracy"] <= 1
    assert summary["networks"]["sigmoid"]["ratio"] < summary["networks"]["tanh"]["ratio"]
    for name in ("by_layer", "by_epoch"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert float(rows[0]["sigmoid train_gradient hidden_0"]) > 0
    assert "noise scale" in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_step_s_gradient_is_that_of_its_batch(key):
    config = gradient_flow.Config(**TINY | {"batch_size": 1797, "epochs": 1})
    data = nnfx.data.digits()
    run = gradient_flow.train("tanh", key[None], data, config)
    model = gradient_flow.network("tanh", config)
    params = model.init(nnfx.split_key(key).init, data.train.inputs[:1])["params"]

    def loss(params):
        return nnfx.losses.categorical_cross_entropy(
            model.apply({"params": params}, data.train.inputs), data.train.targets
        ).mean()

    gradient = jax.grad(loss)(params)
    found = gradient_flow.hidden(gradient_flow.flow.curves(run.history), "gradient")
    for i in range(3):
        expected = np.sqrt(sum(float((leaf**2).sum()) for leaf in gradient[f"hidden_{i}"].values()))
        np.testing.assert_allclose(found[i, 0, 0], expected, rtol=1e-4)
