"""The members of a sweep as a table on the host, with one row per group and one column per point."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nnfx.data import folds as of_folds
from nnfx.data.folds import Folds
from nnfx.data.prepare import Data
from nnfx.sweeps import last_axis
from nnfx.sweeps.blocks import Groups
from nnfx.sweeps.points import Points, number_of
from nnfx.sweeps.programs import MEMBERS, Fixed
from nnfx.training.epochs import DROPPED, EMPTY, RUNNING, RunState
from nnfx.training.fit import Fit
from nnfx.training.hyperparameters import as_arrays
from nnfx.training.rows import known
from nnfx.types import Array, Hyper

SMALLEST = 1 / 32
"""Tables of at most twice this fraction of the first table are not packed further."""


class Packing(NamedTuple):
    """When to move the running members to a smaller table: each table size needs another program to be compiled.

    Attributes:
        below: the fraction of the table at or below which the running members are moved.
        narrowest: the smallest number of points in a table, or of groups if they have one point.
    """

    below: float
    narrowest: int


PACKING = Packing(1 / 2, 1)
PACKING_OF_SMALL = Packing(1 / 4, last_axis.FEWEST)
"""With the members' axis last, compiling a network takes seconds, and training it takes milliseconds. A narrower
table would not have the axis last, and half as many members would take as long, measured on two cores. Since every
table has, the numbers of a member have the same bits in all of them."""


@dataclasses.dataclass
class Table:
    """The positions of the members, and their results so far.

    `member` contains the number of the member at each position `(group, point)` of the table; a member's number is
    `group · points + point` in the initial table.

    Attributes:
        key: the sweep's key.
        points: the points of the sweep.
        all_seeds: the seed of each group of the initial table.
        all_folds: the fold of each group of the initial table.
        fixed: the values that all members share.
        mesh: the device mesh; members are spread over its axis `members`.
        epochs: the maximum number of epochs.
        member: `(groups, width)`, the number of the member at each position.
        seeds: `(groups,)`, the seed of each group.
        folds: `(groups,)`, the fold of each group.
        hyper: the hyper-parameters at each position, `(groups, width)` by name.
        state: the training state at each position, on the devices.
        history: `(members, epochs)` by metric, NaN for epochs that were not run.
        done: the number of completed epochs.
        harvested: the values kept for each member, `(members, ...)`; see `kept_of`.
    """

    key: Array
    points: Points
    all_seeds: np.ndarray
    all_folds: np.ndarray
    fixed: Fixed
    mesh: Mesh
    epochs: int
    member: np.ndarray
    seeds: np.ndarray
    folds: np.ndarray
    hyper: Hyper
    state: Any = None
    history: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    done: int = 0
    harvested: Any = None

    @classmethod
    def of(
        cls,
        fit: Fit,
        data: Data,
        key: Array,
        seeds: int,
        folds: int | None,
        points: Points,
        mesh: Mesh,
    ) -> "Table":
        """Lay out a table of all groups (seeds × folds) by all points."""
        parted = None if folds is None else folds_of(data, key, seeds, folds)
        fixed = Fixed(known(data.train), known(data.valid), data.preprocess, parted)
        group_seeds = np.repeat(np.arange(seeds, dtype=np.int32), folds or 1)
        group_folds = np.tile(np.arange(folds or 1, dtype=np.int32), seeds)
        width = number_of(points)
        member = np.arange(len(group_seeds) * width).reshape(len(group_seeds), width)
        columns = dict(as_arrays({name: column[member % width] for name, column in points.items()}))
        if not columns:  # programs infer the table's size from hyper-parameters; no part takes an unnamed one
            columns[""] = np.zeros(member.shape, np.float32)
        table = cls(
            key, points, group_seeds, group_folds, fixed, mesh, fit.epochs, member, group_seeds, group_folds, columns
        )
        table._place(np.arange(len(group_seeds)), np.tile(np.arange(width), (len(group_seeds), 1)))
        return table

    @property
    def width(self) -> int:
        """The number of points in the initial table."""
        return number_of(self.points)

    @property
    def axis(self) -> int:
        """The table axis that is spread over the devices: points if there are enough of them, otherwise groups."""
        return 1 if self.member.shape[1] >= self._places_at_once else 0

    @property
    def spread(self) -> tuple[int, int]:
        """The number of devices over which each axis is spread."""
        return (1, self._places_at_once) if self.axis else (self._places_at_once, 1)

    @property
    def _places_at_once(self) -> int:
        """The number of devices, or rows of devices, over which members are spread."""
        return self.mesh.shape[MEMBERS]

    @property
    def groups(self) -> Groups:
        """The seed and the fold of each group."""
        return Groups(self.seeds, self.folds)

    def _place(self, groups: np.ndarray, places: np.ndarray) -> None:
        """Keep only the given groups, and the given positions within each; a negative position leaves an empty slot."""
        devices = self._places_at_once
        spare = [0, -places.shape[1] % devices] if places.shape[1] >= devices else [-places.shape[0] % devices, 0]
        groups = np.pad(groups, (0, spare[0]), mode="edge")
        places = np.pad(places, ((0, spare[0]), (0, spare[1])), constant_values=-1)
        filled, source = places >= 0, np.maximum(places, 0)

        def pick(array: Any) -> np.ndarray:
            return np.asarray(array)[groups[:, None], source]

        self.member = np.where(filled, pick(self.member), -1)
        self.seeds, self.folds = self.seeds[groups], self.folds[groups]
        self.hyper = {name: pick(values) for name, values in self.hyper.items()}
        if self.state is not None:
            state: RunState = jax.tree.map(pick, self.state)
            self._stop(~filled, EMPTY, state)

    def lay_out(self) -> None:
        """Rearrange the members in the table if it cannot be divided among the devices."""
        if self.member.shape[self.axis] % self._places_at_once == 0:
            return
        groups = np.flatnonzero((self.member >= 0).any(1))
        held = [np.flatnonzero(self.member[group] >= 0) for group in groups]
        width = max(map(len, held))
        places = np.stack([np.pad(each, (0, width - len(each)), constant_values=-1) for each in held])
        self._place(groups, places)

    def _is_running(self) -> np.ndarray:
        stopped_by = RUNNING if self.state is None else np.asarray(self.state.stopped_by)
        return (self.member >= 0) & (stopped_by == RUNNING)

    def _stop(self, chosen: np.ndarray, code: int, state: RunState) -> None:
        stopped_by: Any = np.where(chosen, np.int32(code), state.stopped_by)
        self.state = state._replace(stopped_by=stopped_by)

    def running(self) -> int:
        """Return the number of members still running."""
        return int(self._is_running().sum())

    @property
    def members(self) -> int:
        """The number of members in the initial table."""
        return len(self.all_seeds) * self.width

    def record(self, history: dict[str, np.ndarray], until: int, epochs: np.ndarray) -> None:
        """Record the metrics of the epochs up to `until`.

        Args:
            history: each metric, `(groups, width, epochs or more)`, with any values for epochs that were not run.
            until: the number of epochs completed.
            epochs: `(groups, width)`, the number of these epochs that each member has run; the others are set to NaN
                here, so that programs never return NaN on purpose.
        """
        numbers = np.arange(until - self.done)
        for name, values in history.items():
            if name not in self.history:
                self.history[name] = np.full((self.members, self.epochs), np.nan, values.dtype)
            column = self.history[name]
            for group, members in enumerate(self.member):  # row by row, since a copy of all would double the memory
                held = members >= 0
                was_run = numbers < epochs[group, held, None]
                column[members[held], self.done : until] = np.where(
                    was_run, values[group, held, : until - self.done], np.asarray(np.nan, values.dtype)
                )
        self.done = until

    def epochs_run(self) -> np.ndarray:
        """Return the number of epochs run by each member, `(members,)`."""
        epochs = np.zeros(self.members, int) if self.harvested is None else np.array(self.harvested["epochs"])
        held = self.member >= 0
        epochs[self.member[held]] = np.asarray(self.state.epoch)[held]
        return epochs

    def best_losses(self) -> np.ndarray:
        """Return the lowest finite held-out loss of each member so far, `(groups, points)`; NaN if none is finite."""
        losses = self.history["valid_loss"]
        best = np.fmin.reduce(np.where(np.isfinite(losses), losses, np.nan), axis=1)
        return best.reshape(-1, self.width)

    def drop_all_but(self, points: np.ndarray) -> None:
        """Stop all members except those of the given points."""
        kept = np.isin(self.member % self.width, points)
        self._stop(~kept & self._is_running(), DROPPED, self.state)

    def pack(self, packing: Packing = PACKING) -> bool:
        """Move the running members into a smaller table, if this saves enough; return whether it did."""
        if (places := self._packed(self._is_running(), packing)) is None:
            return False
        self.harvest()
        self._place(*places)
        return True

    def after(self, points: int, packing: Packing = PACKING) -> "Table | None":
        """Return the table, without a state, that is packed once only this many points of each group are running.

        Its seeds, folds and shapes are those of the future table, unless members stop for other reasons. None if the
        table would not change.
        """
        held = self.member >= 0
        places = self._packed(held & (held.cumsum(1) <= points), packing)
        if places is None:
            return None
        table = dataclasses.replace(self, state=None)
        table._place(*places)
        return table

    def _packed(self, running: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the groups and the positions in each that a smaller table keeps; None if the table does not change."""
        groups = np.flatnonzero(running.any(1))
        if not len(groups):
            return None
        least = (packing.narrowest, 1) if self.member.shape[1] == 1 else (1, packing.narrowest)
        height = min(max(_bucket(len(groups)), least[0]), len(self.seeds))
        width = max(_bucket(int(running.sum(1).max())), least[1])
        if height * width > packing.below * self.member.size or self.member.size <= 2 * SMALLEST * self.members:
            return None
        groups = np.pad(groups, (0, height - len(groups)), mode="edge")
        places = np.full((height, width), -1)
        for i, group in enumerate(groups):
            if i == 0 or group != groups[i - 1]:
                live = np.flatnonzero(running[group])
                places[i, : len(live)] = live
        return groups, places

    @staticmethod
    def kept_of(state: RunState) -> dict[str, Any]:
        """Return the values that are kept for each member after its end."""
        return {
            "variables": state.train.evaluated if state.best is None else state.best.variables,
            "best_epoch": state.epoch if state.best is None else state.best.epoch,
            "epochs": state.epoch,
            "stopped_by": state.stopped_by,
            "step": state.train.step,
            "fault": state.train.fault,
        }

    def results(self) -> dict[str, Any]:
        """Return the kept values of every member on the host, `(members, ...)`, without copies if none was moved."""
        if self.harvested is None and np.array_equal(self.member.flat, np.arange(self.members)):
            kept = self.kept_of(self.state)
            return jax.tree.map(lambda a: np.asarray(a).reshape(self.members, *a.shape[2:]), kept)
        self.harvest()
        return self.harvested

    def harvest(self) -> None:
        """Copy the kept values of every member to the host."""
        kept = self.kept_of(self.state)
        held = self.member >= 0
        if self.harvested is None:
            self.harvested = jax.tree.map(lambda a: np.zeros((self.members, *a.shape[2:]), a.dtype), kept)

        def copy(store: np.ndarray, values: Any) -> None:
            store[self.member[held]] = np.asarray(values)[held]

        jax.tree.map(copy, self.harvested, kept)


def folds_of(data: Data, key: Array, seeds: int, folds: int) -> Folds:
    """Return the division of rows into folds used by a sweep with the given key and number of seeds."""
    of_row = of_folds.assign(jax.random.fold_in(key, seeds), data.train.weights, folds)
    return Folds.of(data.train, data.preprocess, of_row, folds)


def _bucket(count: int) -> int:
    """Round up to a power of two, so that there are few table sizes.

    >>> [_bucket(n) for n in (1, 3, 64, 65)]
    [1, 4, 64, 128]
    """
    return 1 << (count - 1).bit_length()
