"""Sweeps kept in a folder: interrupted, resumed, on other devices, and rejected if they differ."""

import signal

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sweeps import Halving, sweep
from nnfx.sweeps.programs import Program
from tests.sessions.sessions import CutError, bits, checkpoints, rows

KEY = jax.random.key(0)
ONE = jax.devices()[:1]
RATES = [0.001, 0.1, 0.5, 3.0]


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def fit(epochs=8, **options):
    return nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=100, **options
    )


PLAIN, PATIENT = fit(), fit(stop=nnfx.stopping.patience)


def given(**changed):
    return {"key": KEY, "seeds": 2, "learning_rate": RATES, "devices": ONE, **changed}


def stopping(**changed):
    """Return options for members that stop at different epochs and are removed on the way."""
    return given(patience=1, min_improvement=0.005, epochs_per_chunk=1, **changed)


def all_of(result):
    return bits((result.variables, result.histories, result.preprocess)), result.rows


def same(first, second):
    assert all_of(first)[0] == all_of(second)[0]
    assert [tuple(map(str, row.values())) for row in first.rows] == [
        tuple(map(str, row.values())) for row in second.rows
    ]


def cut_at(epoch):
    """Return a function that ends a sweep like a kill, once this many epochs are saved."""

    def look(progress):
        if progress.epoch == epoch:
            raise CutError

    return look


@pytest.fixture(scope="module")
def whole(data):
    return sweep(PATIENT, data, **stopping())


def cut_off(data, out, epoch, **changed):
    with pytest.raises(CutError):
        sweep(
            PATIENT, data, **stopping(**changed), out=out, save_every_seconds=0, progress=False, on_chunk=cut_at(epoch)
        )


def test_wherever_it_is_cut_off_a_sweep_ends_with_the_same_bits(data, whole, tmp_path):
    assert len({row["epochs"] for row in whole.rows}) > 2, "members stop apart, or nothing is packed"
    for epoch in (2, 3, 6):
        cut_off(data, tmp_path, epoch)
        assert checkpoints(tmp_path)[-1] == epoch
    kept = sweep(PATIENT, data, **stopping(), out=tmp_path, progress=False)
    same(kept, whole)
    assert (tmp_path / "members.csv").read_text().count("\n") == 1 + 8
    again = sweep(PATIENT, data, **stopping(), out=tmp_path, progress=False, on_chunk=cut_at(8))
    same(again, whole)  # nothing is left to train, so that it is not called


def test_its_history_tells_who_ran_and_how_well(data, whole, tmp_path):
    sweep(PATIENT, data, **stopping(), out=tmp_path, progress=False)
    written = rows(tmp_path / "history.csv")
    losses = whole.histories["valid_loss"]
    ended = np.array([row["epochs"] for row in whole.rows])
    for i, row in enumerate(written):
        assert int(row["epoch"]) == i + 1
        assert int(row["running"]) == (ended > i).sum()
        assert np.float32(row["valid_loss_lowest"]) == np.nanmin(losses[:, i])
        np.testing.assert_allclose(np.float32(row["valid_loss_median"]), np.nanmedian(losses[:, i]), rtol=1e-6)
    assert len(written) == max(ended)


@pytest.mark.slow
def test_a_halving_goes_on_between_its_rungs(data, tmp_path):
    options = given(halving=Halving((2, 4), keep=0.5))
    whole = sweep(PLAIN, data, **options)
    for epoch in (2, 6):
        with pytest.raises(CutError):
            sweep(PLAIN, data, **options, out=tmp_path, save_every_seconds=0, progress=False, on_chunk=cut_at(epoch))
    kept = sweep(PLAIN, data, **options, out=tmp_path, progress=False)
    same(kept, whole)
    assert sorted(row["epochs"] for row in kept.rows) == [2] * 4 + [4] * 2 + [8] * 2


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)])
def test_on_other_devices_it_has_the_same_members_up_to_rounding(data, whole, tmp_path, count):
    cut_off(data, tmp_path, 3, devices=jax.devices()[:2])
    other = sweep(PATIENT, data, **stopping(devices=jax.devices()[:count]), out=tmp_path, progress=False)
    assert [row["member"] for row in other.rows] == [row["member"] for row in whole.rows]
    assert [row["epochs"] for row in other.rows] == [row["epochs"] for row in whole.rows]
    for name, values in whole.histories.items():
        np.testing.assert_allclose(other.histories[name], values, rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other.variables, whole.variables)


@pytest.mark.slow
def test_folds_and_slices_go_on_as_well(data, tmp_path):
    train = nnfx.data.Data(data.train, None, data.preprocess)
    options = given(seeds=1, folds=3, memory=60_000)
    whole = sweep(PLAIN, train, **options, epochs_per_chunk=4)
    with pytest.raises(CutError):
        sweep(PLAIN, train, **options, epochs_per_chunk=4, out=tmp_path, progress=False, on_chunk=cut_at(4),
              save_every_seconds=0)  # fmt: skip
    same(sweep(PLAIN, train, **options, epochs_per_chunk=4, out=tmp_path, progress=False), whole)


