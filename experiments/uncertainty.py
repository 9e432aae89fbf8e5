"""The uncertainty of a network by several methods, and sets and intervals with the stated coverage.

    python -m experiments.uncertainty [--out DIR] [--seed N]

Small networks learn 200 handwritten digits, and the progression of diabetes in 150 patients, on several random splits.
Five methods give probabilities for other digits and intervals for other patients: a single network; the same network
calibrated by a temperature or a scale; the same network with dropout left on; the same network with the Laplace
approximation for the last layer; and an ensemble. Sets and intervals that should contain the true value in 95 % of
cases are then calibrated by split conformal prediction on half of the held-out rows; all scores are measured on the
other half. Expect the single network to be overconfident, and the ensemble to be more accurate and less overconfident.
Expect intervals that ignore the errors on new patients to be far too narrow, and the conformal sets and intervals of
every method to cover about 95 %. The experiment works offline and takes about a minute.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from matplotlib import pyplot as plt
from sklearn.datasets import load_diabetes

import nnfx
from experiments.common import BLUE, ORANGE, PURPLE, Results, command, mean_and_error, print_table
from nnfx import uncertainty
from nnfx.data import Data
from nnfx.forecasting.scores import pinball
from nnfx.types import Array, Batch, Model, PerExample, Variables
from nnfx.uncertainty import conformal, laplace
from nnfx.uncertainty.conformal import Interval

ONE, DROPOUT, LAPLACE, ENSEMBLE = "one network", "MC dropout", "Laplace", "ensemble"
SCALED, QUANTILES = "one network, scaled", "quantiles"
DIGITS, PATIENTS = 1797, 442
PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""The prior precisions tried for the Laplace approximation."""
CLASSES = {
    "accuracy": "accuracy",
    "NLL": "negative_log_likelihood",
    "ECE": "expected_calibration_error",
    "coverage": "own coverage",
    "size": "own size",
    "LAC coverage": "LAC coverage",
    "LAC size": "LAC size",
    "APS coverage": "APS coverage",
    "APS size": "APS size",
}
"""The columns of the table of digits, each with the name of its score."""
NUMBERS = {
    "error": "error",
    "NLL": "negative_log_likelihood",
    "coverage": "own coverage",
    "width": "own width",
    "conformal coverage": "conformal coverage",
    "conformal width": "conformal width",
}
"""The columns of the table of patients."""
Scores = dict[str, dict[str, Array]]
"""Scores by method and name."""
Table = dict[str, dict[str, dict[str, float]]]
"""Means of scores over splits and their standard errors, by method and name."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the uncertainty experiment."""

    out: Path = Path("runs/uncertainty")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    splits: int = 5
    """number of random splits, each with its own networks; at least 2 for a standard error"""
    members: int = 5
    """number of networks in an ensemble"""
    draws: int = 50
    """number of predictions with dropout, and of draws from the Laplace posterior"""
    level: float = 0.95
    """the fraction of true values that sets and intervals should contain"""
    digits: int = 200
    """number of digits to train on"""
    patients: int = 150
    """number of patients to train on"""
    hidden: int = 64
    """width of each of the two hidden layers"""
    dropout: float = 0.2
    """the fraction of hidden units dropped in training"""
    epochs: int = 100
    """number of epochs of each run"""
    batch_size: int = 32
    """number of rows in a minibatch"""
    learning_rate: float = 0.003
    """learning rate (Adam)"""


class Trained(NamedTuple):
    """The networks of one split and their data.

    Attributes:
        variables: the variables of the members, stacked.
        train: the data on which they were trained.
        held_out: the held-out rows, alternately for calibration and for scores.
    """

    variables: Variables
    train: Batch
    held_out: Batch

    @property
    def first(self) -> Variables:
        """The variables of one network."""
        return jax.tree.map(lambda leaf: leaf[0], self.variables)


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    keys = jax.random.split(jax.random.key(config.seed), config.splits)
    print(f"{config.splits} splits of {config.digits} training digits; sets that should contain {config.level:.0%}\n")
    digits = over_splits(compare_digits(keys, config))
    show(digits, CLASSES)
    print(f"\n{config.patients} training patients; error and width in standard deviations of the targets\n")
    patients = over_splits(compare_patients(keys, config))
    show(patients, NUMBERS)
    draw_coverage(results, digits, patients, config.level)
    return results.summary(
        {"digits": digits, "patients": patients, "level": config.level, "splits": config.splits, "seed": config.seed}
    )


def trainer(outputs: int, loss: PerExample, config: Config) -> tuple[Model, Callable[[Array, Data], Trained]]:
    """Return a model, and the function that trains an ensemble of it as one sweep."""
    model = nnfx.models.mlp((config.hidden,) * 2, outputs, dropout=config.dropout)
    fit = nnfx.fit(model, loss, optax.adam, epochs=config.epochs, batch_size=config.batch_size)

    def train(key: Array, data: Data) -> Trained:
        alone = dataclasses.replace(data, valid=None)  # keeps the last weights, not the best on held-out rows
        runs = nnfx.sweeps.sweep(fit, alone, key=key, seeds=config.members, learning_rate=config.learning_rate)
        assert data.valid is not None
        return Trained(jax.tree.map(jnp.asarray, runs.variables), data.train, data.valid)

    return model, train


