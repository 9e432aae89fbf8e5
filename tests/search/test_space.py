"""What is drawn from a space, against the distributions of SciPy, and what a space may not be."""

import collections
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from nnfx.search import Choice, Integer, LogUniform, Normal, Uniform, When, draw, grid
from nnfx.search.programs import distinct
from nnfx.search.space import check, quantile, same

KEY = jax.random.key(3)
COUNT = 2000


@pytest.mark.parametrize(
    ("first", "second", "are_same"),
    [
        (np.ones(3000), np.where(np.arange(3000) == 1000, 2.0, 1.0), False),  # printed alike
        (np.ones(3), np.ones(3), True),
        (np.ones(3), np.ones(3, np.float32), False),
        ((True,), (1,), False),
        ([8, 8], [8, 8], True),
        ([8, 8], (8, 8), False),
        ({"a": [1]}, {"a": [1]}, True),
    ],
)
def test_different_members_are_different_points(first, second, are_same):
    assert same(first, second) is are_same
    assert len(distinct([{"name": first}, {"name": second}])) == (1 if are_same else 2)
    space = {"name": Choice(first), "inner": When("name", first, Choice(1))}
    check(space)


@pytest.fixture(scope="module")
def drawn():
    space = {
        "uniform": Uniform(-2.0, 5.0),
        "log": LogUniform(1e-4, 10.0),
        "normal": Normal(3.0, 0.5),
        "whole": Integer(2, 6),
        "word": Choice("a", "b", "c"),
    }
    points = draw(KEY, COUNT, space)
    assert list(points[0]) == list(space)
    return {name: [point[name] for point in points] for name in space}


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("uniform", stats.uniform(-2.0, 7.0)),
        ("log", stats.loguniform(1e-4, 10.0)),
        ("normal", stats.norm(3.0, 0.5)),
    ],
)
def test_numbers_have_the_distributions_of_scipy(drawn, name, distribution):
    assert stats.kstest(drawn[name], distribution.cdf).pvalue > 0.01
    assert stats.kstest(drawn[name], stats.uniform(-2.0, 7.1).cdf).pvalue < 0.01 or name == "uniform"
    for share in (0.001, 0.3, 0.999):
        given = {"uniform": Uniform(-2.0, 5.0), "log": LogUniform(1e-4, 10.0), "normal": Normal(3.0, 0.5)}[name]
        np.testing.assert_allclose(quantile(given, share), distribution.ppf(share), rtol=1e-12)


@pytest.mark.parametrize(("name", "members"), [("whole", [2, 3, 4, 5, 6]), ("word", ["a", "b", "c"])])
def test_members_are_equally_likely(drawn, name, members):
    counts = collections.Counter(drawn[name])
    assert sorted(counts) == members
    assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert {type(value) for value in drawn[name]} == {type(members[0])}


def test_names_are_drawn_independently(drawn):
    numbers = {name: drawn[name] for name in ("uniform", "log", "normal", "whole")}
    for first, second in itertools.combinations(numbers, 2):
        assert abs(stats.spearmanr(numbers[first], numbers[second]).statistic) < 4 / COUNT**0.5, (first, second)


def test_values_depend_on_the_key_the_name_and_the_place_alone():
    rate = LogUniform(1e-3, 1.0)
    alone = draw(KEY, 5, {"rate": rate})
    assert alone == draw(KEY, 5, {"rate": rate})
    more = draw(KEY, 9, {"width": Choice(1, 2), "rate": rate, "l2": When("width", 1, Uniform(0, 1))})
    assert [point["rate"] for point in more[:5]] == [point["rate"] for point in alone]
    assert len({point["rate"] for point in more}) == 9
    other = draw(jax.random.key(4), 5, {"rate": rate})
    renamed = draw(KEY, 5, {"speed": rate})
    assert not {point["rate"] for point in other} & {point["rate"] for point in alone}
    assert not {point["speed"] for point in renamed} & {point["rate"] for point in alone}


