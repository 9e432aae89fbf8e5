"""The two compiled programs of a sweep: start all members, and advance them by any number of epochs.

Each is a function of `(members, groups, shared)`: the values of each member, `(groups, points, ...)`; the seed and the
fold of each group; and the values that all members share.
"""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Lowered

from nnfx import memo
from nnfx.data.folds import Folds
from nnfx.data.prepare import Preprocess
from nnfx.stopping import Clock
from nnfx.sweeps import last_axis
from nnfx.sweeps.ahead import Ahead
from nnfx.sweeps.blocks import Groups, InGroup, update_table
from nnfx.sweeps.last_axis_rules import LONGEST_SUM
from nnfx.training.data_parallel import AXIS, data_parallel
from nnfx.training.epochs import RUNNING, RunState, run_epochs_until, start
from nnfx.training.fit import Fit
from nnfx.training.in_memory import LONGEST
from nnfx.training.step import split_key
from nnfx.types import Array, Batch, Hyper

MEMBERS = "members"
"""The axis of a mesh over which members are spread."""
LARGEST = 200
"""The largest number of weights in a layer of a network that is trained with the axis of the members last.

Measured on two cores: beyond it, products of matrices are faster than sums over rows of members.
"""


class Fixed(NamedTuple):
    """The values that all members share.

    Attributes:
        train: the training data.
        valid: the held-out data, or None.
        preprocess: the map from raw features.
        folds: how the rows are divided into folds, or None.
    """

    train: Batch
    valid: Batch | None
    preprocess: Preprocess
    folds: Folds | None


def fold_data(fixed: Fixed, fold: Array) -> tuple[Batch, Batch | None, Preprocess]:
    """Return training data, held-out data and preprocessing of one fold: the same rows with different weights.

    Standardised or filled features are processed again, based on the training rows of this fold.
    """
    if fixed.folds is None:
        return fixed.train, fixed.valid, fixed.preprocess
    inputs, targets, weights = fixed.train
    inputs = fixed.folds.inputs(inputs, fixed.preprocess, fold)
    targets = fixed.folds.targets(targets, fold)
    preprocess = jax.tree.map(lambda stack: stack[fold], fixed.folds.preprocess)
    is_held_out = (fixed.folds.of_row == fold).reshape(-1, *[1] * (weights.ndim - 1))
    train = Batch(inputs, targets, jnp.where(is_held_out, 0, weights))
    valid = Batch(inputs, targets, jnp.where(is_held_out, weights, 0))
    return train, valid, preprocess


