import json

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import nnfx
from experiments import forecast_sunspots
from nnfx.forecasting.backtest import Backtest

TINY = {"hidden": 2, "members": 2, "epochs": 2, "linear_epochs": 2}
YEARS = 1700 + np.arange(309)


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, monkeypatch, capsys):
    trained = forecast_sunspots.trained
    kept = ("linear", "LSTM")
    monkeypatch.setattr(
        forecast_sunspots,
        "trained",
        lambda config: {name: run for name, run in trained(config).items() if name in kept},
    )
    monkeypatch.setattr(forecast_sunspots, "COLOURS", {"LSTM": "black"})
    forecast_sunspots.main(forecast_sunspots.Config(out=tmp_path, **TINY))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written["scores"]) == {"naive", "seasonal naive", "drift", *kept}
    assert set(written["noise"]) == set(kept)
    for name, row in written["scores"].items():
        assert len(written["by_origin"][name]) == written["origins"] == 26
        assert row["MASE"] == pytest.approx(np.mean(written["by_origin"][name]))
        assert 0 <= row["coverage"] <= 1
    for name in ("fan", "scores"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert "seasonal naive" in capsys.readouterr().out

    # the naive forecasts by hand, in sunspot numbers rather than their roots
    numbers = dict(zip(YEARS, nnfx.data.sunspots().values[:, 0].astype(float), strict=True))
    scale = np.mean([abs(numbers[year] - numbers[year - 1]) for year in range(1701, 1918)])
    for name, period in (("naive", 1), ("seasonal naive", 11)):
        errors = [
            [abs(numbers[origin + step] - numbers[origin - period + step % period]) for step in range(11)]
            for origin in range(1948, 1999, 2)
        ]
        np.testing.assert_allclose(written["by_origin"][name], np.mean(errors, 1) / scale, rtol=1e-4)


def test_nothing_is_chosen_by_what_is_scored():
    last_chosen_by = max(forecast_sunspots.CHOICE_ORIGINS) + forecast_sunspots.HORIZON - 1
    assert last_chosen_by < min(forecast_sunspots.ORIGINS) < forecast_sunspots.SCORED_FROM


def test_roots_are_squared_back():
    roots = jnp.array([-1.0, 0.0, 3.0]).reshape(3, 1, 1)
    test = forecast_sunspots.squared(Backtest(roots, jnp.abs(roots), jnp.arange(3), roots, roots[None]))
    assert test.forecasts.ravel().tolist() == [0, 0, 9]
    assert test.targets.ravel().tolist() == [1, 0, 9]
    assert test.members.shape == (1, 3, 1, 1)
    later = forecast_sunspots.without_first(test, 2)
    assert later.forecasts.ravel().tolist() == later.members.ravel().tolist() == [9]
    assert later.origins.tolist() == [2]


@pytest.mark.slow
def test_intervals_are_of_numbers():
    origins = np.arange(10, 22)
    targets = jnp.full((12, 1, 1), 3.0)
    forecasts = targets + jnp.linspace(0, 1.1, 12).reshape(12, 1, 1)  # the error of the tenth is 0.9
    lower, upper = forecast_sunspots.interval(Backtest(forecasts, targets, origins, forecasts, forecasts[None]), 10)
    np.testing.assert_allclose(lower.ravel()[0], (4.0 - 0.9) ** 2, rtol=1e-5)
    np.testing.assert_allclose(upper.ravel()[0], (4.0 + 0.9) ** 2, rtol=1e-5)
