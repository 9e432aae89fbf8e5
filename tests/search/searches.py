"""Helpers for the tests of searches."""

from tests.sessions.sessions import CutError, bits


def same(first, second):
    assert [list(map(str, row.values())) for row in first.rows] == [list(map(str, row.values())) for row in second.rows]
    for one, other in zip(first.sweeps, second.sweeps, strict=True):
        assert bits((one.variables, one.histories)) == bits((other.variables, other.histories))


def cut_at(call):
    """Return a function that ends a search like a kill when it is called for this time."""
    calls = []

    def look(progress):
        calls.append(progress)
        if len(calls) == call:
            raise CutError

    return look
