"""The losses that training minimises: cross-entropy, mean square error, and their average over examples.

    python -m experiments.losses [--out DIR] [--seed N]

Cross-entropy and square error are plotted against the predicted probability, and their derivatives against the logit.
A perceptron is then fitted to the fares and ages of 714 passengers of the Titanic, and every passenger's loss is
plotted: all lie on two curves, and their mean is the empirical loss. Finally, a line is fitted to the mean monthly
number of airline passengers in each year; its mean square error is drawn as squares, and it is compared with the
closed-form solution of least squares. Expect an empirical loss of 0.624 nats, compared with 0.675 if the fraction of
survivors is predicted for every passenger. Where the network is confidently wrong, expect the derivative of
cross-entropy to be largest, and the derivative of the square error to vanish. Expect the line to agree with the closed
form to single precision. The experiment works offline and takes about ten seconds.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import nnfx
from experiments.common import BLUE, GREY, ORANGE, Results, command, print_table
from experiments.gradient_descent import find_minimum
from nnfx.losses import binary_cross_entropy, mean_square_error
from nnfx.types import Array

PER_YEAR = 30.0
"""How many thousands of passengers take as much space in the plot as one year, so that squares look square."""
STEPS = 30
"""The number of steps of the quasi-Newton method that fits the line."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the losses experiment."""

    out: Path = Path("runs/losses")
    """the folder for the results"""
    seed: int = 0
    """random seed for the starting point of the fit, whose result does not depend on it"""


class Scored(NamedTuple):
    """A perceptron's predictions for the passengers.

    Attributes:
        logits: the logits of survival, `(passengers,)`.
        survived: `(passengers,)`, 1 for survivors and 0 for others.
        losses: the cross-entropy of each prediction, `(passengers,)`, in nats.
    """

    logits: Array
    survived: Array
    losses: Array


class Line(NamedTuple):
    """A line fitted to one value for each year.

    Attributes:
        years: the years, `(years,)`.
        values: the values to predict, `(years,)`.
        predictions: the values on the line, `(years,)`.
    """

    years: np.ndarray
    values: np.ndarray
    predictions: np.ndarray


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    scored = score_passengers()
    line = fit_line(jax.random.key(config.seed))
    share = float(scored.survived.mean())
    empirical = {
        "all": float(nnfx.losses.empirical(scored.losses)),
        "survived": float(scored.losses[scored.survived == 1].mean()),
        "died": float(scored.losses[scored.survived == 0].mean()),
        "predicting the fraction of survivors": float(-share * np.log(share) - (1 - share) * np.log(1 - share)),
    }
    print_table(["empirical loss of the passengers", "nats"], empirical.items())
    errors = {
        "mean square": float(mean_square_error(jnp.asarray(line.predictions), jnp.asarray(line.values)).mean()),
        "from least squares": float(np.abs(line.predictions - least_squares(line)).max() / np.ptp(line.values)),
    }
    print(
        f"\nmean square error of a line through airline passengers: {errors['mean square']:.4g} (thousands)²;\n"
        f"the line is within {errors['from least squares']:.1e} of the range of the least-squares line"
    )
    draw(results, scored, line, empirical["all"], errors["mean square"])
    return results.summary({"rows": len(scored.losses), "empirical": empirical, "line": errors, "seed": config.seed})


def score_passengers() -> Scored:
    """Score the passengers with the perceptron of lowest empirical loss."""
    passengers = nnfx.data.titanic("fare", "age").train
    weights, bias = find_minimum()
    logits = passengers.inputs @ weights + bias
    return Scored(logits, passengers.targets, binary_cross_entropy(logits, passengers.targets))


def fit_line(key: Array) -> Line:
    """Fit a perceptron without activation function to the mean monthly number of airline passengers in each year."""
    series = nnfx.data.airline_passengers()
    by_year = series.values.reshape(-1, series.period).mean(1)
    years = 1949.0 + np.arange(len(by_year))
    data = nnfx.data.prepare(years[:, None], by_year)
    run = nnfx.fit(nnfx.models.perceptron(), mean_square_error, optax.lbfgs, epochs=STEPS)(key, data)
    return Line(years, by_year, np.asarray(run.predict(years[:, None]))[:, 0])


def least_squares(line: Line) -> np.ndarray:
    """Return the predictions of the least-squares line, in closed form and double precision."""
    centred = line.years - line.years.mean()
    slope = centred @ line.values.astype(float) / (centred @ centred)
    return line.values.mean(dtype=float) + slope * centred


