"""Long-horizon forecasts of ETTh1: linear maps compared with the published ones, and LSTMs with Informer's LSTMa.

    NNFX_DATA=... python -m experiments.reproductions.ltsf [--methods repeat nlinear] [--horizons 96 192] [--seeds 5]

The protocol follows Zeng et al. Training, validation and testing use 12, 4 and 4 months of 30 days, standardised by
the training part. All seven channels are forecast from windows of all seven. The loss is the mean square error. Adam
starts with a rate of 0.005, which is halved after every epoch; batches have 32 windows. Training takes at most 10
epochs and stops once the held-out error has not improved for 3 epochs; the weights of the epoch with the lowest
held-out error are used. All scores are in units of the standardised series. The authors' loader leaves out the windows
that do not fill the last batch: in training, the windows that happen to be drawn last. Here, the last windows in time
are always left out. Linear maps look back 336 hours.

The LSTMs are trained in the same way but look back 96 hours. They have one layer of 64 cells, whose last state passes
through one affine map to all channels and hours ahead. The plain LSTM sees and forecasts the values themselves; the
normalized LSTM sees and forecasts their differences from the last value of the window. They are compared with the rows
that Zhou et al. print for an LSTM with attention.

Expect Repeat to agree in every printed digit; the mean square errors of the linear maps at 96 and 192 hours, as means
of five seeds, to lie within 0.015 of the single published runs; and the normalized LSTM to have lower errors than
LSTMa at 24, 48 and 168 hours. All of this is true of the record, which is next to this script. All other results are
only shown side by side. Allow half an hour on two cores. Finished results are kept under `runs/`, so an interrupted
run continues when the command is repeated.

Zeng, Chen, Zhang and Xu, *Are transformers effective for time series forecasting?*, AAAI 2023, table 2, and its code.
Zhou et al., *Informer: beyond efficient transformer for long sequence time-series forecasting*, AAAI 2021, table 2.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter
from tqdm import tqdm

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Results, command, print_table
from experiments.reproductions.comparison import Comparison, Sample
from nnfx import checks, paths
from nnfx.forecasting import Scaler, Windows, as_data, baselines, split, windows
from nnfx.sweeps import Progress, Sweep
from nnfx.types import Apply, Variables

BATCH_SIZE = 32
MEASURES = {"mse": nnfx.losses.mean_square_error, "mae": nnfx.losses.mean_absolute_error}
CLOSE = 0.015
"""The largest expected difference between the mean square error of a linear map and the published one."""


def lstm(horizon: int, normalized: bool = False, channels: int = 7) -> nnfx.Model:
    """Return a network of 64 LSTM cells that forecasts all channels and steps at once.

    Args:
        horizon: the number of steps to forecast.
        normalized: whether it sees and forecasts differences from the last value of each window.
        channels: the number of channels of the series.

    Returns:
        A model from `(batch, lookback, channels)` to `(batch, horizon, channels)`.
    """
    network = nnfx.models.lstm(outputs=horizon * channels, hidden=(64,))

    def apply(variables: Variables, inputs: Any, **options: Any) -> Any:
        level = inputs[:, -1:] if normalized else 0
        applied: Any = network.apply(variables, inputs - level, **options)
        outputs, *state = applied if options.get("train") else (applied,)
        forecasts = outputs.reshape(-1, horizon, channels) + level
        return (forecasts, *state) if state else forecasts

    return nnfx.Model(network.init, cast(Apply, apply))


@dataclasses.dataclass(frozen=True)
class Method:
    """A forecaster and its published errors.

    Attributes:
        name: its name in tables and figures.
        colour: its colour in figures.
        model: makes the model for a horizon.
        published: mean square and mean absolute error by horizon.
        lookback: the number of hours that it sees.
        learning_rate: the learning rate of the first epoch; None if nothing is trained.
        beside: the method to which the published errors belong, if it is a different one.
    """

    name: str
    colour: str
    model: Callable[[int], nnfx.Model]
    published: dict[int, tuple[float, float]]
    lookback: int = 336
    learning_rate: float | None = 0.005
    beside: str = ""


LSTMA = {24: (0.650, 0.624), 48: (0.702, 0.675), 168: (1.212, 0.867), 336: (1.424, 0.994), 720: (1.960, 1.322)}
METHODS = {
    "repeat": Method(
        "Repeat", GREY, baselines.naive,
        {96: (1.295, 0.713), 192: (1.325, 0.733), 336: (1.323, 0.744), 720: (1.339, 0.756)},
        lookback=1, learning_rate=None,
    ),
    "linear": Method(
        "Linear", ORANGE, baselines.linear,
        {96: (0.375, 0.397), 192: (0.418, 0.429), 336: (0.479, 0.476), 720: (0.624, 0.592)},
    ),
    "nlinear": Method(
        "NLinear", BLUE, baselines.nlinear,
        {96: (0.374, 0.394), 192: (0.408, 0.415), 336: (0.429, 0.427), 720: (0.440, 0.453)},
    ),
    "dlinear": Method(
        "DLinear", GREEN, baselines.dlinear,
        {96: (0.375, 0.399), 192: (0.405, 0.416), 336: (0.439, 0.443), 720: (0.472, 0.490)},
    ),
    "lstm": Method("LSTM", PURPLE, lstm, LSTMA, lookback=96, beside="LSTMa"),
    "normalized_lstm": Method(
        "normalized LSTM", SKY, functools.partial(lstm, normalized=True), LSTMA, lookback=96, beside="LSTMa"
    ),
}  # fmt: skip
HORIZONS = tuple(sorted({horizon for method in METHODS.values() for horizon in method.published}))


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/ltsf")
    """where the results go"""
    methods: tuple[str, ...] = tuple(METHODS)
    """methods to run"""
    horizons: tuple[int, ...] = HORIZONS
    """numbers of hours to forecast; each method is run at those for which its errors were published"""
    seeds: int = 5
    """runs of each method at each horizon"""
    epochs: int = 10
    """the maximum number of epochs of each run"""
    hours: tuple[int, int, int] = (8640, 2880, 2880)
    """hours for training, validation and testing; use fewer for a quick trial"""
    progress: bool = True
    """whether to show progress"""


class Parts(NamedTuple):
    """The windows of each part of the series, in whole batches, and their scale."""

    train: Windows
    valid: Windows
    test: Windows
    scaler: Scaler


def cut(values: np.ndarray, lookback: int, horizon: int, hours: tuple[int, int, int]) -> Parts:
    """Cut a series into windows of its three parts, all standardised by the first."""
    parts = split(values, lookback, hours)
    scaler = Scaler.of(parts[0])

    def whole_batches(part: np.ndarray) -> Windows:
        inputs, targets = windows(scaler(part), lookback, horizon)
        used = len(inputs) // BATCH_SIZE * BATCH_SIZE
        return Windows(inputs[:used], targets[:used])

    train, valid, test = map(whole_batches, parts)
    return Parts(train, valid, test, scaler)


def halved(learning_rate: jax.Array, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate by step: each epoch has half the rate of the previous one."""
    return nnfx.schedules.exponential_decay(learning_rate, steps_per_epoch, 0.5, staircase=True)


