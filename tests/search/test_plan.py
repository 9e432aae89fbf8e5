"""The rounds that a budget pays for, counted by hand."""

import itertools

import optax
import pytest

import nnfx
from nnfx.search import Halving, Hyperband, Uniform
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
