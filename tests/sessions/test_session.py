import functools
import json
import shutil
import signal
import sys
import threading

import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as orbax

import nnfx
from nnfx.sessions import keeper, logs
from nnfx.training import in_memory
from tests.sessions.sessions import (
    FOUR_EPOCHS,
    HYPER,
    TRAIN,
    TWO_EPOCHS,
    CutError,
    at_epoch,
    bits,
    checkpoints,
    cut,
    fit,
    quiet,
    rows,
)


@pytest.fixture(scope="module")
def plain(data):
    return TRAIN(jax.random.key(0), data, **HYPER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "devices"),
    [(nnfx.models.perceptron(), 2), (None, 2), (None, 1)],
)
def test_a_run_on_eight_devices_goes_on_with_fewer(data, key, tmp_path, model, devices):
    def on(count):
        return fit(model, parallel=functools.partial(nnfx.data_parallel, devices=jax.devices()[:count]))

    with pytest.raises(CutError):
        quiet(on(8), tmp_path, save_every_epochs=2, evaluate=at_epoch(5, cut))(key, data, **HYPER)
    assert checkpoints(tmp_path)[-1] == 4
    run = quiet(on(devices), tmp_path, evaluate=at_epoch(-1, cut))(key, data, **HYPER)
    plain = fit(model)(key, data, **HYPER)
    assert int(run.epochs) == int(plain.epochs)
    for name, values in plain.history.items():
        np.testing.assert_allclose(run.history[name], values, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 4, 40])
