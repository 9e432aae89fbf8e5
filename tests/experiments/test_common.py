import os
import subprocess
import sys

import pytest

from experiments import common


def test_flags_of_the_user_come_last(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    common.compile_quickly()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_backend_optimization_level=1"
    assert flags[-1] == "--xla_backend_optimization_level=3"


@pytest.mark.slow
def test_the_installed_release_knows_the_flags():
    script = "from experiments import common; common.compile_quickly(); import jax; print(jax.jit(lambda x: 2 * x)(3))"
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=clean)
    assert printed.stdout.strip() == "6"
