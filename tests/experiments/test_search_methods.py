import importlib.util
import json

import jax
import matplotlib.image
import numpy as np
import pytest

from experiments import search_methods, search_problems
from nnfx.search import Halving, draw, search

HAS_OPTUNA = importlib.util.find_spec("optuna") is not None


def test_the_loss_of_the_quadratic_is_that_of_its_closed_form():
    """Of each direction by itself: [θ, v] ← [[1 − ηλ, −ηβ], [λ, β]] [θ, v] in the order of the momentum's update."""
    problem = search_problems.quadratic(jax.random.key(0), epochs=6)
    rate, momentum = 0.7, 0.4
    point = {"learning_rate": rate, "momentum": momentum}
    trained = search_methods.trained(problem, [point], seed=0)[0]
    expected = np.zeros(6)
    for curvature in search_problems.CURVATURES:
        step = np.array([[1 - rate * curvature, -rate * momentum], [curvature, momentum]])
        for t in range(6):
            theta, _ = np.linalg.matrix_power(step, t + 1) @ [1.0, 0.0]
            expected[t] += curvature * theta**2 / 2
    np.testing.assert_allclose(search_problems.losses_of(rate, momentum, 6), expected, rtol=1e-12)
    np.testing.assert_allclose(trained, expected, rtol=1e-5)


def test_no_rate_and_momentum_of_a_fine_grid_are_better_than_the_lowest_loss():
    rates, momenta = np.geomspace(0.5, 4, 120), np.linspace(0, 0.98, 99)
    lowest = min(search_problems.losses_of(rate, momentum, 9).min() for rate in rates for momentum in momenta)
    assert search_problems.lowest_loss(9) <= lowest
    assert search_problems.lowest_loss(9) > 0.9 * lowest, "the grid is that fine"


def test_halving_read_off_learning_curves_is_that_of_a_search():
    problem = search_problems.titanic(jax.random.key(1), epochs=9)
    points = draw(jax.random.key(2), 9, problem.space)
    moments = list(search_methods.halving(search_methods.trained(problem, points, seed=3)))
    found = search(
        problem.train, problem.data, key=jax.random.key(3), points=points, method=Halving((1, 3), keep=1 / 3)
    )
    assert sum(cost for cost, _ in moments) == sum(row["epochs"] for row in found.rows)
    assert min(lowest for _, lowest in moments) == pytest.approx(min(row["valid_loss"] for row in found.rows), rel=1e-4)


def test_a_search_drops_all_others_and_spends_what_it_trained():
    losses = np.array([[5.0, 4.0, 3.0], [6.0, 1.0, 0.5], [4.0, 3.0, 2.0], [7.0, 9.0, 0.1]])
    assert list(search_methods.in_round(losses[:3], search_methods.Quotas({1: 1}))) == [(3, 4.0), (2, 2.0)]
    assert list(search_methods.one_by_one(losses)) == [(3, 3.0), (3, 0.5), (3, 2.0), (3, 0.1)]
    spent = search_methods.lowest_by_run(search_methods.one_by_one(losses), epochs=3, runs=5)
    assert spent.tolist() == [3.0, 0.5, 0.5, 0.1, 0.1]


def test_a_method_is_compared_with_the_better_one_of_the_others():
    """By hand: (1 − 2) / √(3² + 4²), and (3 − 2) / √(3² + 0²)."""

    def of(**losses: tuple[float, float]) -> dict:
        return {name: {"quarter": {"mean": mean, "error": error}} for name, (mean, error) in losses.items()}

    scores = {"first": of(random=(5, 1), halving=(2, 3), TPE=(1, 4)), "second": of(random=(3, 0), halving=(2, 3))}
    ahead = search_methods.ahead_at_a_quarter(scores)
    assert ahead == {"halving": {"first": pytest.approx(-1 / 5), "second": pytest.approx(1 / 3)}}


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = search_methods.Config(out=tmp_path, repetitions=2, runs=16, pool=96, epochs=9, steps=2)
    summary = search_methods.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert len(written["scores"]) == 5
    for scores in written["scores"].values():
        assert ("TPE" in scores) == HAS_OPTUNA
        for of in scores.values():
            assert of["whole"]["mean"] <= of["quarter"]["mean"]
    optimum = search_problems.lowest_loss(9)
    assert all(of["whole"]["mean"] >= optimum for of in written["scores"]["quadratic"].values())
    assert set(summary["ahead_at_a_quarter"]) == {"halving", "Hyperband", "extrapolation", "hyper-gradients"}
    assert matplotlib.image.imread(tmp_path / "search_methods.png").std() > 0.05
    assert "ahead of random search" in capsys.readouterr().out
