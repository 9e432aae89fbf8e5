import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import nnfx
from experiments.reproductions import deep_ensembles as ensembles
from experiments.reproductions import uci_dropout
from experiments.reproductions.pytorch_quickstart import Quickstart
from nnfx.data import batching


def config(folder, **options):
    return ensembles.Config(
        folder / "out", folder, ("yacht",), **({"members": 3, "epochs": 2, "batch_size": 10} | options)
    )


def network(features=3, hidden=4):
    return nnfx.models.from_linen(Quickstart((features, hidden, 2)))


def softplus(values):
    return np.log1p(np.exp(values))


def test_the_loss_is_scipys_negative_log_likelihood():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(0, 2, (50, 2)), rng.normal(0, 1, 50)
    found = ensembles.negative_log_likelihood(jnp.asarray(outputs), jnp.asarray(targets))
    deviations = np.sqrt(softplus(outputs[:, 1]) + 1e-6)
    np.testing.assert_allclose(found, -stats.norm(outputs[:, 0], deviations).logpdf(targets), rtol=1e-5)


def test_the_variance_is_never_below_a_millionth():
    _, variance = ensembles.normal(jnp.array([[0.0, -200.0], [0.0, 200.0]]))
    np.testing.assert_allclose(variance, [1e-6, 200 + 1e-6])


def test_scores_are_those_of_the_moments_of_the_mixture():
    """Mean and variance of the mixture are integrated over its density, and its likelihood is SciPy's."""
    rng = np.random.default_rng(0)
    means, variances, targets = rng.normal(0, 1, (3, 5)), rng.uniform(0.2, 2, (3, 5)), rng.normal(0, 1, 5)
    y = np.linspace(-30, 30, 60_001)[:, None, None]
    density = stats.norm(means, np.sqrt(variances)).pdf(y).mean(1)
    mean = np.trapezoid(y[:, 0] * density, y[:, 0], axis=0)
    variance = np.trapezoid((y[:, 0] - mean) ** 2 * density, y[:, 0], axis=0)
    rmse, nll = ensembles.score(*map(jnp.asarray, (means, variances, targets)))
    assert float(rmse) == pytest.approx(np.sqrt(np.mean((mean - targets) ** 2)), rel=1e-5)
    assert float(nll) == pytest.approx(-stats.norm(mean, np.sqrt(variance)).logpdf(targets).mean(), rel=1e-5)


def test_a_network_is_trained_as_in_numpy(folder):
    """In float64: Adam at 0.1 on the negative log-likelihood, the last batch incomplete, and the last weights kept."""
    options, key = config(folder), jax.random.key(3)
    data = jax.tree.map(lambda leaf: leaf[1], uci_dropout.read(folder, "yacht").data)
    found = ensembles.make_run(3, 4, options)(key, data, learning_rate=0.1).best.variables["params"]
    keys = nnfx.split_key(key)
    params = jax.tree.map(np.float64, network().init(keys.init, data.train.inputs[:1])["params"])
    for layer, inputs in (("Dense_0", 3), ("Dense_1", 4)):
        largest = max(np.abs(values).max() for values in params[layer].values())
        assert 0.8 / np.sqrt(inputs) < largest <= 1 / np.sqrt(inputs), "Torch's uniform weights and biases"
    inputs, targets = np.float64(data.train.inputs), np.float64(data.train.targets)

    def gradients(x, y):
        (first, second), rows = (params["Dense_0"], params["Dense_1"]), len(x)
        before = x @ first["kernel"] + first["bias"]
        hidden = np.maximum(before, 0)
        mean, raw = (hidden @ second["kernel"] + second["bias"]).T
        variance = softplus(raw) + 1e-6
        to_variance = 0.5 / variance - 0.5 * (y - mean) ** 2 / variance**2
        error = np.stack([(mean - y) / variance, to_variance / (1 + np.exp(-raw))], 1) / rows
        back = error @ second["kernel"].T * (before > 0)
        return {
            "Dense_0": {"kernel": x.T @ back, "bias": back.sum(0)},
            "Dense_1": {"kernel": hidden.T @ error, "bias": error.sum(0)},
        }

    first, second, step = *(jax.tree.map(np.zeros_like, params) for _ in range(2)), 0
    for epoch in range(options.epochs):
        order = batching.shuffled(keys.order, epoch, 24, 10)
        for rows, real in zip(np.asarray(order.rows), np.asarray(order.is_real), strict=True):
            step += 1
            slopes = gradients(inputs[rows[real]], targets[rows[real]])
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, slopes)
            corrected = (1 - 0.9**step, 1 - 0.999**step)
            params = jax.tree.map(
                lambda p, m, v, c=corrected: p - 0.1 * (m / c[0]) / (np.sqrt(v / c[1]) + 1e-8), params, first, second
            )
    assert step == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, params)


def prepared(x, y):
    return nnfx.data.prepare(x, y, standardize=False)


def test_the_rate_is_chosen_by_scipys_likelihood_of_the_last_fifth(key):
    """Learning the first four fifths helps to predict the last fifth, or harms if its targets have the other sign."""
    rng, run = np.random.default_rng(0), ensembles.make_run(3, 4, ensembles.Config(epochs=10, batch_size=10))
    x, found = rng.normal(0, 1, (100, 3)), []
    for slope in (3.0, -3.0):
        y = x[:, 0] * np.where(np.arange(100) < 80, 3.0, slope) + rng.normal(0, 0.1, 100)
        first, scores = prepared(x[:80], y[:80]), []
        for rate in ensembles.RATES:
            outputs = np.float64(run(key, first, learning_rate=rate).apply(jnp.asarray(x[80:])))
            scores.append(stats.norm(outputs[:, 0], np.sqrt(softplus(outputs[:, 1]) + 1e-6)).logpdf(y[80:]).mean())
        found.append(float(ensembles.chosen_rate(key, prepared(x, y), run)))
        assert found[-1] == pytest.approx(ensembles.RATES[np.argmax(scores)])
    assert found[0] > found[1]


