"""Searches: grouped into programs, the same as sweeps and runs, resumed, halved across programs, and compared."""

import csv
import functools

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import (
    Choice,
    Extrapolation,
    Grid,
    Halving,
    Hyperband,
    Integer,
    LogUniform,
    Normal,
    Uniform,
    When,
    search,
)
from tests.search.searches import cut_at, same
from tests.sessions.sessions import CutError, bits

KEY = jax.random.key(0)
ONE = jax.devices()[:1]
MADE = optax.sgd(0.1)
FAST = {"key": KEY, "devices": ONE}


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@functools.cache  # so that programs are compiled once
def make(width=2, activation="tanh", epochs=4, optimizer=optax.sgd):
    model = nnfx.models.mlp(hidden=(width,), activation=activation)
    penalty = nnfx.regularizers.l2 if activation == "relu" else None
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, batch_size=100, penalty=penalty)


SPACE = {
    "width": Choice(2, 3),
    "learning_rate": LogUniform(0.01, 1.0),
    "activation": Choice("tanh", "relu"),
    "l2": When("activation", "relu", LogUniform(1e-6, 1e-2)),
}


@pytest.fixture(scope="module")
def found(data):
    return search(make, data, SPACE, points=8, seeds=2, **FAST)


def test_points_with_the_same_static_choices_are_one_program(found):
    assert len(found.points) == 8
    assert len(found.programs) == len({(point["width"], point["activation"]) for point in found.points}) <= 4
    for program in found.programs:
        for number in program.numbers:
            point = found.points[number]
            assert {name: point[name] for name in program.static} == program.static
            assert set(program.columns) == set(point) - {"width", "activation"}
            assert ("l2" in point) is (program.static["activation"] == "relu")
    assert sorted(number for program in found.programs for number in program.numbers) == list(range(8))


def test_members_are_the_runs_made_one_at_a_time(data, found):
    assert len(found.rows) == 16
    checked = {row["program"]: row for row in found.rows}.values()
    for row in checked:
        point = dict(found.points[row["point"]])
        train = make(point.pop("width"), point.pop("activation"))
        run = train(jax.random.fold_in(KEY, row["seed"]), data, **point)
        member = found.member(row["member"])
        np.testing.assert_allclose(member.history["valid_loss"], run.history["valid_loss"], rtol=1e-4)
        np.testing.assert_allclose(row["valid_loss"], float(run.best.loss), rtol=1e-4)
        np.testing.assert_allclose(member.predict([[50.0, 30.0]]), run.predict([[50.0, 30.0]]), rtol=1e-3, atol=1e-5)


def test_points_are_ranked_by_their_means_over_all_programs(found):
    losses = np.zeros((8, 2))
    for row in found.rows:
        losses[row["point"], row["seed"]] = row["valid_loss"]
    ranked = found.by_point()
    assert list(ranked.numbers) == np.argsort(losses.mean(1)).tolist()
    for row in ranked.rows:
        of_point = losses[row["point"]]
        assert row["valid_loss"] == pytest.approx(of_point.mean())
        assert row["standard_error"] == pytest.approx(of_point.std(ddof=1) / 2**0.5)
        assert row["worst"] == of_point.max()
        assert (row["runs"], row["failed"]) == (2, 0)
    assert [row["rank"] for row in ranked.rows] == list(range(1, 9))
    best = found.best
    assert found.rows[0]["valid_loss"] <= float(best.best.loss) == losses[ranked.numbers[0]].min()
    by_rate = found.sort("learning_rate").rows
    assert [row["learning_rate"] for row in by_rate] == sorted(point["learning_rate"] for point in found.points * 2)


def test_it_prints_and_saves_a_table(found, tmp_path):
    text = str(found)
    assert text.startswith(f"8 points in {len(found.programs)} programs, 16 runs\n")
    assert repr(found) == text
    assert "rank  point  width  learning_rate  activation" in text
    found.save(tmp_path / "members.csv")
    rows = list(csv.DictReader((tmp_path / "members.csv").read_text().splitlines()))
    assert len(rows) == 16
    for row in rows:
        assert (row["l2"] == "") is (row["activation"] == "tanh")
        assert float(row["learning_rate"]) == found.points[int(row["point"])]["learning_rate"]


