"""What the figures of a search draw, read back from their axes."""

import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.search import figures
from nnfx.search.effects import Curve, Effects
from nnfx.sweeps import Population
from tests.search.made import search_of, sweep_of

pytest.importorskip("matplotlib")

POINTS = [
    {"act": "tanh", "rate": 0.001},
    {"act": "relu", "rate": 0.01, "l2": 0.5},
    {"act": "tanh", "rate": 0.1},
    {"act": "relu", "rate": 1.0, "l2": 1.0},
]
LOSSES = np.array([[4.0, 2.0, 3.0, 1.0], [4.0, 2.5, 3.0, 1.0]])


@pytest.fixture(scope="module")
def found():
    return search_of(POINTS, LOSSES, static=("act",))


def lines_of(axis):
    return {line.get_label(): np.array(line.get_ydata()) for line in axis.lines}


def test_parallel_coordinates_have_a_line_for_each_point(found):
    (axis,) = figures.parallel_coordinates(found).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["act", "rate", "l2", "held-out loss"]
    heights = [line.get_ydata() for line in axis.lines if len(line.get_xdata()) == 4]
    for line, point in zip(heights, (0, 2, 1, 3), strict=True):  # the best last
        assert line[0] == ("relu", "tanh").index(POINTS[point]["act"])
        np.testing.assert_allclose(line[1], np.log10(POINTS[point]["rate"]) / 3 + 1)
        assert line[2] == (figures.ABSENT if point in (0, 2) else POINTS[point]["l2"] * 2 - 1)
        np.testing.assert_allclose(line[3], (LOSSES[:, point].mean() - 1) / 3)
    assert "absent" in [text.get_text() for text in axis.texts]


def test_the_best_so_far_is_drawn_against_the_epochs_spent(found):
    (axis,) = figures.best_so_far(found).axes
    line = next(line for line in axis.lines if line.get_label() == "best so far")
    np.testing.assert_array_equal(line.get_xdata(), [6, 12, 18, 24])  # two seeds of three epochs each
    np.testing.assert_array_equal(line.get_ydata(), [4.0, 2.25, 2.25, 1.0])


def test_points_that_failed_or_were_dropped_are_never_the_best_so_far():
    reasons = ["epochs", "dropped", "epochs", "epochs"]
    made = search_of([{"rate": rate} for rate in (1.0, 2.0, 3.0, 4.0)], [[3.0, 1.0, np.nan, 2.0]], reasons=reasons)
    (axis,) = figures.best_so_far(made).axes
    line = next(line for line in axis.lines if line.get_label() == "best so far")
    np.testing.assert_array_equal(line.get_ydata(), [3.0, 3.0, 3.0, 2.0])


def test_large_scores_may_be_the_best():
    means = np.array([0.2, np.nan, 0.9, 0.5])
    assert figures.best_until(means, True).tolist() == [0, 0, 2, 2]
    made = sweep_of({"rate": [1.0, 2.0]}, [[0.2, 0.9]]).sort("valid_loss", largest_first=True)
    (axis,) = figures.parallel_coordinates(made).axes
    last = [line for line in axis.lines if len(line.get_xdata()) == 2][:2][-1]
    assert last.get_ydata().tolist()[-1] == 0.0, "good is at the bottom"


def test_importance_and_dependence_draw_the_numbers_of_the_effects():
    curves = {
        "rate": Curve(np.logspace(-4, 0, 5).tolist(), np.arange(5.0), np.full(5, 0.1), True),
        "act": Curve(["relu", "tanh"], np.array([1.0, 2.0]), np.array([0.1, 0.2]), False),
    }
    shares = [("rate", 0.7), ("act", 0.2), ("interactions", 0.1)]
    rows = [{"name": name, "share": share, "standard_error": 0.2} for name, share in shares]
    given = Effects(rows, curves, 0.8, "valid_loss")
    (axis,) = figures.importance(given).axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [70, 20, 10])
    first, second = figures.partial_dependence(given).axes[:2]
    assert (first.get_xlabel(), first.get_xscale(), second.get_xlabel()) == ("rate", "log", "act")
    np.testing.assert_array_equal(first.lines[0].get_ydata(), np.arange(5.0))
    assert [label.get_text() for label in second.get_xticklabels()] == ["relu", "tanh"]


def test_the_lineage_follows_the_ancestors_of_the_best_member():
    parents = jnp.array([[0, 1, 2], [0, 0, 2], [0, 1, 1]])
    rates = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    losses = jnp.array([[3.0, 3.0, 3.0], [2.0, 2.0, 2.0], [1.5, 1.0, 0.5]])
    axes = figures.lineage(Population(None, {"rate": rates}, parents, losses, 2)).axes
    assert [axis.get_title() for axis in axes] == ["rate", "held-out loss"]
    best = next(line for line in axes[0].lines if line.get_label() == "of the best member")
    np.testing.assert_array_equal(best.get_xdata(), [2, 4, 6])
    np.testing.assert_array_equal(best.get_ydata(), [1.0, 5.0, 9.0])
    assert lines_of(axes[1])["of the best member"].tolist() == [3.0, 2.0, 0.5]
    with pytest.raises(TypeError, match="members: expected the result of nnfx.sweeps.population, got 3"):
        figures.lineage(3)
