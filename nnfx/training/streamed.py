"""A run on data that is read batch by batch, for a host loop.

The run takes the same steps in the same order, and ends its epochs in the same way, as a run in memory.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Lowered

from nnfx import distributed, memo, trees
from nnfx.stopping import Clock
from nnfx.training import epochs
from nnfx.training.driver import History, Program, joined
from nnfx.training.epochs import RUNNING, RunState
from nnfx.training.parts import Recipe
from nnfx.types import Array, Batch, Hyper, Metrics, Params, TrainState

QUEUED = 2
"""The largest number of steps that the host may be ahead of the devices: each keeps a batch in device memory."""


class Reader(Protocol):
    """An iterator over batches that keeps track of its position, such as the result of `data.stored.prefetched`."""

    def __next__(self) -> Batch:
        """Return the next batch."""

    def get_state(self) -> dict[str, Any]:
        """Return the position, a dictionary with the key `next_index`."""

    def set_state(self, position: dict[str, Any]) -> None:
        """Continue from a position."""


class Standing(NamedTuple):
    """The state of a run between steps.

    Attributes:
        run: the state of the run at the end of the last epoch, but with the current training state.
        before: the parameters at the beginning of this epoch, for stopping rules; None without rules.
        measured: the metrics of the steps taken so far in this epoch.
        history: each metric by epoch so far, `(epochs,)`.
        steps: the number of steps taken in total, an int32 scalar.
    """

    run: RunState
    before: Params | None
    measured: Metrics
    history: History
    steps: np.ndarray


@dataclasses.dataclass
class Streamed(Program[Standing]):
    """A run on data that is read batch by batch, as a program whose unit is a step.

    Attributes:
        recipe: the recipe of the run.
        key: a typed key.
        first: a batch that gives the shapes of all batches.
        valid: the held-out data, or None.
        hyper: the hyper-parameters, as arrays.
        reader: an iterator over this process's rows of each batch.
        units_per_epoch: the number of batches in an epoch.
        data: descriptions that identify the data, by path.
    """

    recipe: Recipe
    key: Array
    first: Batch
    valid: Batch | None
    hyper: Hyper
    reader: Reader
    units_per_epoch: int
    data: Mapping[str, Any]

    kind = "run on stored data"

    @property
    def shown(self) -> tuple[str, int]:
        """The name of the items that a progress bar counts, and the number of items in a step."""
        return "examples", len(self.first.weights)

    def start(self) -> Standing:
        """Return the initial state of the run, with an empty history."""
        run, measured = _begin(self.recipe, self.key, self.first, self.valid, self.hyper)
        run, before, measured = distributed.local((run, self._before(run), measured))
        return Standing(run, before, measured, {}, np.zeros((), np.int32))

    def advance(self, standing: Standing, until: int, clock: Clock) -> Standing:
        """Train up to a total of `until` steps, or fewer if a rule stops the run."""
        (run, before, measured), history = distributed.everywhere(standing[:3]), [standing.history]
        before_now = steps = self.done(standing)
        if self.reader.get_state()["next_index"] != steps:
            self.reader.set_state({**self.reader.get_state(), "next_index": steps})
        run = run._replace(train=_copy(run.train))  # each step donates the state that it is given
        queued = collections.deque[Metrics]()
        while steps < until:
            batch = next(self.reader)
            batch = distributed.from_shares(batch) if jax.process_count() > 1 else batch
            train, measured = _step(self.recipe, run.train, measured, batch, self.hyper)
            run, steps = run._replace(train=train), steps + 1
            queued.append(measured)
            if len(queued) > QUEUED:
                jax.block_until_ready(queued.popleft())
            if steps % self.units_per_epoch == 0:
                seconds = np.float32(np.asarray(clock.seconds) + np.asarray(clock.pace) * (steps - before_now))
                run, row = _end_epoch(self.recipe, run, before, measured, self.valid, self.hyper, seconds)
                history.append({name: np.asarray(value)[None] for name, value in row.items()})
                before, measured = _copy(self._before(run)), jax.tree.map(jnp.zeros_like, measured)
                queued.clear()
                if int(run.stopped_by) != RUNNING:
                    break
        jax.block_until_ready(measured)
        run, before, measured = distributed.local((run, before, measured))
        return Standing(run, before, measured, joined(history), np.array(steps, np.int32))

    def done(self, standing: Standing) -> int:
        """Return the number of completed steps."""
        return int(standing.steps)

    def expected(self, noted: Mapping[str, Any]) -> Standing:
        """Return a template for the arrays of a checkpoint, with the same shapes and dtypes."""
        starting, _, ending = (each.out_info for each in self.lowered)
        epochs = noted["step"] // self.units_per_epoch
        columns = {name: np.zeros(epochs, value.dtype) for name, value in (ending[1] if epochs else {}).items()}
        run, measured = trees.shapes(starting)
        return Standing(run, self._before(run), measured, columns, np.zeros((), np.int32))

    @functools.cached_property
    def lowered(self) -> list[Lowered]:
        """The programs that start the run, take a step and end an epoch on one device, lowered but not compiled."""
        recipe, first, valid, hyper = self.recipe.alone, self.first, self.valid, self.hyper
        starting = _begin.lower(recipe, self.key, first, valid, hyper)
        run, measured, first, hyper = trees.shapes((*starting.out_info, first, hyper))
        stepping = memo.compiled()(step).lower(recipe, run.train, measured, first, hyper)
        before = run.train.params if recipe.rule_names else None
        ending = memo.compiled()(end_epoch).lower(recipe, run, before, measured, valid, hyper, np.float32(0))
        return [starting, stepping, ending]

    def _before(self, run: RunState) -> Params | None:
        """Return the parameters if stopping rules need them from the beginning of an epoch; otherwise None."""
        return run.train.params if self.recipe.rule_names else None


@memo.compiled()
def _begin(recipe: Recipe, key: Array, first: Batch, valid: Batch | None, hyper: Hyper) -> tuple[RunState, Metrics]:
    parts = recipe.bind(hyper)
    first = in_floats(first)
    run = epochs.start(key, parts, first, valid)
    _, measured = jax.eval_shape(recipe.step(parts), run.train, first)
    return run, jax.tree.map(lambda sums: jnp.zeros(sums.shape, sums.dtype), measured)


def step(
    recipe: Recipe, train: TrainState, measured: Metrics, batch: Batch, hyper: Hyper
) -> tuple[TrainState, Metrics]:
    """Take a step, and add its metrics to the metrics of earlier steps."""
    train, more = recipe.step(recipe.bind(hyper))(train, in_floats(batch))
    return train, optax.tree.add(measured, more)


def end_epoch(
    recipe: Recipe,
    run: RunState,
    before: Params | None,
    measured: Metrics,
    valid: Batch | None,
    hyper: Hyper,
    seconds: np.float32,
) -> tuple[RunState, dict[str, Array]]:
    """End an epoch in the same way as a run in memory."""
    began = run.train if before is None else run.train._replace(params=before)
    return epochs.end_epoch(
        run._replace(train=began), recipe.bind(hyper), run.train, measured, valid, jnp.asarray(seconds)
    )


def _over_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replicate the result of a function over the devices of all processes."""
    return functools.wraps(function)(lambda *arguments: distributed.everywhere(function(*arguments)))


_step = memo.compiled(donate=(1,))(_over_all(step))
_end_epoch = memo.compiled()(_over_all(end_epoch))


def in_floats(batch: Batch) -> Batch:
    """Convert inputs to floats as `nnfx.data.prepare` does; only integers `(rows, n)`, such as tokens, are kept."""
    inputs = jnp.asarray(batch.inputs)
    if jnp.issubdtype(inputs.dtype, np.floating):
        return batch
    is_kept = inputs.ndim == 2 and jnp.issubdtype(inputs.dtype, np.integer)
    return batch._replace(inputs=inputs.astype(int if is_kept else float))


def _copy(tree: Any) -> Any:
    """Copy the arrays of a tree."""
    return jax.tree.map(jnp.copy, tree)