def train(model: nnfx.Model, learning_rate: float, parts: Parts, config: Config, description: str) -> Sweep:
    """Train all seeds in one program."""
    steps = len(parts.train.inputs) // BATCH_SIZE
    fit = nnfx.fit(
        model,
        MEASURES["mse"],
        lambda learning_rate: optax.adam(halved(learning_rate, steps)),
        epochs=config.epochs,
        batch_size=BATCH_SIZE,
        stop=nnfx.stopping.patience(3),
    )
    with tqdm(total=config.epochs, desc=description, unit="epoch", disable=not config.progress) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.epoch - bar.n)

        return nnfx.sweeps.sweep(
            fit,
            as_data(parts.train, parts.valid),
            key=jax.random.key(0),
            seeds=config.seeds,
            epochs_per_chunk=1,
            on_chunk=show,
            learning_rate=learning_rate,
        )


def forecast_and_score(name: str, horizon: int, values: np.ndarray, config: Config) -> dict[str, Any]:
    """Train a method for a horizon, and return the scores of its runs on the test part, and one forecast to plot."""
    method = METHODS[name]
    model, parts = method.model(horizon), cut(values, method.lookback, horizon, config.hours)
    runs: list[dict[str, Any]] = [{}]
    if method.learning_rate is None:
        variables = [model.init(jax.random.key(0), parts.test.inputs[:1])]
    else:
        sweep = train(model, method.learning_rate, parts, config, f"{method.name}, {horizon} hours")
        kept = ("seed", "epochs", "best_epoch", "train_loss", "valid_loss")
        runs = [{column: row[column] for column in kept} for row in sweep.sort("member").rows]
        variables = [jax.tree.map(lambda stack, i=i: stack[i], sweep.variables) for i in range(len(runs))]
    score = jax.jit(functools.partial(nnfx.evaluate, model, MEASURES))
    test = as_data(parts.test).train
    for run, learned in zip(runs, variables, strict=True):
        scores = score(learned, test)
        run |= {measure: float(scores[measure].value) for measure in MEASURES}
    shown = shown_window(config)
    drawn = parts.scaler.inverse(model.apply(variables[0], parts.test.inputs[shown : shown + 1]))
    return {"method": name, "horizon": horizon, "runs": runs, "forecast": np.asarray(drawn)[0, :, -1].tolist()}


