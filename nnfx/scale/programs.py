"""The two compiled programs of a sweep: start all members, and advance them by a chunk of epochs."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nnfx.data.prepare import Preprocess
from nnfx.training.chunk import RUNNING, RunState, chunk, start
from nnfx.training.fit import Fit
from nnfx.training.step import split_key
from nnfx.types import Array, Batch, Hyper, TrainState

_MEMBERS = RunState(TrainState(0, 0, 0, 0, None, 0), 0, 0, 0, 0, None)  # type: ignore[arg-type]
"""Which axes of a run's state are those of the members of a group: all but its keys'."""


class Fixed(NamedTuple):
    """What all members share.

    Attributes:
        train: what is trained on.
        valid: what is held out, or None.
        preprocess: the map from raw features.
        fold_of_row: which fold holds out each row, `(rows,)`, or None without folds.
    """

    train: Batch
    valid: Batch | None
    preprocess: Preprocess
    fold_of_row: Array | None


def fold_data(fixed: Fixed, fold: Array) -> tuple[Batch, Batch | None, Preprocess]:
    """Return the training and the held-out part of one fold: the same rows with other weights.

    Features that were standardised are standardised anew, from the rows that this fold trains on.
    """
    if fixed.fold_of_row is None:
        return fixed.train, fixed.valid, fixed.preprocess
    inputs, targets, weights = fixed.train
    is_held_out = fixed.fold_of_row == fold
    preprocess = fixed.preprocess
    if preprocess.mean.ndim:
        mine = jnp.where(is_held_out, 0.0, 1.0).astype(inputs.dtype)
        share = (mine / mine.sum()).reshape(-1, *[1] * (inputs.ndim - 1))
        mean = (inputs * share).sum(0, keepdims=True)
        scale = jnp.sqrt((jnp.square(inputs - mean) * share).sum(0, keepdims=True))
        scale = jnp.where(scale > 1e-6, scale, 1)
        inputs = (inputs - mean) / scale
        preprocess = Preprocess(
            preprocess.median,
            preprocess.mean + preprocess.scale * mean,
            preprocess.scale * scale,
            preprocess.indicators,
            preprocess.shape,
        )
    train = Batch(inputs, targets, jnp.where(is_held_out, 0, weights))
    valid = Batch(inputs, targets, jnp.where(is_held_out, weights, 0))
    return train, valid, preprocess


class Programs:
    """The compiled programs of one run's function on some devices.

    Args:
        fit: the run's function.
        devices: over which the members are spread.
        axis: 0 to spread the groups, 1 to spread the points.
    """

    def __init__(self, fit: Fit, devices: tuple[jax.Device, ...], axis: int) -> None:
        fit_reference = weakref.ref(fit)  # whoever sweeps holds it; its programs must not keep it alive
        mesh = Mesh(devices, "members")
        self._chunks: dict[int, Callable[..., Any]] = {}

        def parts(hyper: Hyper) -> Any:
            fit = fit_reference()
            assert fit is not None
            return fit.parts(hyper)

        def start_group(key: Array, seed: Array, fold: Array, hyper: Hyper, fixed: Fixed) -> RunState:
            train, valid, _ = fold_data(fixed, fold)
            group_key = jax.random.fold_in(key, seed)

            def member(hyper: Hyper) -> RunState:
                return _without_keys(start(group_key, parts(hyper), train, valid))

            return jax.vmap(member, out_axes=_MEMBERS)(hyper)

        def advance_group(
            epochs: int,
            state: RunState,
            key: Array,
            seed: Array,
            fold: Array,
            hyper: Hyper,
            fixed: Fixed,
            first_epoch: Array,
        ) -> tuple[RunState, dict[str, Array]]:
            train, valid, _ = fold_data(fixed, fold)
            keys = split_key(jax.random.fold_in(key, seed))
            state = state._replace(train=state.train._replace(key=keys.step), order_key=keys.order)

            def member(state: RunState, hyper: Hyper) -> tuple[RunState, dict[str, Array]]:
                advanced, history = chunk(state, parts(hyper), train, valid, epochs, first_epoch)
                is_running = state.stopped_by == RUNNING  # who was dropped by the host stays as it is
                return (
                    _where(is_running, advanced, state),
                    {name: jnp.where(is_running, values, jnp.nan) for name, values in history.items()},
                )

            state, history = jax.vmap(member, (_MEMBERS, 0), (_MEMBERS, 0))(state, hyper)
            return _without_keys(state), history

        over_table = P("members") if axis == 0 else P(None, "members")
        over_groups = P("members") if axis == 0 else P()

        def spread(function: Callable[..., Any], *specs: P) -> Callable[..., Any]:
            """Give each device its share of the members: nothing crosses between them."""
            shared: Any = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=over_table, check_vma=False)
            return cast(Callable[..., Any], jax.jit(shared))

        self.start = spread(
            jax.vmap(start_group, (None, 0, 0, 0, None)), P(), over_groups, over_groups, over_table, P()
        )
        self._advance: Callable[[int], Callable[..., Any]] = lambda epochs: spread(
            jax.vmap(functools.partial(advance_group, epochs), (0, None, 0, 0, 0, None, None)),
            over_table, P(), over_groups, over_groups, over_table, P(), P(),
        )  # fmt: skip

    def chunk(self, epochs: int) -> Callable[..., tuple[RunState, dict[str, Array]]]:
        """Return the program that advances the members by so many epochs."""
        if epochs not in self._chunks:
            self._chunks[epochs] = self._advance(epochs)
        return self._chunks[epochs]


def _where(condition: Array, chosen: RunState, other: RunState) -> RunState:
    """Choose between two states of one run, whose keys are the same."""
    picked: RunState = optax.tree.where(condition, _without_keys(chosen), _without_keys(other))
    return picked._replace(train=picked.train._replace(key=chosen.train.key), order_key=chosen.order_key)


def _without_keys(state: RunState) -> RunState:
    """Leave out the keys, which the groups' seeds give again."""
    return state._replace(train=state.train._replace(key=None), order_key=None)  # type: ignore[arg-type]


_PROGRAMS: weakref.WeakKeyDictionary[Fit, dict[Any, Programs]] = weakref.WeakKeyDictionary()


def programs_of(fit: Fit, devices: tuple[jax.Device, ...], axis: int) -> Programs:
    """Return the programs of a run's function, made once for all its sweeps."""
    made = _PROGRAMS.setdefault(fit, {})
    if (devices, axis) not in made:
        made[devices, axis] = Programs(fit, devices, axis)
    return made[devices, axis]
