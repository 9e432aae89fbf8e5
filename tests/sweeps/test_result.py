import csv

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sweeps.result import Ends, Sweep
from nnfx.types import Fault

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@pytest.fixture(scope="module")
def train():
    return nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=5)


def swept(train, data, rates):
    """Return the result of two seeds and three rates: tables of the same shape share a program."""
    return nnfx.sweeps.sweep(train, data, key=KEY, seeds=2, learning_rate=rates, devices=jax.devices()[:1])


def test_the_table_sorts_prints_and_saves(train, data, tmp_path):
    result = swept(train, data, [1e-4, 0.1, 1e30])
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


def test_hyperparameters_with_the_names_of_other_columns_have_columns_of_their_own(data):
    """They have no effect here, so the runs are those of a sweep without them."""

    def made(learning_rate, seed, member, epochs):
        return optax.sgd(learning_rate + 0 * (seed + member + epochs))

    loss, rates, seeds = nnfx.losses.binary_cross_entropy, [1e-4, 0.1], [7.0, 8.0]
    plain, named = (nnfx.fit(nnfx.models.perceptron(), loss, each, epochs=2) for each in (optax.sgd, made))
    points = nnfx.sweeps.grid(learning_rate=rates, seed=seeds, member=5.0, epochs=9.0)
    expected = nnfx.sweeps.sweep(plain, data, key=KEY, seeds=2, learning_rate=np.repeat(rates, 2))
    swept = nnfx.sweeps.sweep(named, data, key=KEY, seeds=2, points=points)
    listed = [dict(zip(points, map(float, point), strict=True)) for point in zip(*points.values(), strict=True)]
    searched = nnfx.search.search(named, data, points=listed, key=KEY, seeds=2)
    for found in (swept, searched):
        for mine, theirs in zip(found.rows, expected.rows, strict=True):
            assert all(mine[name] == theirs[name] for name in ("member", "seed", "epochs"))
            assert mine["searched_seed"] == seeds[mine["member"] % 2]
            assert (mine["searched_member"], mine["searched_epochs"]) == (5, 9)
        for mine, theirs in zip(found.by_point().rows, expected.by_point().rows, strict=True):
            assert mine["valid_loss"] == pytest.approx(theirs["valid_loss"])


def test_an_ensemble_predicts_what_its_members_do(train, data):
    result = swept(train, data, [0.1, 0.3, 0.5])
    ensemble = result.ensemble(4)
    raw = np.array([[7.0, 30.0], [80.0, 20.0]])
    predictions = ensemble.predict(raw)
    assert predictions.shape == (4, 2, 1)
    for row, prediction in zip(result.rows, predictions, strict=False):
        run = train(jax.random.fold_in(KEY, row["seed"]), data, learning_rate=row["learning_rate"])
        np.testing.assert_allclose(prediction, run.predict(raw), rtol=1e-4, atol=1e-5)


