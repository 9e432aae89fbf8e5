import csv

import jax
import numpy as np
import optax
import pytest

import nnfx

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@pytest.fixture(scope="module")
def train():
    model = nnfx.models.mlp((8,), activation="tanh")
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=5, batch_size=100)


def test_the_table_sorts_prints_and_saves(train, data, tmp_path):
    result = nnfx.sweeps.sweep(train, data, key=KEY, seeds=2, learning_rate=[1e-4, 0.1, 1e30])
    losses = [row["valid_loss"] for row in result.rows]
    finite = [loss for loss in losses if np.isfinite(loss)]
    assert losses[: len(finite)] == sorted(finite)
    assert result.best.row == result.rows[0]
    np.testing.assert_array_equal(
        np.nanmin(result.best.history["valid_loss"]), np.float32(result.rows[0]["valid_loss"])
    )
    by_rate = result.sort("learning_rate", largest_first=True)
    assert by_rate.rows[0]["learning_rate"] == pytest.approx(1e30)
    assert str(result).splitlines()[0].split()[:3] == ["member", "seed", "learning_rate"]
    result.save(tmp_path / "sweep.csv")
    saved = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [float(row["valid_loss"]) for row in saved][:4] == losses[:4]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]


def test_an_ensemble_predicts_what_its_members_do(train, data):
    result = nnfx.sweeps.sweep(train, data, key=KEY, seeds=3, learning_rate=[0.1, 0.3])
    ensemble = result.ensemble(4)
    raw = np.array([[7.0, 30.0], [80.0, 20.0]])
    predictions = ensemble.predict(raw)
    assert predictions.shape == (4, 2, 1)
    for row, prediction in zip(result.rows, predictions, strict=False):
        run = train(jax.random.fold_in(KEY, row["seed"]), data, learning_rate=row["learning_rate"])
        np.testing.assert_allclose(prediction, run.predict(raw), rtol=1e-4, atol=1e-5)


def test_wrong_counts_and_columns_raise_a_clear_error(train, data):
    result = nnfx.sweeps.sweep(train, data, key=KEY, seeds=2, learning_rate=1)
    with pytest.raises(ValueError, match="count: expected at most the 2 members, got 3"):
        result.ensemble(3)
    with pytest.raises(ValueError, match="column: .*'valid_loss'"):
        result.sort("valid_los")