def test_a_rate_at_which_training_diverges_is_not_chosen(key):
    class Run(NamedTuple):
        history: dict[str, jax.Array]

    def diverging(key, data, learning_rate):
        return Run({"valid_loss": jnp.where(learning_rate > 0.005, jnp.array([0.0, jnp.nan]), 1.0)})

    found = ensembles.chosen_rate(key, prepared(np.ones((10, 3)), np.ones(10)), diverging)
    assert float(found) == pytest.approx(0.003)


@pytest.mark.slow
def test_networks_are_trained_side_by_side_as_one_by_one(folder):
    """The scores of a split, in the unit of the targets, are those of its networks trained and pooled one by one."""
    options, splits, run = config(folder), uci_dropout.read(folder, "yacht"), ensembles.make_run(3, 4, config(folder))
    found = ensembles.run_table(folder, "yacht", options)
    keys = jax.random.split(jax.random.key(0), (2, 4))
    for split, scores in enumerate(found["rate chosen"]):
        data, inputs, targets = jax.tree.map(lambda leaf, split=split: leaf[split], (splits.data, *splits.test))
        runs = [run(key, data, learning_rate=scores["rate"]) for key in keys[split, :3]]
        outputs = np.float64([each.apply(inputs) for each in runs])
        scale = data.preprocess.target_scale.item()
        means = outputs[..., 0] * scale + data.preprocess.target_mean.item()
        variances = (softplus(outputs[..., 1]) + 1e-6) * scale**2
        mean, targets = means.mean(0), np.float64(targets)
        deviation = np.sqrt((variances + means**2).mean(0) - mean**2)
        assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((mean - targets) ** 2)), rel=1e-3)
        assert scores["nll"] == pytest.approx(-stats.norm(mean, deviation).logpdf(targets).mean(), rel=1e-3)


@pytest.mark.slow
def test_runs_are_made_and_kept(folder, monkeypatch):
    summary = ensembles.main(config(folder))
    assert [row["result"] for row in summary["rows"]] == [
        f"rate {rate}, yacht, {measure}"
        for rate in ("0.1", "chosen")
        for measure in ("RMSE", "negative log-likelihood")
    ]
    assert summary["rows"][0]["published"] == {"mean": 1.58, "deviation": 0.48, "count": 2}
    assert [split["rate"] for split in summary["runs"]["yacht"]["rate 0.1"]] == pytest.approx([0.1, 0.1])
    ours = [split["rmse"] for split in summary["runs"]["yacht"]["rate 0.1"]]
    assert summary["rows"][0]["ours"]["mean"] == pytest.approx(np.mean(ours))
    monkeypatch.setattr(ensembles, "run_table", lambda *_: pytest.fail("a finished table is not run again"))
    assert ensembles.main(config(folder))["runs"] == summary["runs"]
    with pytest.raises(pytest.fail.Exception):  # networks of another size are no finished ones
        ensembles.main(dataclasses.replace(config(folder), members=2))


@pytest.mark.slow
def test_long_training_fits_a_linear_function(folder):
    """The noise has a deviation of 0.1 beside one of 3.5 in the targets."""
    found = ensembles.run_table(folder, "yacht", config(folder, epochs=1000))
    assert np.mean([split["rmse"] for split in found["rate chosen"]]) < 1.5


def test_means_are_compared_without_pairing():
    """Welch's statistic, with the variance of rounding to two digits, 0.01² / 12, added to the published one."""
    splits = [{"rate": 0.1, "rmse": 1.0 + d, "nll": 0.5} for d in (0, 1, 2)]
    row, *_ = ensembles.compare({"yacht": {"rate 0.1": splits, "rate chosen": splits}})
    assert row.standard_errors == pytest.approx((2 - 1.58) / np.sqrt(1 / 3 + 0.48**2 / 3 + 0.01**2 / 12))
    assert row.paired is None


def test_unknown_tables_are_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape("tables: expected one of") + ".*yacht.*, got 'boat'"):
        ensembles.main(ensembles.Config(tmp_path, tables=("boat",)))


def test_published_numbers_are_those_of_the_papers_table():
    """Typed a second time, by row of table 1: the error and the likelihood of its columns "Deep Ensembles"."""
    table = """
        Boston housing 3.28 ± 1.00 2.41 ± 0.25
        Concrete 6.03 ± 0.58 3.06 ± 0.18
        Energy 2.09 ± 0.29 1.38 ± 0.22
        Kin8nm 0.09 ± 0.00 -1.20 ± 0.02
        Naval propulsion plant 0.00 ± 0.00 -5.63 ± 0.05
        Power plant 4.11 ± 0.17 2.79 ± 0.04
        Protein 4.71 ± 0.06 2.83 ± 0.02
        Wine 0.64 ± 0.04 0.94 ± 0.12
        Yacht 1.58 ± 0.48 1.18 ± 0.21"""
    rows = [np.array(re.findall(r"-?\d+\.\d+", line), float).reshape(2, 2) for line in table.split("\n")[1:]]
    for published, row in zip(ensembles.PUBLISHED.values(), rows, strict=True):
        expected = dict(zip(("rmse", "nll"), map(tuple, row.tolist()), strict=True))
        assert published == {name: each for name, each in expected.items() if each[0]}