def test_a_session_returns_the_run_itself_however_it_is_cut_into_chunks(data, plain, key, tmp_path, every):
    run = quiet(TRAIN, tmp_path, save_every_epochs=every)(key, data, **HYPER)
    assert bits(run) == bits(plain)
    assert run.reason == plain.reason == "patience"
    assert jax.tree.structure(run) == jax.tree.structure(plain)
    epochs = int(plain.epochs)
    assert 5 < epochs < 40
    assert checkpoints(tmp_path)[-1] == epochs
    assert int(plain.best.epoch) in checkpoints(tmp_path) or every > 1


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits_and_the_same_logs(data, plain, key, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quiet(TRAIN, whole, evaluate=at_epoch(-1, cut))(key, data, **HYPER)
    for epoch in (4, 5):
        with pytest.raises(CutError):
            quiet(TRAIN, parts, save_every_epochs=3, evaluate=at_epoch(epoch, cut))(key, data, **HYPER)
        with (parts / "history.csv").open("a") as file:
            file.write("7,0.")  # as after a kill
    assert checkpoints(parts) == [3]
    run = quiet(TRAIN, parts, evaluate=at_epoch(-1, cut))(key, data, **HYPER)
    assert bits(run) == bits(plain)
    for name in ("history.csv", "evaluation.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()
    written = rows(parts / "history.csv")
    assert [int(row["epoch"]) for row in written] == list(range(1, int(plain.epochs) + 1))
    for name, values in plain.history.items():
        np.testing.assert_array_equal(np.array([row[name] for row in written], np.float32), values[: len(written)])
    measured = [row["last_loss"] for row in rows(parts / "evaluation.csv")]
    np.testing.assert_array_equal(np.float32(measured), plain.history["valid_loss"][: len(written)])


def test_a_run_that_has_ended_is_returned_as_it_is(data, plain, key, tmp_path):
    first = quiet(TRAIN, tmp_path)(key, data, **HYPER)
    before = (tmp_path / "checkpoints").stat().st_mtime_ns
    again = quiet(TRAIN, tmp_path)(key, data, **HYPER)
    assert bits(again) == bits(first) == bits(plain)
    assert (tmp_path / "checkpoints").stat().st_mtime_ns == before
    x = np.array([[7.0, 30.0]])
    np.testing.assert_array_equal(again.predict(x), plain.predict(x))


def test_more_epochs_may_be_asked_for_but_not_fewer(data, key, tmp_path):
    quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    longer = quiet(FOUR_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(longer) == bits(FOUR_EPOCHS(key, data, learning_rate=0.1))
    with pytest.raises(ValueError, match=r"epochs: expected at least 4, as in .*epoch-00000004, got 2"):
        quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)


def test_damaged_checkpoints_are_told_or_passed_over(data, plain, key, tmp_path):
    with pytest.raises(CutError):
        quiet(TRAIN, tmp_path, save_every_epochs=2, evaluate=at_epoch(5, cut))(key, data, **HYPER)
    assert checkpoints(tmp_path)[-2:] == [2, 4]
    newest = tmp_path / "checkpoints" / "epoch-00000004"
    file = next(file for file in newest.rglob("d/*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    with pytest.raises(
        nnfx.checkpoint.DamagedError, match=rf"{file.name} is altered; the newest good checkpoint is .*2: skip_damaged"
    ):
        quiet(TRAIN, tmp_path)(key, data, **HYPER)
    with pytest.warns(UserWarning, match="it was renamed to epoch-00000004.damaged, and .*epoch-00000002 is used"):
        run = quiet(TRAIN, tmp_path, skip_damaged=True)(key, data, **HYPER)
    assert bits(run) == bits(plain)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_save_and_leave_with_a_word(data, plain, key, tmp_path, capsys, number, raised):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    evaluate = at_epoch(5, lambda: signal.raise_signal(number))
    with pytest.raises(raised) as left:
        quiet(TRAIN, tmp_path, evaluate=evaluate)(key, data, **HYPER)
    assert getattr(left.value, "code", 143) == 143
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert checkpoints(tmp_path) == [5]
    told = capsys.readouterr().err
    assert f"{number.name}: stopped after epoch 5 of 40, saved as {tmp_path}/checkpoints/epoch-00000005;" in told
    assert bits(quiet(TRAIN, tmp_path, evaluate=at_epoch(-1, cut))(key, data, **HYPER)) == bits(plain)
    assert len(rows(tmp_path / "evaluation.csv")) == int(plain.epochs)


def test_a_session_runs_in_any_thread(data, key, tmp_path):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert bits(runs[0]) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))


def test_a_full_disk_ends_with_an_error_and_the_last_checkpoint_whole(data, key, tmp_path, monkeypatch):
    write = orbax.save

    def full(path, tree):
        if ".epoch-00000003" in str(path):
            write(path, tree)
            raise OSError(28, "No space left on device")
        write(path, tree)

    monkeypatch.setattr(orbax, "save", full)
    with pytest.raises(OSError, match=r"3: could not write a checkpoint: .*No space left.*newest.*epoch-00000002"):
        quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1)(key, data, learning_rate=0.1)
    monkeypatch.undo()
    assert checkpoints(tmp_path) == [2, 4]  # later epochs are saved as soon as saving works again
    run = quiet(FOUR_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(run) == bits(FOUR_EPOCHS(key, data, learning_rate=0.1))


def test_a_folder_that_cannot_be_written_is_told_before_training(data, key, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        quiet(TWO_EPOCHS, tmp_path / "file" / "run")(key, data, learning_rate=0.1)


def test_two_sessions_do_not_share_a_folder(data, key, tmp_path):
    def again():
        with pytest.raises(BlockingIOError, match="another active run is using this folder"):
            quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)

    quiet(TWO_EPOCHS, tmp_path, evaluate=at_epoch(1, again))(key, data, learning_rate=0.1)


def test_the_seconds_before_a_cut_count_for_a_budget_of_time(data, key, tmp_path):
    train = fit(nnfx.models.perceptron(), 1000, optax.sgd, stop=nnfx.stopping.time_budget)
    numbers = {"learning_rate": 0.1, "max_seconds": 60.0}

    with pytest.raises(SystemExit):
        quiet(train, tmp_path, evaluate=at_epoch(2, lambda: signal.raise_signal(signal.SIGTERM)))(key, data, **numbers)
    (path,) = (tmp_path / "checkpoints").glob("epoch-*2")
    noted = nnfx.checkpoint.read(path).about["seconds"]
    seconds = []
    real = keeper.drive

    def drive(*args, **options):
        seconds.append(options["seconds"])
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keeper, "drive", drive)
        quiet(train, tmp_path)(key, data, **numbers)
    assert seconds == [noted]
    assert noted > 0