def test_conditions_decide_which_names_there_are():
    space = {
        "slope": When("activation", "leaky", When("depth", 2, Uniform(0.0, 1.0))),
        "activation": When("depth", 2, Choice("tanh", "leaky")),
        "depth": Integer(1, 2),
        "sharp": When("activation", "tanh", Choice(True)),
    }
    points = draw(KEY, 200, space)
    kinds = collections.Counter(tuple(point) for point in points)
    assert set(kinds) == {("depth",), ("slope", "activation", "depth"), ("activation", "depth", "sharp")}
    for point in points:
        assert ("activation" in point) is (point["depth"] == 2)
        assert ("slope" in point) is (point.get("activation") == "leaky")
    assert stats.binomtest(kinds[("depth",)], 200, 0.5).pvalue > 0.01
    assert check(space).index("depth") < check(space).index("activation") < check(space).index("slope")


def test_a_grid_is_every_combination_of_what_is_active():
    space = {
        "kind": Choice("plain", "decayed"),
        "rate": LogUniform(0.01, 1.0),
        "decay": When("kind", "decayed", Uniform(0.0, 1.0)),
        "layers": Integer(1, 2),
        "shift": Normal(0.0, 1.0),
    }
    points = grid(3, space)
    assert len(points) == 3 * 2 * 3 * (1 + 3)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    np.testing.assert_allclose(sorted({point["rate"] for point in points}), [0.01, 0.1, 1.0])
    np.testing.assert_allclose(
        sorted({point["shift"] for point in points}), stats.norm.ppf([1 / 6, 1 / 2, 5 / 6]), atol=1e-12
    )
    assert {point["decay"] for point in points if "decay" in point} == {0.0, 0.5, 1.0}
    assert all(("decay" in point) is (point["kind"] == "decayed") for point in points)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ([Choice(1)], TypeError, "space: expected ranges by name"),
        ({}, ValueError, "space: expected at least one range, got none"),
        ({1: Choice(1)}, TypeError, "space: expected names as keys, got 1"),
        (
            {"width": 8},
            TypeError,
            "width: expected Choice, .*, got 8; pass several values as Choice",
        ),
        ({"width": Choice()}, ValueError, "width: expected a Choice with at least one member, got none"),
        ({"width": Integer(8, 8)}, ValueError, "width.high: expected a finite number above 8, got 8"),
        ({"width": Integer(1.0, 8)}, TypeError, "width.low: expected a whole number, got 1.0"),
        ({"shift": Normal(0.0, 0.0)}, ValueError, "shift.sd: expected a finite number above 0, got 0"),
        ({"rate": Uniform(2.0, 1.0)}, ValueError, "rate.high: expected a finite number above 2, got 1"),
        ({"rate": LogUniform(0.0, 1.0)}, ValueError, "rate.low: expected a finite number above 0, got 0"),
        ({"l2": When("size", 1, Choice(1)), "width": Choice(1)}, ValueError, "l2: When.name: expected one of .*'size'"),
        ({"l2": When("a", 3, Choice(1)), "a": Choice(1, 2)}, ValueError, "l2: When.member: .* value of a, .*, got 3"),
        ({"l2": When("a", True, Choice(1)), "a": Choice(1, 2)}, ValueError, "l2: When.member: .*, got True"),
        ({"l2": When("a", 9, Choice(1)), "a": Integer(1, 2)}, ValueError, "l2: When.member: .*, got 9"),
        ({"l2": When("a", 1.0, Choice(1)), "a": Uniform(0, 2)}, TypeError, "l2: When.name: .* a Choice or an Integer"),
        ({"l2": When("a", 1, Uniform(2, 1)), "a": Choice(1)}, ValueError, "l2.high: expected .* above 2, got 1"),
        (
            {"b": When("a", 1, Choice(1)), "a": When("b", 1, Choice(1))},
            ValueError,
            "b: expected conditions without a cycle, got b → a → b",
        ),
        ({"a": When("a", 1, Choice(1))}, ValueError, "a: expected conditions without a cycle, got a → a"),
    ],
)
def test_a_wrong_space_is_an_error_that_names_the_entry(space, error, message):
    for use in (lambda: draw(KEY, 2, space), lambda: grid(2, space)):
        with pytest.raises(error, match=f"^{message}"):
            use()


def test_other_wrong_arguments_are_errors():
    with pytest.raises(TypeError, match="key: expected a typed key"):
        draw(0, 2, {"a": Choice(1)})
    with pytest.raises(ValueError, match="count: expected a positive integer, got 0"):
        draw(KEY, 0, {"a": Choice(1)})
    with pytest.raises(ValueError, match="per_number: expected a positive integer, got 0"):
        grid(0, {"a": Choice(1)})
