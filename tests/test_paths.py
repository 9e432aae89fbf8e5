"""Paths are made absolute once, and refer to the same file from then on."""

import os
from pathlib import Path

import numpy as np
import pytest

import nnfx
from nnfx import checkpoint, paths
from nnfx.data import formats
from nnfx.sessions.checkpoints import Checkpoints


def test_relative_paths_belong_to_the_folder_they_were_given_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = paths.absolute("out", "runs/mine")
    monkeypatch.chdir("/")
    assert given == tmp_path / "runs" / "mine"


def test_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.absolute("out", "~/runs") == tmp_path / "runs"
    assert paths.absolute("out", Path("~/runs")) == tmp_path / "runs"


@pytest.mark.parametrize("value", [3, None, b"runs"])
def test_what_is_no_path_is_named(value):
    with pytest.raises(TypeError, match="out: expected a path, got"):
        paths.absolute("out", value)
    with pytest.raises(ValueError, match="out: expected a path, got ''"):
        paths.absolute("out", "")


def tree():
    return {"w": np.arange(3.0)}


def idx():
    return bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6])


DOORS = {
    "checkpoint.save": (lambda path: checkpoint.save(path, tree()), lambda path: checkpoint.load(path, tree())),
    "checkpoint.load": (lambda path: checkpoint.load(path, tree()), lambda path: checkpoint.save(path, tree())),
    "checkpoint.read": (lambda path: checkpoint.read(path), lambda path: checkpoint.save(path, tree())),
    "data.store": (lambda path: nnfx.data.store(path, [(np.eye(2), np.ones(2))]), nnfx.data.stored),
    "data.stored": (nnfx.data.stored, lambda path: nnfx.data.store(path, [(np.eye(2), np.ones(2))])),
    "formats.read_idx": (lambda path: formats.read_idx(path, 1), lambda path: path.write_bytes(idx())),
    "data.read_series": (nnfx.data.read_series, lambda path: path.write_text("a,b\n1,2\n3,4\n")),
    "Checkpoints": (lambda path: opened(path), lambda path: path.mkdir()),
}
"""Functions of a path, each with one that writes its input or reads its output at the absolute path."""


def opened(path):
    checkpoints = Checkpoints(path)
    os.chdir("/")
    with checkpoints:
        checkpoints.save(1, tree(), loss=0.0)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("given", ["named", Path("named"), "./named", "~/named"])
def test_every_door_takes_paths_of_every_kind(tmp_path, monkeypatch, door, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    act, other = DOORS[door]
    path = tmp_path / "named"
    if door in ("checkpoint.save", "data.store"):
        act(given)
        other(path)
    else:
        other(path)
        act(given)
    assert path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["named"]


def test_examples_are_read_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = nnfx.data.store("examples", [(np.eye(3), np.arange(3.0))])
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(examples.inputs[1:], np.eye(3)[1:])
    np.testing.assert_array_equal(examples.load().targets, np.arange(3))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")

    def fail():
        with paths.replace(path) as aside:
            aside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    with paths.replace(path) as aside:
        assert path.read_text() == "before"
        aside.write_text("after")
    assert path.read_text() == "after"
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_files_are_made_as_others_are(tmp_path):
    (tmp_path / "plain").write_text("")
    with paths.replace(tmp_path / "aside"):
        pass
    assert (tmp_path / "aside").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_links_are_replaced_and_never_followed(tmp_path):
    outside, link = tmp_path / "outside", tmp_path / "link"
    outside.write_text("kept")
    link.symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        paths.append(link)
    with paths.replace(link) as aside:
        aside.write_text("new")
    assert (outside.read_text(), link.read_text(), link.is_symlink()) == ("kept", "new", False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("kept")
    (tmp_path / "to folder").symlink_to(tmp_path / "folder")
    paths.remove(tmp_path / "to folder")
    assert (tmp_path / "folder" / "file").read_text() == "kept"
    paths.remove(tmp_path / "folder")
    paths.remove(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
