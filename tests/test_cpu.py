import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nnfx import cpu

SCRIPT = """
import json, sys, jax, nnfx
nnfx.cpu.set_up(**json.loads(sys.argv[1]))
jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
print(json.dumps([jax.device_count(), jax.config.jax_compilation_cache_dir]))
"""


def set_up(**options):
    """Return what a new process finds after `set_up`, since in this one JAX has already computed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(options)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(run.stdout)


def test_a_device_a_core_and_programs_kept(tmp_path):
    devices, folder = set_up(cache=str(tmp_path))
    assert (devices, folder) == (cpu.cores(), str(tmp_path))
    assert any(tmp_path.iterdir()), "even a program that compiles at once is kept"


def test_what_is_asked_for():
    assert set_up(devices=3, cache=None, keep_memory=False) == [3, None]


def test_too_late_is_an_error():
    assert jax.devices()
    with pytest.raises(RuntimeError, match="devices: expected a call of set_up before JAX computes anything"):
        cpu.set_up(devices=5, cache=None, keep_memory=False)


def test_wrong_devices():
    with pytest.raises(ValueError, match="devices: expected a positive integer, got 0"):
        cpu.set_up(devices=0)


def kept(environment, *arguments):
    """Return the folder in which a new process keeps programs."""
    script = (
        "import sys, jax, nnfx; folder = nnfx.cpu.keep_programs(*sys.argv[1:]);"
        " jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready(); print(folder)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**clean, **environment})
    return run.stdout.strip()


def test_programs_are_kept_in_the_cache_of_the_user(tmp_path):
    folder = Path(kept({"XDG_CACHE_HOME": str(tmp_path)}))
    assert folder.parent == tmp_path / "nnfx" / "programs"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before
    kept({"XDG_CACHE_HOME": str(tmp_path)})
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before, "nothing is compiled again"


def test_the_users_own_choice_of_a_cache_comes_first(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "XDG_CACHE_HOME": str(tmp_path / "other")}
    assert kept(own) == str(tmp_path / "own")
    none = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XDG_CACHE_HOME": str(tmp_path / "other")}
    assert kept(none) == "None"
    assert not (tmp_path / "other").exists()


def test_what_was_not_read_for_long_goes_first(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}-cache").write_bytes(bytes(100))
        os.utime(tmp_path / f"{i}-cache", (1000 + i, 500))
    cpu._shrink(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3-cache", "4-cache"]
    cpu._shrink(tmp_path / "absent", 250)
    with pytest.raises(TypeError, match="at_most: expected a non-negative integer, got 1.5"):
        cpu.keep_programs(tmp_path, at_most=1.5)
    with pytest.raises(TypeError, match="folder: expected a path, got 3"):
        cpu.keep_programs(3)
