import csv
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import overfitting

TINY = {"rows": 60, "pool": 120, "splits": 2, "epochs": 12, "hidden": 8, "widths": (1, 8), "resamples": 3}


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = overfitting.main(overfitting.Config(out=tmp_path, learning_rate=0.03, patience=2, **TINY))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"rows", "splits", "variants", "by_width", "by_epoch", "resamples", "seed", "wall_s"} <= set(written)
    assert list(written["variants"]) == ["no regularisation", "dropout 50%", "weight decay 3", "early stopping"]
    for numbers in summary["variants"].values():
        assert numbers["loss"]["mean"] > 0
        assert numbers["loss"]["error"] >= 0
        assert 0.3 < numbers["accuracy"]["mean"] <= 1
        assert 1 <= numbers["best_epoch"]["mean"] <= numbers["epochs"]["mean"] <= TINY["epochs"]
    assert summary["variants"]["no regularisation"]["epochs"]["mean"] == TINY["epochs"]
    assert summary["variants"]["no regularisation"]["loss_against_none"] == {"mean": 0, "error": 0}

    assert written["by_width"]["width"] == [1, 8]
    assert written["by_epoch"]["epoch"] == [1, 2, 4, 8, 12]
    for table in (summary["by_width"], summary["by_epoch"]):
        assert (table["variance"] >= 0).all()
        np.testing.assert_allclose(table["bias_and_noise"] + table["variance"], table["brier"], atol=1e-5)
    widest_last = [summary["by_width"]["brier"][-1], summary["by_epoch"]["brier"][-1]]
    np.testing.assert_allclose(*widest_last, rtol=1e-4, err_msg="the same runs")

    for name in ("learning_curves", "scores", "bias_and_variance"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == TINY["epochs"]
    for row in rows:  # early stopping changes only the end
        stopped, without = (row[f"{name} valid_loss"] for name in ("early stopping", "no regularisation"))
        assert stopped in ("", without)
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "weight decay 3" in capsys.readouterr().out


def test_the_parts_of_the_brier_score_add_up(key):
    probabilities = jax.random.uniform(key, (7, 50))
    targets = jnp.arange(50) % 2
    parts = overfitting.decompose(probabilities, targets)
    np.testing.assert_allclose(parts["bias_and_noise"] + parts["variance"], parts["brier"], rtol=1e-6)
    same = overfitting.decompose(probabilities[:1], targets)
    assert same["variance"] == 0
