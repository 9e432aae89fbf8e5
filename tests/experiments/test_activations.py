import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import activations as experiment
from nnfx import activations


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = experiment.main(experiment.Config(out=tmp_path, epochs=200))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written["activations"]) == set(activations.names()) - {"maxout", "gelu_exact"}
    sigmoid, relu = written["activations"]["sigmoid"], written["activations"]["relu"]
    assert sigmoid["slope_to"] == pytest.approx(0.25, abs=1e-4)
    assert relu["mean_square_slope"] == pytest.approx(0.5, abs=1e-3)
    assert summary["maxout_error"] < 0.5
    for name in ("activations", "maxout"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert "left after 10" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_left_of_a_gradient_is_what_ten_random_layers_leave():
    """Ten layers whose weights keep variances, with new pre-activations in each: only g' changes the gradient."""
    found = experiment.describe(jax.nn.sigmoid, 10)
    drawn = np.random.default_rng(0).normal(size=(10, 200_000))
    slopes = np.exp(-drawn) / (1 + np.exp(-drawn)) ** 2
    np.testing.assert_allclose(found["mean_square_slope"], (slopes**2).mean(), rtol=5e-3)
    np.testing.assert_allclose(found["left"], np.sqrt((slopes**2).mean(1).prod()), rtol=0.02)


def test_the_slope_of_a_function_of_one_unit():
    np.testing.assert_allclose(experiment.slope(jnp.sin, jnp.array([0.0, 1.0])), np.cos([0.0, 1.0]), rtol=1e-6)