def halves(rows: Any) -> tuple[Any, Any]:
    """Return the rows for calibration, and the rows to score."""
    return jax.tree.map(lambda leaf: leaf[0::2], rows), jax.tree.map(lambda leaf: leaf[1::2], rows)


def compare_digits(keys: Array, config: Config) -> list[Scores]:
    """Score every method on every split of the digits."""
    model, train = trainer(10, nnfx.losses.categorical_cross_entropy, config)
    images = nnfx.data.images("digits")

    def of_split(key: Array) -> Scores:
        split_key, run_key, draw_key, set_key = jax.random.split(key, 4)
        trained = train(run_key, images.prepare(key=split_key, valid_fraction=1 - config.digits / DIGITS))
        labels = trained.held_out.targets

        def loss(outputs: Array) -> Array:
            log_p, known_labels = halves((log_mean(outputs), labels))[0]
            return -jnp.take_along_axis(log_p, known_labels[:, None], 1).mean()

        outputs = outputs_of(draw_key, model, trained, config, loss)
        logits = {name: log_mean(each) for name, each in outputs.items()}
        for name in (ONE, ENSEMBLE):
            temperature = uncertainty.fit_temperature(halves(logits[name])[0], halves(labels)[0])
            logits[f"{name}, tempered"] = logits[name] / temperature
        return {name: score_classes(set_key, each, labels, config.level) for name, each in logits.items()}

    return [of_split(key) for key in keys]


def outputs_of(
    key: Array,
    model: Model,
    trained: Trained,
    config: Config,
    loss: Callable[[Array], Array],
    noise: Array | None = None,
) -> dict[str, Array]:
    """Return the outputs of the members or draws of each method, `(members, held out, outputs)`.

    The prior of the Laplace approximation is the one with the lowest loss on the calibration rows.
    """
    dropout_key, laplace_key = jax.random.split(key)
    inputs, first = trained.held_out.inputs, trained.first
    posterior = laplace.fit(model, first, trained.train, prior_precision=1.0, noise=noise)

    def members(prior_precision: Array) -> Array:
        of_prior = posterior._replace(prior_precision=prior_precision)
        return laplace.members(laplace_key, model, first, of_prior, inputs, config.draws)

    priors = jnp.array(PRIORS)
    best = priors[jax.vmap(lambda prior: loss(members(prior)))(priors).argmin()]
    return {
        ONE: model.apply(first, inputs)[None],
        DROPOUT: uncertainty.mc_dropout(dropout_key, model, first, inputs, config.draws),
        LAPLACE: members(best),
        ENSEMBLE: jax.vmap(model.apply, (0, None))(trained.variables, inputs),
    }


def log_mean(outputs: Array) -> Array:
    """Return the logarithm of the members' mean probabilities, `(batch, classes)`."""
    return jax.nn.logsumexp(uncertainty.log_probabilities(outputs), axis=0) - jnp.log(len(outputs))


def score_classes(key: Array, logits: Array, labels: Array, level: float) -> dict[str, Array]:
    """Score the probabilities, the sets made from them alone, and the sets calibrated in two ways."""
    p = uncertainty.probabilities(logits)
    (_, new), (known_labels, new_labels) = halves(p), halves(labels)
    least, adaptive = halves(conformal.lac(p)), halves(conformal.aps(key, p))
    sets = {
        "own": adaptive[1] <= level,  # the correct threshold if the probabilities were exact
        "LAC": least[1] <= conformal.threshold(least[0], known_labels, level),
        "APS": adaptive[1] <= conformal.threshold(adaptive[0], known_labels, level),
    }
    found = uncertainty.score(new, new_labels)
    for name, each in sets.items():
        found[f"{name} coverage"] = jnp.take_along_axis(each, new_labels[:, None], 1).mean()
        found[f"{name} size"] = each.sum(1).mean()
    return found