def by_logit(logits: Array, label: int) -> dict[str, dict[str, Array]]:
    """Return both losses of a sigmoid's output, and their derivatives with respect to the logit, by name."""
    labels = jnp.full(logits.shape, label)
    losses: dict[str, Callable[[Array], Array]] = {
        "cross-entropy": lambda z: binary_cross_entropy(z, labels),
        "square error": lambda z: mean_square_error(jax.nn.sigmoid(z), labels),
    }
    found = {}
    for name, loss in losses.items():
        values, back = jax.vjp(loss, logits)
        found[name] = {"loss": values, "derivative": back(jnp.ones_like(values))[0]}
    return found


def draw(results: Results, scored: Scored, line: Line, empirical: float, square: float) -> None:
    """Plot both losses, their derivatives, every passenger's loss, and the squares of a line's errors."""
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 8.6))
    draw_by_probability(axes[0, 0])
    draw_derivatives(axes[0, 1])
    draw_passengers(axes[1, 0], scored, empirical)
    draw_squares(axes[1, 1], line, square)
    results.figure("losses", figure)


LOOKS = {"cross-entropy": BLUE, "square error": ORANGE}
"""The colour of each loss."""


def draw_by_probability(axis: Axes) -> None:
    """Plot both losses against the predicted probability, for each label."""
    logits = jnp.linspace(-5, 5, 401)
    probability = jax.nn.sigmoid(logits)
    for label, style in ((1, "-"), (0, "--")):
        for name, found in by_logit(logits, label).items():
            axis.plot(probability, found["loss"], style, color=LOOKS[name], label=f"{name}, y = {label}")
    axis.set(
        title="the loss of one example",
        xlabel="predicted probability of y = 1",
        ylabel="loss (nats; square error dimensionless)",
        ylim=(0, 5),
    )
    axis.legend(loc="upper center")


def draw_derivatives(axis: Axes) -> None:
    """Plot the derivatives of both losses with respect to the logit, overlaid with finite differences."""
    logits, few, h = jnp.linspace(-8, 8, 401), jnp.linspace(-8, 8, 33), 0.02
    above, below = by_logit(few + h, 1), by_logit(few - h, 1)
    for name, found in by_logit(logits, 1).items():
        axis.plot(logits, found["derivative"], color=LOOKS[name], label=name)
        axis.plot(few, (above[name]["loss"] - below[name]["loss"]) / (2 * h), "o", color="black", markersize=2.5)
    axis.plot([], [], "o", color="black", markersize=2.5, label="by differences")
    axis.text(-7.6, -0.32, "confidently wrong:\nthe square error\nhardly learns", fontsize=9)
    axis.set(
        title="its derivative with respect to the logit, y = 1",
        xlabel="logit z, before the sigmoid",
        ylabel="derivative of the loss",
    )
    axis.legend(loc="lower right")


def draw_passengers(axis: Axes, scored: Scored, empirical: float) -> None:
    """Plot the loss of every passenger, and the mean."""
    for label, name, colour, marker in ((1, "survived", BLUE, "o"), (0, "died", ORANGE, "x")):
        chosen = np.asarray(scored.survived) == label
        logits, losses = np.asarray(scored.logits)[chosen], np.asarray(scored.losses)[chosen]
        axis.scatter(logits, losses, s=16, c=colour, marker=marker, linewidths=0.8, alpha=0.7)
        axis.plot([], [], marker, color=colour, label=f"{chosen.sum()} who {name}: mean {losses.mean():.3f}")
    axis.axhline(empirical, color="black", linestyle="--", label=f"empirical loss, the mean of all: {empirical:.3f}")
    axis.set(
        title=f"{len(scored.losses)} passengers of the Titanic, by fare and age",
        xlabel="logit of a perceptron",
        ylabel="cross-entropy (nats)",
        ylim=(0, 1.4 * float(scored.losses.max())),
    )
    axis.legend(loc="upper left")


def draw_squares(axis: Axes, line: Line, square: float) -> None:
    """Plot a line through points, and the squares of its errors."""
    for year, value, prediction in zip(line.years, line.values, line.predictions, strict=True):
        side = abs(float(value - prediction))
        corner = (year, float(min(value, prediction)))
        axis.add_patch(Rectangle(corner, side / PER_YEAR, side, facecolor=ORANGE, edgecolor=GREY, alpha=0.35))
    axis.plot(line.years, line.predictions, color=BLUE, label="perceptron without non-linearity")
    axis.plot(line.years, line.values, "o", color="black", markersize=4, label="passengers")
    axis.set(
        title=f"mean square error: the mean of the squares, {square:.0f} (thousands)²",
        xlabel="year",
        ylabel="airline passengers per month (thousands)",
    )
    axis.set_aspect(1 / PER_YEAR)
    axis.legend(loc="upper left")


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
