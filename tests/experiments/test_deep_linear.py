import json

import matplotlib.image
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from experiments import deep_linear


@pytest.mark.slow
def test_modes_are_learned_along_the_closed_form(tmp_path, capsys):
    deep_linear.main(deep_linear.Config(out=tmp_path, starts=2))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert 0 < written["off"]["along_the_modes"] < 0.01
    assert max(written["off"]["random_starts"]["mean"]) < 0.08
    assert written["half_learned_at"] == sorted(written["half_learned_at"]), "broad distinctions first"
    assert matplotlib.image.imread(tmp_path / "modes.png").std() > 0.05
    assert "error, along the modes" in capsys.readouterr().out


def test_the_closed_form_solves_the_equation_of_gradient_flow():
    times, strengths, starts = np.linspace(0, 12, 50), np.array([1.4, 0.35]), np.array([0.001, 0.02])
    found = deep_linear.sigmoid(times, strengths, starts)
    solved = solve_ivp(lambda _, a: 2 * a * (strengths - a), (0, 12), starts, t_eval=times, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found, solved.y.T, rtol=1e-6)


def test_things_share_the_properties_of_the_nodes_above_them():
    table = deep_linear.hierarchy()
    assert table.shape == (8, 15)
    shared = table @ table.T
    np.testing.assert_array_equal(shared[0], [4, 3, 2, 2, 1, 1, 1, 1])
    singular_values = np.linalg.svd(table, compute_uv=False)
    np.testing.assert_allclose(singular_values**2, [15, 7, 3, 3, 1, 1, 1, 1], atol=1e-12)
    assert list(np.flatnonzero(np.diff(singular_values.round(6), prepend=0))) == deep_linear.FIRST
