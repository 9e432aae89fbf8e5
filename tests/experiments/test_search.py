import csv
import json

import matplotlib.image
import pytest

from experiments import search


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = search.main(search.Config(out=tmp_path, rates=2, seeds=6, epochs=1))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["points"], written["programs"], written["runs"]) == (16, 8, 96)
    members = list(csv.DictReader((tmp_path / "members.csv").read_text().splitlines()))
    points = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert (len(members), len(points)) == (96, 16)
    assert {(row["hidden"], row["activation"]) for row in points} == {
        (str(hidden), activation) for hidden in ((16,), (32,), (16, 16), (32, 32)) for activation in ("tanh", "relu")
    }
    best = summary["best"]
    losses = [float(row["valid_loss"]) for row in members if int(row["point"]) == best["point"]]
    assert sum(losses) / 6 == pytest.approx(best["valid_loss"])
    assert best["valid_loss"] == min(float(row["valid_loss"]) for row in points)
    assert summary["indistinguishable"][0]["point"] == best["point"]
    assert matplotlib.image.imread(tmp_path / "search.png").std() > 0.05
    assert "cannot distinguish from the best at 5 %" in capsys.readouterr().out
