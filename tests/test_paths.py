"""Paths are made absolute once, and name the same file ever after."""

from pathlib import Path

import pytest

from nnfx import paths


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
