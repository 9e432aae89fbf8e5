"""The time that a search has used, by a clock that stands still between the lines of a test."""

import json

import pytest

from nnfx.search import Seconds, stopwatch
from nnfx.search.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        time = 1000.0

        def __call__(self):
            return self.time

    clock = Clock()
    monkeypatch.setattr(stopwatch, "now", clock)
    return clock


def test_a_round_begins_if_it_fits_by_the_pace_of_the_one_before(clock):
    watch = Stopwatch(Seconds(100.0), None)
    clock.time += 200
    assert watch.begin(0, 10), "the first always begins"
    watch.end(0, 10)
    assert not watch.begin(1, 1), "there is no time left"
    watch = Stopwatch(Seconds(100), None)
    assert watch.begin(0, 10)
    clock.time += 60
    watch.end(0, 10)
    assert watch.begin(1, 6)  # 60 + 6 · 6 ≤ 100
    clock.time += 12
    watch.end(1, 6)
    assert watch.begin(2, 14)  # 72 + 14 · 2 = 100
    clock.time += 1
    watch.end(2, 14)
    assert not watch.begin(3, 1000)
    assert not watch.begin(4, 1e-3), "the end is final"


def test_a_killed_search_goes_on_with_the_time_that_is_left(clock, tmp_path):
    watch = Stopwatch(Seconds(100), tmp_path)
    assert watch.begin(0, 1)
    clock.time += 30
    watch.end(0, 1)
    assert watch.begin(1, 1)
    clock.time += 20
    watch.tick()
    clock.time += 0.5
    watch.tick()  # not due
    clock.time += 1e6  # killed meanwhile
    watch = Stopwatch(Seconds(100), tmp_path)
    assert watch.begin(0, 1)
    assert watch.begin(1, 1)
    assert watch.seconds == 50
    clock.time += 10
    watch.end(0, 1)
    watch.end(1, 1)
    assert json.loads((tmp_path / "rounds" / "rounds.json").read_text()) == {
        "seconds": 60.0,
        "rounds": [{"began": 0.0, "seconds": 30.0, "cost": 1}, {"began": 30.0, "seconds": 30.0, "cost": 1}],
        "is_over": False,
    }
    assert watch.begin(2, 1)  # 60 + 30 ≤ 100
    clock.time += 30
    watch.end(2, 1)
    assert not watch.begin(3, 1)
    written = (tmp_path / "rounds" / "rounds.json").read_bytes()
    again = Stopwatch(Seconds(100), tmp_path)
    assert [again.begin(number, 1) for number in range(5)] == [True, True, True, False, False]
    clock.time += 100
    again.end(2, 1)
    again.tick()
    assert (tmp_path / "rounds" / "rounds.json").read_bytes() == written, "a finished search changes nothing"


def test_all_that_share_a_search_follow_the_first_decision(clock, tmp_path):
    first, second = (Stopwatch(Seconds(100), tmp_path) for _ in range(2))
    assert first.begin(0, 1)
    assert second.begin(0, 1)
    clock.time += 40
    first.end(0, 1)
    assert first.begin(1, 1)
    clock.time += 50
    assert second.begin(1, 1), "by its own clock there is no time, but the first has begun"
    second.end(1, 1)
    assert not second.begin(2, 1)
    assert not first.begin(2, 1)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "rounds.json").write_text("[]")
    with pytest.raises(ValueError, match=r"rounds.json: could not read the time that the search has used"):
        Stopwatch(Seconds(1), tmp_path).begin(0, 1)
