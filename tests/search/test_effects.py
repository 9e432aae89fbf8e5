"""Importance and partial dependence of functions whose shares of variance are known in closed form."""

import numpy as np
import pytest

from nnfx.search import effects
from tests.search.made import search_of, sweep_of

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def additive():
    """Return 2 a + (log₁₀ rate + 2)² / 2 + 0.7 [act = relu] with three seeds that add nothing, and its points."""
    rng = np.random.default_rng(0)
    points = [
        {
            "a": float(rng.uniform()),
            "learning_rate": float(10 ** rng.uniform(-4, 0)),
            "act": str(rng.choice(["elu", "relu", "tanh"])),
            "nothing": float(rng.uniform()),
        }
        for _ in range(300)
    ]
    parts = {
        "a": [2 * point["a"] for point in points],
        "learning_rate": [(np.log10(point["learning_rate"]) + 2) ** 2 / 2 for point in points],
        "act": [0.7 * (point["act"] == "relu") for point in points],
    }
    return points, {name: np.array(values) for name, values in parts.items()}


@pytest.fixture(scope="module")
def found(additive):
    points, parts = additive
    return effects(search_of(points, [sum(parts.values())] * 3, static=("act",)))


def test_shares_are_those_of_an_additive_function(additive, found):
    """Variances: 4/12 for 2 a; 16/45 for x²/2, x uniform in (−2, 2); 0.49 · 2/9 for the choice."""
    known = np.array([4 / 12, 16 / 45, 0.49 * 2 / 9])
    shares = {row["name"]: row for row in found.rows}
    for name, share in zip(("a", "learning_rate", "act"), known / known.sum(), strict=True):
        row = shares[name]
        assert abs(row["share"] - share) < 4 * row["standard_error"] + 0.02, name
    assert shares["nothing"]["share"] < 0.005
    assert shares["interactions"]["share"] < 0.06
    assert [row["name"] for row in found.rows][-2:] == ["nothing", "interactions"]
    assert found.explained > 0.9


def test_curves_are_the_terms_of_an_additive_function_plus_a_constant(additive, found):
    points, parts = additive
    mean = sum(parts.values()).mean()
    for name, part in parts.items():
        curve = found.curves[name]
        given = [point[name] for point in points]
        term = np.array([part[given.index(value)] for value in curve.values]) + mean - part.mean()
        inner = slice(1, -1) if curve.is_number else slice(None)  # trees are flat towards the ends
        tolerance = 3 * curve.standard_error + 0.12
        assert (np.abs(curve.score - term) < tolerance)[inner].all(), name
    assert np.ptp(found.curves["nothing"].score) < 0.1
    assert found.curves["act"].values == ["elu", "relu", "tanh"]


@pytest.mark.slow
def test_a_product_is_all_interaction():
    """Of sign(a) sign(b), neither name alone has an effect."""
    rng = np.random.default_rng(1)
    columns = {"a": rng.uniform(-1, 1, 300), "b": rng.uniform(-1, 1, 300)}
    rows = {
        row["name"]: row["share"] for row in effects(sweep_of(columns, [np.sign(columns["a"] * columns["b"])])).rows
    }
    assert rows["interactions"] > 0.8


@pytest.mark.slow
def test_noise_is_not_explained_and_its_curves_are_flat_within_their_errors():
    rng = np.random.default_rng(2)
    columns = {"a": rng.uniform(size=100), "b": rng.uniform(size=100)}
    found = effects(sweep_of(columns, rng.normal(size=(4, 100))))
    assert found.explained < 0.2
    curve = found.curves["a"]
    assert (np.abs(curve.score - curve.score.mean()) < 4 * curve.standard_error).all()


@pytest.mark.slow
def test_a_few_points_that_diverge_hide_nothing():
    rng = np.random.default_rng(3)
    columns = {"a": rng.uniform(size=200), "b": rng.uniform(size=200)}
    losses = columns["a"] + 0.1 * columns["b"]
    losses[rng.integers(200, size=6)] = [1e6, 1e9, 1e30, np.inf, np.nan, 1e3]
    rows = {row["name"]: row["share"] for row in effects(sweep_of(columns, [losses])).rows}
    assert rows["a"] > 0.6


def test_names_that_some_points_lack_have_a_curve_over_their_values():
    rng = np.random.default_rng(4)
    points = [
        {"act": act, "rate": float(rng.uniform()), **({"l2": float(rng.uniform())} if act == "relu" else {})}
        for act in rng.choice(["relu", "tanh"], 150).tolist()
    ]
    losses = np.array([point["rate"] + 2 * point.get("l2", 0.5) for point in points])
    found = effects(search_of(points, [losses], static=("act",)))
    curve = found.curves["l2"]
    assert None not in curve.values
    assert curve.score[-1] - curve.score[0] > 1
    assert max(found.rows, key=lambda row: row["share"])["name"] == "l2"


def test_the_same_seed_gives_the_same_numbers():
    rng = np.random.default_rng(5)
    columns = {"a": rng.uniform(size=30)}
    made = sweep_of(columns, rng.normal(size=(2, 30)))
    first = effects(made).rows
    assert first == effects(made).rows
    assert first != effects(made, seed=1).rows


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (3, TypeError, "found: expected the result of a search or a sweep, got 3"),
        (
            sweep_of({"a": [1.0, 2.0]}, [[1.0, 2.0]]),
            ValueError,
            "found: expected at least 4 points to model scores, got 2",
        ),
        (sweep_of({"a": [1.0] * 5}, [[1.0] * 5]), ValueError, "found: expected points that differ, got 5"),
        (sweep_of({"a": np.arange(5.0)}, [[np.nan] * 5]), ValueError, "found: expected a point whose runs all ended"),
    ],
)
def test_wrong_input_is_an_error(found, error, message):
    with pytest.raises(error, match=message):
        effects(found)


@pytest.mark.parametrize("constant", [0.0, 0.8])
def test_equal_scores_have_no_shares(constant):
    """Trees predict a constant up to rounding only."""
    points = [{"rate": float(i), "momentum": float(i % 3)} for i in range(12)]
    found = effects(search_of(points, np.full((1, 12), constant)))
    assert [row["share"] for row in found.rows] == [0, 0, 0]


def test_one_name_has_the_whole_variance_and_shares_never_exceed_it():
    one = effects(sweep_of({"rate": np.array([0.1, 0.2, 0.3, 0.4])}, [[1.0, 2.0, 5.0, 3.0]]))
    assert {row["name"]: row["share"] for row in one.rows} == pytest.approx({"rate": 1, "interactions": 0})
    a, b = np.divmod(np.arange(16.0), 4)
    two = effects(sweep_of({"a": a, "b": b}, [3 * a + b]))
    assert sum(row["share"] for row in two.rows) == pytest.approx(1)
    assert all(0 <= row["share"] <= 1 for row in two.rows)


def test_values_that_print_alike_are_different_values():
    functions = [lambda x: x, lambda x: -x]
    points = [{"act": functions[i % 2], "rate": i * 1e-7 + 0.2} for i in range(8)]
    found = effects(search_of(points, [[float(i % 2) for i in range(8)]], static=("act",)))
    assert found.rows[0]["name"] == "act"
    assert found.curves["act"].values == ["<lambda>", "<lambda> (2)"]
    assert len(found.curves["rate"].values) == 8
