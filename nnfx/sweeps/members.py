"""The members of a sweep as one program for a host loop: advanced together, dropped at rungs, and packed."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Lowered

from nnfx.stopping import Clock
from nnfx.sweeps.ahead import Ahead
from nnfx.sweeps.block_size import best_at_once
from nnfx.sweeps.halving import ranked
from nnfx.sweeps.programs import Programs, fold_data, programs_of
from nnfx.sweeps.slices import fitting_shape, free_memory, in_slices, resized
from nnfx.sweeps.table import PACKING, PACKING_OF_SMALL, Packing, Table
from nnfx.training.driver import History, Program
from nnfx.training.fit import Fit
from nnfx.training.in_memory import LONGEST, InMemory
from nnfx.types import Hyper


class Members(Program[Table]):
    """The members of a sweep as a program whose unit is an epoch. Its state is a table, which is modified in place.

    Args:
        fit: the run function.
        table: the members in their initial layout.
        look_every: the number of epochs after which the host packs the members that are still running.
        quotas: the number of points to keep, by the number of epochs after which the others are dropped.
        at_once: the number of members that a device trains side by side; None for the best number.
        memory: the number of bytes that each device may use; None for most of its free memory.
        ahead: compiles programs in the background.
        drops: whether the host may drop members, at the rungs of the quotas or by `Table.drop_all_but`.
    """

    kind = "sweep"
    units_per_epoch = 1
    pause_every: int

    def __init__(
        self,
        fit: Fit,
        table: Table,
        look_every: int,
        quotas: Mapping[int, int],
        at_once: int | None,
        memory: int | None,
        ahead: Ahead,
        drops: bool,
    ) -> None:
        self.recipe, self.key, self.hyper = fit, table.key, dict(table.points)
        self.longest, self.pause_every = min(fit.epochs, LONGEST), look_every
        self._fit, self._beginning, self._quotas = fit, table, quotas
        self._at_once, self._ahead, self._drops = at_once_of(fit, table, at_once), ahead, drops
        self._memory = free_memory(tuple(table.mesh.devices.flat)) if memory is None else memory
        everywhere = NamedSharding(table.mesh, PartitionSpec())
        self._shared = jax.device_put((table.key, table.fixed), everywhere)
        self._slices: dict[tuple[int, ...], tuple[int, int]] = {}
        plan = {
            "seeds": str(int(table.all_seeds.max()) + 1),
            "folds": str(int(table.all_folds.max()) + 1),
            "epochs_per_chunk": str(look_every),
            "points kept": str(dict(quotas)),
            "at_once": str(at_once),
        }
        parts = table.fixed
        self.data = {"train": parts.train, "valid": parts.valid, "preprocess": parts.preprocess, "sweep": plan}

    def start(self) -> Table:
        """Return the table of all members in their initial state."""
        table = dataclasses.replace(self._beginning, history={})
        self.prepare()
        programs = self._programs(table)
        shapes = programs.start.shapes(table.hyper, table.groups, self._shared)
        self._prepare_next(table, shapes)
        table.state = in_slices(programs.start, self._slice(table, shapes), table.hyper, table.groups, self._shared)
        return table

    def advance(self, table: Table, until: int, clock: Clock) -> Table:
        """Train until the table has completed `until` epochs; then drop points if this is a rung, and pack if due."""
        advance, arguments = self._advance(table), _arguments(self._shared, table.done, until, clock)
        shape = self._slice(table, table.state)
        before = np.array(table.state.epoch)
        table.state, history = in_slices(advance, shape, (table.state, table.hyper), table.groups, arguments)
        table.record(jax.tree.map(np.asarray, history), until, np.asarray(table.state.epoch) - before)
        if until in self._quotas:
            table.drop_all_but(ranked(table.best_losses())[: self._quotas[until]])
        is_due = until % self.pause_every == 0 and until < self.total
        if is_due and table.pack(self._packing(table, table.state)):
            self._prepare_next(table, table.state)
        return table

    def prepare(self, table: Table | None = None) -> None:
        """Begin to compile, in the background, what advances a table, or what starts and advances the first one."""
        if table is None:
            prepare(self._fit, self._beginning, self._at_once, self._ahead, self._drops)
        elif not self.has_ended(table):
            members = table.state, table.hyper
            self._advance(table).prepare(self._ahead, members, table.groups, _arguments(self._shared))

    def done(self, table: Table) -> int:
        """Return the number of completed epochs."""
        return table.done

    def has_ended(self, table: Table) -> bool:
        """Return whether no member is running, or the last epoch is complete."""
        return table.done >= self.total or not table.running()

    def history(self, table: Table, since: int) -> History:
        """Return the number of running members in each epoch after `since`, with their lowest and median losses."""
        if table.done <= since:
            return {}
        columns = {name: values[:, since : table.done] for name, values in table.history.items()}
        told: History = {"running": (table.epochs_run()[:, None] > np.arange(since, table.done)).sum(0)}
        for name in ("train_loss", "valid_loss"):
            if name in columns:
                told |= {f"{name}_lowest": np.fmin.reduce(columns[name]), f"{name}_median": _median(columns[name])}
        return told

    def saved(self, table: Table) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the contents of a checkpoint."""
        arrays = {name: getattr(table, name) for name in ("member", "seeds", "folds", "hyper", "harvested")}
        arrays["history"] = {name: values[:, : table.done] for name, values in table.history.items()}
        arrays["state"] = jax.tree.map(np.asarray, table.state)
        return arrays, {"places": list(table.member.shape), "is_harvested": table.harvested is not None}

    def expected(self, noted: Mapping[str, Any]) -> dict[str, Any]:
        """Return a template for the arrays of a checkpoint."""
        table = self._beginning
        programs = self._programs(table)
        given = (table.hyper, table.groups, self._shared)
        state = programs.start.shapes(*given)
        _, history = programs.advance.shapes((state, table.hyper), table.groups, _arguments(self._shared))
        height, width = noted["places"]
        kept = jax.eval_shape(Table.kept_of, state) if noted["is_harvested"] else None

        def places(leaf: Any) -> np.ndarray:
            return _like(leaf, (height, width, *leaf.shape[2:]))

        return {
            "member": places(table.member),
            "seeds": _like(table.seeds, (height,)),
            "folds": _like(table.folds, (height,)),
            "hyper": jax.tree.map(places, table.hyper),
            "harvested": jax.tree.map(lambda leaf: _like(leaf, (table.members, *leaf.shape[2:])), kept),
            "history": {name: _like(leaf, (table.members, noted["epoch"])) for name, leaf in history.items()},
            "state": jax.tree.map(places, state),
        }

    def restored(self, arrays: dict[str, Any], noted: Mapping[str, Any]) -> Table:
        """Rebuild the table from a checkpoint, rearranged if the devices differ."""
        table = dataclasses.replace(self._beginning, **{**arrays, "history": {}})
        epochs = noted["epoch"]
        for name, values in arrays["history"].items():
            table.history[name] = np.full((table.members, max(table.epochs, epochs)), np.nan, values.dtype)
            table.history[name][:, :epochs] = values
        table.done = epochs
        table.lay_out()
        return table

    @property
    def lowered(self) -> list[Lowered]:
        """The programs of one member on one device, lowered but not compiled."""
        train, valid, _ = fold_data(self._beginning.fixed, jnp.asarray(0))
        return InMemory(self._fit, self.key, train, valid, _first_point(self._beginning)).lowered

    def _packing(self, table: Table, state: Any) -> Packing:
        programs = self._programs(table)
        return PACKING_OF_SMALL if programs.is_small((state, table.hyper), self._shared) else PACKING

    def _prepare_next(self, table: Table, state: Any) -> None:
        """Begin to compile the program for the smaller table after the next rung at which it is packed."""
        for rung, points in self._quotas.items():
            smaller = table.after(points, self._packing(table, state)) if rung > table.done else None
            if smaller is not None:
                members = resized((state, smaller.hyper), *smaller.member.shape)
                self._advance(smaller).prepare(self._ahead, members, smaller.groups, _arguments(self._shared))
                return

    def _programs(self, table: Table) -> Programs:
        return programs_of(self._fit, table.mesh, table.axis, self._at_once, self._drops)

    def _advance(self, table: Table) -> Any:
        return self._programs(table).advance

    def _slice(self, table: Table, state: Any) -> tuple[int, int]:
        """Return the shape of the slices in which the table is advanced."""
        size = table.member.shape
        if size not in self._slices:
            members, shared = (state, table.hyper), _arguments(self._shared)
            self._slices[size] = fitting_shape(
                self._advance(table), members, table.groups, shared, table.spread, self._memory
            )
        return self._slices[size]


