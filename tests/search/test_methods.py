"""Hyperband's brackets against the published table."""

import itertools

import pytest

from nnfx.search import Hyperband

# Li et al. 2018, table 1: points and epochs of each bracket for R = 81 and η = 3
TABLE = [
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(34, 3), (11, 9), (3, 27), (1, 81)],
    [(15, 9), (5, 27), (1, 81)],
    [(8, 27), (2, 81)],
    [(5, 81)],
]


def test_brackets_are_those_of_the_paper():
    brackets = Hyperband(eta=3).brackets(81)
    for bracket, stages in zip(brackets, TABLE, strict=True):
        assert bracket.points == stages[0][0]
        rungs = {epochs: kept for (_, epochs), (kept, _) in itertools.pairwise(stages)}
        assert bracket.quotas == rungs


def test_each_bracket_takes_about_as_many_epochs():
    """The budget of a bracket is (s_max + 1) R, here 5 · 81, up to rounding."""
    for bracket in Hyperband(eta=3).brackets(81):
        begun = [bracket.points, *bracket.quotas.values()]
        ended = [*bracket.quotas, 81]
        spent = sum(n * r for n, r in zip(begun, ended, strict=True))
        assert 0.75 * 5 * 81 <= spent <= 1.1 * 5 * 81


@pytest.mark.parametrize(("epochs", "min_epochs", "eta"), [(60, 1, 3), (100, 5, 2), (7, 2, 2), (3, 3, 3)])
def test_rungs_increase_and_stay_within_the_run_for_any_number_of_epochs(epochs, min_epochs, eta):
    for bracket in Hyperband(min_epochs, eta).brackets(epochs):
        rungs, kept = list(bracket.quotas), list(bracket.quotas.values())
        assert rungs == sorted(set(rungs))
        assert all(min_epochs <= rung < epochs for rung in rungs)
        assert [bracket.points, *kept] == sorted([bracket.points, *kept], reverse=True)
        assert all(kept)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Hyperband(0), "min_epochs: expected a positive integer, got 0"),
        (Hyperband(9), "min_epochs: expected at most 8, the epochs of a run, got 9"),
        (Hyperband(1, 1), "eta: expected at least 2, got 1"),
    ],
)
def test_wrong_numbers_are_errors(method, message):
    with pytest.raises(ValueError, match=message):
        method.brackets(8)
