"""The rounds that a budget pays for, counted by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice, Halving, Hyperband, Uniform
from nnfx.search.plan import rounds
from nnfx.search.programs import Maker
from tests.search.searches import KEY


def make():
    return nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=4)


@pytest.mark.parametrize(
    ("given", "names", "epochs"),
    [
        ({"points": 2}, ["round-000", "round-001"], [4] * 4),
        ({}, [""], [4] * 5),
        ({"method": Halving((1, 2), 0.5)}, [""], [1] * 5 + [2] * 3 + [4] * 2),
        ({"points": 4, "method": Halving((1, 2), 0.5)}, ["round-000", "round-001"], [1] * 4 + [2] * 2 + [4] * 2),
        ({"method": Hyperband(1, 2)}, ["bracket-2", "bracket-1"], [1] * 2 + [2] * 3 + [4] * 2),
    ],
)
def test_a_budget_decides_how_many_rounds_are_trained(given, names, epochs):
    """Counted by hand for runs of 4 epochs and a budget of 20."""
    planned = rounds(
        Maker(make), KEY, {"learning_rate": Uniform(0.1, 1.0)}, given.get("points"), given.get("method"), 20, 1
    )
    assert [each.name for each in planned] == names
    spent = []
    for each in planned:
        kept = {} if each.dropping is None else each.dropping.by_rung
        sizes = [len(each.points), *kept.values(), 0]
        for rung, (size, smaller) in zip([*kept, 4], itertools.pairwise(sizes), strict=True):
            spent += [rung] * (size - smaller)
    assert sorted(spent) == epochs
    assert sum(spent) <= 20


@pytest.mark.parametrize("method", [None, Halving((1, 2), 0.5), Hyperband(1, 2)])
def test_no_round_repeats_a_point_of_an_earlier_one(method):
    """The space has five points; as many as that are trained, whatever the budget."""
    space = {"learning_rate": Choice(0.1, 0.2, 0.3, 0.4, 0.5)}
    points = None if isinstance(method, Hyperband) else 2
    planned = rounds(Maker(make), KEY, space, points, method, 200, 1)
    tried = [point["learning_rate"] for each in planned for point in each.points]
    assert sorted(tried) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(each.points for each in planned)


def test_numbers_of_numpy_and_jax_are_numbers():
    values = [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), jnp.float32(0.5)]
    [planned] = rounds(Maker(make), KEY, None, [{"learning_rate": value} for value in values], None, None, 1)
    assert planned.points == [{"learning_rate": 0.5}]