def prepare(fit: Fit, table: Table, at_once: int | None, ahead: Ahead, drops: bool) -> None:
    """Begin to compile the programs of a sweep in the background, given its members in their initial layout.

    An error of tracing is not raised: the sweep itself will raise it when it needs the program.

    Args:
        fit: the run function.
        table: the members in their initial layout.
        at_once: the number of members that a device trains side by side; None for the best number.
        ahead: compiles the programs.
        drops: whether the host may drop members.
    """
    with contextlib.suppress(Exception):
        shared = table.key, table.fixed
        programs = programs_of(fit, table.mesh, table.axis, at_once_of(fit, table, at_once), drops)
        state = programs.start.shapes(table.hyper, table.groups, shared)
        programs.advance.prepare(ahead, (state, table.hyper), table.groups, _arguments(shared))
        programs.start.prepare(ahead, table.hyper, table.groups, shared)


def at_once_of(fit: Fit, table: Table, at_once: int | None) -> int | None:
    """Return the number of members that a device trains side by side; None for all."""
    if at_once is None and table.mesh.devices.flat[0].platform == "cpu":
        return best_at_once(fit, table.fixed.train, _first_point(table))
    return at_once


def _arguments(shared: Any, begin: int = 0, until: int = 0, clock: Clock | None = None) -> tuple[Any, ...]:
    """Return the values that all members share when they are advanced."""
    clock = clock or Clock(np.float32(0), np.float32(0))
    return (*shared, np.int32(begin), np.int32(until), clock)


def _first_point(table: Table) -> Hyper:
    return {name: np.asarray(column)[0, 0] for name, column in table.hyper.items() if name}


def _like(leaf: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array with the leaf's dtype and the given shape, without allocating memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), shape)


def _median(columns: np.ndarray) -> np.ndarray:
    """Return the median of each column, ignoring NaN; NaN if a column has no other values.

    >>> _median(np.array([[3.0, np.nan], [np.nan, np.nan], [1.0, np.nan]]))
    array([ 2., nan])
    """
    ordered, count = np.sort(columns, axis=0), (~np.isnan(columns)).sum(0)
    middle = np.maximum(count - 1, 0) // 2, count // 2
    low, high = (np.take_along_axis(ordered, place[None], 0)[0] for place in middle)
    return (low + high) / 2
