import contextlib
import io
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import nnfx

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def example():
    """Return what the first example prints, and the names that it defines."""
    (code,) = blocks("python")
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    return printed.getvalue(), names


def test_the_example_runs_as_printed(example):
    printed, names = example
    assert printed.count("\n") == 3
    assert names["runs"].best.loss.shape == (16,)
    assert 0 < float(names["run"].final["valid_loss"]) < 1
    assert np.isfinite(names["slope"])


def test_there_are_two_commands_of_one_line_each():
    commands = blocks("bash")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert commands[0].rstrip().endswith(".venv/bin/python -m experiments.titanic")
    assert commands[1].rstrip().endswith(".venv/bin/pytest")


def test_every_file_that_it_names_is_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`((?:nnfx|experiments|tests)/[\w/.]*)`", README
    ):
        assert (ROOT / path).exists(), path


def test_every_extra_that_it_names_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\[(\w+)\]'", README)) <= set(extras)


def test_the_releases_left_out_are_those_that_are_warned_about():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package in ("jax", "jaxlib"):
        (wanted,) = [line for line in dependencies if re.match(rf"{package}\W", line)]
        assert "!=0.10.2" in wanted
        assert "!=0.11.*" in wanted
        assert "<" not in wanted


def test_its_lines_run_as_printed_from_a_relative_folder(example, tmp_path, monkeypatch, capsys):
    """Run every complete call in its text and its blocks, with the names of the first example."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    _, names = example
    names = {
        **names,
        "key": jax.random.key(0),
        "batch": names["data"].train,
        "loss": nnfx.losses.binary_cross_entropy,
        "variables": names["run"].best.variables,
        "frame": pandas.DataFrame({"port": list("abcd") * 10, "fare": np.arange(40.0)}),
        "labels": ["no", "yes"] * 20,
        "make": lambda width: nnfx.fit(
            nnfx.models.mlp((width,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1
        ),
        "space": {"width": nnfx.search.Choice(2), "learning_rate": nnfx.search.Uniform(0.1, 1.0)},
        "dataset": [{"image": np.zeros((2, 2, 1)), "label": 1}],
        "parts": [(np.asarray(names["data"].train.inputs), np.asarray(names["data"].train.targets))],
    }
    calls = re.findall(r"`((?:print\()?(?:nnfx\.|run\.save)[^`\n]+\))`", README)
    only_first = "nnfx.distributed.start()"  # before JAX computes anything
    whole = [line for line in calls if "..." not in line and line != only_first]
    assert any(line.startswith("nnfx.session(") for line in whole)
    assert any(line.startswith("nnfx.sweeps.sweep(") for line in whole)
    assert any(line.startswith("nnfx.search.search(") for line in whole)
    loggers = ("import wandb", "import mlflow")  # run in tests/sessions/test_loggers.py where they are installed
    for line in [*whole, *(block for block in blocks("py") if not block.startswith(loggers))]:
        exec(compile(line, "README.md", "exec"), names)
    assert (tmp_path / "runs/mine/history.csv").exists()
    assert "kernel" in capsys.readouterr().out
