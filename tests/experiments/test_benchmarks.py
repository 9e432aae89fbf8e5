import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import cnn, fit, problems, sweep, timing
from experiments.benchmarks.timing import System

SMALL = problems.Problem(
    np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2, (4,), "tanh", 16, 3
)


def test_systems_take_turns_and_ratios_are_to_the_best_peer():
    calls = []

    def system(name, loss):
        def run(seed):
            calls.append((name, seed))
            return loss + seed

        return run

    rows = timing.compare(
        "case", {"ours": System(system("a", 0.0), is_peer=False), "theirs": System(system("b", 1.0))}, 3
    )
    assert calls == [("a", 0), ("b", 0)] + [(name, seed) for seed in range(3) for name in "ab"]
    ours, theirs = rows
    assert theirs.ratio == 1
    assert ours.ratio == pytest.approx(ours.median_s / theirs.median_s)
    assert (ours.loss, theirs.loss) == (1.0, 2.0)
    assert ours.loss_error == pytest.approx(1 / np.sqrt(3))


def test_the_report_is_written(tmp_path, capsys):
    row = timing.Row("case", "ours", 0.001, 0.001, 7, 1.0, 0.5, 0.6, 0.01)
    timing.report("fit", [row], tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["rows"][0]["system"] == "ours"
    assert "0.6000 ± 0.0100" in capsys.readouterr().out


@pytest.mark.parametrize("make", [fit.with_nnfx, fit.with_scikit_learn])
def test_systems_learn(make):
    losses = [make(problem)(0) for problem in (SMALL._replace(epochs=1), SMALL._replace(epochs=60))]
    assert losses[1] < losses[0]


def test_the_scanned_run_by_hand_and_the_loop_are_the_same_run():
    problem = SMALL._replace(labels=np.arange(60) % 3)
    with jax.numpy_rank_promotion("allow"):
        scanned, looped = (fit.with_jax(problem, scanned=scanned)(0) for scanned in (True, False))
    np.testing.assert_allclose(scanned, looped, rtol=1e-5)


def test_a_sweep_is_timed():
    assert np.isfinite(sweep.with_sweep(SMALL, 2, np.array([0.1, 0.01]))(0))


def test_steps_of_a_convolutional_network_agree_with_flax():
    problem = cnn.Problem(size=8, channels=2, features=(3, 0, 4, 0), hidden=(5,), batch_size=6)
    with jax.numpy_rank_promotion("allow"):
        ours = [cnn.with_nnfx(problem, devices, scanned)().loss for devices in (1, 2) for scanned in (False, True)]
        theirs = cnn.with_flax(problem)().loss
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