def test_without_held_out_data_the_training_loss_ranks(data, key, tmp_path):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    run = quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1, keep_last=1)(key, whole, learning_rate=0.1)
    assert bits(run) == bits(FOUR_EPOCHS(key, whole, learning_rate=0.1))
    best = int(np.argmin(run.history["train_loss"])) + 1
    assert set(checkpoints(tmp_path)) == {best, 4}


def test_the_bar_shows_rates_and_losses(data, key, tmp_path, capsys):
    nnfx.session(TWO_EPOCHS, tmp_path / "fares")(key, data, learning_rate=0.1)
    shown = capsys.readouterr().err
    assert "fares: 100%" in shown
    assert " examples/s" in shown
    assert "epoch 2 of 2, train_loss 0." in shown


def test_tensorboard_has_every_epoch_once_after_a_cut(data, key, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"save_every_epochs": 2, "tensorboard": True}
    with pytest.raises(CutError):
        quiet(FOUR_EPOCHS, tmp_path, evaluate=at_epoch(3, cut), **options)(key, data, learning_rate=0.1)
    run = quiet(FOUR_EPOCHS, tmp_path, evaluate=at_epoch(-1, cut), **options)(key, data, learning_rate=0.1)
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train_loss", "valid_loss", "last_loss"):
        values = run.history["valid_loss" if name == "last_loss" else name]
        assert [(each.step, each.value) for each in read.Scalars(name)] == list(enumerate(map(float, values), start=1))


