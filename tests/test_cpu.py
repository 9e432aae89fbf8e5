import json
import os
import subprocess
import sys

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
    with pytest.raises(RuntimeError, match="devices: expected set_up to be called before JAX computes anything"):
        cpu.set_up(devices=5, cache=None, keep_memory=False)


def test_wrong_devices():
    with pytest.raises(ValueError, match="devices: expected a positive integer, got 0"):
        cpu.set_up(devices=0)
