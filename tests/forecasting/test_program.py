"""The program of a new user, from a file to next year's months, in a few lines."""

import re
from pathlib import Path

import numpy as np

import nnfx

MOST_LINES, WIDTH, ORIGINS = 15, 120, range(84, 133, 12)
CODE = Path(__file__).read_text()


def write(folder):
    """Write the airline passengers, 60 more in months of a made promotion, and next year's promotions; return them."""
    series = nnfx.data.airline_passengers()
    promotions = np.random.default_rng(0).integers(0, 2, 156)
    sold = series.values[:, 0] + 60 * promotions[:144]
    months = series.times[0] + np.arange(156)
    rows = [f"{month},{number:g},{planned}" for month, number, planned in zip(months, sold, promotions, strict=False)]
    (folder / "sales.csv").write_text("\n".join(["month,passengers,promotion", *rows]))
    rows = [f"{month},{planned}" for month, planned in zip(months[144:], promotions[144:], strict=True)]
    (folder / "plan.csv").write_text("\n".join(["month,promotion", *rows]))
    return sold


def program(folder):
    # The program begins here.
    import jax
    import optax

    import nnfx
    from nnfx.forecasting import backtest, forecast, forecasters, heads, prepare, scores

    sales = nnfx.data.read_series(folder / "sales.csv", time="month", period=12)
    sold, promotion = sales.select("passengers"), sales.select("promotion")
    key, sizes, head = jax.random.key(0), {"lookback": 24, "horizon": 12}, heads.GAUSSIAN
    network = forecasters.direct(lambda outputs: nnfx.models.lstm(outputs, hidden=(8,)), horizon=12, head=head)
    model = forecasters.normalized(network, head=head, channels=1)
    train = nnfx.fit(model, head.loss, optax.adam(0.01), epochs=60)
    test = backtest.refitted(train, sold, future=promotion, key=key, origins=range(84, 133, 12), head=head, **sizes)
    print("sMAPE:", scores.smape(test.forecasts, test.targets).mean())
    data = prepare(sold, future=promotion, **sizes)
    planned = nnfx.data.read_series(folder / "plan.csv", time="month")
    print(forecast(train(key, data), data, 12, future=planned, head=head, level=0.8, calibration=test))
    # The program ends here.


def test_the_program_is_short():
    inside = re.search(r"# The program begins here\.\n(.*?)\n +# The program ends here\.", CODE, re.DOTALL).group(1)
    lines = [line for line in inside.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) < WIDTH
    assert ";" not in inside


def test_the_next_year_is_forecast_with_dates_and_intervals(tmp_path, capsys):
    sold = write(tmp_path)
    program(tmp_path)
    error, heading, _, *rows = capsys.readouterr().out.splitlines()
    last_year = [200 * np.abs(y - x) / (y + x) for x, y in ((sold[t - 12 : t], sold[t : t + 12]) for t in ORIGINS)]
    assert float(error.removeprefix("sMAPE: ")) < np.mean(last_year)
    assert re.split("  +", heading) == ["time", "passengers", "passengers lower", "passengers upper"]
    times, *numbers = zip(*(row.split() for row in rows), strict=True)
    assert list(times) == [str(month) for month in np.datetime64("1961-01") + np.arange(12)]
    values, lower, upper = np.array(numbers, float)
    assert (lower < values).all()
    assert (values < upper).all()
    assert 400 < values.mean() < 650  # 536 in the last year
