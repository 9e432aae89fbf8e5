import itertools

import pytest

from nnfx.training import driver


class Counting:
    """A program that counts to a hundred and records its calls; it may end from 90 on."""

    total, longest, pause_every = 100, 40, None

    def __init__(self, ends_at=100):
        self.ends_at, self.calls = ends_at, []

    def start(self):
        return 0

    def advance(self, state, until, clock):
        self.calls.append((state, until, float(clock.seconds), float(clock.pace)))
        return min(until, self.ends_at)

    def done(self, state):
        return state

    def has_ended(self, state):
        return state >= self.ends_at


@pytest.fixture
def second_by_second(monkeypatch):
    """Make each reading of the clock a hundredth of a second later."""
    ticks = itertools.count()
    monkeypatch.setattr(driver.time, "monotonic", lambda: next(ticks) / 100)


def test_pieces_at_most_double_once_the_first_is_timed(second_by_second):
    program = Counting()
    seen = [each.done for each in driver.drive(program, program.start())]
    assert seen == [1, 2, 4, 8, 16, 32, 64, 100]


def test_they_end_at_every_pause_and_are_never_too_long(second_by_second):
    program = Counting()
    program.pause_every = 30
    assert {30, 45, 60, 90} <= {each.done for each in driver.drive(program, 0, pause_every=(45,))}
    program = Counting()
    assert [each.done for each in driver.drive(program, 0, is_hurried=False)] == [40, 80, 100]


def test_the_clock_goes_on_from_the_seconds_before(second_by_second):
    program = Counting()
    *_, last = driver.drive(program, 0, seconds=5.0)
    assert program.calls[0][2:] == (5.0, 0.0)
    assert all(seconds > 5 for _, _, seconds, _ in program.calls[1:])
    assert program.calls[1][3] == 0, "the first piece is compiled while it is timed"
    assert all(pace > 0 for *_, pace in program.calls[2:])
    assert last.seconds > 5


def test_what_has_ended_is_not_advanced():
    assert list(driver.drive(Counting(), 100)) == []
    *_, last = driver.drive(Counting(ends_at=7), 0)
    assert last.done == 7
