import csv
import json

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import learning_rates


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys, monkeypatch):
    few = {"fixed": ("SGD",), "adaptive": ("Adam",), "by the size of the weights": ("LAMB",)}
    all_optimizers = learning_rates.optimizers

    def some(steps):
        return {kind: {name: all_optimizers(steps)[kind][name] for name in names} for kind, names in few.items()}

    monkeypatch.setattr(learning_rates, "optimizers", some)
    config = learning_rates.Config(out=tmp_path, epochs=4, lowest=1e-3, highest=1e3, rates=7, seeds=3)
    summary = learning_rates.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"runs", "untrained_loss", "optimizers", "seed", "versions", "device", "wall_s", "compile_s"} <= set(written)
    assert written["runs"] == summary["runs"] == 3 * 7 * 3
    assert list(written["optimizers"]) == ["SGD", "Adam", "LAMB"]
    for name, numbers in written["optimizers"].items():
        rows = list(csv.DictReader((tmp_path / "sweeps" / f"{name.lower()}.csv").read_text().splitlines()))
        assert len(rows) == numbers["runs"] == 21
        diverged = [row["diverged"] == "True" for row in rows]
        assert numbers["diverged"] == pytest.approx(np.mean(diverged))
        assert 0 < np.mean(diverged) < 1, "a rate of a thousand is too large, one of a thousandth is not"
        best = numbers["training"]
        assert best["lowest"] <= best["best_rate"] <= best["highest"]
        at_best = [
            float(row["last_train_loss"]) for row in rows if np.isclose(float(row["learning_rate"]), best["best_rate"])
        ]
        assert np.median(at_best) == pytest.approx(best["best_loss"])
        assert best["best_loss"] < written["untrained_loss"]
    for name in ("loss_by_rate", "just_right"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 4
    assert not list(tmp_path.rglob(".*")), "nothing is left written aside"
    assert "best rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("SGD", [1, 1, 1]),
        ("SGD, exponential to 1 %", [1, 0.1, 0.01]),
        ("SGD, cosine", [1, 0.5, 0]),
        ("SGD, warm-up and cosine", [0, 0.5868, 0]),
    ],
)
def test_schedules_begin_and_end_where_they_say(name, rates):
    factories = {name: factory for kind in learning_rates.optimizers(100).values() for name, factory in kind.items()}
    optimizer, one = factories[name](1.0), jnp.ones(())
    state, updates = optimizer.init(one), []
    for _ in range(101):
        update, state = optimizer.update(one, state, one)
        updates.append(-float(update))
    np.testing.assert_allclose([updates[0], updates[50], updates[100]], rates, atol=1e-4)


def test_the_range_that_is_just_right_is_the_one_around_the_best():
    rates = np.logspace(-3, 3, 7)
    losses = np.array([[1.0, 2.0, 1.02, 1.0, 1.04, np.nan, 1.0]])
    losses[0, 0], losses[0, 6] = 1.01, 1.01
    found = learning_rates.find_just_right(rates, losses, within=0.05)
    assert (found.best_rate, found.lowest, found.highest) == pytest.approx((1, 0.1, 10))
    assert found.width_decades == pytest.approx(2)
    assert not found.is_cut
    assert learning_rates.find_just_right(rates, np.ones((1, 7)), within=0.05).is_cut
    near = learning_rates.find_just_right(rates, losses, within=0.05, near=0.98)
    assert near.width_decades == pytest.approx(1)
