"""A grid search: all candidates and folds as one program, against scikit-learn's search over its own network.

    python -m experiments.benchmarks search [--repeats 3] [--cores 2]

The grid has 8 learning rates × 8 penalties, on 5 folds of the Titanic's 714 passengers by fare and age, and every run
is 100 epochs of a 2-16-1 network. scikit-learn's penalty of a batch is `alpha / (2 rows) ‖w‖²`, so `l2 = alpha / 32`.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import problems
from experiments.benchmarks.timing import System, compare, report

RATES = np.logspace(-4, -1, 8)
ALPHAS = np.logspace(-4, 1, 8)
EPOCHS = 100


def main(repeats: int = 3, cores: int = 2, out: Path = Path("runs/benchmarks")) -> dict[str, Any]:
    """Time searches; the loss is 1 minus the best candidate's mean accuracy over the folds.

    Args:
        repeats: the number of times that each search is timed, in turn, excluding the first call of each, which
            compiles.
        cores: the number of devices, one for each core, on which this library trains, and of processes in which
            scikit-learn fits.
        out: where the results go.
    """
    jax.config.update("jax_num_cpu_devices", cores)
    systems = {"SweepSearchCV": System(with_sweep(), is_peer=False), "GridSearchCV": System(with_grid(cores))}
    rows = compare("titanic, 64 candidates × 5 folds", systems, repeats)
    ours, theirs = rows
    cold = (ours.median_s + ours.compile_s) / (theirs.median_s + theirs.compile_s)
    summary = report("search", rows, out)
    print(f"warm: 1/{1 / ours.ratio:.0f} of the time; the first call: 1/{1 / cold:.1f}")
    return summary


def with_sweep() -> Any:
    """Search with this library."""
    from nnfx.sklearn import Classifier, SweepSearchCV

    problem = problems.titanic()
    model = Classifier(hidden=problem.hidden, activation=problem.activation, epochs=EPOCHS, batch_size=32)
    grid = {"learning_rate": RATES, "l2": ALPHAS / 32}

    def run(seed: int) -> float:
        search = SweepSearchCV(model.set_params(random_state=seed), grid, cv=_folds(seed))
        return 1 - float(search.fit(problem.inputs, problem.labels).best_score_)

    return run


def with_grid(jobs: int) -> Any:
    """Search with scikit-learn's `GridSearchCV` over its `MLPClassifier`."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    problem = problems.titanic()
    grid = {"mlpclassifier__learning_rate_init": RATES, "mlpclassifier__alpha": ALPHAS}

    def run(seed: int) -> float:
        network = MLPClassifier(
            hidden_layer_sizes=problem.hidden,
            activation=problem.activation,
            batch_size=32,
            max_iter=EPOCHS,
            n_iter_no_change=EPOCHS,
            tol=0,
            random_state=seed,
        )
        search = GridSearchCV(make_pipeline(StandardScaler(), network), grid, cv=_folds(seed), n_jobs=jobs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all runs have the given number of epochs, converged or not
            return 1 - float(search.fit(problem.inputs, problem.labels).best_score_)

    return run


def _folds(seed: int) -> Any:
    from sklearn.model_selection import StratifiedKFold

    return StratifiedKFold(5, shuffle=True, random_state=seed)