@pytest.mark.slow
def test_what_else_is_searched_changes_no_point(data, found):
    some = [0, 1, 2]
    alone = search(make, data, points=[found.points[number] for number in some], seeds=2, **FAST)
    for number in some:
        losses = [
            sorted(row["valid_loss"] for row in result.rows if row["point"] == number) for result in (alone, found)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def test_an_interrupted_search_ends_with_the_same_bits_and_trains_nothing_twice(data, found, tmp_path):
    given = {"points": 8, "seeds": 2, "out": tmp_path, "progress": False, **FAST}
    with pytest.raises(CutError):
        search(make, data, SPACE, **given, on_chunk=cut_at(2))
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 2, "the second program was cut off, and the others had not begun"
    assert folders[0] == "00-" + found.programs[0].folder
    assert "width=" in folders[0]
    calls = []
    again = search(make, data, SPACE, **given, on_chunk=calls.append)
    same(again, found)
    assert len(calls) <= len(found.programs) - 1
    same(search(make, data, SPACE, **given, on_chunk=cut_at(1)), found)  # nothing is left to train
    assert len((tmp_path / "members.csv").read_text().splitlines()) == 1 + 16


def test_it_says_what_it_will_do(data, capsys):
    search(make, data, {"learning_rate": Uniform(0.1, 1.0)}, points=2, seeds=3, progress="rates", **FAST)
    assert capsys.readouterr().out == "rates: 2 points in 1 program, 6 runs\n"


def test_a_plain_run_has_no_static_choices(data):
    train = make()
    found = search(train, data, {"learning_rate": Uniform(0.1, 1.0)}, points=Grid(3), **FAST)
    swept = nnfx.sweeps.sweep(train, data, learning_rate=[0.1, 0.55, 1.0], **FAST)
    assert [row["learning_rate"] for row in found.by_point().rows] == [
        row["learning_rate"] for row in swept.by_point().rows
    ]
    assert bits(found.sweeps[0].histories) == bits(swept.histories)


@pytest.mark.slow
def test_static_choices_alone_are_trained_once_each(data):
    rated = functools.partial(make, optimizer=MADE)
    found = search(rated, data, {"width": Integer(1, 2)}, points=20, **FAST)
    assert sorted(point["width"] for point in found.points) == [1, 2]
    assert len(found.rows) == 2


def test_names_of_other_columns_and_functions_may_be_searched(data):
    points = [{"epochs": 1, "optimizer": optax.adam}, {"epochs": 2, "optimizer": optax.sgd}]
    found = search(make, data, points=[{**point, "learning_rate": 0.1} for point in points], **FAST)
    for row in found.rows:
        assert row["searched_epochs"] == row["epochs"] == found.points[row["point"]]["epochs"]
        assert row["optimizer"] == found.points[row["point"]]["optimizer"].__name__


def test_points_that_fail_rank_last_and_are_never_the_best(data):
    bad = {"activation": "relu", "learning_rate": 1e38, "l2": 1e-3}
    points = [bad, {"learning_rate": 1e-6, "width": 3}, {"learning_rate": 0.1}]
    with jax.debug_nans(False), jax.debug_infs(False):
        found = search(make, data, points=points, seeds=2, **FAST)
    ranked = found.by_point()
    assert ranked.numbers[-1] == 0
    assert ranked.rows[-1]["failed"] == sum(row["reason"] == "not finite" for row in found.rows) == 2
    assert found.best.row["learning_rate"] != 1e38
    assert 0 not in found.indistinguishable().numbers
    with pytest.raises(ValueError, match="best: expected a member that ended with finite numbers"):
        _ = search(make, data, points=points[:1], seeds=2, **FAST).best


def test_what_cannot_be_told_from_the_best_is_known_after_six_runs(data):
    rates = [1.0, 0.999, 1e-4]
    found = search(make, data, points=[{"learning_rate": rate} for rate in rates], seeds=6, **FAST)
    losses = np.zeros((3, 6))
    for row in found.rows:
        losses[row["point"], row["seed"]] = row["valid_loss"]
    best = int(losses.mean(1).argmin())
    compared = found.compare(2, best)
    assert compared.difference == pytest.approx((losses[2] - losses[best]).mean())
    assert compared.p_value == 2 / 2**6
    unsure = found.indistinguishable()
    assert 2 not in unsure.numbers
    assert unsure.numbers[0] == best
    assert unsure.rows[0]["p_value"] == 1.0
    assert 2 in found.indistinguishable(level=0.03).numbers
    with pytest.raises(ValueError, match="second: expected 0 to 2, got 3"):
        found.compare(0, 3)


def halved_by_hand(full, rungs, keep):
    """Return after how many epochs each point ends, if all are ranked together."""
    points = len(full.points)
    losses = np.zeros((points, 2, 4))
    for program, sweep in zip(full.programs, full.sweeps, strict=True):
        by_group = sweep.histories["valid_loss"].reshape(2, len(program.numbers), 4)
        losses[list(program.numbers)] = by_group.swapaxes(0, 1)
    left, ends = np.arange(points), np.full(points, 4)
    for rung in rungs:
        best = losses[left, :, :rung].min(-1).mean(-1)
        kept = left[np.argsort(best)[: max(1, round(len(left) * keep))]]
        ends[np.setdiff1d(left, kept)] = rung
        left = kept
    return ends


def test_halving_ranks_the_points_of_all_programs_together(data, found, tmp_path):
    given = {"points": 8, "seeds": 2, "method": Halving((1, 2), keep=0.5), **FAST}
    halved = search(make, data, SPACE, **given)
    ends = halved_by_hand(found, (1, 2), 0.5)
    assert {row["point"]: row["epochs"] for row in halved.rows} == dict(enumerate(ends))
    assert sorted(ends) == [1] * 4 + [2] * 2 + [4] * 2
    kept = [sum(ends[number] == 4 for number in program.numbers) for program in found.programs]
    assert 0 in kept, "a program loses all of its points, as it would not by itself"
    full = {(row["point"], row["seed"]): row for row in found.rows}
    for row in halved.rows:
        assert (row["reason"] == "dropped") is (row["epochs"] < 4)
        if row["epochs"] == 4:
            assert row["valid_loss"] == pytest.approx(full[row["point"], row["seed"]]["valid_loss"], rel=1e-5)
    assert set(halved.by_point().numbers[:2]) == set(np.flatnonzero(ends == 4))
    assert set(halved.indistinguishable().numbers) <= set(np.flatnonzero(ends == 4))

    kept = {**given, "out": tmp_path, "progress": False, "save_every_seconds": 0}
    for call in (1, 2):
        with pytest.raises(CutError):
            search(make, data, SPACE, **kept, on_chunk=cut_at(call))
    same(search(make, data, SPACE, **kept), halved)
    history = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [int(row["running"]) for row in history] == [16, 8, 4, 4]
    with pytest.raises(ValueError, match="points: expected 8 in all, .*, got 7 in all"):
        search(make, data, SPACE, **{**kept, "points": 7})


@pytest.mark.slow
def test_hyperband_trains_its_brackets(data, tmp_path):
    space = {"width": Choice(2, 3), "learning_rate": LogUniform(0.01, 1.0)}
    given = {"method": Hyperband(1, 2), **FAST}
    found = search(make, data, space, **given)
    brackets = Hyperband(1, 2).brackets(4)
    assert [bracket.points for bracket in brackets] == [4, 3, 3]
    assert len(found.points) == 10
    ends = [next(row["epochs"] for row in found.rows if row["point"] == number) for number in range(10)]
    assert [sorted(ends[:4]), sorted(ends[4:7]), ends[7:]] == [[1, 1, 2, 4], [2, 2, 4], [4, 4, 4]]
    out = {"out": tmp_path, "progress": False}
    with pytest.raises(CutError):
        search(make, data, space, **given, **out, on_chunk=cut_at(5))
    same(search(make, data, space, **given, **out), found)
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["bracket-0", "bracket-1", "bracket-2"]


@pytest.mark.slow
def test_folds_are_the_same_in_every_program(data):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    rated = functools.partial(make, optimizer=MADE, epochs=1)
    found = search(rated, whole, {"width": Choice(2, 3)}, points=Grid(1), folds=3, **FAST)
    assert {(row["point"], row["fold"]) for row in found.rows} == {(p, f) for p in range(2) for f in range(3)}
    assert found.compare(0, 1).pairs == 3
    first, second = (sweep.preprocess for sweep in found.sweeps)
    assert bits(first) == bits(second)


def test_points_that_are_given_share_the_numbers_that_the_space_fixes(data):
    points = [{"width": width, "activation": "relu", "l2": 0.01} for width in (2, 3)]
    found = search(make, data, {"learning_rate": Choice(0.1)}, points=points, **FAST)
    assert found.points == tuple({"learning_rate": 0.1, **point} for point in points)


WRONG = [
    ({"make": 3}, TypeError, "make: expected the result of nnfx.fit, or a function"),
    ({"make": lambda width=1: 3, "space": {"width": Choice(1)}}, TypeError, "make: .* got 3 for width=1"),
    ({"space": None}, TypeError, "space: expected ranges by name, .*, got none"),
    ({"space": {"width": Uniform(1, 2)}}, TypeError, "width: expected a Choice or an Integer, since `make` takes it"),
    ({"space": {"width": When("a", 1, Normal(1, 2)), "a": Choice(1)}}, TypeError, "width: expected a Choice or"),
    ({"space": {"widht": Choice(8)}}, TypeError, "widht: expected a keyword of `make` .*; did you mean 'width'"),
    (
        {"space": {"learning_rate": Choice("a")}},
        TypeError,
        "learning_rate: expected one number, since `make` .*, got 'a'",
    ),
    ({"space": {"width": Choice(2)}}, TypeError, r"learning_rate: expected a number .* \(with width=2\)"),
    ({"space": {"learning_rate": Choice(-1.0)}}, ValueError, "learning_rate: expected .* above 0, got -1"),
    ({"space": {"learning_rate": Choice(1.0), "l2": Choice(1.0)}}, TypeError, "l2: expected a keyword of `make`"),
    ({"points": None}, TypeError, "points: expected the number to draw, Grid.*, got none"),
    ({"points": 0}, ValueError, "points: expected a positive integer, got 0"),
    ({"points": [{"width": 1}]}, TypeError, r"learning_rate: expected Choice\(value\), since the points are given"),
    (
        {"points": [{"learning_rate": 1.0}], "space": {"learning_rate": Choice(2.0)}},
        ValueError,
        r"points\[0\]: expected no value for learning_rate, which the space fixes, got one",
    ),
    ({"method": "halving"}, TypeError, "method: expected Halving, Hyperband, Extrapolation, .* or None, got 'halving'"),
    ({"method": Hyperband()}, TypeError, "points: expected None, since Hyperband determines"),
    ({"method": Hyperband(9), "points": None}, ValueError, "min_epochs: expected at most 4"),
    ({"method": Halving((4,))}, ValueError, "rungs: expected epochs that increase and stay below 4"),
    ({"space": {}}, ValueError, "space: expected at least one range, got none"),
    ({"space": {"width": Choice()}}, ValueError, "width: expected a Choice with at least one member, got none"),
    (
        {"space": {"width": When("a", 1, Choice(1)), "a": When("width", 1, Choice(1))}},
        ValueError,
        "width: expected conditions without a cycle, got width → a → width",
    ),
    ({"budget": 0}, ValueError, "budget: expected a positive integer, got 0"),
    ({"budget": 7}, ValueError, "budget: expected at least 8 member-epochs, for 2 points, got 7"),
    ({"budget": 3, "points": None}, ValueError, "budget: expected at least 4 member-epochs, for 1 point, got 3"),
    (
        {"budget": 8, "points": Grid(2)},
        TypeError,
        "points: expected the number to draw in each round of a budget, or None, got Grid",
    ),
    (
        {"budget": 7, "points": 4, "method": Halving((1, 2), 0.5)},
        ValueError,
        "budget: expected at least 8 member-epochs, for 4 points, got 7",
    ),
    (
        {"budget": 7, "points": None, "method": Hyperband(1, 2)},
        ValueError,
        "budget: expected at least 8 member-epochs, for the first bracket, got 7",
    ),
    (
        {"budget": 3, "method": Extrapolation((3,))},
        ValueError,
        "budget: expected at least 4 member-epochs, for one run of each seed and fold, got 3",
    ),
    ({"key": 0}, TypeError, "key: expected a typed key"),
    ({"seeds": 0}, ValueError, "seeds: expected a positive integer"),
    ({"at_once": 0}, ValueError, "at_once: expected a positive integer"),
    ({"skip_damaged": True}, ValueError, "skip_damaged: expected the argument `out` as well"),
    (
        {"space": {"epochs": Choice(2, 4), "learning_rate": Choice(1.0)}, "points": None, "method": Hyperband(1, 2)},
        ValueError,
        "epochs: expected the same number in all programs, got 2, 4",
    ),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_what_is_wrong_is_said_before_anything_is_trained(data, changed, error, message, monkeypatch):
    monkeypatch.setattr(nnfx.search.training, "Members", None)
    monkeypatch.setattr(nnfx.search.training, "Together", None)
    given = {"make": make, "space": {"learning_rate": Uniform(0.1, 1.0)}, "points": 2, **FAST, **changed}
    with pytest.raises(error, match=message):
        search(given.pop("make"), data, given.pop("space"), **given)


def test_what_make_requires_has_to_be_there(data):
    def required(width):
        return make(width)

    for space, got in (({"learning_rate": Choice(1.0)}, "none"), (
        {"learning_rate": Choice(1.0, 2.0), "width": When("learning_rate", 1.0, Choice(1))}, "one with a condition"
    )):  # fmt: skip
        with pytest.raises(TypeError, match=f"width: expected a range, since `make` requires it, got {got}"):
            search(required, data, space, points=1, **FAST)
    with pytest.raises(TypeError, match="width: expected a value, since `make` requires it, got none"):
        search(required, data, points=[{"learning_rate": 1.0}], **FAST)


def test_dropping_points_needs_held_out_data(data):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    with pytest.raises(ValueError, match="data.valid: expected held-out data to rank points by, got none"):
        search(make, whole, {"learning_rate": Choice(1.0)}, points=1, method=Halving((1,)), **FAST)


def test_losses_of_different_units_are_not_ranked(data):
    def fit_with(loss):
        return nnfx.fit(nnfx.models.perceptron(), getattr(nnfx.losses, loss), optax.sgd, epochs=1)

    space = {"loss": Choice("mean_square_error", "binary_cross_entropy"), "learning_rate": Uniform(0.1, 0.2)}
    with pytest.raises(ValueError, match=r"loss: expected the same in all programs, .*mean_square_error and .*entropy"):
        search(fit_with, data, space, key=KEY, points=Grid(2))


def test_names_that_some_points_lack_can_be_sorted_by(data):
    def conditional(width):
        model = nnfx.models.mlp((width,))
        metrics = ["binary_accuracy"] if width == 3 else None
        return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, metrics=metrics)

    space = {
        "width": Choice(2, 3),
        "learning_rate": Choice(0.1),
        "momentum": When("width", 3, Choice(0.5, 0.9)),
    }
    found = search(conditional, data, space, key=KEY, points=Grid(1), devices=jax.devices()[:1])
    assert [row["momentum"] for row in found.sort("momentum").rows] == [0.5, 0.9, ""]
    by_point = found.sort("valid_binary_accuracy", largest_first=True).by_point().rows
    assert [row["width"] for row in by_point][-1] == 2
    assert np.isnan([row["valid_binary_accuracy"] for row in by_point][-1])
