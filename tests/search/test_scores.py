"""The scores of points: those of the table of runs, with failed and outlying ones moved to a fence."""

import dataclasses

import numpy as np
import pytest

from nnfx.search.scores import Scores, is_number
from tests.search.made import search_of, sweep_of

POINTS = [
    {"activation": "tanh", "rate": 0.1, "width": 8},
    {"activation": "relu", "rate": 0.2, "l2": 0.01, "width": 8},
    {"activation": "tanh", "rate": 0.3, "width": 8},
]
VALUES = np.array([[3.0, 1.0, np.nan], [4.0, 2.0, 0.5]])


def test_scores_of_a_search_are_in_the_order_of_its_points():
    scores = Scores.of(search_of(POINTS, VALUES, static=("activation",)))
    np.testing.assert_array_equal(scores.values, VALUES)
    np.testing.assert_array_equal(scores.mean, [3.5, 1.5, np.nan])
    np.testing.assert_array_equal(scores.epochs, [6, 6, 6])
    assert scores.names == ("activation", "rate", "l2"), "the width is the same everywhere"
    assert scores.of_name("l2") == [None, 0.01, None]
    assert (scores.metric, scores.largest_first) == ("valid_loss", False)


def test_scores_of_a_sweep_are_those_of_its_points():
    scores = Scores.of(sweep_of({"rate": np.array([0.1, 0.2, 0.3])}, VALUES))
    np.testing.assert_array_equal(scores.values, VALUES)
    assert [point["rate"] for point in scores.points] == [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(scores.epochs, [6, 6, 6])


@pytest.mark.parametrize("sign", [1, -1])
def test_outliers_and_failures_move_to_tukeys_fence(sign):
    scores = Scores.of(sweep_of({"rate": np.arange(6.0)}, np.zeros((1, 6))))
    values = sign * np.array([1.0, 2.0, 3.0, 4.0, 1000.0, np.nan])
    # the quartiles of 1, 2, 3, 4, 1000 are 2 and 4
    clipped = dataclasses.replace(scores, largest_first=sign < 0).clipped(values)
    np.testing.assert_allclose(clipped, sign * np.array([1.0, 2.0, 3.0, 4.0, 10.0, 10.0]))
    with pytest.raises(ValueError, match="found: expected a point whose runs all ended with finite scores, got none"):
        scores.clipped(np.full(6, np.nan))


def test_only_searches_and_sweeps_with_different_points_have_scores():
    with pytest.raises(TypeError, match="found: expected the result of a search or a sweep, got 3"):
        Scores.of(3)
    with pytest.raises(ValueError, match="found: expected points that differ, got 2 equal points"):
        Scores.of(sweep_of({"rate": np.array([0.1, 0.1])}, np.zeros((1, 2))))


def test_numbers_are_told_from_other_values():
    assert is_number([np.float32(1), 2])
    assert not is_number([1.0, "tanh"])
    assert not is_number([np.True_, 1.0])
