import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import edge_of_stability
from experiments.edge_of_stability import Config


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    options = {"rows": 40, "hidden": (4,), "rates": (0.5, 1.0), "starts": 2, "steps": 4, "every": 2, "products": 3}
    edge_of_stability.main(Config(out=tmp_path, **options))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [each["bound"] for each in written["rates"]] == [4, 2]
    for each in written["rates"]:
        assert each["ratio"] == pytest.approx(each["mean"] / each["bound"], rel=1e-5)
    assert written["rates"][0]["start"] == written["rates"][1]["start"], "the same starts for all rates"
    assert matplotlib.image.imread(tmp_path / "sharpness.png").std() > 0.05
    assert "settled / (2 / rate)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_curvature_settles_at_its_bound(tmp_path):
    summary = edge_of_stability.main(Config(out=tmp_path, starts=2))
    for each in summary["rates"]:
        assert abs(each["mean"] / each["bound"] - 1) < 0.1
        assert each["error"] < 0.05 * each["bound"]
    below = summary["rates"][0]
    assert below["start"] < 0.9 * below["bound"], "it rises to the bound"
    assert max(summary["loss_falls"]) < 0.95


def test_digits_are_centred(key):
    batch = edge_of_stability.digits(key, 60)
    np.testing.assert_allclose(batch.inputs.mean(0), 0, atol=1e-6)
    assert batch.inputs.shape == (60, 64)
    np.testing.assert_array_equal(batch.targets.sum(1), 1)
    assert jax.dtypes.issubdtype(batch.targets.dtype, jnp.floating)
