import json

import jax
import matplotlib.image
import numpy as np
import pytest

from experiments import population


def test_the_three_parts_have_no_digit_in_common():
    data, others = population.three_parts(jax.random.key(0))
    images = np.concatenate([np.asarray(part.inputs) for part in (data.train, data.valid, others)])
    assert len(images) == 1797
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    assert len(others.targets) in (449, 450)


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = population.Config(out=tmp_path, splits=2, size=5, epochs=6, hidden=8)
    population.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    losses = written["losses"]
    difference = losses["population"]["mean"] - losses["fixed numbers"]["mean"]
    assert written["difference"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert written["replaced"] == pytest.approx(1 / 5)
    assert len(written["schedule"]["dropout"]) == 3
    assert matplotlib.image.imread(tmp_path / "population.png").std() > 0.05
    assert "used by neither" in capsys.readouterr().out
