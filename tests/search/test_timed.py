"""Searches with a budget of seconds, by a clock that ticks once per epoch."""

import numpy as np
import pytest

from nnfx.search import (
    Ask,
    Choice,
    Extrapolation,
    Grid,
    Halving,
    Hyperband,
    HyperGradient,
    Seconds,
    Uniform,
    search,
    stopwatch,
)
from nnfx.sweeps.members import Members
from tests.search.searches import FAST, of_table, one_row, same
from tests.sessions.sessions import CutError

EPOCHS = 9
SPACE = {"row": Uniform(0.0, 11.0)}
ROW = one_row()


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on by a second for each epoch of a table; `clock.cut` is called before each piece."""

    class Clock:
        time, epochs = 0.0, 0

        def __call__(self):
            return self.time

        def cut(self):
            pass

    clock, before = Clock(), Members.advance

    def advance(self, table, until, times):
        clock.cut()
        clock.time, clock.epochs = clock.time + until - table.done, clock.epochs + until - table.done
        return before(self, table, until, times)

    monkeypatch.setattr(stopwatch, "now", clock)
    monkeypatch.setattr(Members, "advance", advance)
    return clock


@pytest.fixture(scope="module")
def train():
    return of_table(EPOCHS, 12)[0]


@pytest.mark.parametrize(
    ("given", "seconds", "rounds", "epochs"),
    [
        ({"points": 2}, 30, 3, 54),
        ({"points": 2}, 26.9, 2, 36),
        ({"points": 2}, 1e-3, 1, 18),
        ({"points": 4, "method": Halving((1, 3), 0.5)}, 20, 2, 2 * (4 + 2 * 2 + 6)),
        # brackets of 9, 5 and 3 points: each takes 9 s, and 21, 21 and 27 epochs of points
        ({"method": Hyperband(1, 3)}, 17.99, 1, 21),
        ({"method": Hyperband(1, 3)}, 18 + 9 / 21 * 27 - 0.01, 2, 21 + 21),
        ({"method": Hyperband(1, 3)}, 18 + 9 / 21 * 27 + 0.01, 3, 21 + 21 + 27),
    ],
)
def test_rounds_are_trained_as_long_as_another_fits(train, clock, given, seconds, rounds, epochs):
    found = search(train, ROW, SPACE, budget=Seconds(seconds), **given, **FAST)
    assert clock.time == 9 * rounds
    assert len(found.sweeps) == rounds
    assert sum(row["epochs"] for row in found.rows) == epochs
    budgeted = search(train, ROW, SPACE, budget=epochs, **given, **FAST)
    same(found, budgeted)


def test_a_killed_search_has_the_rest_of_its_time_and_finished_rounds_keep_their_bits(train, clock, tmp_path):
    given = {"points": 2, "budget": Seconds(28.5), **FAST}
    whole = search(train, ROW, SPACE, **given)
    assert len(whole.sweeps) == 3, "27 seconds"

    def cut():
        if clock.time == start + 10:  # in the second epoch of the second round, whose first is not saved
            raise CutError

    start, clock.cut, kept = clock.time, cut, {**given, "out": tmp_path, "progress": False}
    with pytest.raises(CutError):
        search(train, ROW, SPACE, **kept)
    clock.time, clock.cut = 1e6, lambda: None
    found = search(train, ROW, SPACE, **kept)
    assert len(found.sweeps) == 2, "the round that was cut took 10 seconds, and 19 + 10 is more than 28.5"
    assert found.points == whole.points[:4]
    for one, other in zip(found.sweeps, whole.sweeps[:2], strict=True):
        assert one.histories["valid_loss"].tobytes() == other.histories["valid_loss"].tobytes()
    epochs = clock.epochs
    same(search(train, ROW, SPACE, **kept), found)
    assert clock.epochs == epochs, "what has finished is only loaded"
    with pytest.raises(ValueError, match=r"budget: expected Seconds\(seconds=28.5\), got Seconds\(seconds=29\)"):
        search(train, ROW, SPACE, **{**kept, "budget": Seconds(29)})


def test_rounds_of_an_extrapolation_are_compared_with_those_before(train, clock):
    given = {"points": 4, "method": Extrapolation((3, 6), level=0.3)}
    found = search(train, ROW, SPACE, budget=Seconds(20), **given, **FAST)
    spent = sum(row["epochs"] for row in found.rows)
    assert spent < 8 * EPOCHS, "some points were dropped"
    budgeted = search(train, ROW, SPACE, budget=2 * 4 * EPOCHS, **given, **FAST)
    ends = {row["point"]: row["epochs"] for row in found.rows}
    assert [ends[number] for number in range(8)] == [
        {row["point"]: row["epochs"] for row in budgeted.rows}[number] for number in range(8)
    ]


def test_batches_of_a_sampler_are_trained_as_long_as_another_fits(train, clock, tmp_path):
    optuna = pytest.importorskip("optuna")
    method = Ask(optuna.samplers.RandomSampler(seed=0), batch=2)
    found = search(train, ROW, SPACE, budget=Seconds(20), method=method, out=tmp_path, progress=False, **FAST)
    assert clock.time == 18
    same(found, search(train, ROW, SPACE, points=4, method=method, **FAST))
    same(search(train, ROW, SPACE, budget=Seconds(20), method=method, out=tmp_path, progress=False, **FAST), found)


def test_a_space_without_new_points_ends_the_search(train, clock):
    optuna = pytest.importorskip("optuna")
    few = {"row": Choice(1.0, 2.0, 3.0)}
    for given in ({"points": 2}, {"method": Ask(optuna.samplers.RandomSampler(seed=0), batch=2)}):
        found = search(train, ROW, few, budget=Seconds(1e9), **given, **FAST)
        assert sorted(point["row"] for point in found.points) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": Seconds(0)}, ValueError, r"budget.seconds: expected a finite number above 0, got 0"),
        ({"budget": Seconds(np.inf)}, ValueError, r"budget.seconds: expected a finite number above 0, got inf"),
        ({"budget": Seconds("60")}, TypeError, r"budget.seconds: expected a number, got '60'"),
        ({"budget": Seconds("a minute")}, TypeError, r"budget.seconds: expected a number, got 'a minute'"),
        ({"budget": Seconds(None)}, TypeError, r"budget.seconds: expected a number, got None"),
        ({"points": None}, TypeError, "points: expected a positive integer, got None"),
        ({"points": Grid(2)}, TypeError, "points: expected a positive integer, got Grid"),
        ({"method": Hyperband()}, TypeError, "points: expected None, since Hyperband determines how many"),
        (
            {"method": HyperGradient()},
            TypeError,
            "method: expected Halving, .* or None with Seconds, since .* no rounds, got HyperGradient",
        ),
        ({"method": "halving"}, TypeError, "method: expected Halving, Hyperband, Extrapolation, Ask or None"),
        ({"method": Halving((9,))}, ValueError, "rungs: expected epochs that increase and stay below 9"),
        ({"method": Extrapolation((2,))}, ValueError, r"rungs\[0\]: expected at least 3 epochs"),
    ],
)
def test_wrong_budgets_are_said_before_anything_is_trained(train, clock, given, error, message):
    with pytest.raises(error, match=message):
        search(train, ROW, SPACE, **{"points": 2, "budget": Seconds(10), **given, **FAST})
    assert clock.time == 0
