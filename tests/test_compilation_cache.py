import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnfx import compilation_cache


def kept(environment, *arguments):
    """Return the folder in which a new process keeps programs."""
    script = (
        "import sys, jax, nnfx; folder = nnfx.compilation_cache.keep_programs(*sys.argv[1:]);"
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
    compilation_cache._shrink(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3-cache", "4-cache"]
    compilation_cache._shrink(tmp_path / "absent", 250)
    with pytest.raises(TypeError, match="at_most: expected a non-negative integer, got 1.5"):
        compilation_cache.keep_programs(tmp_path, at_most=1.5)
    with pytest.raises(TypeError, match="folder: expected a path, got 3"):
        compilation_cache.keep_programs(3)


def test_files_of_the_user_stay(tmp_path):
    for name in ("thesis.npz", "jit_f-1a-cache", "notes-cache.txt"):
        (tmp_path / name).write_bytes(bytes(1000))
    compilation_cache._shrink(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes-cache.txt", "thesis.npz"]
