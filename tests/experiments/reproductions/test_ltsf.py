import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from experiments.reproductions import ltsf
from nnfx.data import Series

HOURS = (500, 250, 250)


@pytest.fixture
def waves(monkeypatch):
    """Replace ETTh1 by a thousand hours of seven waves."""
    rng, hours = np.random.default_rng(0), np.arange(1100.0)[:, None]
    values = np.sin(2 * np.pi * hours / 24 + np.arange(7)) * np.arange(1, 8) + rng.normal(0, 0.1, (1100, 7)) + 3
    series = Series(values.astype(np.float32), tuple("ABCDEFG"), None, 24)
    monkeypatch.setattr(nnfx.data, "ett", lambda name: series)
    return series.values


@pytest.mark.slow
def test_runs_are_made_kept_and_gone_on_with(waves, tmp_path, monkeypatch):
    config = ltsf.Config(tmp_path, ("repeat", "nlinear"), (24, 96), seeds=2, epochs=2, hours=HOURS, progress=False)
    summary = ltsf.main(config)
    made = [(row["method"], row["horizon"], row["seeds"]) for row in summary["rows"]]
    assert made == [("repeat", 96, 1), ("nlinear", 96, 2)]
    assert len(summary["runs"]) == 3
    repeat, nlinear = summary["rows"]
    assert nlinear["mse"] < 0.5 * repeat["mse"]
    for name in ("errors", "forecasts"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    mean, deviation = waves[:500].mean(0), waves[:500].std(0)
    scaled = (waves - mean) / deviation
    futures = np.stack([scaled[n : n + 96] for n in range(750, 905)])[:128]  # 155 windows make four complete batches
    errors = futures - scaled[749:877, None]
    assert repeat["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-5)
    assert repeat["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    drawn = json.loads((tmp_path / "run_repeat_96.json").read_text())["forecast"]
    np.testing.assert_allclose(drawn, waves[750 + 125 - 1, -1], rtol=1e-5)

    made_anew = []
    monkeypatch.setattr(ltsf, "forecast_and_score", lambda *arguments: made_anew.append(arguments))
    again = ltsf.main(config)
    assert again["runs"] == summary["runs"]
    assert not made_anew
    with pytest.raises(TypeError):
        ltsf.main(ltsf.Config(tmp_path, ("nlinear",), (96,), seeds=3, epochs=2, hours=HOURS, progress=False))
    assert len(made_anew) == 1, "other settings are other runs"


def test_parts_are_those_of_the_protocol(waves):
    parts = ltsf.cut(waves, 100, 24, HOURS)
    assert [len(part.inputs) for part in parts[:3]] == [376 // 32 * 32, 227 // 32 * 32, 227 // 32 * 32]
    scaled = (waves - waves[:500].mean(0)) / waves[:500].std(0)
    for part, begin in zip(parts[:3], (100, 500, 750), strict=True):
        np.testing.assert_allclose(part.targets[0], scaled[begin : begin + 24], atol=1e-5)
        np.testing.assert_allclose(part.inputs[5], scaled[begin - 95 : begin + 5], atol=1e-5)


@pytest.mark.parametrize("steps", [256, 237])
def test_the_rate_is_halved_after_every_epoch(steps):
    rate = ltsf.halved(0.005, steps)
    for epoch, expected in enumerate([0.005, 0.0025, 0.00125, 0.000625]):
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            assert float(rate(jnp.int32(step))) == pytest.approx(expected), (epoch, step)


@pytest.mark.slow
def test_the_normalized_lstm_passes_a_level_on(key):
    past = jax.random.normal(key, (3, 10, 2))
    for normalized in (False, True):
        model = ltsf.lstm(4, normalized, channels=2)
        variables = model.init(key, past)
        forecasts = model.apply(variables, past)
        assert forecasts.shape == (3, 4, 2)
        trained, state = model.apply(variables, past, key=key, weights=jnp.ones(3), train=True)
        np.testing.assert_array_equal(trained, forecasts)
        assert state == {}
        shifted = model.apply(variables, past + jnp.array([5.0, -5.0]).reshape(1, 1, 2))
        passed_on = np.allclose(shifted - forecasts, [5.0, -5.0], atol=1e-5)
        assert passed_on == normalized


@pytest.mark.parametrize(
    ("name", "horizon", "mse", "mae", "expected"),
    [
        ("repeat", 96, 1.2946, 0.7133, True),
        ("repeat", 96, 1.2944, 0.7133, False),
        ("repeat", 720, 1.3386, 0.7566, False),
        ("linear", 96, 0.361, 0.9, True),
        ("dlinear", 192, 0.421, 0.416, False),
        ("nlinear", 336, 9.0, 9.0, None),
        ("normalized_lstm", 168, 1.2, 0.8, True),
        ("normalized_lstm", 24, 0.6, 0.63, False),
        ("normalized_lstm", 720, 9.0, 9.0, None),
        ("lstm", 24, 9.0, 9.0, None),
    ],
)
def test_what_is_expected(name, horizon, mse, mae, expected):
    (row,) = ltsf.compare([{"method": name, "horizon": horizon, "runs": [{"mse": mse, "mae": mae}]}])
    assert row["as_expected"] is expected
    assert row["mse_sd"] is None


def test_the_comparison_is_of_means():
    runs = [{"mse": 0.37, "mae": 0.39}, {"mse": 0.39, "mae": 0.41}]
    (row,) = ltsf.compare([{"method": "linear", "horizon": 96, "runs": runs}])
    assert (row["mse"], row["mae"], row["mse_published"]) == (pytest.approx(0.38), pytest.approx(0.4), 0.375)
    assert row["mse_sd"] == pytest.approx(0.02 / np.sqrt(2))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match="methods: expected one of .*, got 'arima'"):
        ltsf.main(ltsf.Config(tmp_path, methods=("arima",)))
    with pytest.raises(ValueError, match="horizons: expected some of .*, got 95"):
        ltsf.main(ltsf.Config(tmp_path, horizons=(95,)))


@pytest.mark.slow
@pytest.mark.usefixtures("etth1_file")
def test_repeat_scores_as_published():
    values = nnfx.data.ett("ETTh1").values
    cells = [
        ltsf.forecast_and_score("repeat", horizon, values, ltsf.Config())
        for horizon in ltsf.METHODS["repeat"].published
    ]
    assert [row["as_expected"] for row in ltsf.compare(cells)] == [True] * 4
