import re
import tomllib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_as_printed(capsys):
    (example,) = blocks("python")
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("\n") == 3
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
