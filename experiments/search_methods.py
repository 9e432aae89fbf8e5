"""Search methods compared at the same number of epochs: random search, halving, Hyperband, TPE and others.

    python -m experiments.search_methods [--out DIR] [--seed N]

Each method has the budget of 64 full runs on each of five problems: networks for the Titanic data, for digits as
numbers and as images, and for sunspots, and a quadratic whose lowest loss is known. The score of a method is the
lowest held-out loss that it has seen by the time that a part of the budget is spent; the budget is counted in epochs
of single runs. All of this is repeated twenty times.

Random search, successive halving (the best third continues after 1/27, 1/9 and 1/3 of the epochs), Hyperband and
extrapolation draw their points from one pool of 1,280 runs, which a sweep trains to the end. The learning curves of
these runs then tell what each method would have found. Optuna's tree-structured Parzen estimator (TPE) chooses each
point depending on the losses of earlier points, so its runs are really trained: the next points of its twenty
repetitions are trained side by side. So are the descents along hyper-gradients, in which each gradient counts as three
runs.

Expect successive halving to have the lowest mean on all five problems when a quarter of the budget is spent, on three
of them by more than two standard errors. Expect Hyperband to be ahead of both random search and TPE on three problems.
When the whole budget is spent, TPE is ahead on most problems, and by a factor of ten on the quadratic, where every
loss is exact. Extrapolation is hardly better than random search, and hyper-gradients are worse, since a descent costs
as much as thirteen runs; neither of these two is a default in this library. The experiment takes about a quarter of an
hour of processor time.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import pyplot as plt

from experiments.common import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Results, command, mean_and_error, print_table
from experiments.search_problems import Problem, problems
from nnfx.search import Halving, Hyperband, HyperGradient, draw, search
from nnfx.search.dropping import Dropping, Hopeless, Quotas, best_so_far
from nnfx.search.methods import GRADIENT_COST
from nnfx.sweeps import LogUniform, sweep

COLOURS = {
    "random": GREY,
    "halving": BLUE,
    "Hyperband": GREEN,
    "extrapolation": SKY,
    "hyper-gradients": PURPLE,
    "TPE": ORANGE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the comparison of search methods."""

    out: Path = Path("runs/search_methods")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    repetitions: int = 20
    """number of repetitions of each search"""
    runs: int = 64
    """budget of a search, as a number of full runs"""
    pool: int = 1280
    """number of points in the pool from which searches draw"""
    epochs: int = 27
    """number of epochs of a full run"""
    steps: int = 4
    """number of gradients in each descent"""