def test_an_error_on_the_way_loses_nothing(data, tmp_path):
    def fail(progress):
        if progress.epoch == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sweep(PLAIN, data, **given(), epochs_per_chunk=2, out=tmp_path, progress=False, on_chunk=fail)
    assert checkpoints(tmp_path) == [4]


def test_signals_save_and_leave_with_a_word(data, tmp_path, capsys):
    def ask(progress):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        sweep(PLAIN, data, **given(), epochs_per_chunk=2, out=tmp_path, progress=False, on_chunk=ask)
    assert left.value.code == 143
    assert checkpoints(tmp_path) == [2]
    assert "SIGTERM: stopped after epoch 2 of 8, saved as " in capsys.readouterr().err


@pytest.mark.slow
def test_more_epochs_may_be_asked_for(data, tmp_path):
    sweep(PLAIN, data, **given(), epochs_per_chunk=4, out=tmp_path, progress=False)
    longer = sweep(fit(12), data, **given(), epochs_per_chunk=4, out=tmp_path, progress=False)
    same(longer, sweep(fit(12), data, **given(), epochs_per_chunk=4))
    with pytest.raises(ValueError, match="epochs: expected at least 12, as in .*, got 8"):
        sweep(PLAIN, data, **given(), epochs_per_chunk=4, out=tmp_path, progress=False)


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("ended")
    sweep(PLAIN, data, **given(), out=out, progress=False)
    return out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": jax.random.key(1)}, "key: expected the key of the checkpoint, got a different one"),
        ({"seeds": 3}, "seeds: expected 2, got 3"),
        ({"learning_rate": [0.001, 0.1, 0.5, 2.0]}, r"learning_rate: expected \[.*3.*\], got \[.*2.*\]"),
        ({"epochs_per_chunk": 4}, "epochs_per_chunk: expected 8, got 4"),
        ({"at_once": 2}, "at_once: expected None, got 2"),
    ],
)
def test_another_sweep_is_refused_before_anything_is_written(data, ended, changed, message):
    before = {path: path.stat().st_mtime_ns for path in ended.rglob("*")}
    with pytest.raises(ValueError, match=message):
        sweep(PLAIN, data, **given(**changed), out=ended, progress=False)
    assert {
        path: path.stat().st_mtime_ns for path in ended.rglob("*") if path.name != ".lock"
    }.items() <= before.items()


def test_a_run_does_not_go_on_in_the_folder_of_a_sweep(data, ended):
    with pytest.raises(ValueError, match="expected the folder of a run, got the folder of a sweep"):
        nnfx.session(PLAIN, ended, progress=False)(KEY, data, learning_rate=0.1)


def test_the_bar_shows_epochs_and_who_is_running(data, tmp_path, capsys):
    sweep(PLAIN, data, **given(), out=tmp_path / "rates")
    shown = capsys.readouterr().err
    assert "rates: 100%" in shown
    assert "8/8" in shown
    assert "epoch 8 of 8, 8 running, valid_loss_lowest 0." in shown
    sweep(PLAIN, data, **given(), progress="in memory")
    assert "in memory: 100%" in capsys.readouterr().err
    sweep(PLAIN, data, **given(), out=tmp_path / "rates", progress="mine")  # its members have all ended
    assert "mine: 100%" in capsys.readouterr().err
    sweep(PLAIN, data, **given())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", [{"skip_damaged": True}, {"tensorboard": True}])
def test_what_only_a_folder_can_have_asks_for_one(data, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: expected the argument `out` as well, got none"):
        sweep(PLAIN, data, **given(), **option)


@pytest.mark.parametrize("every", [None, 0])
def test_a_program_that_fails_leaves_the_newest_checkpoint(data, whole, tmp_path, monkeypatch, every):
    before, calls = Program.__call__, []

    def failing(self, members, groups, shared):
        results = before(self, members, groups, shared)
        calls.append(self)
        if len(calls) == 4:  # the start, and then epoch by epoch; by now, the state has been updated in place
            raise ValueError("no memory")
        return results

    monkeypatch.setattr(Program, "__call__", failing)
    kept = {"out": tmp_path, "save_every_seconds": every, "progress": False}
    with pytest.raises(ValueError, match="no memory") as raised:
        sweep(PATIENT, data, **stopping(), **kept)
    monkeypatch.undo()
    if every is None:
        assert "deleted" in raised.value.__notes__[-1]
    assert len(checkpoints(tmp_path)) == (0 if every is None else 2)
    same(sweep(PATIENT, data, **stopping(), **kept), whole)
