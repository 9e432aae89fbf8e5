import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from experiments.benchmarks import growth, points, readme, timing
from experiments.benchmarks.points import Point


def curve(axis, system, power, peak=lambda size: 300.0):
    """Return points whose time is 1e-3 · sizeᵖ."""
    sizes = (10, 100, 1000)
    return [Point(axis, system, size, 1e-3 * size**power, 1.0, peak(size), 200.0, 0.5) for size in sizes]


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_exponents_are_those_of_powers(power):
    sizes = np.array([3.0, 10.0, 50.0, 400.0])
    assert growth.exponent(sizes, 0.2 * sizes**power) == pytest.approx(power, abs=1e-9)


def test_small_sizes_where_overhead_rules_do_not_count():
    sizes = np.array([1.0, 10.0, 100.0, 1000.0])
    assert growth.exponent(sizes, [5.0, 5.0, 100.0, 1000.0]) == pytest.approx(1.0)


def test_the_table_has_the_largest_size_and_memory_beyond_the_imports():
    made = curve("rows", "nnfx", 1.0, peak=lambda size: 200 + size) + curve("epochs", "PyTorch", 1.0)
    header, rows = growth.table(made[::-1])
    by_name = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["grows"] for row in by_name] == ["rows", "epochs"]
    assert by_name[0]["largest"] == "1,000"
    assert by_name[0]["seconds"] == pytest.approx(1.0)
    assert [row["memory exponent"] for row in by_name] == pytest.approx([1.0, 0.0])


def test_unknown_axes_are_named():
    with pytest.raises(ValueError, match="axes: expected some of rows, features, .*got 'columns'"):
        growth.main(axes=("columns",))


def test_every_axis_has_a_run():
    assert list(growth.AXES) == list(points.AXES)


def test_points_of_other_systems_import_neither_jax_nor_this_library():
    script = (
        "import sys; from experiments.benchmarks import points; points.print_point('rows', 'scikit-learn', '50');"
        " print([name for name in ('jax', 'nnfx', 'matplotlib') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    point, imported = printed.splitlines()
    measured = Point(*json.loads(point))
    assert imported == "[]"
    assert (measured.axis, measured.system, measured.size) == ("rows", "scikit-learn", 50)
    assert 0 < measured.imports_mib <= measured.peak_mib
    assert measured.imports_mib < points.peak_mib(), "that of the process itself, not of the larger one that started it"
    assert measured.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("axis", points.AXES)
def test_points_of_this_library_have_a_loss(axis, capsys):
    points.print_point(axis, "nnfx", "8")
    assert 0 < Point(*json.loads(capsys.readouterr().out)).loss < 10


ROWS = [
    timing.Row("titanic", "nnfx", 0.01, 0.01, 7, 1.0, 0.05, 0.6, 0.01),
    timing.Row("titanic", "scikit-learn", 0.2, 0.2, 7, 0.0, 1.0, 0.6, 0.01, is_peer=True),
]


@pytest.fixture
def page(tmp_path, capsys):
    """Return a page made from two new records, in a folder that has an older one already."""
    new, kept = tmp_path / "new", tmp_path / "page" / "records"
    for name in ("fit", "first_call"):
        timing.report(name, ROWS, new if name == "fit" else kept)
    timing.write("growth", {"rows": [point._asdict() for point in curve("rows", "nnfx", 1.0)]}, new)
    readme.main(readme.Config(records=new, page=tmp_path / "page"))
    assert "from 3 records" in capsys.readouterr().out
    return tmp_path / "page"


def test_the_page_shows_the_latest_record_of_each_benchmark(page):
    text = (page / "README.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    shown = [readme.TITLES[name] for name in ("fit", "first_call", "growth")]
    assert headings == [f"## {title}" for title in (*shown, "Without a record")]
    assert "| titanic | nnfx | 10 | 10 | 0.05 | 1 | 0.6000 ± 0.0100 |" in text
    assert timing.processor() in text
    assert sorted(path.name for path in (page / "records").iterdir()) == ["first_call.json", "fit.json", "growth.json"]
    for name in ("ratios", "growth"):
        assert matplotlib.image.imread(page / "figures" / f"{name}.png").std() > 0.02
    assert "\n- `sweep_1`: sweeps on one device\n" in text, "what has no record is listed"
    before = text
    readme.main(readme.Config(records=page / "records", page=page))
    assert (page / "README.md").read_text() == before


def test_a_record_that_cannot_be_read_replaces_nothing(page, tmp_path):
    (tmp_path / "new" / "fit.json").write_text("{")
    before = (page / "records" / "fit.json").read_text()
    with pytest.raises(json.JSONDecodeError):
        readme.main(readme.Config(records=tmp_path / "new", page=page))
    assert (page / "records" / "fit.json").read_text() == before


def test_the_page_in_the_repository_is_that_of_its_records():
    assert (readme.HERE / "README.md").read_text() == readme.text(readme.read(readme.HERE / "records"))