Moments = Iterator[tuple[int, float]]
"""The steps of a search: the member-epochs spent in each step, and the lowest loss seen in them."""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    has_optuna = importlib.util.find_spec("optuna") is not None
    if not has_optuna:
        print("Optuna is not installed: TPE is left out")
    curves, scores = {}, {}
    for problem in problems(jax.random.key(config.seed), config.epochs):
        found = {**from_pool(problem, config), "hyper-gradients": by_gradients(problem, config)}
        if has_optuna:
            found["TPE"] = by_tpe(problem, config)
        curves[problem.name] = {name: found[name] for name in COLOURS if name in found}
        scores[problem.name] = {
            name: {"quarter": scored(runs[:, config.runs // 4 - 1]), "whole": scored(runs[:, -1])}
            for name, runs in curves[problem.name].items()
        }
        print_scores(problem, scores[problem.name])
    better = ahead_at_a_quarter(scores)
    print("\nahead of random search and TPE at a quarter of the budget, in standard errors of the difference:\n")
    print_table(["", *scores], [[name, *of.values()] for name, of in better.items()])
    draw_curves(results, curves, config)
    options = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}
    return results.summary({"scores": scores, "ahead_at_a_quarter": better, **options})


def from_pool(problem: Problem, config: Config) -> dict[str, np.ndarray]:
    """Return the lowest loss after each full run of the searches that draw from a pool, `(repetitions, runs)`."""
    points = draw(jax.random.key(config.seed), config.pool, problem.space)
    losses = trained(problem, points, config.seed)
    found = {}
    for name, method in METHODS.items():
        searches = []
        for repetition in range(config.repetitions):
            order = np.random.default_rng([config.seed, repetition]).permutation(len(losses))
            searches.append(lowest_by_run(method(losses[order]), losses.shape[1], config.runs))
        found[name] = np.stack(searches)
    return found


def trained(problem: Problem, points: Sequence[dict[str, Any]], seed: int) -> np.ndarray:
    """Train points to the end, and return their held-out losses, `(points, epochs)`."""
    columns = {name: np.array([point[name] for point in points]) for name in points[0]}
    result = sweep(problem.train, problem.data, key=jax.random.key(seed), points=columns)
    return np.asarray(result.histories["valid_loss"], np.float64)


def one_by_one(losses: np.ndarray) -> Moments:
    """Train one point after the other to the end: random search."""
    for curve in losses:
        yield from in_round(curve[None], None)


def halving(losses: np.ndarray) -> Moments:
    """Train points in groups, and keep a third of a group at each rung, so that one point is left at the end."""
    epochs = losses.shape[1]
    rungs = [epochs // 3**i for i in (3, 2, 1) if epochs // 3**i]
    size = 3 ** len(rungs)
    for begin in range(0, len(losses) - size + 1, size):
        yield from in_round(losses[begin : begin + size], Quotas(Halving(rungs, 1 / 3).quotas(size)))


def hyperband(losses: np.ndarray) -> Moments:
    """Train the brackets of Hyperband repeatedly."""
    begin = 0
    for bracket in itertools.cycle(Hyperband().brackets(losses.shape[1])):
        some = losses[begin : begin + bracket.points]
        if len(some) < bracket.points:
            return
        yield from in_round(some, Quotas(bracket.quotas) if bracket.quotas else None)
        begin += bracket.points


def extrapolation(losses: np.ndarray) -> Moments:
    """Train 16 points at a time, and drop those that are unlikely to get below the best."""
    epochs, best = losses.shape[1], np.inf
    rungs = tuple(rung for rung in (epochs // 9, epochs // 3) if rung >= 3)
    for begin in range(0, len(losses) - 15, 16):
        for cost, lowest in in_round(losses[begin : begin + 16], Hopeless(rungs, 0.05, epochs, best)):
            yield cost, lowest
            best = min(best, lowest)


METHODS: dict[str, Callable[[np.ndarray], Moments]] = {
    "random": one_by_one,
    "halving": halving,
    "Hyperband": hyperband,
    "extrapolation": extrapolation,
}
"""Each method, as a function from the points' learning curves, `(points, epochs)`, to the steps that it takes."""


def in_round(losses: np.ndarray, dropping: Dropping | None) -> Moments:
    """Train points side by side, and drop some at each rung.

    >>> falling = np.array([[3.0, 1.0, 0.5], [2.0, 1.5, 0.1]])
    >>> list(in_round(falling, Quotas({2: 1})))
    [(4, 1.0), (1, 0.5)]
    """
    epochs, running, done = losses.shape[1], np.arange(len(losses)), 0
    seen = np.full_like(losses, np.nan)
    for rung in [*(dropping.rungs if dropping else ()), epochs]:
        seen[running, done:rung] = losses[running, done:rung]
        finite = seen[running, done:rung][np.isfinite(seen[running, done:rung])]
        yield len(running) * (rung - done), float(finite.min(initial=np.inf))
        if dropping and rung < epochs:
            running = np.intersect1d(running, dropping.kept(seen[None, :, :rung]))
        done = rung


def lowest_by_run(moments: Iterable[tuple[int, float]], epochs: int, runs: int) -> np.ndarray:
    """Return the lowest loss within the budget of 1, 2, … full runs; infinite before the first step.

    >>> lowest_by_run([(1, 0.7), (2, 0.4), (9, 0.1)], epochs=2, runs=3).tolist()
    [0.7, 0.4, 0.4]
    """
    lowest, spent = np.full(runs, np.inf), 0
    for cost, loss in moments:
        spent += cost
        if spent > runs * epochs:
            break
        first = -(-spent // epochs) - 1
        lowest[first:] = np.minimum(lowest[first:], loss)
    return lowest


def by_tpe(problem: Problem, config: Config) -> np.ndarray:
    """Return the lowest loss of TPE after each run, `(repetitions, runs)`; all repetitions are trained side by side."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = [
        optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed * config.repetitions + i))
        for i in range(config.repetitions)
    ]
    found = np.full((config.repetitions, config.runs), np.inf)
    for run in range(config.runs):
        trials = [study.ask() for study in studies]
        points = [
            {
                name: trial.suggest_float(name, range_.low, range_.high, log=isinstance(range_, LogUniform))
                for name, range_ in problem.space.items()
            }
            for trial in trials
        ]
        lowest = best_so_far(trained(problem, points, config.seed))[:, -1]
        for study, trial, loss in zip(studies, trials, lowest, strict=True):
            if np.isfinite(loss):
                study.tell(trial, loss)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        found[:, run] = np.where(np.isfinite(lowest), lowest, np.inf)
    return np.minimum.accumulate(found, axis=1)


def by_gradients(problem: Problem, config: Config) -> np.ndarray:
    """Return the lowest loss of descents by hyper-gradients after each full run, `(repetitions, runs)`."""
    method = HyperGradient(config.steps)
    epochs = problem.train.epochs
    each = GRADIENT_COST * config.steps + 1
    descents = config.runs // each
    found = search(
        problem.train,
        problem.data,
        problem.space,
        key=jax.random.key(config.seed),
        points=config.repetitions * descents,
        method=method,
        at_once=16,
    )
    lowest = {row["point"]: row["valid_loss"] for row in found.rows}
    return np.stack(
        [
            lowest_by_run(
                [(each * epochs, lowest[repetition * descents + i]) for i in range(descents)], epochs, config.runs
            )
            for repetition in range(config.repetitions)
        ]
    )


def scored(losses: np.ndarray) -> dict[str, float]:
    """Return the mean over repetitions and its standard error; infinite if a repetition has found nothing yet."""
    return mean_and_error(losses) if np.isfinite(losses).all() else {"mean": np.inf, "error": np.nan}


def print_scores(problem: Problem, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the lowest losses of a problem."""
    known = "" if problem.optimum is None else f"; the lowest possible is {problem.optimum:.3g}"
    print(f"\n{problem.name}: lowest held-out loss for a quarter of the budget and for all of it{known}\n")
    rows = [[name, *of["quarter"].values(), *of["whole"].values()] for name, of in scores.items()]
    print_table(["", "quarter", "±", "whole", "±"], rows)


def ahead_at_a_quarter(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return how far each of our methods is ahead of the better of random search and TPE on each problem.

    The unit is the standard error of the difference.
    """
    ahead: dict[str, dict[str, float]] = {}
    for problem, of in scores.items():
        others = [of[name]["quarter"] for name in ("random", "TPE") if name in of]
        best = min(others, key=lambda other: other["mean"])
        for name in of.keys() - {"random", "TPE"}:
            own = of[name]["quarter"]
            error = np.hypot(own["error"], best["error"])
            ahead.setdefault(name, {})[problem] = float((best["mean"] - own["mean"]) / error)
    return {name: ahead[name] for name in COLOURS if name in ahead}


def draw_curves(results: Results, curves: dict[str, dict[str, np.ndarray]], config: Config) -> None:
    """Plot the lowest loss against the budget, with its standard error, in one panel for each problem."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5))
    runs = np.arange(1, config.runs + 1)
    for axis, (problem, found) in zip(axes.flat, curves.items(), strict=False):
        for name, losses in found.items():
            is_found = np.isfinite(losses).all(0)
            mean, error = losses[:, is_found].mean(0), losses[:, is_found].std(0, ddof=1) / np.sqrt(len(losses))
            axis.plot(runs[is_found], mean, color=COLOURS[name], label=name)
            axis.fill_between(runs[is_found], mean - error, mean + error, color=COLOURS[name], alpha=0.2, linewidth=0)
        axis.axvline(config.runs / 4, color="black", linestyle=":", linewidth=1)
        # the first points may have diverged
        first = config.runs // 16
        shown = np.concatenate([losses.mean(0)[first - 1 :] for losses in found.values()])
        shown = shown[np.isfinite(shown)]
        highest = found["random"].mean(0)[first - 1]
        axis.set(xscale="log", yscale="log", title=problem, xlabel="budget (full runs)", ylabel="lowest held-out loss")
        axis.set(xlim=(first, config.runs), ylim=(shown.min() * 0.95, max(highest, shown.min() * 1.05) * 1.1))
        axis.set_xticks([first, config.runs // 4, config.runs], [first, config.runs // 4, config.runs])
        axis.xaxis.set_minor_formatter("")
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("{x:.2g}" if highest < 5 * shown.min() else "")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center left")
    axes.flat[-1].text(
        0, 0.1, f"mean of {config.repetitions} searches ± standard error;\ndotted: a quarter of the budget"
    )
    means = {
        f"{problem}, {name}": losses.mean(0) for problem, found in curves.items() for name, losses in found.items()
    }
    results.history({name: np.where(np.isfinite(mean), mean, np.nan) for name, mean in means.items()})
    results.figure("search_methods", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
