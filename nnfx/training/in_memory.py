"""A run on data in memory, for a host loop: one compiled program advances it by any number of epochs."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Lowered

from nnfx import checks, distributed, memo, trees
from nnfx.stopping import Clock
from nnfx.training.driver import History, Program, drive, joined
from nnfx.training.epochs import RunState, run_epochs_until, start
from nnfx.training.parts import Recipe
from nnfx.types import Array, Batch, Hyper

LONGEST = 1000
"""The maximum number of epochs per call: the history that a call returns has this length."""


class Standing(NamedTuple):
    """The state of a run between epochs, with its history.

    Attributes:
        run: the state of the run.
        history: each metric by epoch so far, `(epochs,)`.
    """

    run: RunState
    history: History


@dataclasses.dataclass
class InMemory(Program[Standing]):
    """A run on data in memory, as a program whose unit is an epoch.

    Attributes:
        recipe: the recipe of the run.
        key: a typed key.
        train: the training data.
        valid: the held-out data, or None.
        hyper: the hyper-parameters, as arrays.
        data: the arrays that identify the data, for sessions.
    """

    recipe: Recipe
    key: Array
    train: Batch
    valid: Batch | None
    hyper: Hyper
    data: Any = None

    kind = "run"
    units_per_epoch = 1
    longest = LONGEST

    @property
    def shown(self) -> tuple[str, int]:
        """The name of the items that a progress bar counts, and the number of items in an epoch."""
        return "examples", len(self.train.weights)

    def start(self) -> Standing:
        """Return the initial state of the run, with an empty history."""
        return Standing(begin(self.recipe, self.key, self.train, self.valid, self.hyper), {})

    def advance(self, standing: Standing, until: int, clock: Clock) -> Standing:
        """Train until `until` epochs in total, or fewer if a rule stops the run."""
        before = self.done(standing)
        run, history = distributed.local(
            advance(self.recipe, standing.run, self.train, self.valid, self.hyper, np.int32(until), clock)
        )
        made = int(run.epoch) - before
        new = {name: np.asarray(values)[:made] for name, values in history.items()}
        return Standing(run, joined([standing.history, new]))

    def done(self, standing: Standing) -> int:
        """Return the number of completed epochs."""
        return int(standing.run.epoch)

    def expected(self, noted: Mapping[str, Any]) -> Standing:
        """Return a template for the arrays of a checkpoint, with the same shapes and dtypes."""
        starting, advancing = (each.out_info for each in self.lowered)
        columns = {name: np.zeros(noted["epoch"], column.dtype) for name, column in advancing[1].items()}
        return Standing(trees.shapes(starting), columns)

    @functools.cached_property
    def lowered(self) -> list[Lowered]:
        """The programs that start and advance the run on one device, lowered but not compiled."""
        recipe = self.recipe.alone
        starting = begin.lower(recipe, self.key, self.train, self.valid, self.hyper)
        train, valid, hyper = jax.eval_shape(lambda *arrays: arrays, self.train, self.valid, self.hyper)
        state = trees.shapes(starting.out_info)
        clock = Clock(np.float32(0), np.float32(0))
        return [starting, advance.lower(recipe, state, train, valid, hyper, np.int32(0), clock)]


def timed(
    recipe: Recipe, key: Array, train: Batch, valid: Batch | None, hyper: Hyper
) -> tuple[RunState, dict[str, Array]]:
    """Train to the end of a run whose rules use the clock. The steps are the same as in an uninterrupted run.

    Raises:
        ValueError: within `jit`, `vmap` or `grad`, where there is no clock.
    """
    if not checks.is_concrete((key, train, valid, hyper)):
        raise ValueError(
            "stop: expected rules without a clock for a run within jit, vmap or grad, got a rule with a"
            " clock; map such runs with nnfx.sweeps.sweep"
        )
    run = InMemory(recipe, key, train, valid, hyper)
    standing = run.start()
    for progress in drive(run, standing):
        standing = progress.state
    return standing.run, columns_of(standing.history, recipe.epochs)


@memo.compiled()
def begin(recipe: Recipe, key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> RunState:
    """Return the initial state of a run."""
    return start(key, recipe.bind(hyper), train, valid)


@memo.compiled()
def advance(
    recipe: Recipe,
    state: RunState,
    train: Batch,
    valid: Batch | None,
    hyper: Hyper,
    until: int | np.int32,
    clock: Clock,
) -> tuple[RunState, dict[str, Array]]:
    """Train until `until` epochs in total, for at most `LONGEST` epochs."""
    return run_epochs_until(recipe, hyper, state, train, valid, until, LONGEST, clock)


def columns_of(history: History, epochs: int) -> dict[str, Any]:
    """Pad a history to the length of an uninterrupted run, `(epochs,)`, with zeros for epochs that were not run.

    >>> columns_of({"train_loss": np.array([2.0, 1.0], np.float32)}, 3)
    {'train_loss': Array([2., 1., 0.], dtype=float32)}
    """
    return {name: jax.device_put(np.pad(values, (0, epochs - len(values)))) for name, values in history.items()}
