import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import uncertainty


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = uncertainty.Config(out=tmp_path, splits=2, members=2, draws=5, hidden=16, epochs=20)
    summary = uncertainty.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"digits", "patients", "level", "splits", "seed", "wall_s", "compile_s"} <= set(written)
    assert list(written["digits"]) == [
        *("one network", "MC dropout", "Laplace", "ensemble"),
        *("one network, tempered", "ensemble, tempered"),
    ]
    assert list(written["patients"])[-2:] == ["one network, scaled", "quantiles"]
    for scores in summary["digits"].values():
        assert 0.5 < scores["accuracy"]["mean"] < 1
        for kind in ("LAC", "APS"):  # 2 · 798 digits to calibrate by, and as many to score: 3 % are five deviations
            assert scores[f"{kind} coverage"]["mean"] == pytest.approx(0.95, abs=0.03)
    for scores in summary["patients"].values():
        assert scores["conformal coverage"]["mean"] == pytest.approx(0.95, abs=0.07)
    one, tempered = (
        summary["digits"][name]["negative_log_likelihood"]["mean"] for name in ("one network", "one network, tempered")
    )
    assert tempered < one + 0.01
    assert matplotlib.image.imread(tmp_path / "coverage.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "MC dropout" in capsys.readouterr().out


def test_probabilities_are_averaged_and_then_put_into_logarithms(key):
    outputs = jax.random.normal(key, (3, 4, 2))
    mean = np.exp(np.float64(outputs))
    mean = (mean / mean.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(uncertainty.log_mean(outputs), np.log(mean), rtol=1e-5)


def test_every_row_is_used_once():
    known, new = uncertainty.halves(jnp.arange(5))
    assert (known.tolist(), new.tolist()) == ([0, 2, 4], [1, 3])
