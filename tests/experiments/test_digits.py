import csv
import json

import matplotlib.image
import numpy as np
import pytest

from experiments import digits
from experiments.images import Predictions


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = digits.main(digits.Config(out=tmp_path, splits=2, epochs=2, held_out=0.8))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"rows", "splits", "models", "gain", "seed", "versions", "device", "wall_s", "compile_s"} <= set(written)
    assert written["rows"] == {"train": 359, "held_out": 1438}
    assert list(written["models"]) == ["MLP", "CNN"]
    for numbers in written["models"].values():
        assert 40_000 < numbers["parameters"] < 60_000
        assert 0 <= min(numbers["accuracies"]) <= numbers["accuracy"]["mean"] <= max(numbers["accuracies"]) <= 1
        assert numbers["accuracy"]["mean"] == pytest.approx(np.mean(numbers["accuracies"]))
        assert numbers["loss"]["mean"] > 0
    means = [written["models"][name]["accuracy"]["mean"] for name in ("CNN", "MLP")]
    assert summary["gain"]["mean"] == pytest.approx(means[0] - means[1], abs=1e-6)
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    last = [float(rows[-1][f"CNN {i} valid_accuracy"]) for i in range(2)]
    np.testing.assert_allclose(last, written["models"]["CNN"]["accuracies"], atol=1e-6)
    for name in ("learning_curves", "confusion", "worst_mistakes"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "on the same split the CNN classifies" in capsys.readouterr().out


def test_the_worst_mistakes_are_those_with_the_least_probability_for_the_truth():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.7, 0.1, 0.2]])
    predictions = Predictions(np.zeros((4, 8, 8, 1)), np.array([0, 1, 2, 2]), probabilities)
    assert predictions.worst().tolist() == [3, 1]
    assert predictions.confusion().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert predictions.accuracy == 0.5
