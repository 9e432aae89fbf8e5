import functools
import json
import time

import jax
import numpy as np
import pytest

from experiments.benchmarks import (
    cnn,
    fit,
    landscape,
    peers,
    problems,
    recurrent,
    search,
    session,
    steps,
    sweep,
    timing,
)
from experiments.benchmarks.timing import System
from nnfx.models import conversion

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
    assert (ours.is_peer, theirs.is_peer) == (False, True)


def test_compilation_is_that_of_the_whole_call_where_a_step_of_many_is_timed():
    waits = iter([0.2, 0.0, 0.0, 0.0])

    def run(_):
        time.sleep(next(waits))
        return timing.Timed(0.001, 1.0)

    (row,) = timing.compare("case", {"ours": System(run)}, 3)
    assert row.median_s == 0.001
    assert row.compile_s > 0.1


def test_the_report_is_written(tmp_path, capsys):
    row = timing.Row("case", "ours", 0.001, 0.001, 7, 1.0, 0.5, 0.6, 0.01)
    timing.report("fit", [row], tmp_path)
    record = json.loads((tmp_path / "fit.json").read_text())
    assert record["rows"][0]["system"] == "ours"
    assert record["command"].startswith("python -m experiments.benchmarks")
    assert record["machine"]
    assert record["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr().out
    assert "0.6000 ± 0.0100" in printed
    assert "gradient" not in printed
    timing.report("fit", [row, row._replace(gradient_error=1.5e-6)], tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["rows"][1]["gradient_error"] == 1.5e-6
    assert "1.5e-06" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("make", [fit.with_nnfx, peers.with_scikit_learn])
def test_systems_learn(make):
    losses = [make(problem)(0) for problem in (SMALL._replace(epochs=1), SMALL._replace(epochs=60))]
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_the_scanned_run_by_hand_and_the_loop_are_the_same_run():
    problem = SMALL._replace(labels=np.arange(60) % 3)
    with jax.numpy_rank_promotion("allow"):
        scanned, looped = (fit.with_jax(problem, scanned=scanned)(0) for scanned in (True, False))
    np.testing.assert_allclose(scanned, looped, rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_is_timed():
    start = time.perf_counter()
    seconds, loss = sweep.with_sweep(SMALL, 2, np.array([0.1, 0.01]))(0)
    assert np.isfinite(loss)
    assert 0 < 4 * seconds < time.perf_counter() - start, "the time is that of one of four members"


@pytest.mark.slow
def test_searches_by_both_libraries_find_the_same(monkeypatch):
    separable = SMALL._replace(labels=(SMALL.inputs[:, 0] > 0).astype(int))
    monkeypatch.setattr(problems, "titanic", lambda: separable)
    monkeypatch.setattr(search, "RATES", np.array([1e-4, 0.1]))
    monkeypatch.setattr(search, "ALPHAS", np.array([1e-4]))
    monkeypatch.setattr(search, "EPOCHS", 20)
    ours, theirs = search.with_sweep()(0), search.with_grid(1)(0)
    assert ours < 0.1
    assert ours == pytest.approx(theirs, abs=0.1)


@pytest.mark.slow
def test_steps_of_a_convolutional_network_agree_with_flax():
    problem = cnn.Problem(size=8, channels=2, features=(3, 0, 4, 0), hidden=(5,), batch_size=6)
    with jax.numpy_rank_promotion("allow"):
        task = cnn.task_of(problem)
        ours = [steps.with_nnfx(task, devices, scanned)().loss for devices in (1, 2) for scanned in (False, True)]
        theirs = cnn.with_flax(problem)().loss
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


PROBLEMS = {
    "lstm": recurrent.Problem("lstm", 4, 6, 3, 5, steps=3),
    "gru": recurrent.Problem("gru", 4, 6, 3, 5, layers=2, steps=3),
}


@functools.cache
def loss_of(cell):
    return steps.with_nnfx(PROBLEMS[cell].task(), 1, scanned=True)().loss


@pytest.mark.slow
@pytest.mark.parametrize("cell", PROBLEMS)
@pytest.mark.parametrize(
    ("make", "package"),
    [(recurrent.with_flax, "flax"), (recurrent.with_torch, "torch"), (recurrent.with_keras, "keras")],
)
def test_recurrent_networks_of_others_have_the_same_gradient_and_losses(cell, make, package):
    pytest.importorskip(package, reason="in the benchmarks' extra alone")
    problem = PROBLEMS[cell]
    task = problem.task()
    with jax.numpy_rank_promotion("allow"), jax.legacy_prng_key("allow"):
        peer = make(problem, task)
        gradient, loss = peer.gradient(), peer.run().loss
    assert recurrent.gradient_errors(task, {package: gradient})[package] < 1e-5
    np.testing.assert_allclose(loss, loss_of(cell), rtol=1e-5)
    wrong = jax.tree.map(lambda leaf: 1.001 * leaf, gradient)
    with pytest.raises(ValueError, match=f"{package}: expected the gradient of nnfx"):
        recurrent.gradient_errors(task, {package: wrong})


@pytest.mark.slow
def test_steps_one_by_one_split_or_of_several_networks_have_the_same_losses():
    task = PROBLEMS["lstm"].task()
    systems = (
        steps.with_nnfx(task, 1, scanned=False),
        steps.with_nnfx(task, 2, scanned=True),
        steps.with_members(task, 2, devices=1, in_a_loop=True),
        steps.with_members(task, 4, devices=2),
    )
    np.testing.assert_allclose([run().loss for run in systems], loss_of("lstm"), rtol=1e-5)
    row = timing.Row("case", "ours", 0.001, 0.001, 7, 1.0, 0.5, 0.6, 0.01)
    recurrent.require_one_loss([row, row._replace(loss=0.600001)])
    with pytest.raises(ValueError, match=r"theirs: expected the loss of ours, 0\.6, got 0\.61"):
        recurrent.require_one_loss([row, row._replace(system="theirs", loss=0.61)])


@pytest.mark.slow
@pytest.mark.parametrize("cell", PROBLEMS)
def test_weights_to_the_layout_of_keras_and_back(cell):
    params = PROBLEMS[cell].task().params
    jax.tree.map(
        np.testing.assert_array_equal, recurrent.from_keras(conversion.to_keras({"params": params})), dict(params)
    )


def test_networks_in_turn_add_up():
    times = iter([1.0, 2.0, 3.0])
    timed = recurrent.in_turn(lambda: timing.Timed(next(times), 0.5), 3)()
    assert timed == timing.Timed(6.0, 0.5)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="cases: expected one of 'lstm-32x96x7x64', .*got 'lstm-64'"):
        recurrent.main(cases=("lstm-64",))
    with pytest.raises(ValueError, match=r"members: expected a multiple of every number of devices, \(1, 2\), got 3"):
        recurrent.main(members=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["titanic", "fashion"])
def test_a_landscape_in_one_program_is_that_of_the_loop(case, monkeypatch):
    monkeypatch.delenv("NNFX_DATA", raising=False)
    problem = landscape.CASES[case](6)
    if case == "fashion":  # the same layers, but narrower, on a quarter of the pixels
        layers = [landscape.nnfx.models.conv(2), landscape.nnfx.models.max_pool()]
        batch = problem.batch._replace(inputs=problem.batch.inputs[:, ::4, ::4])
        problem = problem._replace(model=landscape.nnfx.models.cnn(layers, 10), batch=batch)
    by_loop = landscape.with_loop(problem, 3)(1).loss
    for devices in (1, 2):
        np.testing.assert_allclose(landscape.with_nnfx(problem, 3, devices)(1).loss, by_loop, rtol=1e-5)
    rows = landscape.measure(case, problem, 2, 1, 1)
    assert [row.system for row in rows] == ["one program", "a Python loop"]


@pytest.mark.slow
def test_a_session_and_a_split_over_one_device_are_the_run_itself():
    data, fit = session.problem(1), session.train(1)
    on_one = functools.partial(session.nnfx.data_parallel, devices=jax.devices()[:1])
    losses = [
        session.with_run(fit, data)(0),
        session.with_session(fit, data)(0),
        session.with_run(session.train(1, parallel=on_one), data)(0),
    ]
    assert losses == [losses[0]] * 3