def compare_patients(keys: Array, config: Config) -> list[Scores]:
    """Score every method on every split of the patients."""
    tails = np.array([(1 - config.level) / 2, (1 + config.level) / 2])
    model, train = trainer(1, nnfx.losses.mean_square_error, config)
    of_tails, train_tails = trainer(2, lambda outputs, targets: pinball(outputs, targets, tails), config)
    table, held_out = load_diabetes(), 1 - config.patients / PATIENTS

    def of_split(key: Array) -> Scores:
        split_key, run_key, draw_key = jax.random.split(key, 3)
        data = nnfx.data.prepare(
            table.data, table.target, key=split_key, valid_fraction=held_out, standardize_targets=True
        )
        trained = train(run_key, data)
        inputs, targets = trained.held_out.inputs, trained.held_out.targets
        noise = error(model.apply(trained.first, trained.train.inputs)[:, 0], trained.train.targets)

        def loss(outputs: Array) -> Array:
            return surprise(*halves((*moments(outputs, noise), targets))[0])

        outputs = outputs_of(draw_key, model, trained, config, loss, noise)
        noises = dict.fromkeys(outputs, noise)
        known, known_targets = halves((outputs[ONE][0, :, 0], targets))[0]
        outputs[SCALED], noises[SCALED] = outputs[ONE], error(known, known_targets)
        found = {name: score_normal(each, noises[name], targets, tails, config.level) for name, each in outputs.items()}
        bounds = jnp.sort(of_tails.apply(train_tails(run_key, data).first, inputs), axis=1)
        found[QUANTILES] = score_intervals(Interval(*bounds.T), targets, config.level)
        return found

    return [of_split(key) for key in keys]


def moments(outputs: Array, noise: Array) -> tuple[Array, Array]:
    """Return the means and standard deviations of targets, given outputs `(members, held out, 1)` and the noise."""
    return outputs.mean(0)[:, 0], jnp.sqrt(outputs.var(0)[:, 0] + noise**2)


def surprise(mean: Array, std: Array, targets: Array) -> Array:
    """Return the mean negative log-likelihood of normal distributions."""
    return -norm.logpdf(targets, mean, std).mean()


def score_normal(outputs: Array, noise: Array, targets: Array, tails: np.ndarray, level: float) -> dict[str, Array]:
    """Score normal distributions and their intervals."""
    mean, std = moments(outputs, noise)
    new_mean, new_std, new_targets = halves((mean, std, targets))[1]
    found = {
        "error": error(new_mean, new_targets),
        "negative_log_likelihood": surprise(new_mean, new_std, new_targets),
    }
    return found | score_intervals(Interval(*(norm.ppf(tail, mean, std) for tail in tails)), targets, level)


def error(predictions: Array, targets: Array) -> Array:
    """Return the root mean square error."""
    return jnp.sqrt(jnp.square(predictions - targets).mean())


def score_intervals(interval: Interval, targets: Array, level: float) -> dict[str, Array]:
    """Return coverage and mean width of intervals, unchanged and widened by conformal margins."""
    known, new = halves(interval)
    known_targets, new_targets = halves(targets)
    widened = conformal.widen(new, conformal.margins(known, known_targets, level))
    found = {}
    for name, (lower, upper) in (("own", new), ("conformal", widened)):
        found[f"{name} coverage"] = ((lower <= new_targets) & (new_targets <= upper)).mean()
        found[f"{name} width"] = (upper - lower).mean()
    return found


def over_splits(found: list[Scores]) -> Table:
    """Return each score's mean over splits and its standard error."""
    return {
        method: {name: mean_and_error([float(each[method][name]) for each in found]) for name in scores}
        for method, scores in found[0].items()
    }


def show(table: Table, columns: dict[str, str]) -> None:
    """Print a table of means ± standard errors."""
    rows = []
    for method, scores in table.items():
        cells = [scores.get(name) for name in columns.values()]
        rows.append([method, *(f"{cell['mean']:.3f} ± {cell['error']:.3f}" if cell else "" for cell in cells)])
    print_table(["", *columns], rows)


def draw_coverage(results: Results, digits: Table, patients: Table, level: float) -> None:
    """Plot the coverage and the size of sets and intervals."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), sharex="col")
    kinds = {
        "own": ("as they are", ORANGE, "o"),
        "APS": ("conformal, APS", BLUE, "s"),
        "LAC": ("conformal, LAC", PURPLE, "^"),
    }
    others = {"own": kinds["own"], "conformal": ("conformal", BLUE, "s")}
    for column, (table, kinds_of, size, title) in enumerate(
        ((digits, kinds, "size", "sets of digits"), (patients, others, "width", "intervals for patients"))
    ):
        for row, what in enumerate(("coverage", size)):
            axis = axes[row, column]
            for number, (kind, (label, color, marker)) in enumerate(kinds_of.items()):
                cells = [scores[f"{kind} {what}"] for scores in table.values()]
                places = np.arange(len(cells)) + 0.2 * (number - (len(kinds_of) - 1) / 2)
                means, errors = ([cell[part] for cell in cells] for part in ("mean", "error"))
                axis.errorbar(places, means, errors, fmt=marker, color=color, capsize=3, label=label)
            axis.set_xticks(range(len(table)), [name.replace(" ", "\n") for name in table])
            axis.grid(visible=False, axis="x")
        axes[0, column].axhline(level, color="black", linestyle="--", linewidth=1, label=f"promised: {level:.0%}")
        axes[0, column].set(title=title, ylabel="share that holds the truth")
        axes[0, column].legend(loc="lower right")
        axes[1, column].set(
            ylabel=f"mean {size}" + (" (standard deviations)" if size == "width" else ""), ylim=(0, None)
        )
    results.figure("coverage", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
