"""Sunspots a cycle ahead: ensembles of LSTMs and GRUs against simple forecasters, from many origins in the past.

    python -m experiments.forecast_sunspots [--out DIR] [--seed N]

Every second year from 1918 to 1998 is an origin: each forecaster is trained from scratch on the yearly sunspot numbers
before the origin, and forecasts the next 11 years. All origins and all members of an ensemble are one compiled
program. Intervals of 90 % are conformal: the widths of the intervals come from the errors of earlier origins whose
outcomes were known by then. The origins before 1948 are used only for calibration; the scores are from the 26 origins
from 1948 on.

The spread of the numbers grows with their level, but the spread of their square roots does not. All trained
forecasters therefore see and forecast square roots, and the squares of their forecasts are scored.

Nothing is selected using scored forecasts. The level of the noise that regularises each trained forecaster is chosen by
this script: it is the best of four levels on the origins from 1870 to 1906, whose forecasts end in 1916, before the
first origin of the backtest. For ensembles, it is chosen with single networks. Lookbacks, sizes, epochs and learning
rates were chosen beforehand, using forecasts that end in 1930.

Expect the LSTM and the GRU, with a mean absolute scaled error of about 1.4, to be ahead of NLinear (1.45), the other
linear maps (1.5) and the repetition of the last cycle (1.8). Expect the intervals to contain about 94 % of the
outcomes. The experiment works offline and takes about 105 s on two cores.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, command, print_table
from nnfx.forecasting import backtest, baselines, conformal, forecasters, scores
from nnfx.forecasting.backtest import Backtest
from nnfx.forecasting.heads import Interval
from nnfx.training.fit import Fit

HORIZON, PERIOD = 11, 11
"""The forecast horizon and the length of a season, both in years."""
CHOICE_ORIGINS = range(1870, 1907, 4)
"""The origins used to choose the noise, as years."""
ORIGINS = range(1918, 1999, 2)
"""The origins of the backtest, as years."""
SCORED_FROM = 1948
LEVEL = 0.9
NOISES = (0.0, 0.1, 0.2, 0.4)
"""The noise levels to choose from, in standard deviations of the series."""
COLOURS = {"LSTM": BLUE, "GRU": GREEN}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the sunspots experiment."""

    out: Path = Path("runs/forecast_sunspots")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    lookback: int = 22
    """number of years that a forecaster sees"""
    hidden: int = 16
    """width of the recurrent layer"""
    members: int = 2
    """number of networks in an ensemble"""
    epochs: int = 150
    """number of epochs of the recurrent networks (full batch, Adam)"""
    learning_rate: float = 0.01
    """learning rate of the recurrent networks"""
    linear_epochs: int = 300
    """number of epochs of the linear forecasters"""
    linear_learning_rate: float = 0.01
    """learning rate of the linear forecasters"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    series = nnfx.data.sunspots()
    assert series.times is not None
    values, first_year = series.values, int(str(series.times[0]))
    roots = np.sqrt(values)
    origins, choice_origins = (np.array(years) - first_year for years in (ORIGINS, CHOICE_ORIGINS))
    key, choice_key = jax.random.split(jax.random.key(config.seed))

    sizes: dict[str, Any] = {"lookback": config.lookback, "horizon": HORIZON}
    of_roots = {
        name: backtest.fixed(model, {"params": {}}, roots, **sizes, origins=origins)
        for name, model in without_parameters().items()
    }
    chosen = {}
    for name, (train, members) in trained(config).items():
        options: dict[str, Any] = {**sizes, "at_once": 1}
        noise = choose(train, roots, origins=choice_origins, key=choice_key, **options)
        options |= {"members": members, "noise": noise}
        of_roots[name] = backtest.refitted(train, roots, origins=origins, key=key, **options)
        chosen[name] = noise
        print(f"{name}: trained at {len(origins)} origins, with noise of {noise:g}, chosen on earlier ones")

    calibration = int((np.array(ORIGINS) < SCORED_FROM).sum())
    tests = {name: squared(test) for name, test in of_roots.items()}
    scored = {name: without_first(test, calibration) for name, test in tests.items()}
    intervals = {name: interval(test, calibration) for name, test in of_roots.items()}
    measures: dict[str, Callable[..., jax.Array]] = {
        "MASE": partial(scores.mase, scale=scores.seasonal_naive_error(values[: origins[0]])),
        "RMSE": scores.root_mean_square_error,
        "sMAPE": scores.smape,
    }
    comparison = backtest.compare(scored, measures)
    table = {row["forecaster"]: {name: row[name] for name in measures} for row in comparison.rows}
    for name, row in table.items():
        row["coverage"] = float(scores.coverage(*intervals[name], scored[name].targets).mean())
        row["width"] = float(scores.interval_width(*intervals[name]).mean())
    print(f"\nmeans over {len(ORIGINS) - calibration} origins from {SCORED_FROM} on, of {HORIZON} years each:")
    columns = ["MASE", "RMSE", "sMAPE (%)", f"coverage of {LEVEL:.0%}", "width"]
    print_table(["", *columns], [[name, *row.values()] for name, row in table.items()])

    draw_fan(results, values, first_year, tests, intervals)
    errors = {name: comparison.by_origin[name]["MASE"] for name in table}
    draw_scores(results, errors, [year for year in ORIGINS if year >= SCORED_FROM])
    return results.summary(
        {
            "origins": len(ORIGINS) - calibration,
            "noise": chosen,
            "scores": table,
            "by_origin": errors,
            "members": config.members,
            "seed": config.seed,
        }
    )


def without_parameters() -> dict[str, nnfx.Model]:
    """Return the forecasters without trainable parameters."""
    return {
        "naive": baselines.naive(HORIZON),
        "seasonal naive": baselines.seasonal_naive(HORIZON, PERIOD),
        "drift": baselines.drift(HORIZON),
    }


def trained(config: Config) -> dict[str, tuple[Fit, int]]:
    """Return the runs of the forecasters to train, each with the number of members in its ensemble.

    All forecasters minimise the absolute error, whose optimal forecast is the median; the square of the median root is
    the median sunspot number. They see the past with noise, which keeps them from memorising it.
    """

    def run(model: nnfx.Model, epochs: int, learning_rate: float) -> Fit:
        loss, noise = nnfx.losses.mean_absolute_error, nnfx.augment.gaussian_noise
        return nnfx.fit(model, loss, optax.adam(learning_rate), epochs=epochs, augment=noise)

    def linear(model: nnfx.Model) -> tuple[Fit, int]:
        return run(model, config.linear_epochs, config.linear_learning_rate), 1

    def ensemble(network: Callable[..., nnfx.Model]) -> tuple[Fit, int]:
        of_outputs = partial(network, hidden=(config.hidden,))
        model = forecasters.normalized(forecasters.direct(of_outputs, HORIZON), by="last")
        return run(model, config.epochs, config.learning_rate), config.members

    return {
        "linear": linear(baselines.linear(HORIZON)),
        "NLinear": linear(baselines.nlinear(HORIZON)),
        "DLinear": linear(baselines.dlinear(HORIZON)),
        "LSTM": ensemble(nnfx.models.lstm),
        "GRU": ensemble(nnfx.models.gru),
    }


def choose(train: Fit, values: np.ndarray, **options: Any) -> float:
    """Return the noise level with the lowest mean absolute error in a backtest; all levels run in one program."""

    def error(noise: jax.Array) -> jax.Array:
        test = squared(backtest.refitted(train, values, **options, noise=noise))
        return scores.mean_absolute_error(test.forecasts, test.targets).mean()

    return NOISES[int(jax.vmap(error)(jnp.array(NOISES)).argmin())]


@jax.jit
def squared(test: Backtest) -> Backtest:
    """Convert a backtest of roots to one of sunspot numbers; negative forecasts of roots count as zero."""

    def square(roots: jax.Array) -> jax.Array:
        return jnp.square(jnp.maximum(roots, 0))

    return Backtest(
        square(test.forecasts), square(test.targets), test.origins, square(test.outputs), square(test.members)
    )


def interval(test: Backtest, calibration: int) -> Interval:
    """Return the conformal intervals of the origins to score, in sunspot numbers, from a backtest of roots."""
    bounds = conformal.rolling(test.forecasts, test.targets, test.origins, LEVEL, calibration)
    return Interval(*(jnp.square(jnp.maximum(bound, 0)) for bound in bounds))


def without_first(test: Backtest, count: int) -> Backtest:
    """Return a backtest without its first `count` origins."""
    later: Backtest = jax.tree.map(lambda array: array[count:], test)
    return later._replace(members=test.members[:, count:])


def draw_fan(
    results: Results,
    values: np.ndarray,
    first_year: int,
    tests: dict[str, Backtest],
    intervals: dict[str, Interval],
) -> None:
    """Plot the last forecast of both ensembles, and the preceding years."""
    origin = ORIGINS[-1]
    past, future = np.arange(origin - 60, origin), np.arange(origin, origin + HORIZON)
    figure, (axes,) = plt.subplots(1, len(COLOURS), figsize=(6 * len(COLOURS), 4), sharey=True, squeeze=False)
    for axis, name in zip(axes, COLOURS, strict=True):
        color, test, bounds = COLOURS[name], tests[name], intervals[name]
        axis.plot(past, values[past - first_year, 0], color="black", linewidth=1, label="seen")
        axis.plot(future, values[future - first_year, 0], "o", color="black", markersize=3.5, label="what came")
        axis.fill_between(
            future,
            bounds.lower[-1, :, 0],
            bounds.upper[-1, :, 0],
            color=color,
            alpha=0.18,
            lw=0,
            label=f"{LEVEL:.0%} interval",
        )
        axis.plot(future, test.members[:, -1, :, 0].T, color=color, linewidth=0.6, alpha=0.6)
        axis.plot(
            future, test.forecasts[-1, :, 0], color=color, linewidth=2, label=f"mean of {len(test.members)} networks"
        )
        repeated = tests["seasonal naive"].forecasts[-1, :, 0]
        axis.plot(future, repeated, color=ORANGE, linewidth=1, linestyle="--", label="seasonal naive")
        axis.set(title=f"{name}, trained on 1700 to {origin - 1}", xlabel="year")
    axes[0].set_ylabel("sunspots (yearly mean number)")
    axes[-1].set_ylim(0, 1.35 * values[past - first_year].max())
    axes[-1].legend(loc="upper left", fontsize=8, ncols=2)
    results.figure("fan", figure)


def draw_scores(results: Results, errors: dict[str, np.ndarray], years: Any) -> None:
    """Plot the mean absolute scaled error (MASE) of each forecaster: a bar for the mean, and a mark for each origin."""
    figure, axis = plt.subplots(figsize=(8, 4))
    names = list(errors)[::-1]
    for place, name in enumerate(names):
        axis.barh(place, errors[name].mean(), color=COLOURS.get(name, GREY), alpha=0.75, height=0.65)
        axis.plot(errors[name], np.full(len(years), place), "|", color="black", markersize=9, alpha=0.45)
        axis.annotate(
            f"{errors[name].mean():.2f}", (0.02, place), va="center", color="white", fontweight="bold", fontsize=9
        )
    axis.set_yticks(range(len(names)), names)
    axis.set(
        xlabel="mean absolute scaled error (bar: mean, ticks: single forecasts; lower is better)",
        title=f"Sunspots, {HORIZON} years ahead from {len(years)} origins, {int(years[0])} to {int(years[-1])}",
        xlim=(0, None),
    )
    axis.grid(visible=False, axis="y")
    results.figure("scores", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up()
    command(main, Config, __doc__)
