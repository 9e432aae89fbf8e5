"""Which run owns a folder, and that nothing in it is replaced by something shorter."""

import errno
import os
import shutil

import numpy as np
import optax
import pytest

import nnfx
from nnfx.sessions import checkpoints as host_checkpoints
from tests.sessions.sessions import (
    FOUR_EPOCHS,
    TWO_EPOCHS,
    CutError,
    at_epoch,
    bits,
    checkpoints,
    cut,
    perceptron,
    quiet,
    rows,
)


def test_a_run_that_has_ended_is_returned_from_a_folder_that_cannot_be_written(data, key, ended, tmp_path, monkeypatch):
    shutil.copytree(ended, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "copy").rglob("*"))}

    def refused(folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(host_checkpoints, "lock", refused)
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
        ValueError, match="history.csv: expected the run .*\n  optimizer: expected optax.sgd, got optax.ad"
    ):
        quiet(other, out)(key, data, learning_rate=0.1)
    with pytest.raises(
        ValueError, match="checkpoints: expected the checkpoints that were saved there, got none; restore"
    ):
        quiet(TWO_EPOCHS, out)(key, data, learning_rate=0.1)
    (out / "run.json").unlink()
    with pytest.raises(ValueError, match="history.csv: expected no logs without checkpoints of the same run, got some"):
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


def test_a_run_on_stored_data_and_one_in_memory_do_not_share_a_folder(data, key, ended, tmp_path):
    examples = nnfx.data.store(tmp_path / "examples", [tuple(map(np.asarray, data.train[:2]))])
    before = contents(ended)
    with pytest.raises(
        ValueError, match="expected the folder of a run on stored data, got the folder of a run; use a different folder"
    ):
        nnfx.session(TWO_EPOCHS, ended, progress=False)(key, examples, learning_rate=0.1)
    assert contents(ended) == before
    nnfx.session(TWO_EPOCHS, tmp_path / "stream", progress=False)(key, examples, learning_rate=0.1)
    before = contents(tmp_path / "stream")
    with pytest.raises(
        ValueError, match="expected the folder of a run, got the folder of a run on stored data; use a different folder"
    ):
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
            with pytest.raises(ValueError, match="run.json: could not read the description of a run"):
                quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
            (out / name).unlink()
    quiet(FOUR_EPOCHS, out, evaluate=lambda run: {"a": 1.0})(key, data, learning_rate=0.1)
    assert outside.read_text() == "kept"
    assert len(rows(out / "history.csv")) == 4
    (out / "checkpoints" / ".lock").unlink()
    (out / "checkpoints" / ".lock").symlink_to(outside)
    with pytest.raises(OSError, match=r".lock: expected a file, got a symbolic link; nothing is written through links"):
        quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
    (out / "checkpoints").rename(tmp_path / "elsewhere")
    (out / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="checkpoints: expected a folder, got a link"):
        quiet(FOUR_EPOCHS, out)(key, data, learning_rate=0.1)
    assert outside.read_text() == "kept"
