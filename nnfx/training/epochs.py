"""The loop over epochs at the heart of every run: pure functions `(state, data) -> (state, history)`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nnfx.data import batching
from nnfx.stopping import Clock, Epoch
from nnfx.training import rows
from nnfx.training.parts import Parts, Recipe
from nnfx.training.step import EVALUATION_ROWS, evaluate, init_state, split_key
from nnfx.types import Array, Batch, Hyper, Metrics, ModelState, Params, TrainState, Variables

RUNNING = -1
"""The value of `RunState.stopped_by` while nothing has stopped the run."""
DROPPED = -2
"""The value of `stopped_by` for members of a sweep that were dropped, for example by successive halving."""
EMPTY = -3
"""The value of `stopped_by` for empty positions in a sweep's table."""


def reason(stopped_by: int, rule_names: Sequence[str]) -> str:
    """Return the reason why a run ended, as text.

    >>> [reason(code, ("patience", "time_budget")) for code in (RUNNING, DROPPED, 1)]
    ['last epoch', 'dropped', 'time_budget']
    """
    return {RUNNING: "last epoch", DROPPED: "dropped"}.get(stopped_by) or rule_names[stopped_by]


class Best(NamedTuple):
    """The weights with the lowest held-out loss so far; the latest weights if no held-out loss has been finite.

    Attributes:
        epoch: the number of epochs after which the weights were evaluated; 0 before the first evaluation.
        held_out_loss: the held-out loss of the weights; 0 before the first evaluation, None without held-out data.
        params: the parameters.
        model_state: the model's other variables.
    """

    epoch: Array
    held_out_loss: Array | None
    params: Params
    model_state: ModelState

    @classmethod
    def of(cls, epoch: Array, held_out_loss: Array | None, state: TrainState) -> "Best":
        """Take the evaluated variables of a training state: the average if there is one, otherwise the latest."""
        model_state = dict(state.evaluated)
        return cls(epoch, held_out_loss, model_state.pop("params"), model_state)

    def or_better(self, latest: "Best") -> "Best":
        """Return `latest` if its loss is finite and lower, or if `self` has no finite loss; otherwise `self`."""
        assert self.held_out_loss is not None
        assert latest.held_out_loss is not None
        is_lower = (latest.held_out_loss < self.held_out_loss) & jnp.isfinite(latest.held_out_loss)
        is_better = is_lower | ~jnp.isfinite(self.held_out_loss) | (self.epoch == 0)
        return optax.tree.where(is_better, latest, self)

    @property
    def loss(self) -> Array:
        """The held-out loss of these weights; NaN if there is none."""
        if self.held_out_loss is None:
            return jax.device_put(np.full(np.shape(self.epoch), np.nan, np.float32))
        return self.held_out_loss

    @property
    def variables(self) -> Variables:
        """The variables, as passed to `model.apply`."""
        return {"params": self.params, **self.model_state}


class RunState(NamedTuple):
    """Everything that determines the rest of a run.

    Attributes:
        train: the training state.
        best: the best weights so far; None without held-out data.
        rules: the states of the stopping rules.
        epoch: the number of epochs run, an int32 scalar.
        stopped_by: the position of the rule that stopped the run; `RUNNING` while none has.
        order_key: the key for the order of the rows.
    """

    train: TrainState
    best: Best | None
    rules: tuple[Any, ...]
    epoch: Array
    stopped_by: Array
    order_key: Array


def start(key: Array, parts: Parts, train: Batch, valid: Batch | None) -> RunState:
    """Return the initial state of a run."""
    first = jax.tree.map(lambda array: array[:1], train.inputs)
    state = init_state(key, parts.model, parts.optimizer, first, average=parts.average is not None)
    zero = jnp.asarray(0, jnp.int32)
    best = None
    if valid is not None:
        best = Best.of(zero, jnp.zeros((), valid.weights.dtype), state)
    rules = tuple(rule.init() for rule in parts.stop)
    return RunState(state, best, rules, zero, jnp.asarray(RUNNING, jnp.int32), split_key(key).order)


