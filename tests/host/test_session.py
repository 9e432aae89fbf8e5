import contextlib
import csv
import errno
import functools
import json
import os
import shutil
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as orbax

import nnfx
from nnfx.host import checkpoints as host_checkpoints
from nnfx.host import logs
from nnfx.training import loop

HYPER = {"learning_rate": 0.3, "patience": 5}


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def fit(model=None, epochs=40, optimizer=optax.adam, **options):
    """Adam, dropout, batch norm and patience: everything that a run has a state of."""
    model = model or nnfx.models.mlp((6,), dropout=0.2, batch_norm=True)
    options = {"stop": nnfx.stopping.patience, **options}
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, batch_size=100, **options)


TRAIN = fit()
TWO_EPOCHS, FOUR_EPOCHS = (
    fit(nnfx.models.perceptron(), epochs, optax.sgd, stop=()) for epochs in (2, 4)
)  # small and soon compiled, where only the host's part is in question


@pytest.fixture(scope="module")
def plain(data):
    return TRAIN(jax.random.key(0), data, **HYPER)


def bits(tree):
    """Every leaf by path, as dtype, shape and bytes."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    plain = {
        path: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for path, leaf in leaves.items()
    }
    return {path: (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for path, leaf in plain.items()}


def quiet(train, out, **options):
    return nnfx.session(train, out, progress=False, **options)


def checkpoints(out):
    return sorted(int(path.name.removeprefix("epoch-")) for path in (out / "checkpoints").glob("epoch-????????"))


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


class CutError(BaseException):
    """What ends a run in the middle of a test as a kill does: nothing is saved then."""


def at_epoch(epoch, act):
    """Return an evaluation that does something after this epoch."""

    def evaluate(run):
        if int(run.epochs) == epoch:
            act()
        return {"last_loss": run.final["valid_loss"]}

    return evaluate


def cut():
    raise CutError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "devices"),
    [
        (nnfx.models.perceptron(), 2),
        pytest.param(None, 2, marks=pytest.mark.slow),
        pytest.param(None, 1, marks=pytest.mark.slow),
    ],
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
            file.write("7,0.")  # as a kill may leave it
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
    with pytest.raises(ValueError, match=r"epochs: expected at least the 4 of .*epoch-00000004, got 2"):
        quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("ended")
    quiet(TWO_EPOCHS, out)(jax.random.key(0), data, learning_rate=0.1)
    return out


def perceptron(loss=nnfx.losses.binary_cross_entropy, optimizer=optax.sgd, batch_size=100, **options):
    return nnfx.fit(nnfx.models.perceptron(**options), loss, optimizer, epochs=2, batch_size=batch_size)


def changed(data):
    return nnfx.data.Data(data.train._replace(targets=1 - data.train.targets), data.valid, data.preprocess)


@pytest.mark.parametrize(
    ("train", "hyper", "change", "message"),
    [
        (TWO_EPOCHS, {"learning_rate": 0.2}, None, "learning_rate: expected 0.1.*, got 0.2"),
        (TWO_EPOCHS, {"learning_rate": 0.1}, changed, r"data.train.targets: expected int32\[536\] \w+, got int32"),
        (perceptron(activation="tanh"), {"learning_rate": 0.1}, None,
         r"model.activation: expected \w+.identity, got \w+.tanh\n"),
        (perceptron(nnfx.losses.mean_square_error), {"learning_rate": 0.1}, None,
         "loss: expected nnfx.binary_cross_entropy, got nnfx.mean_square_error\n"),
        (perceptron(batch_size=50), {"learning_rate": 0.1}, None, "batch_size: expected 100, got 50\n"),
        (perceptron(outputs=2, loss=nnfx.losses.categorical_cross_entropy), {"learning_rate": 0.1}, None,
         r"model.outputs: expected 1, got 2\n"),
        (perceptron(optimizer=optax.adam), {"learning_rate": 0.1}, None,
         "optimizer: expected optax.sgd, got optax.adam\n"),
        (TWO_EPOCHS, {"learning_rate": 0.1, "label_smoothing": 0.1}, None,
         "label_smoothing: expected nothing, got 0.1\n"),
    ],
)  # fmt: skip
def test_another_run_is_refused_with_what_differs(data, key, ended, train, hyper, change, message):
    before = sorted((ended / "checkpoints").rglob("*"))
    with pytest.raises(ValueError, match=message):
        quiet(train, ended)(key, change(data) if change else data, **hyper)
    assert sorted((ended / "checkpoints").rglob("*")) == before


def test_another_key_is_refused(data, ended):
    with pytest.raises(ValueError, match=r"key: expected that of the checkpoint, got another\nanother run needs"):
        quiet(TWO_EPOCHS, ended)(jax.random.key(1), data, learning_rate=0.1)


def test_the_same_run_built_anew_goes_on(data, key, ended):
    run = quiet(perceptron(), ended)(key, data, learning_rate=np.float64(0.1))
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))


def pretend(monkeypatch, **others):
    """Let this be the release of some package that it is not."""
    versions = {**nnfx.checkpoint.versions(), **others}
    monkeypatch.setattr(nnfx.checkpoint, "versions", lambda: versions)


def test_other_versions_are_warned_of(data, key, ended, monkeypatch):
    pretend(monkeypatch, jax="0.9.2")
    with pytest.warns(UserWarning, match=rf"made with jax {jax.__version__}, now 0.9.2: the run goes on") as warned:
        run = quiet(TWO_EPOCHS, ended)(key, data, learning_rate=0.1)
    assert warned[0].filename == __file__
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))


def everything(**changed):
    """A run that has a part of every kind, with numbers fixed in most."""
    parts = {
        "model": nnfx.models.mlp((3,), activation="tanh"),
        "loss": functools.partial(nnfx.losses.binary_cross_entropy, label_smoothing=0.1),
        "optimizer": functools.partial(optax.adam, b1=0.8),
        "stop": functools.partial(nnfx.stopping.patience, patience=3),
        "penalty": functools.partial(nnfx.regularizers.l2, l2=0.01),
        "average": functools.partial(nnfx.averaging.exponential, ema_decay=0.9),
        "augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.1),
        "metrics": {"accuracy": nnfx.metrics.binary_accuracy},
        "make_step": functools.partial(nnfx.make_step, skip_non_finite=True),
        "batch_size": 100,
        "epochs": 1,
        **changed,
    }
    return nnfx.fit(parts.pop("model"), parts.pop("loss"), parts.pop("optimizer"), **parts)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """The folder of a run of one epoch, to go on from."""
    out = tmp_path_factory.mktemp("begun")
    quiet(everything(), out)(jax.random.key(0), data, learning_rate=0.01)
    return out


OTHERS = {
    "activation": {"model": nnfx.models.mlp((3,), activation="relu")},
    "initializer": {"model": nnfx.models.mlp((3,), activation="tanh", initializer="he_normal")},
    "bias_initializer": {"model": nnfx.models.mlp((3,), activation="tanh", bias_initializer="normal")},
    "loss": {"loss": nnfx.losses.mean_square_error},
    "label_smoothing": {"loss": functools.partial(nnfx.losses.binary_cross_entropy, label_smoothing=0.2)},
    "optimizer": {"optimizer": optax.nadam},
    "b1": {"optimizer": functools.partial(optax.adam, b1=0.9)},
    "tolerance": {"stop": nnfx.stopping.small_change},
    "patience": {"stop": functools.partial(nnfx.stopping.patience, patience=4)},
    "penalty": {"penalty": functools.partial(nnfx.regularizers.l1, l1=0.01)},
    "l2": {"penalty": functools.partial(nnfx.regularizers.l2, l2=0.02)},
    "ema_decay": {"average": functools.partial(nnfx.averaging.exponential, ema_decay=0.8)},
    "noise": {"augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.2)},
    "accuracy": {"metrics": {"accuracy": nnfx.losses.binary_cross_entropy}},
    "make_step": {"make_step": nnfx.make_step},
    "batch_size": {"batch_size": 50},
}


BY_DEFAULT = {"activation", "loss", "b1", "noise"}


@pytest.mark.parametrize("part", [pytest.param(p, marks=() if p in BY_DEFAULT else pytest.mark.slow) for p in OTHERS])
def test_under_another_release_another_run_is_refused_all_the_same(data, key, begun, monkeypatch, part):
    pretend(monkeypatch, jax="99.0", jaxlib="99.0")
    before = sorted(begun.rglob("*"))
    with pytest.raises(
        ValueError, match=r"expected to go on with the run saved there, got another:\n  [a-z0-9_.\[\]]+: exp"
    ):
        quiet(everything(epochs=2, **OTHERS[part]), begun)(key, data, learning_rate=0.01)
    assert sorted(begun.rglob("*")) == before


@pytest.fixture(scope="module")
def longer(data):
    """The run that was begun, of two epochs, and what it ends with."""
    train = everything(epochs=2)
    return train, bits(train(jax.random.key(0), data, learning_rate=0.01))


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "nnfx"])
def test_under_another_release_the_same_run_goes_on(data, key, begun, longer, tmp_path, monkeypatch, package):
    shutil.copytree(begun, tmp_path / "copy")
    pretend(monkeypatch, **{package: "99.0"})
    train, expected = longer
    with pytest.warns(UserWarning, match=f"made with {package} .*, now 99.0"):
        run = quiet(train, tmp_path / "copy")(key, data, learning_rate=0.01)
    assert bits(run) == expected


def starting_from(weights):
    """A perceptron that begins with these weights, read when it is asked for them."""
    model = nnfx.models.perceptron()
    return model._replace(init=lambda key, inputs: {"params": jax.tree.map(jnp.asarray, weights())})


@pytest.mark.parametrize("version", [jax.__version__, "99.0"])
def test_another_start_is_refused(data, key, tmp_path, monkeypatch, version):
    file = tmp_path / "weights.npy"

    def weights():
        return {"kernel": np.load(file), "bias": np.zeros(1, np.float32)}

    train = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    np.save(file, np.full((2, 1), 0.5, np.float32))
    quiet(train, tmp_path / "run")(key, data, learning_rate=0.1)
    pretend(monkeypatch, jax=version)
    again = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    with pytest.warns(UserWarning, match="99.0") if version == "99.0" else contextlib.nullcontext():
        quiet(again, tmp_path / "run")(key, data, learning_rate=0.1)
    np.save(file, np.full((2, 1), 0.25, np.float32))
    other = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    # the function is the same, and only what it returns is not
    message = (
        r"start.*kernel.*: expected values of mean 0.5 .*, got others, of mean 0.25" if version == "99.0" else "program"
    )
    with pytest.raises(ValueError, match=message):
        quiet(other, tmp_path / "run")(key, data, learning_rate=0.1)


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
    with pytest.warns(UserWarning, match="it is kept as epoch-00000004.damaged, and .*epoch-00000002 taken"):
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
    assert f"{number.name}: left after epoch 5 of 40, saved as {tmp_path}/checkpoints/epoch-00000005;" in told
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
    with pytest.raises(OSError, match=r"3: expected a checkpoint to be written.*No space left.*newest.*epoch-00000002"):
        quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1)(key, data, learning_rate=0.1)
    monkeypatch.undo()
    assert checkpoints(tmp_path) == [2, 4]  # what was trained since is saved as soon as that goes again
    run = quiet(FOUR_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(run) == bits(FOUR_EPOCHS(key, data, learning_rate=0.1))


def test_a_folder_that_cannot_be_written_is_told_before_training(data, key, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        quiet(TWO_EPOCHS, tmp_path / "file" / "run")(key, data, learning_rate=0.1)


def test_two_sessions_do_not_share_a_folder(data, key, tmp_path):
    def again():
        with pytest.raises(BlockingIOError, match="expected no other run to be saved here"):
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
    real = loop.chunks

    def chunks(*args, **options):
        seconds.append(options["seconds"])
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "chunks", chunks)
        quiet(train, tmp_path)(key, data, **numbers)
    assert seconds == [noted]
    assert noted > 0


@pytest.mark.slow
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


def test_tensorboard_is_asked_for_where_it_is_not_installed(data, key, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard: needed to write logs for it; not installed"):
        quiet(TWO_EPOCHS, tmp_path, tensorboard=True)(key, data, learning_rate=0.1)
    shutil.rmtree(tmp_path / "checkpoints")


def test_no_files_are_written_within_a_transformation(data, key, tmp_path):
    run = quiet(TWO_EPOCHS, tmp_path)
    with pytest.raises(ValueError, match="session: expected a call outside of jit, vmap and grad"):
        jax.vmap(lambda key: run(key, data, learning_rate=0.1))(jax.random.split(key, 2))
    with pytest.raises(ValueError, match="session: expected a call outside of jit, vmap and grad"):
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
        (lambda run: {1: 1.0}, TypeError, "evaluate: expected names that are text, got 1"),
        (lambda run: {"epoch": 1.0}, ValueError, "evaluate: expected other names than 'epoch'"),
        (lambda run: {str(run.epochs): 1.0}, ValueError, r"evaluate: expected \['1'\] as before, got \['2'\]"),
    ],
)
def test_evaluations_that_are_no_numbers(data, key, tmp_path, evaluate, error, message):
    with pytest.raises(error, match=message):
        quiet(TWO_EPOCHS, tmp_path, evaluate=evaluate)(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path)  # what was trained is saved


def test_an_evaluation_that_fails_at_the_end_costs_nothing(data, key, tmp_path, monkeypatch):
    def fail(run):
        raise ZeroDivisionError

    options = {"save_every_seconds": None, "evaluate_every": 100}
    with pytest.raises(ZeroDivisionError):
        quiet(TWO_EPOCHS, tmp_path, evaluate=fail, **options)(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path) == [2]
    monkeypatch.setattr(loop, "advance", StandIn(loop.advance))  # nothing is trained anew
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
    """A program that is asked for its text alone."""

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
        patched.setattr(logs.CsvLog, "add", full)
        with pytest.raises(OSError, match="No space left"):
            quiet(TWO_EPOCHS, tmp_path, save_every_seconds=None)(key, data, learning_rate=0.1)
    (saved,) = checkpoints(tmp_path)
    run = quiet(TWO_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))
    assert len(rows(tmp_path / "history.csv")) == 2
    assert saved >= 1


def test_a_run_that_has_ended_is_returned_from_a_folder_that_cannot_be_written(data, key, ended, tmp_path, monkeypatch):
    shutil.copytree(ended, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "copy").rglob("*"))}

    def refused(folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(host_checkpoints, "_lock", refused)
    run = quiet(TWO_EPOCHS, tmp_path / "copy", evaluate=lambda run: {"a": 1.0})(key, data, learning_rate=0.1)
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))
    with pytest.raises(OSError, match="Read-only"):
        quiet(FOUR_EPOCHS, tmp_path / "copy")(key, data, learning_rate=0.1)
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "copy").rglob("*"))} == before


def test_a_folder_is_the_one_that_was_given_wherever_the_process_goes(data, key, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = quiet(FOUR_EPOCHS, "runs/mine", save_every_epochs=1, evaluate=lambda run: os.chdir("../there") or {"a": 1.0})
    monkeypatch.chdir(tmp_path / "there")
    run(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path / "here" / "runs" / "mine")[-1] == 4
    assert not list((tmp_path / "there").iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "there"))
    quiet(TWO_EPOCHS, "~/runs")(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path / "there" / "runs") == [2]


def moved_away(out):
    (out / "checkpoints").rename(out.parent / f"{out.name} away")


def contents(out):
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_logs_are_never_replaced_by_less(data, key, ended, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(ended, out)
    moved_away(out)
    before = contents(out)
    other = perceptron(optimizer=optax.adam)
    with pytest.raises(
        ValueError, match="history.csv: expected to go on .*\n  optimizer: expected optax.sgd, got optax.ad"
    ):
        quiet(other, out)(key, data, learning_rate=0.1)
    with pytest.raises(ValueError, match="checkpoints: expected the checkpoints that were saved there, got none; put"):
        quiet(TWO_EPOCHS, out)(key, data, learning_rate=0.1)
    (out / "run.json").unlink()
    with pytest.raises(
        ValueError, match="history.csv: expected no logs without the checkpoints of their run, got some"
    ):
        quiet(TWO_EPOCHS, out)(key, data, learning_rate=0.1)
    assert contents(out) == {path: content for path, content in before.items() if path.name != "run.json"}
    (out / "history.csv").unlink()
    quiet(other, out)(key, data, learning_rate=0.1)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(data, key, tmp_path):
    with pytest.raises(CutError):
        quiet(FOUR_EPOCHS, tmp_path, evaluate=at_epoch(2, cut))(key, data, learning_rate=0.1)
    assert checkpoints(tmp_path) == []
    assert len(rows(tmp_path / "history.csv")) >= 1
    with pytest.raises(ValueError, match="learning_rate: expected 0.1, got 0.2"):
        quiet(FOUR_EPOCHS, tmp_path)(key, data, learning_rate=0.2)
    run = quiet(FOUR_EPOCHS, tmp_path)(key, data, learning_rate=0.1)
    assert bits(run) == bits(FOUR_EPOCHS(key, data, learning_rate=0.1))


def test_the_folder_of_a_stream_is_not_that_of_a_session(data, key, ended, tmp_path):
    examples = nnfx.data.store(tmp_path / "examples", [tuple(map(np.asarray, data.train[:2]))])
    before = contents(ended)
    with pytest.raises(ValueError, match="expected the folder of a stream, got that of a session; another run needs"):
        nnfx.stream(TWO_EPOCHS, ended, progress=False)(key, examples, learning_rate=0.1)
    assert contents(ended) == before
    nnfx.stream(TWO_EPOCHS, tmp_path / "stream", progress=False)(key, examples, learning_rate=0.1)
    before = contents(tmp_path / "stream")
    with pytest.raises(ValueError, match="expected the folder of a session, got that of a stream; another run needs"):
        quiet(TWO_EPOCHS, tmp_path / "stream")(key, data, learning_rate=0.1)
    assert contents(tmp_path / "stream") == before


def test_nothing_is_written_through_a_link(data, key, tmp_path):
    outside, out = tmp_path / "outside.txt", tmp_path / "run"
    outside.write_text("kept")
    (out / "checkpoints").mkdir(parents=True)
    (out / "history.csv").symlink_to(outside)
    (out / "evaluation.csv").symlink_to(outside)
    with pytest.raises(ValueError, match="history.csv: expected no logs without"):
        quiet(TWO_EPOCHS, out)(key, data, learning_rate=0.1)
    (out / "history.csv").unlink()
    (out / "evaluation.csv").unlink()
    quiet(TWO_EPOCHS, out, evaluate=lambda run: {"a": 1.0})(key, data, learning_rate=0.1)
    for name in ("history.csv", "evaluation.csv", "run.json"):
        (out / name).unlink()
        (out / name).symlink_to(outside)
        if name == "run.json":
            with pytest.raises(ValueError, match="run.json: expected what a session notes"):
                quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
            (out / name).unlink()
    quiet(FOUR_EPOCHS, out, evaluate=lambda run: {"a": 1.0})(key, data, learning_rate=0.1)
    assert outside.read_text() == "kept"
    assert len(rows(out / "history.csv")) == 4
    (out / "checkpoints" / ".lock").unlink()
    (out / "checkpoints" / ".lock").symlink_to(outside)
    with pytest.raises(OSError, match=r".lock: expected a file, got a link, which nothing is written through"):
        quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
    (out / "checkpoints").rename(tmp_path / "elsewhere")
    (out / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="checkpoints: expected a folder, got a link"):
        quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
    assert outside.read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fit": lambda key, data: None}, TypeError, "fit: expected what nnfx.fit returns, got"),
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
        ({"evaluate_every": 0}, ValueError, "evaluate_every: expected a positive integer, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        nnfx.session(**{"fit": TWO_EPOCHS, "out": tmp_path, **options})
