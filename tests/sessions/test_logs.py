import contextlib
import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import paths
from nnfx.sessions.logs import FileLog, Logs, TensorBoardLog, apart, calling, rows_in
from nnfx.sessions.progress_bar import ProgressBar

PROGRAM = SimpleNamespace(recipe=SimpleNamespace(epochs=4), total=4, shown=("examples", 500))
ROWS = [
    {"epoch": 1, "train_loss": np.float32(0.1), "valid_loss": np.float32(np.nan)},
    {"epoch": 2, "train_loss": np.float32(1 / 3), "valid_loss": np.float32(2e-30)},
]


def test_csv_keeps_every_bit_of_a_number(tmp_path):
    log = FileLog(tmp_path / "a.csv", [])
    for row in ROWS:
        log.add([row])
    log.close()
    written = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in written] == [1, 2]
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_array_equal(np.float32([row[name] for row in written]), [row[name] for row in ROWS])
    thirds = FileLog(tmp_path / "b.csv", [{"epoch": 1, "loss": np.float64(1 / 3)}, {"epoch": 2, "loss": 1 / 3}])
    thirds.close()
    assert (tmp_path / "b.csv").read_text() == "epoch,loss\n1,0.3333333333333333\n2,0.3333333333333333\n"


def test_csv_begins_with_the_rows_that_are_known(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("epoch,train_loss,valid_loss\n1,0.5,0.5\n2,0.4,")
    log = FileLog(path, ROWS[:1])
    log.add(ROWS[1:])
    assert path.read_text() == "epoch,train_loss,valid_loss\n1,0.1,nan\n2,0.33333334,2e-30\n"
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_rows_are_whole_and_readable_at_once(tmp_path):
    log = FileLog(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text() == ""
    log.add(ROWS)
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_path(tmp_path):
    log = FileLog(tmp_path / "a.csv", [])
    log.close()
    with (
        Path("/dev/full").open("ab", buffering=0) as log._file,
        pytest.raises(OSError, match=r"a.csv: could not append rows: .*No space left"),
    ):
        log.add(ROWS)


def scalars(folder, **options):
    """Return what TensorBoard's own reader finds: steps and numbers by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), **options).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def tensorboard_log(folder, known, rows):
    log = TensorBoardLog(folder, known)
    log.add(rows)
    log.close()


def test_tensorboard_itself_reads_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    for rows in (ROWS[:1], ROWS[1:]):  # like a run that was resumed
        tensorboard_log(tmp_path, [], rows)
    read = scalars(tmp_path)
    assert read["train_loss"] == [(row["epoch"], float(row["train_loss"])) for row in ROWS]
    assert np.isnan(read["valid_loss"][0][1])
    assert read["valid_loss"][1] == (2, float(ROWS[1]["valid_loss"]))


def test_every_epoch_is_there_once_however_often_a_run_goes_on(tmp_path):
    pytest.importorskip("tensorboard")
    rows = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 1201)]
    tensorboard_log(tmp_path, [], rows[:700])
    tensorboard_log(tmp_path, rows[:600], rows[600:900])  # rows repeated since the last checkpoint are already there
    tensorboard_log(tmp_path, rows, [])  # and lost rows are written
    read = scalars(tmp_path)["loss"]
    assert [step for step, _ in read] == list(range(1, 1201))
    np.testing.assert_array_equal([value for _, value in read], np.float32([row["loss"] for row in rows]))
    files = len(list(tmp_path.iterdir()))
    tensorboard_log(tmp_path, rows, [])
    assert len(list(tmp_path.iterdir())) == files


def test_a_file_for_tensorboard_that_was_cut_off_is_gone_on_from(tmp_path):
    pytest.importorskip("tensorboard")
    rows = [{"epoch": epoch, "loss": float(epoch)} for epoch in range(1, 7)]
    tensorboard_log(tmp_path, [], rows[:4])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    tensorboard_log(tmp_path, rows[:2], rows[2:])
    steps = [step for each in sorted(tmp_path.iterdir()) for step, _ in scalars(each)["loss"]]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_numbers_of_an_evaluation_keep_apart_from_those_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)
    log.add([{"epoch": 1, "loss": 1.0}])
    apart(log.add, {"loss"})([{"epoch": 1, "loss": 2.0, "error": 3.0}])
    log.close()
    assert scalars(tmp_path) == {"loss": [(1, 1.0)], "evaluation/loss": [(1, 2.0)], "error": [(1, 3.0)]}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_by_tensorboard_s_log_as_well(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)
    full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 -- the log closes it
    monkeypatch.setattr(paths, "append", lambda path, is_new: full)
    with pytest.raises(OSError, match="could not write logs: .*No space left"):
        log.add(ROWS)
    log.close()
    assert full.closed


def test_files_are_not_written_through_links(tmp_path):
    outside = tmp_path / "outside.csv"
    outside.write_text("kept")
    (tmp_path / "a.csv").symlink_to(outside)
    log = FileLog(tmp_path / "a.csv", ROWS[:1])
    log.add(ROWS[1:])
    log.close()
    assert outside.read_text() == "kept"
    assert (tmp_path / "a.csv").read_text().count("\n") == 3


def test_rows_come_back_as_far_as_they_are_whole(tmp_path):
    path = tmp_path / "a.csv"
    assert rows_in(path) == []
    log = FileLog(path, [])
    log.add(ROWS)
    log.close()
    whole = rows_in(path)
    np.testing.assert_equal(whole, [{name: float(str(value)) for name, value in row.items()} for row in ROWS])
    path.write_text(path.read_text() + "3,0.5")
    np.testing.assert_equal(rows_in(path), whole)
    for text in ("epoch,loss\n1,x\n", "loss\n1\n", "epoch,loss\n1\n", "\0\n"):
        path.write_text(text)
        assert rows_in(path) == []


def test_a_file_that_is_right_already_is_left_alone(tmp_path):
    log = FileLog(tmp_path / "a.csv", ROWS)
    log.close()
    before = (tmp_path / "a.csv").stat().st_ino
    FileLog(tmp_path / "a.csv", ROWS).close()
    assert (tmp_path / "a.csv").stat().st_ino == before


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(
        ModuleNotFoundError, match="tensorboard: required to write TensorBoard logs, but not installed: pip"
    ):
        TensorBoardLog(tmp_path)


def test_the_bar_goes_on_where_a_run_goes_on(capsys):
    bar = ProgressBar("images", PROGRAM, done=1)
    bar.show(3, [{"epoch": 2, "train_loss": 0.5}, {"epoch": 3, "train_loss": 0.25, "valid_loss": 1 / 3}])
    bar.close()
    shown = capsys.readouterr().err
    assert "images:  25%" in shown
    assert "images:  75%" in shown
    assert "1.50k/2.00k" in shown
    assert "epoch 3 of 4, train_loss 0.25, valid_loss 0.3333" in shown


def test_without_tqdm_there_is_no_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    bar = ProgressBar("images", PROGRAM, done=1)
    bar.show(2, [{"epoch": 2, "train_loss": 0.5}])
    bar.close()
    assert capsys.readouterr().err == ""


def test_lines_of_json_are_strict_and_continue(tmp_path):
    rows = [{"epoch": 1, "loss": np.float32(0.1)}, {"epoch": 2, "loss": np.nan}, {"epoch": 3, "loss": -np.inf}]
    log = FileLog(tmp_path / "a.jsonl", rows[:1])
    log.add(rows[1:])
    log.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert np.float32(lines[0]["loss"]) == rows[0]["loss"]
    assert [line["loss"] for line in lines[1:]] == [None, None]


def test_a_function_receives_each_row_as_numbers_of_python():
    seen = []
    calling(seen.append)([{"epoch": 1, "loss": np.float32(0.5)}, {"epoch": 2, "loss": jnp.asarray(0.25)}])
    assert seen == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    assert {type(value) for row in seen for value in row.values()} == {int, float}


def test_evaluations_named_like_a_metric_of_the_epochs_are_told_apart(tmp_path):
    seen = []
    with contextlib.ExitStack() as stack:
        logs = Logs.open(stack, tmp_path, [], [], tensorboard=True, json_lines=True, call=seen.append)
        logs.history([{"epoch": 1, "loss": 2.0}], 1)
        logs.evaluation([{"epoch": 1, "loss": 3.0}])
    assert seen == [{"epoch": 1, "loss": 2.0}, {"epoch": 1, "evaluation/loss": 3.0}]
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 2.0)], "evaluation/loss": [(1, 3.0)]}
    assert json.loads((tmp_path / "evaluation.jsonl").read_text()) == {"epoch": 1, "loss": 3.0}