def scan_epochs(
    recipe: Recipe,
    hyper: Hyper,
    state: RunState,
    train: Batch,
    valid: Batch | None,
    epochs: int,
    first_epoch: ArrayLike = 0,
    clock: Clock = Clock(),  # noqa: B008 -- a constant of two zeros
) -> tuple[RunState, dict[str, Array]]:
    """Train for a number of epochs, or fewer if a rule stops the run. Supports reverse-mode differentiation.

    Args:
        recipe: the recipe of the run.
        hyper: the hyper-parameters of the run.
        state: the current state of the run.
        train: the training data.
        valid: the held-out data, or None.
        epochs: the maximum number of epochs; static.
        first_epoch: the number of earlier epochs of runs that have not stopped. It determines the order of the rows in
            place of `state.epoch`, so that runs with one seed, mapped over hyper-parameters, share one order.
        clock: the reading of the host's clock, for rules that use it.

    Returns:
        The state after the last epoch run, and each metric by epoch, `(epochs,)`, zero for epochs that were not run.
    """
    one = _epoch(recipe, hyper, train, valid, first_epoch, clock)
    # within a scan, XLA cannot undo the checkpoint by common-subexpression elimination, so no barrier is needed
    body = jax.checkpoint(one, prevent_cse=False) if recipe.rematerialize_epochs else one
    return jax.lax.scan(body, state, first_epoch + jnp.arange(epochs, dtype=jnp.int32))


def run_epochs_until(
    recipe: Recipe,
    hyper: Hyper,
    state: RunState,
    train: Batch,
    valid: Batch | None,
    until: ArrayLike,
    at_most: int,
    clock: Clock,
    first_epoch: Array | None = None,
) -> tuple[RunState, dict[str, Array]]:
    """Train until `until` epochs in total, for at most `at_most` epochs. Reverse-mode differentiation is not supported.

    `until` is traced, so one program serves any number of epochs. The other arguments and the result are as for
    `scan_epochs`. Runs mapped with `jax.vmap` share one `first_epoch` and advance together; stopped runs stay
    unchanged.
    """
    first = jnp.asarray(state.epoch if first_epoch is None else first_epoch, jnp.int32)
    # every epoch checks again whether the run has stopped, as within the scan: without this, XLA rounds differently
    one = jax.jit(_epoch(recipe, hyper, train, valid, first, clock), inline=True)
    epochs = jnp.minimum(until - first, at_most)

    def is_going_on(carry: tuple[RunState, dict[str, Array], Array]) -> Array:
        state, _, i = carry
        # only checked for a single run: under vmap, a condition that differs between runs copies all states
        return i < epochs if first_epoch is not None else (i < epochs) & (state.stopped_by == RUNNING)

    def advance(carry: tuple[RunState, dict[str, Array], Array]) -> tuple[RunState, dict[str, Array], Array]:
        state, history, i = carry
        state, row = one(state, first + i)
        return (
            state,
            jax.tree.map(lambda column, value: jax.lax.dynamic_update_index_in_dim(column, value, i, 0), history, row),
            i + 1,
        )

    _, row = jax.eval_shape(one, state, first)
    history = jax.tree.map(lambda value: jnp.zeros((at_most, *value.shape), value.dtype), row)
    state, history, _ = jax.lax.while_loop(is_going_on, advance, (state, history, jnp.asarray(0, jnp.int32)))
    return state, history


