import csv
import json

import matplotlib.image
import numpy as np
import pytest

from experiments import titanic


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = titanic.main(titanic.Config(out=tmp_path, epochs=3))
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary, default=titanic_json))
    assert summary["rows"] == 714
    perceptron = summary["perceptron"]
    assert perceptron["converged"]
    assert perceptron["epochs"] < 10_000
    # an unregularised logistic regression on the raw features, by Newton's method in double precision
    np.testing.assert_allclose(perceptron["bias"], -0.417055, rtol=5e-4)
    np.testing.assert_allclose(perceptron["weights"]["fare"], 0.0172584, rtol=5e-4)
    np.testing.assert_allclose(perceptron["weights"]["age"], -0.0175784, rtol=5e-4)
    for part in ("train", "test"):
        assert set(summary["mlp"][part]) == {"loss", "accuracy", "auc"}
    assert {"seed", "versions", "device", "wall_s", "compile_s"} <= set(summary)
    assert summary["wall_s"] > summary["compile_s"] > 0
    for name in ("decision_regions", "learning_curves"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == perceptron["epochs"]
    assert all(row["perceptron train_loss"] for row in rows)
    assert [bool(row["network (tanh) valid_loss"]) for row in rows[:4]] == [True, True, True, False]
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    printed = capsys.readouterr().out
    assert "untrained network: predicted 0." in printed
    assert "actual 1.0" in printed
    assert "majority class" in printed


def titanic_json(value):
    return np.asarray(value).tolist()
