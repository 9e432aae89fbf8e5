"""Searches that look at earlier results: rounds compared with those before, and descents; budgets and kills."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx.search import Choice, Extrapolation, HyperGradient, Integer, LogUniform, Uniform, search
from tests.search.descents import SPACE, make, of_quadratic
from tests.search.searches import FAST, cut_at, of_table, one_row, same, stopped_by_hand
from tests.sessions.sessions import CutError

EPOCHS = 9


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@pytest.fixture(scope="module")
def row():
    return one_row()


def test_rounds_are_compared_with_earlier_ones_and_keep_to_the_budget(row, tmp_path):
    train, table = of_table(EPOCHS, 12)
    space, method = {"row": Uniform(0.0, 11.0)}, Extrapolation((3, 6), level=0.3)
    given = {"points": 4, "method": method, "budget": 100, **FAST}
    found = search(train, row, space, **given)
    ends = {each["point"]: each["epochs"] for each in found.rows}
    left, best, begin = 100, np.inf, 0
    while size := min(4, left // EPOCHS):
        rows = [round(found.points[number]["row"]) for number in range(begin, begin + size)]
        losses = np.float32(table)[rows].astype(float)
        expected = stopped_by_hand(losses, (3, 6), 0.3, best)
        assert [ends[number] for number in range(begin, begin + size)] == expected.tolist()
        best = min(best, *(curve[:end].min() for curve, end in zip(losses, expected, strict=True)))
        left, begin = left - expected.sum(), begin + size
    assert begin == len(found.points)
    assert 100 - EPOCHS < sum(ends.values()) <= 100

    kept = {**given, "out": tmp_path, "progress": False, "save_every_seconds": 0}
    for call in (2, 5):
        with pytest.raises(CutError):
            search(train, row, space, **kept, on_chunk=cut_at(call))
    same(search(train, row, space, **kept), found)


WRONG_RUNGS = [
    (Extrapolation(()), ValueError, "rungs: expected epochs that increase and stay below 9"),
    (Extrapolation((2, 5)), ValueError, r"rungs\[0\]: expected at least 3 epochs to extrapolate from, got 2"),
    (Extrapolation((3, 9)), ValueError, "rungs: expected epochs that increase and stay below 9"),
    (Extrapolation((3,), level=0.0), ValueError, "level: expected a finite number above 0 and below 1, got 0"),
]


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize(("method", "error", "message"), WRONG_RUNGS)
def test_wrong_rungs_and_levels_are_said_before_anything_is_trained(row, method, error, message, budget, monkeypatch):
    monkeypatch.setattr(nnfx.search.training, "Together", None)
    train, _ = of_table(EPOCHS, 12)
    with pytest.raises(error, match=message):
        search(train, row, {"row": Uniform(0.0, 11.0)}, points=2, method=method, budget=budget, **FAST)


def test_the_best_point_of_each_descent_is_trained(row):
    given = {**FAST, "method": HyperGradient(steps=30, rate=0.05)}
    found = search(of_quadratic(), row, {"x": Uniform(-1.0, 4.0)}, points=3, **given)
    assert len(found.points) == 3
    np.testing.assert_allclose([point["x"] for point in found.points], 1.0, atol=0.05)
    np.testing.assert_allclose([row["valid_loss"] for row in found.rows], 0.1, atol=0.003)


def test_a_search_that_was_killed_ends_with_the_same_bits(data, tmp_path):
    given = {"points": 3, "method": HyperGradient(steps=3), **FAST}
    found = search(make, data, SPACE, **given)
    starts = search(make, data, SPACE, points=3, **FAST)
    assert [point["width"] for point in found.points] == [point["width"] for point in starts.points]
    losses = [{row["point"]: row["valid_loss"] for row in each.rows} for each in (found, starts)]
    assert all(losses[0][number] <= losses[1][number] + 1e-6 for number in range(3))
    assert any(losses[0][number] < losses[1][number] - 1e-4 for number in range(3))
    kept = {**given, "out": tmp_path, "progress": False, "save_every_seconds": 0}
    for _ in range(2):  # during the descent, and then during the training of the best points
        with pytest.raises(CutError):
            search(make, data, SPACE, **kept, on_chunk=cut_at(2))
    same(search(make, data, SPACE, **kept), found)
    assert {path.name for path in tmp_path.iterdir()} >= {"descent", "members.csv"}
    with pytest.raises(ValueError, match="expected the search saved there, got a different one"):
        search(make, data, SPACE, **{**kept, "method": HyperGradient(steps=3, rate=0.1)})


def looping():
    """Return a model with a loop that cannot be differentiated."""
    inner = nnfx.models.mlp((2,))

    def apply(variables, inputs, **options):
        inputs = jax.lax.while_loop(lambda x: (x < 0).all(), lambda x: x + variables["params"]["shift"], inputs)
        return inner.apply({"params": variables["params"]["inner"]}, inputs, **options)

    def init(key, inputs):
        return {"params": {"inner": inner.init(key, inputs)["params"], "shift": jnp.ones(())}}

    return nnfx.Model(init, apply)


RATE = {"learning_rate": LogUniform(0.01, 1.0), "l2": Choice(0.1), "noise": Choice(0.1)}
WRONG = [
    ({"method": HyperGradient(0)}, ValueError, "steps: expected a positive integer, got 0"),
    ({"method": HyperGradient(1)}, ValueError, "steps: expected at least 2, .*, got 1"),
    ({"method": HyperGradient(2, 0.0)}, ValueError, "rate: expected a finite number above 0, got 0"),
    ({"devices_per_member": 2}, ValueError, "devices_per_member: expected 1 with HyperGradient, got 2"),
    ({"points": None}, TypeError, "points: expected the number to draw, Grid.*, got none"),
    ({"points": 2, "budget": 100}, TypeError, "points: expected None, since the budget determines how many"),
    ({"points": None, "budget": 13}, ValueError, "budget: expected at least 14 member-epochs, .*2 steps .*, got 13"),
    ({"space": None}, TypeError, "space: expected ranges by name"),
    (
        {"space": {**RATE, "learning_rate": Choice(0.1, 0.2), "width": Integer(1, 2)}},
        TypeError,
        "space: expected Uniform or LogUniform for at least one hyper-parameter .*, got learning_rate, l2, noise with",
    ),
    (
        {"space": {**RATE, "noise": Uniform(-1.0, 5.0)}, "points": [{}]},
        TypeError,
        r"points: expected the number to draw or Grid.*, since method is HyperGradient, got",
    ),
    ({"space": {**RATE, "noise": Uniform(-1.0, 1e9)}}, ValueError, "noise: expected .* at least 0, got -"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_wrong_descents_are_said_before_anything_is_trained(data, changed, error, message, monkeypatch):
    monkeypatch.setattr(nnfx.search.training.Trainer, "descend", None)
    given = {"space": RATE, "points": 2, "method": HyperGradient(2), **FAST, **changed}
    with pytest.raises(error, match=message):
        search(make, data, given.pop("space"), **given)


def test_runs_that_cannot_be_differentiated_are_errors(data, monkeypatch):
    monkeypatch.setattr(nnfx.search.training.Trainer, "descend", None)
    given = {"points": 2, "method": HyperGradient(2), **FAST}
    with pytest.raises(ValueError, match="make: expected runs without stopping rules, since .*, got patience"):
        search(make(stop=functools.partial(nnfx.stopping.patience, patience=3)), data, RATE, **given)
    with pytest.raises(ValueError, match="make: expected runs that can be differentiated, got one with jax.lax.while"):
        search(make(model=looping()), data, RATE, **given)
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    with pytest.raises(ValueError, match="data.valid: expected held-out data to rank points by, got none"):
        search(make, whole, RATE, **given)