def _epoch(
    recipe: Recipe, hyper: Hyper, train: Batch, valid: Batch | None, first_epoch: ArrayLike, clock: Clock
) -> Callable[[RunState, Any], tuple[RunState, dict[str, Array]]]:
    """Build a function of a state and an epoch number that trains one epoch, unless the run has stopped."""
    parts = recipe.bind(hyper)
    step = recipe.step(parts)
    is_whole = recipe.batch_size in (None, train.weights.shape[0])
    train = rows.filled(train) if is_whole else rows.without_padding(train)
    if valid is not None and valid.weights.shape[0] <= EVALUATION_ROWS:
        valid = rows.filled(valid)  # done once here rather than in every epoch

    def run(state: RunState, number: Array) -> tuple[RunState, dict[str, Array]]:
        trained, measured = _train_epoch(step, state, number, train, recipe.batch_size)
        epochs_here = jnp.asarray(number + 1 - first_epoch, float)
        seconds = jnp.asarray(clock.seconds, float) + jnp.asarray(clock.pace, float) * epochs_here
        return end_epoch(state, parts, trained, measured, valid, seconds)

    # traced once, however often it is called or its shapes are needed: tracing dominates first calls
    run = jax.jit(run, inline=True)

    def rest(state: RunState, number: Array) -> tuple[RunState, dict[str, Array]]:
        _, row = jax.eval_shape(run, state, number)
        return state, jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), row)

    def run_or_rest(state: RunState, number: Any) -> tuple[RunState, dict[str, Array]]:
        return jax.lax.cond(state.stopped_by == RUNNING, run, rest, state, number)

    return run_or_rest if parts.stop else run


def end_epoch(
    state: RunState, parts: Parts, trained: TrainState, measured: Metrics, valid: Batch | None, seconds: Array
) -> tuple[RunState, dict[str, Array]]:
    """Evaluate the weights after an epoch, keep the best, and apply the stopping rules.

    Args:
        state: the state of the run when the epoch began.
        parts: the parts of the run.
        trained: the training state after the epoch.
        measured: the metrics measured by the steps of the epoch.
        valid: the held-out data, or None.
        seconds: the time since the run began, in seconds.

    Returns:
        The state of the run, and each metric of the epoch.
    """
    history = {f"train_{name}": mean.value for name, mean in measured.items()}
    epoch = state.epoch + 1
    best = state.best
    if valid is not None and best is not None:
        held_out = evaluate(parts.model, parts.measures, trained.evaluated, valid)
        history |= {f"valid_{name}": mean.value for name, mean in held_out.items()}
        best = best.or_better(Best.of(epoch, history["valid_loss"].astype(best.loss.dtype), trained))
    ended = Epoch(state.train.params, trained.params, history, trained.fault.skipped, trained.step, seconds)
    rules, stopped_by = [], state.stopped_by
    for i, rule in enumerate(parts.stop):  # the first rule that requests a stop ends the run
        rule_state, stop = rule.update(state.rules[i], ended)
        rules.append(rule_state)
        stopped_by = jnp.where((stopped_by == RUNNING) & stop, i, stopped_by)
    return RunState(trained, best, tuple(rules), epoch, stopped_by, state.order_key), history


def with_final_as_best(state: RunState) -> RunState:
    """Take the weights after the last epoch as the best if the run has no held-out data."""
    if state.best is not None:
        return state
    return state._replace(best=Best.of(state.epoch, None, state.train))


def _train_epoch(
    step: Any, state: RunState, number: Array, train: Batch, batch_size: int | None
) -> tuple[TrainState, Metrics]:
    """Run the steps of one epoch, which visit every row once."""
    size = train.weights.shape[0]
    if batch_size is None or batch_size == size:
        trained, measured = step(state.train, train)
        return trained, measured
    order = batching.shuffled(state.order_key, number, size, batch_size)
    kind: type[rows.Filled] = rows.Weighted
    if not isinstance(train, rows.Weighted):
        order, kind = rows.weighted(order, train.weights), rows.Filled
    trained, measured = jax.lax.scan(
        lambda train_state, chosen: step(train_state, kind(*batching.take(train, chosen))), state.train, order
    )
    return trained, jax.tree.map(lambda sums: sums.sum(0), measured)
