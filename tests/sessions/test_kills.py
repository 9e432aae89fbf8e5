"""Runs and sweeps that are killed at random moments end with the same bits as those that never were.

`python -m pytest -m slow tests/sessions/test_kills.py` kills a hundred runs, thirty sweeps and thirty halvings.
"""

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnfx import checkpoint, load

ROOT = Path(__file__).parent.parent.parent
KILLS = {"run": 100, "sweep": 30, "halving": 30}


def start(cache, kind, *arguments):
    """Start a small program with the compiled programs so far; a run uses XLA with its default flags."""
    environment = {
        **{name: value for name, value in os.environ.items() if kind != "run" or name != "XLA_FLAGS"},
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, str(Path(__file__).with_name("mortal.py")), kind, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def is_saving(folder):
    return any((folder / "checkpoints").glob(".epoch-*"))


def wait_for_folder(process, folder):
    while process.poll() is None and not (folder / "checkpoints").exists():
        time.sleep(0.005)


def kill(process, folder, seconds, while_saving):
    """Kill a run some seconds after it has opened its folder, or when its next save after that has begun."""
    wait_for_folder(process, folder)
    time.sleep(seconds)
    while while_saving and process.poll() is None and not is_saving(folder):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return is_saving(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder of compiled programs that the processes share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def whole(cache):
    """Return the checksum of an uninterrupted program, by its kind."""
    return functools.cache(lambda kind: finish(start(cache, kind)))


def saved(folder, pattern="*epoch-*"):
    return sorted(path.name for path in (folder / "checkpoints").glob(pattern))


@pytest.fixture(scope="module")
def killed(cache, tmp_path_factory):
    """The folder of a run that was killed while saving, to be copied."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = start(cache, "run", folder)
    while process.poll() is None and len(saved(folder)) < 2:
        time.sleep(0.005)
    kill(process, folder, 0, while_saving=True)
    return folder


def wait_for_save(process, folder):
    """Wait until a checkpoint is saved that was not there before."""
    before = saved(folder, "epoch-*")
    while process.poll() is None and saved(folder, "epoch-*") == before:
        time.sleep(0.005)


def test_a_run_that_is_killed_twice_ends_with_the_same_bits(cache, whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    process = start(cache, "run", folder)
    wait_for_save(process, folder)
    kill(process, folder, 0, while_saving=False)
    for path in (folder / "checkpoints").glob("epoch-*"):
        checkpoint.read(path)  # anything with the name of a checkpoint is complete
    with contextlib.suppress(FileNotFoundError):  # if it was killed before its first model was saved
        load(folder)
    assert finish(start(cache, "run", folder)) == whole("run")
    assert not is_saving(folder)
    load(folder)


@pytest.mark.parametrize("kind", ["sweep", "halving"])
def test_a_sweep_that_is_killed_three_times_ends_with_the_same_bits(cache, whole, tmp_path, kind):
    expected = whole(kind)  # first, so that the others find its programs compiled
    for number in range(3):
        process = start(cache, kind, tmp_path)
        wait_for_save(process, tmp_path)
        kill(process, tmp_path, 0, while_saving=number % 2 == 0)
        for path in (tmp_path / "checkpoints").glob("epoch-*"):
            checkpoint.read(path)
    assert not (tmp_path / "members.csv").exists()
    assert finish(start(cache, kind, tmp_path)) == expected
    assert (tmp_path / "members.csv").read_text().count("\n") == 1 + 8


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_a_run_with_its_checkpoints_whole(cache, whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    before = [name for name in saved(folder) if name.startswith("epoch")]
    assert before

    process = start(cache, "run", folder)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = err.splitlines()
    (last,) = (i for i, line in enumerate(lines) if line.startswith("OSError: ") and "; the newest" in line)
    assert len(lines) > last + 1  # the last state is saved once more, and a note reports that this failed too
    for line in lines[last:]:
        assert "could not write a checkpoint:" in line
    assert saved(folder) == before
    for name in before:
        checkpoint.read(folder / "checkpoints" / name)
    assert finish(start(cache, "run", folder)) == whole("run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_however_many_are_killed_they_end_with_the_same_bits(cache, whole, tmp_path, kind):
    moments = random.Random(0)
    first = tmp_path / "first"
    process = start(cache, kind, first)
    wait_for_folder(process, first)
    began = time.monotonic()
    assert finish(process) == whole(kind)
    duration = time.monotonic() - began
    saving, going_on = 0, 0
    kills = KILLS[kind]
    for number in range(3):
        folder = tmp_path / str(number)
        saving += kill(start(cache, kind, folder), folder, moments.uniform(0, duration), number % 2 == 0)
        going_on += any((folder / "checkpoints").glob("epoch-*"))
        assert finish(start(cache, kind, folder)) == whole(kind), number
    print(f"{kills} killed, {saving} of them while saving, {going_on} went on from a checkpoint")
    assert saving > kills / 10
    assert going_on > kills / 10
