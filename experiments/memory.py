"""Why recurrent networks need gates: what a simple network, a GRU and an LSTM remember after ever longer gaps.

    python -m experiments.memory [--out DIR] [--seed N] [--gaps 25 100 200] [--tasks adding copy]

In the adding problem, two of a sequence's random numbers are marked, one in each half, and their sum is the target at
the end; all other numbers must be ignored. Always predicting the mean gives a mean square error of 1/6. In the copy
task, three symbols are shown, nothing happens for a while, and then they must be repeated in order. Every batch is
freshly drawn within the compiled run, five seeds train together, and all networks have about the same number of
weights. Expect GRU and LSTM to solve the adding problem at all gaps, with errors below 0.02 for at least four of five
seeds, while the simple network learns nothing. These are the results for the default gaps. The copy task is the
counterexample: the orthogonal initial weights of the simple network preserve everything during the gap, and it needs
no gates. The norm of the gradient by lag, before and after training, shows why. The adding problem takes less than two
minutes on two cores, and both tasks together take six to seven minutes.
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

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, command, print_table
from nnfx.types import Array, Batch, Model, PerExample, Variables

SYMBOLS, SHOWN = 8, 3
"""The number of different symbols in the copy task, and the number shown in a sequence."""
STEPS_PER_EPOCH = 20
TESTED = 1000
"""The number of fresh sequences that a network is tested on."""
COLOURS = {"RNN": BLUE, "GRU": ORANGE, "LSTM": GREEN}
WIDTHS = {"RNN": 64, "GRU": 36, "LSTM": 32}
"""The hidden units of each network, chosen so that each has about 4,500 weights."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the memory experiment."""

    out: Path = Path("runs/memory")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    tasks: tuple[str, ...] = ("adding", "copy")
    """tasks to run"""
    gaps: tuple[int, ...] = (25, 100, 200)
    """lengths of the sequences of the adding problem, and numbers of blank steps in the copy task"""
    seeds: int = 5
    """number of networks of each kind, each with its own weights and data"""
    batch_size: int = 32
    """number of sequences in a batch"""
    clip: float = 1.0
    """the norm to which larger gradients are clipped"""


class Task(NamedTuple):
    """A memory task.

    Attributes:
        title: the name of the task in figures.
        draw: a function that draws sequences, `(key, rows, gap) -> (inputs, targets)`.
        returns: the steps at which the model has outputs, `"last"` or `"all"`.
        outputs: the number of the model's outputs.
        loss: the loss per example.
        score: the measure of success, per example.
        unit: the name of the score.
        baseline: the score of a model that remembers nothing.
        is_solved: whether a score shows that the model remembers.
        epochs: the number of epochs, each of `STEPS_PER_EPOCH` batches.
        rates: the peak learning rate (Adam, one cycle) for each network, the best of several from 0.001 to 0.1.
    """

    title: str
    draw: Callable[[Array, int, int], tuple[Array, Array]]
    returns: str
    outputs: int
    loss: PerExample
    score: PerExample
    unit: str
    baseline: float
    is_solved: Callable[[np.ndarray], np.ndarray]
    epochs: int
    rates: dict[str, float]


