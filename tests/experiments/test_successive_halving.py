import csv
import itertools
import json

import matplotlib.image
import numpy as np
import pytest

from experiments import successive_halving


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = successive_halving.Config(
        out=tmp_path, repetitions=2, points=16, seeds=2, epochs=8, rungs=(2, 4), keep=0.5
    )
    summary = successive_halving.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"means", "worst_ratio", "first_call_s", "seed", "versions", "device", "compile_s"} <= set(written)
    assert len(written["repetitions"]) == 2
    assert written["means"]["ratio"] == pytest.approx(np.mean([r["ratio"] for r in written["repetitions"]]))
    for numbers in written["repetitions"]:
        assert numbers["epochs_fraction"] == (16 * 2 + 8 * 2 + 4 * 4) / (16 * 8)
        assert numbers["halving"] > (1 - 1e-4) * numbers["full"], "it trains a part of the same members"
        assert numbers["ratio"] == pytest.approx(numbers["halving"] / numbers["full"])
        assert 1 <= numbers["rank"] <= 16
        assert numbers["wall_fraction"] > 0
    assert summary["first_call_s"]["halving"] > summary["means"]["wall_halving_s"]
    tables = {
        name: list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("full", "halving")
    }
    assert {row["epochs"] for row in tables["full"]} == {"8"}
    assert sorted(row["epochs"] for row in tables["halving"]) == ["2"] * 16 + ["4"] * 8 + ["8"] * 8
    of_member = {row["member"]: row for row in tables["full"]}
    for row in tables["halving"]:
        if row["reason"] != "dropped":
            assert float(row["valid_loss"]) == pytest.approx(float(of_member[row["member"]]["valid_loss"]), rel=1e-3)
    assert matplotlib.image.imread(tmp_path / "successive_halving.png").std() > 0.05
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 8
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "the first call, which compiles" in capsys.readouterr().out


def test_the_expected_best_of_some_is_the_mean_over_all_choices():
    losses = np.array([0.7, 0.3, 0.9, 0.4, 0.5])
    expected = [np.mean([min(chosen) for chosen in itertools.combinations(losses, n)]) for n in range(1, 6)]
    np.testing.assert_allclose(successive_halving.best_of_some(losses), expected)