def test_a_member_is_a_run(train, data):
    result = swept(train, data, [0.1, 0.3, 0.5])
    raw = np.array([[7.0, 30.0], [80.0, 20.0]])
    for member in (result.best, result.member(4)):
        key = jax.random.fold_in(KEY, member.row["seed"])
        run = train(key, data, learning_rate=member.row["learning_rate"])
        assert isinstance(member, nnfx.Run)
        assert (member.reason, member.fault) == (run.reason, run.fault) == ("last epoch", "")
        assert int(member.state.step) == int(run.state.step)
        assert int(member.best.epoch) == int(run.best.epoch)
        np.testing.assert_allclose(member.predict(raw), run.predict(raw), rtol=1e-4, atol=1e-5)
        for measured, expected in (
            (member.evaluate(data.valid), run.evaluate(data.valid)),
            (member.final, run.final),
            (member.best_metrics, run.best_metrics),
        ):
            assert measured.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(measured[name], value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(member.best.loss, run.best.loss, rtol=1e-5)


def test_a_member_that_was_dropped_says_so(train, data):
    halving = nnfx.sweeps.Halving((2,), keep=0.5)
    result = nnfx.sweeps.sweep(
        train, data, key=KEY, halving=halving, learning_rate=[0.1, 1e-6], devices=jax.devices()[:1]
    )
    member = result.member(1)
    assert (member.reason, int(member.epochs)) == ("dropped", 2)
    assert np.isnan(np.asarray(member.history["valid_loss"])[2:]).all()
    np.testing.assert_array_equal(member.final["valid_loss"], member.history["valid_loss"][1])


def test_wrong_counts_and_columns_raise_a_clear_error(train, data):
    result = swept(train, data, [1, 2, 3])
    with pytest.raises(ValueError, match="count: expected at most the 6 members, got 7"):
        result.ensemble(7)
    with pytest.raises(ValueError, match="column: .*'valid_loss'"):
        result.sort("valid_los")
    with pytest.raises(ValueError, match="number: expected 0 to 5, got 6"):
        result.member(6)
    for number in (True, 1.0, "a"):
        with pytest.raises(TypeError, match="number: expected a non-negative integer"):
            result.member(number)


def made(train, losses, reasons, seeds):
    """Return a result made by hand, with a point for each loss of a seed, and rates 0, 1, 2, …"""
    width = len(losses) // seeds
    rows = [
        {
            "member": number, "seed": number // width, "learning_rate": float(number % width), "epochs": 5,
            "best_epoch": 5, "valid_loss": loss, "reason": reason,
        }
        for number, (loss, reason) in enumerate(zip(losses, reasons, strict=True))
    ]  # fmt: skip
    hyper = {"learning_rate": np.array([row["learning_rate"] for row in rows], np.float32)}
    histories = {"valid_loss": np.array(losses)[:, None]}
    preprocess = nnfx.data.Preprocess(np.full(len(rows), np.nan), np.zeros(len(rows)), np.ones(len(rows)), (), (2,))
    variables = {"params": np.arange(len(rows))}
    last, none = np.full(len(rows), 5), np.zeros(len(rows), int)
    ends = Ends(last, last, none - 1, last, Fault(none, none, none))
    return Sweep(rows, train, variables, histories, hyper, preprocess, ends, ("valid_loss", False)).sort("valid_loss")


FINE, NAN = "last epoch", float("nan")


def test_the_best_is_of_the_best_point_and_not_the_luckiest_seed(train):
    #                     seed 0: points 0, 1, 2; seed 1
    result = made(train, [1.0, 3.0, 0.1, 2.0, 2.0, 9.9], [FINE] * 6, seeds=2)
    table = result.by_point()
    assert [row["learning_rate"] for row in table.rows] == [0, 1, 2]
    np.testing.assert_allclose([row["valid_loss"] for row in table.rows], [1.5, 2.5, 5.0])
    np.testing.assert_allclose([row["standard_error"] for row in table.rows], [0.5, 0.5, 4.9])
    assert [row["worst"] for row in table.rows] == [2.0, 3.0, 9.9]
    assert [(row["runs"], row["failed"]) for row in table.rows] == [(2, 0)] * 3
    assert result.rows[0]["member"] == 2, "the luckiest"
    assert (result.best.row["member"], result.best.variables["params"]) == (0, 0)
    assert str(table) in str(result)


def test_the_largest_of_a_metric_may_be_the_best(train):
    result = made(train, [1.0, 3.0, 0.1, 2.0, 2.0, 9.9], [FINE] * 6, seeds=2).sort("valid_loss", largest_first=True)
    assert [row["learning_rate"] for row in result.by_point().rows] == [2, 1, 0]
    assert [row["worst"] for row in result.by_point().rows] == [0.1, 2.0, 1.0]
    assert result.best.row["member"] == 5
    assert result.sort("learning_rate").best.row["member"] == 5, "sorted by what was given, points rank as before"


@pytest.mark.parametrize("largest_first", [False, True])
def test_what_failed_or_was_dropped_never_leads(train, largest_first):
    losses = [NAN, 5.0, 0.0, -np.inf, np.inf, 4.0]
    reasons = ["not finite", FINE, "dropped", "not finite", "not finite", FINE]
    result = made(train, losses, reasons, seeds=1).sort("valid_loss", largest_first)
    expected = [1, 5] if largest_first else [5, 1]
    assert [row["member"] for row in result.rows][:3] == [*expected, 2]
    assert result.best.row["member"] == expected[0]
    assert [int(row["learning_rate"]) for row in result.by_point().rows][:2] == expected
    assert result.by_point().rows[-1]["learning_rate"] == 2, "dropped"
    with pytest.raises(ValueError, match=r"count: expected members with finite losses .*\(3 in all"):
        result.ensemble(4)


def test_points_of_which_more_runs_failed_rank_behind(train):
    losses = [0.1, 3.0, NAN, NAN, 4.0, NAN]
    reasons = [FINE, FINE, "not finite", "not finite", FINE, "not finite"]
    table = made(train, losses, reasons, seeds=2).by_point()
    assert [(row["learning_rate"], row["failed"]) for row in table.rows] == [(1, 0), (0, 1), (2, 2)]
    assert table.rows[1]["valid_loss"] == 0.1
    assert np.isnan([table.rows[1]["standard_error"], table.rows[2]["valid_loss"], table.rows[2]["worst"]]).all()


def test_a_sweep_that_has_diverged_altogether_says_so(train, data):
    result = swept(train, data, [1e38, 2e38, 3e38])
    assert {row["reason"] for row in result.rows} == {"not finite"}
    assert [row["failed"] for row in result.by_point().rows] == [2, 2, 2]
    with pytest.raises(ValueError, match="best: expected a member that ended with finite numbers, got none: all 6"):
        result.best  # noqa: B018
    with pytest.raises(ValueError, match=r"count: .*\(0 in all\), got 1 that include members 0"):
        result.ensemble(1)
    assert "not finite" in str(result)


@pytest.mark.usefixtures("nan_is_meant")
def test_weights_that_are_not_finite_are_a_failure_as_well(data):
    """The loss of an epoch is measured before its last update, which may give NaN."""

    def late(learning_rate):
        def update(updates, count, params=None):
            factor = jax.numpy.where(count == 2, learning_rate * jax.numpy.inf, 0.0)
            return jax.tree.map(lambda g: factor * g, updates), count + 1

        return optax.GradientTransformation(lambda params: jax.numpy.zeros((), int), update)

    whole = nnfx.data.Data(data.train, None, data.preprocess)
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, late, epochs=3)
    [row] = nnfx.sweeps.sweep(train, whole, key=KEY, learning_rate=1.0, devices=jax.devices()[:1]).rows
    assert np.isfinite(row["train_loss"])
    assert row["reason"] == "not finite"
