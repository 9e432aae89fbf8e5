import json

import matplotlib.image
import numpy as np
import pytest

from experiments import grokking
from experiments.grokking import Config


def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    grokking.main(Config(out=tmp_path, modulus=5, width=4, starts=2, steps=3))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["grokked"] == 0
    assert written["understood_at"] == [float("inf")] * 2
    assert 0 <= written["final_accuracy"]["mean"] <= 1
    assert matplotlib.image.imread(tmp_path / "accuracy.png").std() > 0.05
    assert "0 of 2 generalise" in capsys.readouterr().out


@pytest.mark.slow
def test_others_are_right_long_after_the_sums_to_learn(tmp_path):
    summary = grokking.main(Config(out=tmp_path))
    assert summary["grokked"] >= 4
    assert summary["concentration"]["end"]["mean"] > 0.8 > 0.4 > summary["concentration"]["start"]["mean"]


def test_all_sums_are_there_once(key):
    data = grokking.sums(key, 7, 0.5)
    rows = np.concatenate([np.concatenate([part.inputs, part.targets], 1) for part in (data.train, data.valid)])
    a, b, total = (rows[:, i : i + 7].argmax(1) for i in (0, 7, 14))
    np.testing.assert_array_equal(np.sort(a * 7 + b), np.arange(49))
    np.testing.assert_array_equal((a + b) % 7, total)
    assert len(data.train.targets) in (24, 25)


def test_a_wave_has_its_power_in_one_frequency():
    angles = 2 * np.pi * np.outer(np.arange(11), [1, 2, 4]) / 11
    wave, noise = np.cos(angles + 0.3), np.eye(11)[:, :3]
    np.testing.assert_allclose(grokking.concentration(np.stack([wave, noise]), 11), [1, 1 / 5], rtol=1e-6)
    assert grokking.first_step(np.array([0.2, 0.99, 0.5])) == 2
