import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tyro
from PIL import Image

from experiments import __main__ as command
from experiments import gallery

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.QUICK)
def test_every_row_runs_small(name, tmp_path, capsys):
    module = importlib.import_module(f"experiments.{name}")
    options = [*shlex.split(gallery.QUICK[name]), "--out", str(tmp_path), "--seed", "1"]
    module.main(tyro.cli(module.Config, args=options))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seed"] == 1
    for row in gallery.ROWS:
        if row.experiment == name:
            assert matplotlib.image.imread(tmp_path / f"{row.figure}.png").std() > 0.05
            assert (tmp_path / f"{row.figure}.svg").read_text().rstrip().endswith("</svg>")
            assert all(np.isfinite(command.number_at(summary, path)) for path in row.numbers.values())
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"


def test_the_readme_is_that_of_the_table():
    assert (ROOT / "experiments" / "README.md").read_text(encoding="utf-8") == gallery.readme(), (
        "written by python -m experiments --write-readme"
    )


def test_small_copies_of_all_figures_are_kept():
    kept = {path.name: path for path in (ROOT / "experiments" / "figures").iterdir()}
    assert set(kept) == {row.copy for row in gallery.ROWS}
    for path in kept.values():
        assert path.stat().st_size <= command.COPY_BYTES


def test_every_experiment_has_small_settings_and_a_test():
    assert set(gallery.QUICK) == set(gallery.experiments())
    for name in gallery.experiments():
        assert (ROOT / "experiments" / f"{name}.py").exists()
        assert (ROOT / "tests" / "experiments" / f"test_{name}.py").exists()
    titles = [row.title for row in gallery.ROWS]
    assert len(set(titles)) == len(titles)
    assert re.findall(r"^## \d+\. (.*)$", gallery.readme(), re.MULTILINE) == titles


@pytest.fixture
def two_experiments(monkeypatch, tmp_path):
    """A gallery of two experiments, one of which fails."""
    rows = tuple(
        gallery.Row(f"row {name}", "It says.", name, "figure", "See.", {"loss": "of/loss"})
        for name in ("works", "fails")
    )
    monkeypatch.setattr(gallery, "ROWS", rows)
    scripts = {
        "works": "import json, sys; print('σ'); json.dump({'of': {'loss': 0.25}}, open(sys.argv[1], 'w'))",
        "fails": "raise SystemExit('out of luck')",
    }

    def command_of(name, config):
        return [sys.executable, "-c", scripts[name], str(config.out / name / "summary.json")]

    monkeypatch.setattr(command, "command_of", command_of)
    return command.Config(out=tmp_path / "gallery")


def test_what_fails_is_told_and_harms_no_other(two_experiments, capsys):
    out = two_experiments.out
    (out / "fails").mkdir(parents=True)
    (out / "fails" / "summary.json").write_text('{"of": {"loss": 7}}')  # from an earlier run
    assert command.main(two_experiments) == 1
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    works, fails = (
        next(line for line in captured.out.splitlines() if f"row {name}" in line) for name in ("works", "fails")
    )
    assert "loss 0.25" in works
    assert str(out / "works" / "figure.png") in works
    assert "exit status 1: out of luck" in fails
    assert "1 of 2 experiments completed" in captured.out
    assert str(out / "fails" / "output.txt") in captured.out
    assert (out / "works" / "output.txt").read_text(encoding="utf-8").strip() == "σ"


def test_chosen_rows_alone_are_made(two_experiments, capsys):
    chosen = command.Config(out=two_experiments.out, rows=("works",))
    assert command.main(chosen) == 0
    assert "fails" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="rows: expected some of works, fails, got others"):
        command.choose(command.Config(rows=("works", "others")))
    with pytest.raises(ValueError, match="write_readme: expected full settings, got quick ones"):
        command.choose(command.Config(quick=True, write_readme=True))


def test_numbers_are_found_by_names_and_places():
    summary = {"solved": {"full batch": [0.25, 0.5]}, "f1": 0.75}
    assert command.number_at(summary, "solved/full batch/-1") == 0.5
    assert command.number_at(summary, "f1") == 0.75
    with pytest.raises(KeyError, match="precision"):
        command.number_at(summary, "precision")


def test_the_command_of_an_experiment():
    config = command.Config(out=Path("there"), seed=3)
    full = [sys.executable, "-m", "experiments.titanic", "--out", str(Path("there/titanic")), "--seed", "3"]
    assert command.command_of("titanic", config) == full
    assert command.command_of("titanic", command.Config(out=Path("there"), seed=3, quick=True)) == [
        *full,
        "--epochs",
        "3",
    ]


@pytest.mark.slow
def test_a_small_copy_keeps_the_shape_and_gives_up_colours(tmp_path):
    even = np.zeros((700, 1400, 3), np.uint8)
    even[:, 700:] = (0, 114, 178)
    noise = np.random.default_rng(0).integers(0, 40, (700, 1400, 3), dtype=np.uint8)
    for name, pixels in (("even", even), ("noise", noise)):
        Image.fromarray(pixels).save(tmp_path / "figure.png")
        command.shrink(tmp_path / "figure.png", tmp_path / f"{name}.png")
    with Image.open(tmp_path / "even.png") as copy, Image.open(tmp_path / "noise.png") as noisy:
        assert copy.size == noisy.size == (900, 450)
        np.testing.assert_allclose(np.asarray(copy.convert("RGB"))[225, [10, 890]], [(0, 0, 0), (0, 114, 178)], atol=8)
        assert len(noisy.getcolors()) <= 16