def draw_adding(key: Array, rows: int, gap: int) -> tuple[Array, Array]:
    """Draw sequences of numbers from 0 to 1. One number in each half is marked; the sum of these two is the target.

    Args:
        key: a typed key.
        rows: the number of sequences.
        gap: the length of the sequences.

    Returns:
        Inputs `(rows, gap, 2)`, the numbers and the marks, and targets `(rows,)`.

    References:
        Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 1997, section 5.4.
    """
    numbers_key, first_key, second_key = jax.random.split(key, 3)
    numbers = jax.random.uniform(numbers_key, (rows, gap))
    first = jax.random.randint(first_key, (rows,), 0, gap // 2)
    second = jax.random.randint(second_key, (rows,), gap // 2, gap)
    marks = jax.nn.one_hot(first, gap) + jax.nn.one_hot(second, gap)
    return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(-1)


def draw_copy(key: Array, rows: int, gap: int) -> tuple[Array, Array]:
    """Draw symbols, followed by blank steps and by one cue for each symbol; the symbols are the targets.

    Args:
        key: a typed key.
        rows: the number of sequences.
        gap: the number of blank steps.

    Returns:
        Inputs `(rows, gap + 2 × shown, symbols + 1)`, one-hot with the cue last, and int32 targets `(rows, shown)`.

    References:
        Arjovsky, Shah and Bengio, *Unitary evolution recurrent neural networks*, ICML 2016, section 5.1.
    """
    symbols = jax.random.randint(key, (rows, SHOWN), 0, SYMBOLS)
    silence = jnp.zeros((rows, gap, SYMBOLS + 1))
    cue = jax.nn.one_hot(jnp.full((rows, SHOWN), SYMBOLS), SYMBOLS + 1)
    return jnp.concatenate([jax.nn.one_hot(symbols, SYMBOLS + 1), silence, cue], axis=1), symbols


def recall_loss(outputs: Array, symbols: Array) -> Array:
    """Return the categorical cross-entropy of the answers, which are the last outputs."""
    return nnfx.losses.categorical_cross_entropy(outputs[:, -SHOWN:], symbols)


def recalled(outputs: Array, symbols: Array) -> Array:
    """Return the fraction of the symbols that the last outputs name correctly."""
    return nnfx.metrics.accuracy(outputs[:, -SHOWN:], symbols)


TASKS = {
    "adding": Task(
        title="adding problem",
        draw=draw_adding,
        returns="last",
        outputs=1,
        loss=nnfx.losses.mean_square_error,
        score=nnfx.losses.mean_square_error,
        unit="mean square error",
        baseline=1 / 6,
        is_solved=lambda error: error < 0.02,
        epochs=12,
        rates={"RNN": 0.003, "GRU": 0.05, "LSTM": 0.05},
    ),
    "copy": Task(
        title="copy task",
        draw=draw_copy,
        returns="all",
        outputs=SYMBOLS,
        loss=recall_loss,
        score=recalled,
        unit="symbols recalled",
        baseline=1 / SYMBOLS,
        is_solved=lambda accuracy: accuracy > 0.9,
        epochs=50,
        rates={"RNN": 0.001, "GRU": 0.05, "LSTM": 0.05},
    ),
}


class Outcome(NamedTuple):
    """The results of one kind of network on a task at one gap, seed by seed.

    Attributes:
        scores: the scores on fresh sequences, `(seeds,)`.
        losses: the mean training loss of each epoch, `(seeds, epochs)`.
        gradients: norms of the gradient by lag, `(seeds, time)`, before and after training; only at the last gap.
    """

    scores: np.ndarray
    losses: np.ndarray
    gradients: dict[str, np.ndarray]


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    for name in config.tasks:
        nnfx.checks.choice("tasks", name, TASKS)
    for gap in config.gaps:
        if gap < 4:
            raise ValueError(f"gaps: expected at least 4 steps each, got {gap}")
    results = Results(config.out)
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for name in config.tasks:
        task = TASKS[name]
        outcomes[name] = {kind: [train(task, kind, gap, config) for gap in config.gaps] for kind in COLOURS}
        print(
            f"{task.title}: median {task.unit} of {config.seeds} seeds, and how many solved it;"
            f" a score of {task.baseline:.3g} "
        )
        print("needs no memory\n")
        print_table(
            ["gap", *map(str, config.gaps)],
            [
                [kind, *(f"{np.median(o.scores):.3g} ({task.is_solved(o.scores).sum()})" for o in by_gap)]
                for kind, by_gap in outcomes[name].items()
            ],
        )
        print()
    draw_success(results, outcomes, config)
    draw_learning_curves(results, outcomes, config)
    draw_gradients(results, outcomes, config)
    results.history(
        {
            f"{name} {kind} gap {gap} train_loss": outcome.losses.mean(0)
            for name, by_kind in outcomes.items()
            for kind, by_gap in by_kind.items()
            for gap, outcome in zip(config.gaps, by_gap, strict=True)
        }
    )
    return results.summary(
        {
            "gaps": config.gaps,
            "seeds": config.seeds,
            "scores": {
                name: {kind: [o.scores for o in by_gap] for kind, by_gap in by_kind.items()}
                for name, by_kind in outcomes.items()
            },
            "solved": {
                name: {
                    kind: [TASKS[name].is_solved(o.scores).sum() for o in by_gap] for kind, by_gap in by_kind.items()
                }
                for name, by_kind in outcomes.items()
            },
            "gradient_that_is_left": {
                name: {
                    kind: {when: left_over(norms)[-1] for when, norms in by_gap[-1].gradients.items()}
                    for kind, by_gap in by_kind.items()
                }
                for name, by_kind in outcomes.items()
            },
            "seed": config.seed,
        }
    )


def train(task: Task, kind: str, gap: int, config: Config) -> Outcome:
    """Train one kind of network with several seeds, all in one program, and test it."""
    key, test_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), gap))
    model = network(task, kind, gap)

    def fresh(key: Array, batch: Batch) -> Batch:
        return Batch(*task.draw(key, len(batch.weights), gap), batch.weights)

    def adam(learning_rate: Array) -> optax.GradientTransformation:
        rate = nnfx.schedules.one_cycle(learning_rate, task.epochs * STEPS_PER_EPOCH)
        return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))

    # The data passed to a run only determine the shapes of its batches; freshly drawn data replace them.
    rows = config.batch_size * STEPS_PER_EPOCH
    shapes = jax.eval_shape(lambda key: task.draw(key, rows, gap), test_key)
    fit = nnfx.fit(model, task.loss, adam, epochs=task.epochs, batch_size=config.batch_size, augment=fresh)
    sweep = nnfx.sweeps.sweep(
        fit,
        nnfx.data.prepare(*(np.zeros(each.shape, each.dtype) for each in shapes), standardize=False),
        key=key,
        seeds=config.seeds,
        epochs_per_chunk=max(1, task.epochs // 4),
        progress=f"{kind}, gap {gap}",
        learning_rate=task.rates[kind],
    )
    inputs, targets = jax.jit(lambda key: task.draw(key, TESTED, gap))(test_key)
    tested = Batch(inputs, targets, jnp.ones(TESTED))

    @jax.jit
    def scores_of(variables: Variables) -> Array:
        return jax.lax.map(
            lambda of_seed: task.score(model.apply(of_seed, tested.inputs), tested.targets).mean(), variables
        )

    @jax.jit
    def gradients_of(variables: Variables) -> Array:
        few = jax.tree.map(lambda array: array[: config.batch_size], tested)
        return jax.lax.map(lambda of_seed: nnfx.insight.lags.gradient_by_lag(model, task.loss, of_seed, few), variables)

    gradients = {}
    if gap == config.gaps[-1]:  # only these are plotted
        begin = jax.jit(jax.vmap(model.init, (0, None)))
        untrained = begin(jax.random.split(key, config.seeds), tested.inputs[:1])
        gradients = {
            "before training": np.asarray(gradients_of(untrained)),
            "after training": np.asarray(gradients_of(sweep.variables)),
        }
    return Outcome(np.asarray(scores_of(sweep.variables)), sweep.histories["train_loss"], gradients)


def network(task: Task, kind: str, gap: int) -> Model:
    """Return a network for sequences with this gap; `WIDTHS` gives its number of hidden units."""
    make = getattr(nnfx.models, kind.lower())
    model = make(task.outputs, (WIDTHS[kind],), returns=task.returns)
    return model if kind == "RNN" else with_time_scales(model, kind, gap)


def with_time_scales(model: Model, kind: str, longest: int) -> Model:
    """Initialise the units of a GRU or an LSTM with memories of all lengths up to the longest.

    A gate that keeps a fraction `σ(b)` at each step remembers for about `1 + eᵇ` steps. Its bias is drawn as
    `b = log u`, with u uniform from 1 to the longest memory minus 1. The input gate of an LSTM, which replaces what is
    forgotten, gets the bias −b.

    References:
        Tallec and Ollivier, *Can recurrent neural networks warp time?*, ICLR 2018.
    """

    def init(key: Array, inputs: Any) -> Variables:
        params = model.init(key, inputs)["params"]
        layer = params["layer_0"]
        width = len(layer["recurrent_kernel"])
        keep = jnp.log(jax.random.uniform(jax.random.fold_in(key, 1), (width,), minval=1, maxval=longest - 1))
        nothing = jnp.zeros(width)
        blocks = (-keep, keep, nothing, nothing) if kind == "LSTM" else (nothing, keep, nothing, nothing)
        return {"params": {**params, "layer_0": {**layer, "bias": jnp.concatenate(blocks)}}}

    return model._replace(init=init)


def left_over(norms: np.ndarray) -> np.ndarray:
    """Return the norm of the gradient at each lag as a fraction of that at lag 1, `(time,)`: the median over seeds."""
    return np.median(norms / norms[:, :1], axis=0)


def draw_success(results: Results, outcomes: dict[str, dict[str, list[Outcome]]], config: Config) -> None:
    """Plot the score of every seed, and the median over seeds, against the gap."""
    figure, axes = plt.subplots(1, len(outcomes), figsize=(5.5 * len(outcomes), 4.2), squeeze=False)
    for axis, (name, by_kind) in zip(axes[0], outcomes.items(), strict=True):
        task = TASKS[name]
        for i, (kind, by_gap) in enumerate(by_kind.items()):
            scores = np.stack([outcome.scores for outcome in by_gap])
            beside = np.array(config.gaps) * 1.04 ** (i - 1)  # so that dots do not hide each other
            axis.plot(beside, np.median(scores, axis=1), "-", color=COLOURS[kind], label=f"{kind}, median")
            axis.plot(beside, scores, ".", color=COLOURS[kind], alpha=0.6)
        axis.axhline(task.baseline, color=GREY, linestyle="--", linewidth=1, label="knowing nothing")
        axis.set(xlabel=x_label(name), ylabel=task.unit, title=task.title, xscale="log")
        axis.set_xticks(config.gaps, map(str, config.gaps), minor=False)
        axis.set_xticks([], minor=True)
        if name == "adding":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.02)
        axis.legend()
    results.figure("success", figure)


