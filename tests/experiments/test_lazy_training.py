import json

import jax
import matplotlib.image
import numpy as np
import pytest

from experiments import lazy_training
from experiments.lazy_training import Config


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    lazy_training.main(Config(out=tmp_path, rows=4, widths=(4, 8, 16), lazy_from=8, starts=2, steps=2))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written["exponents"]) == {"outputs", "kernel", "weights"}
    for name, numbers in written["exponents"].items():
        assert np.isfinite(numbers["mean"])
        assert len(written["means"][name]) == 3
    assert matplotlib.image.imread(tmp_path / "by_width.png").std() > 0.05
    assert "exponent of the width" in capsys.readouterr().out


def test_exponents_are_fitted_to_the_widths_asked_for():
    widths = (10, 100, 1000, 10_000)
    found = {name: np.array([[1.0], [0.1], [0.01], [0.001]]) @ [[2.0, 3.0]] for name in lazy_training.THEORY}
    found["weights"][0] = found["weights"][1]  # not yet lazy
    config = Config(widths=widths)
    assert lazy_training.fitted(found, config, 10)["outputs"] == pytest.approx({"mean": -1, "error": 0}, abs=1e-12)
    assert lazy_training.fitted(found, config, 100)["weights"]["mean"] == pytest.approx(-1)
    assert lazy_training.fitted(found, config, 10)["weights"]["mean"] == pytest.approx(
        -0.7
    )  # (1.5 + 0.5 − 1 − 4.5) / 5


@pytest.mark.slow
def test_exponents_are_those_of_the_theory(tmp_path):
    summary = lazy_training.main(Config(out=tmp_path, widths=(64, 256, 1024, 4096), starts=4))
    for name, numbers in summary["exponents"].items():
        assert abs(numbers["mean"] - lazy_training.THEORY[name]) < (0.1 if name == "weights" else 0.3)


def test_outputs_have_the_same_size_at_every_width(key):
    x = jax.random.normal(key, (50, 64))
    for width in (100, 3000):
        model = lazy_training.network(width)
        outputs = jax.vmap(lambda key, model=model: model.apply(model.init(key, x), x))(jax.random.split(key, 20))
        assert 0.3 < np.std(outputs) < 1, "the variance of tanh of a normal number is 0.39"