def test_a_function_gets_every_epoch_after_the_ones_that_are_saved(data, plain, key, tmp_path):
    seen = []
    with pytest.raises(CutError):
        quiet(TRAIN, tmp_path, save_every_epochs=2, evaluate=at_epoch(5, cut), log=seen.append)(key, data, **HYPER)
    quiet(TRAIN, tmp_path, evaluate=at_epoch(-1, cut), log=seen.append, json_lines=True)(key, data, **HYPER)
    losses = {row["epoch"]: row["valid_loss"] for row in seen if "valid_loss" in row}
    epochs = int(plain.epochs)
    assert losses == dict(zip(range(1, epochs + 1), plain.history["valid_loss"][:epochs].tolist(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {line["epoch"]: line["valid_loss"] for line in lines} == losses


def test_tensorboard_is_asked_for_where_it_is_not_installed(data, key, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard: required to write TensorBoard logs, but not installed"):
        quiet(TWO_EPOCHS, tmp_path, tensorboard=True)(key, data, learning_rate=0.1)
    shutil.rmtree(tmp_path / "checkpoints")


def test_no_files_are_written_within_a_transformation(data, key, tmp_path):
    run = quiet(TWO_EPOCHS, tmp_path)
    with pytest.raises(ValueError, match="session: expected a call outside jit, vmap and grad"):
        jax.vmap(lambda key: run(key, data, learning_rate=0.1))(jax.random.split(key, 2))
    with pytest.raises(ValueError, match="session: expected a call outside jit, vmap and grad"):
        jax.grad(lambda rate: run(key, data, learning_rate=rate).best.loss)(0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        (lambda run: 1.0, TypeError, "evaluate: expected it to return numbers by name, got 1.0"),
        (lambda run: {}, TypeError, "evaluate: expected it to return numbers by name"),
        (lambda run: {"a": np.zeros(2)}, TypeError, "evaluate: expected it to return numbers by name"),
        (lambda run: {"a": "x"}, TypeError, "evaluate: expected it to return numbers by name, got 'x' as 'a'"),
        (lambda run: {"a": None}, TypeError, "evaluate: expected it to return numbers by name, got None as 'a'"),
        (lambda run: {"a": 1j}, TypeError, "evaluate: expected it to return numbers by name, got 1j as 'a'"),
        (lambda run: {1: 1.0}, TypeError, "evaluate: expected strings as names, got 1"),
        (lambda run: {"epoch": 1.0}, ValueError, "evaluate: expected names other than 'epoch'"),
        (lambda run: {str(run.epochs): 1.0}, ValueError, r"evaluate: expected \['1'\] as before, got \['2'\]"),
    ],
)
def test_evaluations_that_are_no_numbers(data, key, tmp_path, evaluate, error, message):
    with pytest.raises(error, match=message):
        quiet(TWO_EPOCHS, tmp_path, evaluate=evaluate)(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path)  # the epochs so far are saved


def test_an_evaluation_that_fails_at_the_end_costs_nothing(data, key, tmp_path, monkeypatch):
    def fail(run):
        raise ZeroDivisionError

    options = {"save_every_seconds": None, "evaluate_every": 100}
    with pytest.raises(ZeroDivisionError):
        quiet(TWO_EPOCHS, tmp_path, evaluate=fail, **options)(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path) == [2]
    monkeypatch.setattr(in_memory, "advance", StandIn(in_memory.advance))  # nothing is trained again
    calls = []

    def evaluate(run):
        calls.append(int(run.epochs))
        return {"nan": np.nan, "infinity": -np.inf, "loss": run.final["train_loss"]}

    for _ in range(2):
        run = quiet(TWO_EPOCHS, tmp_path, evaluate=evaluate, **options)(key, data, learning_rate=0.1)
        assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))
    assert calls == [2]
    (row,) = rows(tmp_path / "evaluation.csv")
    assert (row["nan"], row["infinity"], np.float32(row["loss"])) == ("nan", "-inf", run.final["train_loss"])


def test_an_evaluation_that_leaves_the_process_costs_nothing(data, key, tmp_path):
    def leave(run):
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        quiet(FOUR_EPOCHS, tmp_path, save_every_seconds=None, evaluate=leave, evaluate_every=2)(
            key, data, learning_rate=0.1
        )
    assert checkpoints(tmp_path) == [2]


class StandIn:
    """A program that can be lowered, but not run."""

    def __init__(self, program):
        self.lower = program.lower

    def __call__(self, *_):
        raise AssertionError("trained")


def test_evaluations_that_are_not_finite_come_back_as_they_were(data, key, tmp_path):
    def evaluate(run):
        return {"a": np.nan, "b": np.inf, "c": -0.0}

    with pytest.raises(CutError):
        quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1, evaluate=at_epoch(3, cut))(key, data, learning_rate=0.1)
    shutil.rmtree(tmp_path)
    quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1, evaluate=evaluate)(key, data, learning_rate=0.1)
    newest = tmp_path / "checkpoints" / "epoch-00000004"
    json.loads((newest / "checkpoint.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    noted = nnfx.checkpoint.read(newest).about["evaluations"][-1]
    assert np.isnan(noted["a"])
    assert (noted["b"], noted["epoch"]) == (np.inf, 3)


def test_a_log_that_fails_costs_nothing(data, key, tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(logs.FileLog, "add", full)
        with pytest.raises(OSError, match="No space left"):
            quiet(TWO_EPOCHS, tmp_path, save_every_seconds=None)(key, data, learning_rate=0.1)
    (saved,) = checkpoints(tmp_path)
    run = quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))
    assert len(rows(tmp_path / "history.csv")) == 2
    assert saved >= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fit": lambda key, data: None}, TypeError, "fit: expected the result of nnfx.fit, got"),
        ({"out": 3}, TypeError, "out: expected a path, got 3"),
        ({"save_every_epochs": 0}, ValueError, "save_every_epochs: expected a positive integer, got 0"),
        ({"save_every_epochs": 1.5}, TypeError, "save_every_epochs: expected a positive integer, got 1.5"),
        ({"save_every_seconds": -1}, ValueError, "save_every_seconds: expected a finite number at least 0, got -1"),
        (
            {"save_every_seconds": np.nan},
            ValueError,
            "save_every_seconds: expected a finite number at least 0, got nan",
        ),
        ({"keep_last": 0}, ValueError, "keep_last: expected a positive integer, got 0"),
        ({"keep_best": -1}, ValueError, "keep_best: expected a non-negative integer, got -1"),
        ({"evaluate": {}}, TypeError, "evaluate: expected a function of a run, got {}"),
        ({"log": 3}, TypeError, "log: expected a function of a row of numbers, got 3"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every: expected a positive integer, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        nnfx.session(**{"fit": TWO_EPOCHS, "out": tmp_path, **options})
