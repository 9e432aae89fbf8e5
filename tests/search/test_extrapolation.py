"""Extrapolated learning curves: probabilities against Monte Carlo, points dropped, and resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Extrapolation, Halving, Hyperband, Uniform, search
from nnfx.search.dropping import Hopeless, Quotas
from nnfx.search.extrapolation import EXPONENTS, chance_below
from tests.search.searches import cut_at, same
from tests.sessions.sessions import CutError

EPOCHS = 9
KEY = jax.random.key(0)
FAST = {"key": KEY, "devices": jax.devices()[:1]}
RNG = np.random.default_rng(0)


def by_sampling(losses, epochs, target, draws=40_000):
    """Return the probability for one curve, from draws of the exponent, the noise and the coefficients in turn."""
    rng, count = np.random.default_rng(1), len(losses)
    seen, ahead = np.arange(1.0, count + 1), np.arange(count + 1.0, epochs + 1)
    logs, fits = [], []
    for exponent in EXPONENTS:
        design = np.vander(seen**-exponent, 2, increasing=True)
        covariance = np.linalg.inv(design.T @ design)
        mean, squares, *_ = np.linalg.lstsq(design, losses, rcond=None)
        logs.append(0.5 * np.log(np.linalg.det(covariance)) - 0.5 * (count - 2) * np.log(squares[0]))
        fits.append((mean, squares[0], covariance))
    shares = np.exp(np.array(logs) - max(logs))
    chances = []
    for exponent, (mean, squares, covariance) in zip(EXPONENTS, fits, strict=True):
        variance = squares / rng.chisquare(count - 2, draws)
        drawn = rng.multivariate_normal(np.zeros(2), covariance, draws) * np.sqrt(variance)[:, None] + mean
        later = drawn @ np.vander(ahead**-exponent, 2, increasing=True).T
        later += rng.normal(size=later.shape) * np.sqrt(variance)[:, None]
        chances.append(1 - np.prod(1 - (later < target).mean(0)))
    return float(shares @ chances / shares.sum())


@pytest.mark.parametrize("target", [0.25, 0.3, 0.35])
def test_the_probability_is_that_of_the_model(target):
    time = np.arange(1.0, 9)
    losses = 0.2 + 0.8 * time**-0.7 + 0.03 * np.random.default_rng(2).normal(size=8)
    found = chance_below(losses[None], 16, target)
    np.testing.assert_allclose(found, by_sampling(losses, 16, target), atol=0.01)
    assert 0.02 < found[0] < 0.98 or target != 0.3


def test_a_better_target_and_a_longer_run_are_less_and_more_probable():
    curves = 0.5 + np.arange(1.0, 7) ** -0.5 + 0.02 * RNG.normal(size=(20, 6))
    chances = [chance_below(curves, 12, target) for target in (0.6, 0.7, 0.8)]
    assert (np.diff(chances, axis=0) >= 0).all()
    assert (chance_below(curves, 24, 0.7) >= chances[1]).all()


def test_few_curves_of_the_model_get_below_what_they_are_unlikely_to():
    """Of power laws with noise whose probability is below 5 %, fewer than 5 % get there."""
    rng = np.random.default_rng(3)
    time = np.arange(1.0, 25)
    a, b, c = rng.uniform(0, 0.3, (4000, 1)), rng.uniform(0.2, 1, (4000, 1)), rng.uniform(0.2, 1.5, (4000, 1))
    curves = a + b * time**-c + 0.02 * rng.normal(size=(4000, 24))
    chances = chance_below(curves[:, :8], 24, 0.3)
    is_below = (curves[:, 8:] < 0.3).any(1)
    for level in (0.05, 0.2):
        unlikely = chances < level
        assert unlikely.sum() > 200
        assert is_below[unlikely].mean() < level


def test_curves_that_are_not_finite_have_no_chance():
    curves = np.array([[1.0, 0.5, 0.4], [1.0, np.nan, 0.4], [1.0, np.inf, np.inf]])
    assert chance_below(curves, 9, 10.0)[0] > 0.9
    assert (chance_below(curves, 9, 10.0)[1:] == 0).all()
    for count in (2, 9):
        with pytest.raises(ValueError, match=f"losses: expected 3 to 8 epochs, got {count}"):
            chance_below(np.ones((1, count)), 9, 0.0)


@functools.cache
def of_table(epochs, points):
    """Return a run whose held-out loss at each epoch is that of a fixed table, `(points, epochs)`, and the table."""
    rng = np.random.default_rng(epochs)
    limits, rates = rng.uniform(0, 1, (points, 1)), rng.uniform(0.2, 2, (points, 1))
    table = limits + np.arange(1.0, epochs + 1) ** -rates + 0.02 * rng.normal(size=(points, epochs))
    padded = jnp.asarray(np.pad(table, ((0, 0), (1, 0)), mode="edge"), jnp.float32)

    def of_row(row):
        def apply(variables, inputs, train=False, **_):
            epoch = variables["params"]["epoch"]  # each update adds 1, since the gradient is −1
            place = jax.lax.stop_gradient(jnp.round(jnp.stack([row, epoch]))).astype(int)
            loss = padded[place[0], place[1]] + jax.lax.stop_gradient(epoch) - epoch
            outputs = loss * jnp.ones(len(inputs))
            return (outputs, {}) if train else outputs

        return nnfx.Model(lambda key, inputs: {"params": {"epoch": jnp.zeros(())}}, apply)

    def loss(outputs, targets):
        return outputs + 0 * targets

    return nnfx.fit(of_row, loss, functools.partial(optax.sgd, 1.0), epochs=epochs), table


@pytest.fixture(scope="module")
def row():
    one = np.zeros((1, 1)), np.zeros(1)
    return nnfx.data.prepare(*one, valid=one, standardize=False)


def epochs_of(found):
    return {round(found.points[row["point"]]["row"]): row["epochs"] for row in found.rows}


def test_the_runs_follow_the_table(row):
    train, table = of_table(EPOCHS, 12)
    found = search(train, row, points=[{"row": i} for i in range(3)], **FAST)
    np.testing.assert_allclose(found.sweeps[0].histories["valid_loss"], table[:3], rtol=1e-5)


def successive_halving(losses, first, eta):
    """Return how long each point is trained: algorithm 1 of Li et al. 2018 within a bracket, on a table of losses.

    L = {run_then_return_val_loss(t, r_i)}, T = top_k(T, L, ⌊n_i / η⌋); the best loss so far is what a run returns.
    """
    left, ended = list(range(len(losses))), {}
    epochs = first
    while left:
        ended |= dict.fromkeys(left, epochs)
        if epochs == losses.shape[1]:
            break
        returned = {point: losses[point, :epochs].min() for point in left}
        left = sorted(left, key=returned.get)[: len(left) // eta]
        epochs *= eta
    return ended


def test_halving_promotes_as_the_pseudo_code_does_on_a_fixed_table(row):
    train, table = of_table(EPOCHS, 12)
    nine = [{"row": i} for i in range(9)]
    found = search(train, row, points=nine, method=Halving((1, 3), keep=1 / 3), **FAST)
    assert epochs_of(found) == successive_halving(table[:9], 1, 3)


def test_hyperband_promotes_as_the_pseudo_code_does_on_a_fixed_table(row):
    train, table = of_table(EPOCHS, 12)
    found = search(train, row, {"row": Uniform(0.0, 11.0)}, method=Hyperband(1, 3), **FAST)
    rows = np.array([round(point["row"]) for point in found.points])
    begin = 0
    for points, first in ((9, 1), (5, 3), (3, 9)):
        some = range(begin, begin + points)
        expected = successive_halving(table[rows[some]], first, 3)
        ended = {each["point"] - begin: each["epochs"] for each in found.rows if each["point"] in some}
        assert ended == expected
        begin += points


def stopped_by_hand(losses, rungs, level, best=np.inf):
    """Return after how many epochs each curve ends."""
    ends = np.full(len(losses), losses.shape[1])
    for rung in rungs:
        running = ends > rung
        target = min(best, losses[:, :rung].min())
        for i in np.flatnonzero(running):
            is_best = losses[i, :rung].min() == losses[:, :rung].min()
            if not is_best and chance_below(losses[i : i + 1, :rung], losses.shape[1], target)[0] < level:
                ends[i] = rung
    return ends


def test_a_search_drops_the_curves_without_a_chance(row):
    train, table = of_table(EPOCHS, 12)
    method = Extrapolation((3, 6), level=0.2)
    found = search(train, row, points=[{"row": i} for i in range(12)], method=method, **FAST)
    expected = stopped_by_hand(np.float32(table).astype(float), (3, 6), 0.2)
    assert epochs_of(found) == dict(enumerate(expected))
    assert len(set(expected)) == 3, "some are dropped at each rung, and some at none"


def test_rounds_are_compared_with_earlier_ones_and_keep_to_the_budget(row, tmp_path):
    train, table = of_table(EPOCHS, 12)
    space, method = {"row": Uniform(0.0, 11.0)}, Extrapolation((3, 6), level=0.3)
    given = {"points": 4, "method": method, "budget": 100, **FAST}
    found = search(train, row, space, **given)
    ends = {each["point"]: each["epochs"] for each in found.rows}
    left, best, begin = 100, np.inf, 0
    while size := min(4, left // EPOCHS):
        rows = [round(found.points[number]["row"]) for number in range(begin, begin + size)]
        losses = np.float32(table)[rows].astype(float)
        expected = stopped_by_hand(losses, (3, 6), 0.3, best)
        assert [ends[number] for number in range(begin, begin + size)] == expected.tolist()
        best = min(best, *(curve[:end].min() for curve, end in zip(losses, expected, strict=True)))
        left, begin = left - expected.sum(), begin + size
    assert begin == len(found.points)
    assert 100 - EPOCHS < sum(ends.values()) <= 100

    kept = {**given, "out": tmp_path, "progress": False, "save_every_seconds": 0}
    for call in (2, 5):
        with pytest.raises(CutError):
            search(train, row, space, **kept, on_chunk=cut_at(call))
    same(search(train, row, space, **kept), found)


def test_the_best_so_far_is_never_dropped():
    falling = np.array([[5.0, 4.9, 4.8], [1.0, 1.0, 1.0]])
    assert Hopeless((3,), 0.999, 9, best=0.5).kept(falling[None]).tolist() == [1]
    assert Quotas({3: 1}).kept(falling[None]).tolist() == [1]


WRONG = [
    (Extrapolation(()), ValueError, "rungs: expected epochs that increase and stay below 9"),
    (Extrapolation((2, 5)), ValueError, r"rungs\[0\]: expected at least 3 epochs to extrapolate from, got 2"),
    (Extrapolation((3, 9)), ValueError, "rungs: expected epochs that increase and stay below 9"),
    (Extrapolation((3,), level=0.0), ValueError, "level: expected a finite number above 0 and below 1, got 0"),
]


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize(("method", "error", "message"), WRONG)
def test_what_is_wrong_is_said_before_anything_is_trained(row, method, error, message, budget, monkeypatch):
    monkeypatch.setattr(nnfx.search.training, "Together", None)
    train, _ = of_table(EPOCHS, 12)
    with pytest.raises(error, match=message):
        search(train, row, {"row": Uniform(0.0, 11.0)}, points=2, method=method, budget=budget, **FAST)
