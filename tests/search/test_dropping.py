"""Points dropped at rungs: by the papers' pseudo-code, and without a chance, on a fixed table of losses."""

import numpy as np
import pytest

from nnfx.search import Extrapolation, Halving, Hyperband, Uniform, search
from nnfx.search.dropping import Hopeless, Quotas, best_so_far
from tests.search.searches import FAST, of_table, one_row, stopped_by_hand

EPOCHS = 9


@pytest.fixture(scope="module")
def row():
    return one_row()


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


def test_a_search_drops_the_curves_without_a_chance(row):
    train, table = of_table(EPOCHS, 12)
    method = Extrapolation((3, 6), level=0.2)
    found = search(train, row, points=[{"row": i} for i in range(12)], method=method, **FAST)
    expected = stopped_by_hand(np.float32(table).astype(float), (3, 6), 0.2)
    assert epochs_of(found) == dict(enumerate(expected))
    assert len(set(expected)) == 3, "some are dropped at each rung, and some at none"


def test_the_best_so_far_is_never_dropped():
    falling = np.array([[5.0, 4.9, 4.8], [1.0, 1.0, 1.0]])
    assert Hopeless((3,), 0.999, 9, best=0.5).kept(falling[None]).tolist() == [1]
    assert Quotas({3: 1}).kept(falling[None]).tolist() == [1]


def test_the_best_so_far_is_the_lowest_finite_loss_up_to_each_epoch():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(2, 3, 6))
    losses[rng.random(losses.shape) < 0.3] = np.nan
    losses[0, 0, 2] = -np.inf
    for curve, lowest in zip(losses.reshape(-1, 6), best_so_far(losses).reshape(-1, 6), strict=True):
        for epoch, value in enumerate(lowest):
            known = [loss for loss in curve[: epoch + 1] if np.isfinite(loss)]
            np.testing.assert_equal(value, min(known) if known else np.nan)


def test_quotas_rank_by_the_mean_of_the_best_losses_and_failed_points_last():
    losses = np.array([[[3.0, 2.0], [1.0, 9.0], [np.nan, np.nan]], [[3.0, 2.0], [2.0, 1.5], [0.1, 0.1]]])
    assert Quotas({2: 1}).kept(losses).tolist() == [1]
    assert Quotas({2: 2}).kept(losses).tolist() == [0, 1]


def test_a_run_that_has_stopped_keeps_its_best_loss():
    """Its two other seeds go on falling, and are likely to get below the best."""
    falling = 1 / np.arange(1.0, 9)
    stopped = np.where(np.arange(8) < 4, falling, np.nan)
    best = np.full(8, 0.12)
    losses = np.stack([np.stack([falling, best]), np.stack([falling, best]), np.stack([stopped, best])])
    assert Hopeless((8,), 1e-9, epochs=40).kept(losses).tolist() == [0, 1]