def shown_window(config: Config) -> int:
    """Return the index of the test window to plot: the middle one."""
    return config.hours[2] // 2


def compare(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each method and horizon: our means over the seeds, and the published errors."""
    rows = []
    for cell in cells:
        row = {"method": cell["method"], "horizon": cell["horizon"], "seeds": len(cell["runs"])}
        for measure, published in zip(MEASURES, METHODS[cell["method"]].published[cell["horizon"]], strict=True):
            scores = [run[measure] for run in cell["runs"]]
            row |= {
                measure: float(np.mean(scores)),
                f"{measure}_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                f"{measure}_published": published,
            }
        rows.append(row | {"as_expected": as_expected(row)})
    return rows


def comparisons(rows: list[dict[str, Any]]) -> list[Comparison]:
    """Return the errors next to the published errors of the same method, which were rounded to three digits."""
    return [
        Comparison(
            f"{METHODS[row['method']].name}, {row['horizon']} hours, {measure.upper()}",
            Sample(row[measure], row[f"{measure}_sd"], row["seeds"]),
            Sample(row[f"{measure}_published"], None, 1),
            unit=0.001,
        )
        for row in rows
        if not METHODS[row["method"]].beside
        for measure in MEASURES
    ]


def as_expected(row: dict[str, Any]) -> bool | None:
    """Return whether a row meets the expectation stated at the top of this file; None if there is none."""
    name, horizon = row["method"], row["horizon"]
    differences = {measure: row[measure] - row[f"{measure}_published"] for measure in MEASURES}
    if name == "repeat":
        return all(round(row[measure], 3) == row[f"{measure}_published"] for measure in MEASURES)
    if name in ("linear", "nlinear", "dlinear") and horizon in (96, 192):
        return abs(differences["mse"]) <= CLOSE
    if name == "normalized_lstm" and horizon in (24, 48, 168):
        return max(differences.values()) < 0
    return None


def draw_errors(rows: list[dict[str, Any]]) -> Figure:
    """Plot our errors against the horizon as lines, and the published ones as crosses."""
    sides = {
        "linear maps, looking back 336 hours": ("linear", "nlinear", "dlinear"),
        "Repeat, and LSTMs looking back 96 hours": ("repeat", "lstm", "normalized_lstm"),
    }
    sides = {title: names for title, names in sides.items() if any(row["method"] in names for row in rows)}
    figure, axes = plt.subplots(1, len(sides), figsize=(5 * len(sides), 4.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], sides.items(), strict=True):
        for name in names:
            method, ours = METHODS[name], [row for row in rows if row["method"] == name]
            if not ours:
                continue
            horizons, errors = [row["horizon"] for row in ours], [row["mse"] for row in ours]
            deviations = [row["mse_sd"] or 0.0 for row in ours]
            style: dict[str, Any] = {"color": method.colour, "marker": "o", "markersize": 4, "capsize": 3}
            axis.errorbar(horizons, errors, deviations, label=method.name, **style)
            published = f"{method.beside or method.name}, published"
            if published not in axis.get_legend_handles_labels()[1]:
                colour = "black" if method.beside else method.colour
                errors = [row["mse_published"] for row in ours]
                axis.scatter(horizons, errors, 50, colour, marker="x", label=published)
        axis.set(xscale="log", xlabel="hours ahead", ylabel="test mean square error (standardised)", title=title)
        axis.xaxis.set_major_locator(FixedLocator([24, 48, 96, 192, 336, 720]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.legend(fontsize=8)
    return figure


def draw_forecasts(cells: list[dict[str, Any]], values: np.ndarray, config: Config) -> Figure:
    """Plot the oil temperature in the middle of the test part, and each method's forecast of it."""
    longest = {cell["method"]: cell["forecast"] for cell in cells if cell["horizon"] <= 192}  # sorted by horizon
    before, after = 96, max(map(len, longest.values()), default=24)
    present = sum(config.hours[:2]) + shown_window(config)
    figure, axis = plt.subplots(figsize=(10, 4.2))
    observed = values[present - before : present + after, -1]
    axis.plot(np.arange(1 - before, after + 1), observed, color="black", linewidth=1.2, label="observed")
    for name, forecast in longest.items():
        axis.plot(np.arange(1, len(forecast) + 1), forecast, color=METHODS[name].colour, label=METHODS[name].name)
    axis.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(
        xlabel="hours ahead",
        ylabel="oil temperature (°C)",
        title="one forecast of seed 0 for each method, in the middle of the test part",
    )
    axis.legend(fontsize=8, ncols=2)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Make the runs that have not been made yet, and compare all results with the published ones."""
    for name in config.methods:
        checks.choice("methods", name, METHODS)
    for horizon in config.horizons:
        if horizon not in HORIZONS:
            raise ValueError(f"horizons: expected some of {HORIZONS}, for which errors were published, got {horizon}")
    results = Results(config.out)
    values = nnfx.data.ett("ETTh1").values
    settings = {"seeds": config.seeds, "epochs": config.epochs, "hours": list(config.hours)}
    cells = []
    for horizon in sorted(config.horizons):
        for name in config.methods:
            if horizon not in METHODS[name].published:
                continue
            path = config.out / f"run_{name}_{horizon}.json"
            if not path.exists() or json.loads(path.read_text())["settings"] != settings:
                cell = forecast_and_score(name, horizon, values, config)
                with paths.replace(path) as aside:
                    aside.write_text(json.dumps(cell | {"settings": settings}) + "\n")
            cells.append(json.loads(path.read_text()))
    rows = sorted(compare(cells), key=lambda row: config.methods.index(row["method"]))
    print_table(
        ["method", "hours", "seeds", "MSE", "published", "MAE", "published", "as expected"],
        [
            [
                METHODS[row["method"]].name,
                row["horizon"],
                row["seeds"],
                *(
                    text
                    for measure in MEASURES
                    for text in (_mean_and_sd(row, measure), f"{row[f'{measure}_published']:.3f}")
                ),
                {True: "yes", False: "NO", None: ""}[row["as_expected"]],
            ]
            for row in rows
        ],
    )
    results.figure("errors", draw_errors(rows))
    results.figure("forecasts", draw_forecasts(cells, values, config))
    runs = [{"method": cell["method"], "horizon": cell["horizon"], **run} for cell in cells for run in cell["runs"]]
    return results.summary({"config": settings | {"batch_size": BATCH_SIZE}, "rows": rows, "runs": runs})


def _mean_and_sd(row: dict[str, Any], measure: str) -> str:
    deviation = row[f"{measure}_sd"]
    return f"{row[measure]:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


if __name__ == "__main__":
    nnfx.cpu.set_up()
    command(main, Config, __doc__)
