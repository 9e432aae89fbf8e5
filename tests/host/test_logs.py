import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nnfx.host.logs import Bar, CsvLog, TensorBoardLog

ROWS = [
    {"epoch": 1, "train_loss": np.float32(0.1), "valid_loss": np.float32(np.nan)},
    {"epoch": 2, "train_loss": np.float32(1 / 3), "valid_loss": np.float32(2e-30)},
]


def test_csv_keeps_every_bit_of_a_number(tmp_path):
    log = CsvLog(tmp_path / "a.csv", [])
    for row in ROWS:
        log.add([row])
    log.close()
    written = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in written] == [1, 2]
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_array_equal(np.float32([row[name] for row in written]), [row[name] for row in ROWS])
    thirds = CsvLog(tmp_path / "b.csv", [{"epoch": 1, "loss": np.float64(1 / 3)}, {"epoch": 2, "loss": 1 / 3}])
    thirds.close()
    assert (tmp_path / "b.csv").read_text() == "epoch,loss\n1,0.3333333333333333\n2,0.3333333333333333\n"


def test_csv_begins_with_the_rows_that_are_known(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("epoch,train_loss,valid_loss\n1,0.5,0.5\n2,0.4,")
    log = CsvLog(path, ROWS[:1])
    log.add(ROWS[1:])
    assert path.read_text() == "epoch,train_loss,valid_loss\n1,0.1,nan\n2,0.33333334,2e-30\n"
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_rows_are_whole_and_readable_at_once(tmp_path):
    log = CsvLog(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text() == ""
    log.add(ROWS)
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_path(tmp_path):
    log = CsvLog(tmp_path / "a.csv", [])
    log.close()
    with (
        Path("/dev/full").open("ab", buffering=0) as log._file,
        pytest.raises(OSError, match=r"a.csv: expected rows to be appended, got .*No space left"),
    ):
        log.add(ROWS)


class Writer:
    """Stands in for TensorBoard's."""

    def __init__(self, folder):
        self.folder, self.scalars, self.done = folder, [], []
        Writer.latest = self

    def add_scalar(self, tag, data, step):
        self.scalars.append((tag, data, step))

    def flush(self):
        self.done.append("flush")

    def close(self):
        self.done.append("close")


def test_tensorboard_gets_every_number_by_epoch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", types.SimpleNamespace(Writer=Writer))
    log = TensorBoardLog(tmp_path)
    log.add(ROWS[1:])
    log.close()
    assert Writer.latest.folder == str(tmp_path)
    assert Writer.latest.scalars == [
        ("train_loss", float(np.float32(1 / 3)), 2),
        ("valid_loss", float(np.float32(2e-30)), 2),
    ]
    assert Writer.latest.done == ["flush", "close"]


def test_tensorboard_itself_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    for rows in (ROWS[:1], ROWS[1:]):  # as a run that went on
        log = TensorBoardLog(tmp_path)
        log.add(rows)
        log.close()
    read = EventAccumulator(str(tmp_path)).Reload().Tensors("train_loss")
    assert [(event.step, float(make_ndarray(event.tensor_proto))) for event in read] == [
        (row["epoch"], float(row["train_loss"])) for row in ROWS
    ]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard: needed to write logs for it; not installed: pip"):
        TensorBoardLog(tmp_path)


def test_the_bar_goes_on_where_a_run_goes_on(capsys):
    bar = Bar("images", epochs=4, done=1, examples=500)
    bar.add([{"epoch": 2, "train_loss": 0.5}, {"epoch": 3, "train_loss": 0.25, "valid_loss": 1 / 3}])
    bar.close()
    shown = capsys.readouterr().err
    assert "images:  25%" in shown
    assert "images:  75%" in shown
    assert "1.50k/2.00k" in shown
    assert "epoch 3 of 4, train_loss 0.25, valid_loss 0.3333" in shown


def test_without_tqdm_there_is_no_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    bar = Bar("images", epochs=4, done=1, examples=500)
    bar.add([{"epoch": 2, "train_loss": 0.5}])
    bar.close()
    assert capsys.readouterr().err == ""