class Program:
    """A compiled program that reports its memory needs.

    Args:
        function: a function of `(members, groups, shared)`, mapped over the table; it returns the results, and the
            working memory (`room`) of each device, `(1, ...)`.
        mesh: the mesh over whose axis `MEMBERS` the members are spread; if it has another axis, XLA splits the batches
            of each member over that.
        axis: 0 to spread the groups, 1 to spread the points.
        donate: whether `members` is a pair whose first part may be overwritten by results of the same shapes.
        options: the options of the compiler, given the shapes of members and shared values; a release of XLA that
            lacks one compiles without.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        mesh: Mesh,
        axis: int,
        donate: bool = False,
        options: Callable[[Any, Any], Mapping[str, Any]] = lambda *_: {},
    ) -> None:
        self._donate, self._options = donate, options
        over_table = P(MEMBERS) if axis == 0 else P(None, MEMBERS)
        specs = (over_table, P(MEMBERS) if axis == 0 else P(), P())
        # each device has its share of the members; they do not communicate
        spread: Any = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=(over_table, P(MEMBERS)),
            axis_names={MEMBERS},
            check_vma=False,
        )
        self._shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        if donate:
            self._jitted = jax.jit(
                lambda first, second, *others: spread((first, second), *others),
                in_shardings=(self._shardings[0], *self._shardings),
                donate_argnums=0,
            )
        else:
            self._jitted = jax.jit(spread, in_shardings=self._shardings)
        self._is_local = all(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._compiled: dict[Any, Compiled | Future[Compiled]] = {}

    def compiled(self, members: Any, groups: Groups, shared: Any) -> Compiled:
        """Return the program for tables of this shape; the arguments may be mere shapes."""
        signature = _signature(members, groups, shared)
        found = self._compiled.get(signature)
        if isinstance(found, Future):
            found = _waited_for(found)
        if found is None:
            found = _compile(*self._lowered(members, groups, shared))
        self._compiled[signature] = found
        return found

    def prepare(self, ahead: Ahead, members: Any, groups: Groups, shared: Any) -> None:
        """Begin to compile the program for tables of this shape in the background, unless it has been compiled."""
        signature = _signature(members, groups, shared)
        # processes that compile one program together have to begin it at the same time
        if self._is_local and signature not in self._compiled:
            self._compiled[signature] = ahead.compile(partial(_compile, *self._lowered(members, groups, shared)))

    def _lowered(self, members: Any, groups: Groups, shared: Any) -> tuple[Lowered, dict[str, Any]]:
        """Return the program as traced, and the options to compile it with."""
        return self._jitted.lower(*self._given(members, groups, shared)), dict(self._options(members, shared))

    def _given(self, members: Any, groups: Groups, shared: Any) -> tuple[Any, ...]:
        """Return the arguments of the jitted function, in which what is donated is one of its own."""
        return (*members, groups, shared) if self._donate else (members, groups, shared)

    def shapes(self, members: Any, groups: Groups, shared: Any) -> Any:
        """Return the shapes of the results."""
        return jax.eval_shape(self._jitted, *self._given(members, groups, shared))[0]

    def bytes_needed(self, members: Any, groups: Groups, shared: Any) -> int:
        """Return how many bytes a device needs for such a table, as reported by the compiler; 0 if unknown."""
        analysis = self.compiled(members, groups, shared).memory_analysis()
        if analysis is None:
            return 0
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        return int(held - analysis.alias_size_in_bytes)

    def __call__(self, members: Any, groups: Groups, shared: Any) -> Any:
        """Run the program; arrays of `members` that are donated are deleted, unless NumPy arrays share their memory."""
        # arrays on the host are placed on the devices first: with several processes, the program cannot do so
        members, groups, shared = jax.device_put((members, groups, shared), self._shardings)
        compiled = self.compiled(members, groups, shared)
        results, _ = compiled(*self._given(members, groups, shared))
        return results


def _signature(members: Any, groups: Groups, shared: Any) -> Any:
    """Return what a compiled program depends on: the structure, shapes and dtypes of its arguments."""
    leaves, tree = jax.tree.flatten((members, groups, shared))
    return tree, tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)


def _waited_for(future: "Future[Compiled]") -> Compiled | None:
    """Return a program that is compiled in the background; None if it failed, or if no thread began before its end."""
    try:
        return future.result()
    except Exception:  # raised again, where it is noticed, by compiling again
        return None


def _compile(lowered: Lowered, options: dict[str, Any]) -> Compiled:
    """Compile with options, or without them if this release of XLA lacks one."""
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError:
        if not options:
            raise
        return lowered.compile()


class Programs:
    """The compiled programs of one run's function on some devices.

    Args:
        fit: the run's function.
        mesh: the mesh over which the members are spread, and their batches if it has an axis for them.
        axis: 0 to spread the groups, 1 to spread the points.
        at_once: the largest number of members that a device trains side by side; None for all, on devices other than
            CPUs.
        drops: whether the host may drop members, which then stay unchanged. If it drops none, their state is updated
            in place, which halves the memory; if the program fails, the state is lost.
    """

    def __init__(self, fit: Fit, mesh: Mesh, axis: int, at_once: int | None, drops: bool) -> None:
        # the sweep decides how devices are used, not the run itself
        self._recipe = dataclasses.replace(fit, parallel=data_parallel if AXIS in mesh.axis_names else None)
        self._mesh = mesh
        self._axis, self._at_once, self._drops = axis, at_once, drops
        self.start = Program(self._start_table, mesh, axis)
        self.advance = Program(self._advance_table, mesh, axis, donate=not drops, options=self._options)

    def _start_table(self, members: Hyper, groups: Groups, shared: Any) -> tuple[Any, Any]:
        return _side_by_side(self._start, members, groups, shared), ()

    def _advance_table(self, members: tuple[RunState, Hyper], groups: Groups, shared: Any) -> tuple[Any, Any]:
        if self._at_once is None:
            return _side_by_side(self._advance, members, groups, shared), ()
        side_by_side = last_axis.vmap if self.is_small(members, shared) else jax.vmap
        results, room = update_table(self._advance, members, groups, shared, self._at_once, side_by_side)
        return results, jax.tree.map(lambda leaf: leaf[None], room)

    def _options(self, members: tuple[RunState, Hyper], shared: Any) -> Mapping[str, Any]:
        return last_axis.OPTIONS if self._at_once is not None and self.is_small(members, shared) else {}

    def is_small(self, members: tuple[RunState, Hyper], shared: Any) -> bool:
        """Return whether members are better trained with their axis last, as small networks on CPUs are."""
        state, _ = members
        height, width = state.epoch.shape
        # a group of several points shares its fold's data and the order of its rows, which would be lost
        mapped_together = width if width > 1 or shared[1].folds is not None else height
        batch_size, leaves = self._recipe.batch_size, jax.tree.leaves(state.train.params)
        return (
            self._mesh.devices.flat[0].platform == "cpu"
            and AXIS not in self._mesh.axis_names
            and min(mapped_together, self._at_once or last_axis.FEWEST) >= last_axis.FEWEST
            and batch_size is not None
            and batch_size <= LONGEST_SUM
            and all(leaf.ndim <= 4 and leaf.size <= LARGEST * height * width for leaf in leaves)
            # recurrent networks gain nothing: measured on LSTMs
            and all(leaf.ndim <= 2 for leaf in jax.tree.leaves(shared[1].train.inputs))
        )

    def _start(self, group: Groups, shared: tuple[Array, Fixed]) -> Callable[[Hyper], RunState]:
        key, fixed = shared
        train, valid, _ = fold_data(fixed, group.folds)
        group_key = jax.random.fold_in(key, group.seeds)

        def member(hyper: Hyper) -> RunState:
            return _without_keys(start(group_key, self._recipe.bind(hyper), train, valid))

        return member

    def _advance(
        self, group: Groups, shared: tuple[Array, Fixed, Array, Array, Clock]
    ) -> Callable[[tuple[RunState, Hyper]], tuple[RunState, dict[str, Array]]]:
        key, fixed, first_epoch, until, clock = shared
        at_most = min(self._recipe.epochs, LONGEST)
        train, valid, _ = fold_data(fixed, group.folds)
        keys = split_key(jax.random.fold_in(key, group.seeds))

        def member(of: tuple[RunState, Hyper]) -> tuple[RunState, dict[str, Array]]:
            state, hyper = of
            state = state._replace(train=state.train._replace(key=keys.step), order_key=keys.order)
            advanced, history = run_epochs_until(
                self._recipe, hyper, state, train, valid, until, at_most, clock, first_epoch
            )
            if not self._drops:
                return _without_keys(advanced), history
            is_running = state.stopped_by == RUNNING  # members dropped by the host stay unchanged
            return (
                optax.tree.where(is_running, _without_keys(advanced), _without_keys(state)),
                {name: jnp.where(is_running, values, 0) for name, values in history.items()},
            )

        return member


def _side_by_side(in_group: InGroup, members: Any, groups: Groups, shared: Any) -> Any:
    """Map over all members at the same time."""
    return jax.vmap(lambda of: jax.vmap(in_group(of[1], shared))(of[0]))((members, groups))


def _without_keys(state: RunState) -> RunState:
    """Remove the keys, which can be derived again from the groups' seeds."""
    return state._replace(train=state.train._replace(key=None), order_key=None)  # type: ignore[arg-type]


def programs_of(fit: Fit, mesh: Mesh, axis: int, at_once: int | None, drops: bool = True) -> Programs:
    """Return the programs of a run function, built once and shared by all its sweeps."""
    key = mesh, axis, at_once, drops
    return memo.held(fit, (Programs, *key), lambda: Programs(fit, *key))