def x_label(name: str) -> str:
    """Return the axis label for the gaps of a task."""
    return "length of the sequence (steps)" if name == "adding" else "blank steps before recall"


def draw_learning_curves(results: Results, outcomes: dict[str, dict[str, list[Outcome]]], config: Config) -> None:
    """Plot the training loss at the longest gap: every seed."""
    figure, axes = plt.subplots(1, len(outcomes), figsize=(5.5 * len(outcomes), 4.2), squeeze=False)
    for axis, (name, by_kind) in zip(axes[0], outcomes.items(), strict=True):
        for kind, by_gap in by_kind.items():
            losses = by_gap[-1].losses
            steps = STEPS_PER_EPOCH * np.arange(1, losses.shape[1] + 1)
            lines = axis.plot(steps, losses.T, color=COLOURS[kind], linewidth=1, alpha=0.8)
            lines[0].set_label(kind)
        unit = "mean square error" if name == "adding" else "cross-entropy (nats)"
        axis.set(xlabel="steps of training", ylabel=unit, yscale="log")
        axis.set_title(f"{TASKS[name].title}, gap {config.gaps[-1]}: every seed")
        axis.legend()
    results.figure("learning_curves", figure)


def draw_gradients(results: Results, outcomes: dict[str, dict[str, list[Outcome]]], config: Config) -> None:
    """Plot the remaining gradient by lag, at the longest gap, before and after training."""
    figure, axes = plt.subplots(
        len(outcomes), 2, figsize=(11, 3.9 * len(outcomes)), squeeze=False, sharex="row", sharey="row"
    )
    for row, (name, by_kind) in zip(axes, outcomes.items(), strict=True):
        for axis, when in zip(row, ("before training", "after training"), strict=True):
            draw_gradients_of(axis, {kind: by_gap[-1].gradients[when] for kind, by_gap in by_kind.items()})
            axis.set(xlabel="lag k (steps before the end)", title=f"{TASKS[name].title}, gap {config.gaps[-1]}, {when}")
        row[0].set_ylabel("‖∂ℓ/∂s‖ at lag k, relative to lag 1")
        row[0].legend()
    results.figure("gradients", figure)


def draw_gradients_of(axis: Axes, by_kind: dict[str, np.ndarray]) -> None:
    """Plot the norm of the gradient by lag for each network: every seed as a thin line, and the median."""
    for kind, norms in by_kind.items():
        lags = np.arange(1, norms.shape[1] + 1)
        axis.plot(lags, (norms / norms[:, :1]).T, color=COLOURS[kind], linewidth=0.6, alpha=0.4)
        axis.plot(lags, left_over(norms), color=COLOURS[kind], linewidth=2, label=kind)
    axis.set_yscale("log")


if __name__ == "__main__":
    nnfx.cpu.set_up(cache=None)
    command(main, Config, __doc__)
