import json

import matplotlib.image
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from experiments import double_descent
from experiments.double_descent import Config


def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    double_descent.main(Config(out=tmp_path, rows=40, relative_widths=(0.5, 1, 2), starts=2))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["widths"] == [20, 40, 80]
    assert written["errors"]["train"][1]["mean"] == written["errors"]["train"][2]["mean"] == 0, "they interpolate"
    assert written["peak"] == written["errors"]["test"][1]
    assert matplotlib.image.imread(tmp_path / "by_width.png").std() > 0.05
    assert "how many" in capsys.readouterr().out


@pytest.mark.slow
def test_the_error_peaks_at_interpolation_and_falls_again(tmp_path):
    summary = double_descent.main(Config(out=tmp_path))
    for count in ("peak_within_a_fifth", "widest_below_peak", "widest_below_all_before"):
        assert summary[count] >= 4


@pytest.mark.parametrize("columns", [5, 30])
def test_least_squares_are_those_of_other_libraries(columns):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(12, columns)), rng.normal(size=(12, 3))
    least = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    np.testing.assert_allclose(double_descent.least_squares(inputs, targets, 0), least, atol=1e-10)
    ridge = Ridge(alpha=0.7, fit_intercept=False).fit(inputs, targets).coef_.T
    np.testing.assert_allclose(double_descent.least_squares(inputs, targets, 0.7), ridge, atol=1e-10)


def test_a_share_of_the_labels_is_drawn_at_random(key):
    clean, held_out = double_descent.digits(key, Config(rows=1000, noise=0.0))
    noisy, same = double_descent.digits(key, Config(rows=1000, noise=0.5))
    np.testing.assert_array_equal(held_out.targets, same.targets)
    assert 0.38 < (clean.targets != noisy.targets).mean() < 0.52, "one label in ten is drawn right"
