"""Hyper-gradient descent: runs are differentiated with respect to hyper-parameters, which follow the gradient."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Lowered

from nnfx import memo
from nnfx.mapping import side_by_side
from nnfx.search import space as spaces
from nnfx.search.methods import HyperGradient
from nnfx.search.programs import Program
from nnfx.search.space import Point, Space
from nnfx.stopping import Clock
from nnfx.sweeps import LogUniform, Uniform, programs
from nnfx.sweeps.ahead import Ahead
from nnfx.sweeps.blocks import Groups
from nnfx.sweeps.members import Members, at_once_of
from nnfx.sweeps.programs import Fixed, fold_data
from nnfx.sweeps.slices import fitting_shape, free_memory, in_slices
from nnfx.sweeps.table import Table
from nnfx.training import driver
from nnfx.training.driver import History
from nnfx.training.epochs import scan_epochs, start
from nnfx.training.fit import Fit
from nnfx.training.hyperparameters import as_arrays
from nnfx.types import Array, Hyper


class Scale(NamedTuple):
    """A linear or logarithmic scale that maps the range of a hyper-parameter to [0, 1]."""

    range: Uniform | LogUniform

    def share(self, values: np.ndarray) -> np.ndarray:
        """Return the positions of values on the scale.

        >>> Scale(LogUniform(0.01, 1.0)).share(np.array([0.1])).tolist()
        [0.5]
        """
        low, high = self._ends
        return (self._of(values) - low) / (high - low)

    def value(self, shares: np.ndarray) -> np.ndarray:
        """Return the values at the given positions on the scale, clipped to the range."""
        low, high = self._ends
        values = low + shares * (high - low)
        return np.clip(np.exp(values) if isinstance(self.range, LogUniform) else values, *self.range)

    def slope(self, values: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Convert derivatives with respect to the value to derivatives with respect to the position."""
        low, high = self._ends
        return slopes * (high - low) * (values if isinstance(self.range, LogUniform) else 1.0)

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = self._of(np.asarray(self.range, np.float64))
        return float(low), float(high)

    def _of(self, values: np.ndarray) -> np.ndarray:
        return np.log(values) if isinstance(self.range, LogUniform) else values


@dataclasses.dataclass
class Visited:
    """The points visited so far by the descents of a program.

    Attributes:
        shares: the current position of each hyper-parameter on its scale, `(points,)` by name.
        moments: the state of Adam.
        values: the hyper-parameters at each step, `(steps, points)` by name; NaN for future steps.
        losses: the held-out loss at each step, `(steps, points)`, averaged over seeds and folds.
        done: the number of complete steps.
    """

    shares: dict[str, Array]
    moments: Any
    values: dict[str, np.ndarray]
    losses: np.ndarray
    done: int = 0

    def best(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return each descent's hyper-parameters with the lowest loss, and the loss, `(points,)`; NaN ranks last."""
        losses = np.where(np.isfinite(self.losses), self.losses, np.inf)
        at = losses.argmin(0), np.arange(losses.shape[1])
        return {name: values[at] for name, values in self.values.items()}, self.losses[at]


class Descent(driver.Program[Visited]):
    """The descents from all points of a program, side by side, called in a host loop; the unit is one step.

    Args:
        program: the points to start from, and the run.
        table: the members of the program.
        scales: the scale of each hyper-parameter that moves.
        method: the settings of the descent.
        at_once: the number of members that a device trains side by side; None for the best number.
        memory: the number of bytes that each device may use; None for most of its free memory.
    """

    kind = "sweep"
    units_per_epoch = 1
    pause_every = 1

    def __init__(
        self,
        program: Program,
        table: Table,
        scales: Mapping[str, Scale],
        method: HyperGradient,
        at_once: int | None,
        memory: int | None,
    ) -> None:
        self.recipe = dataclasses.replace(program.fit, epochs=method.steps)
        self.key, self.hyper = table.key, dict(table.points)
        self.program, self._table, self._scales, self._method = program, table, scales, method
        self._optimizer = optax.adam(method.rate)
        devices = tuple(table.mesh.devices.flat)
        self._at_once = at_once_of(program.fit, table, at_once)
        self._memory = free_memory(devices) if memory is None else memory
        everywhere = NamedSharding(table.mesh, PartitionSpec())
        self._shared = jax.device_put((table.key, table.fixed), everywhere)
        self._shape: tuple[int, int] | None = None
        self._members = Members(program.fit, table, program.fit.epochs, {}, self._at_once, memory, Ahead(), drops=False)
        plan = {
            "scales": str({name: scale.range for name, scale in scales.items()}),
            "method": str(method),
            "epochs of a run": str(program.fit.epochs),
        }
        self.data = {**self._members.data, "descent": plan}

    @property
    def members(self) -> int:
        """The number of runs in each step."""
        return self._table.members

    def check(self) -> None:
        """Check that the run can be differentiated.

        Raises:
            ValueError: for a run with a loop whose number of iterations is not known in advance.
        """
        try:
            self._slopes.shapes(self._table.hyper, self._table.groups, self._shared)
        except ValueError as error:
            if "Reverse-mode differentiation does not work" not in str(error):
                raise
            raise ValueError(
                "make: expected runs that can be differentiated, got one with jax.lax.while_loop, or a fori_loop whose"
                " bounds are traced; use jax.lax.scan"
            ) from error

    def prepare(self, ahead: Ahead) -> None:
        """Begin to compile the program of a step in the background."""
        self._slopes.prepare(ahead, self._table.hyper, self._table.groups, self._shared)

    def start(self) -> Visited:
        """Return the starting points."""
        shares = {
            name: jax.numpy.asarray(scale.share(self.program.columns[name]), float)
            for name, scale in self._scales.items()
        }
        unknown = np.full((self.total, self._table.width), np.nan)
        return Visited(shares, self._optimizer.init(shares), {name: unknown.copy() for name in shares}, unknown.copy())

    def advance(self, visited: Visited, until: int, _: Clock) -> Visited:
        """Train and differentiate the runs, and move their hyper-parameters, until step `until`."""
        while visited.done < until:
            first = visited.done == 0  # use the exact starting points, not their rounded positions on the scale
            values = {
                name: self.program.columns[name] if first else scale.value(np.asarray(visited.shares[name], np.float64))
                for name, scale in self._scales.items()
            }
            losses, slopes = self.slopes(values)
            for name, column in values.items():
                visited.values[name][visited.done] = column
            visited.losses[visited.done] = losses
            visited.done += 1
            self._move(visited, values, slopes)
        return visited

    def slopes(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the loss at each point, `(points,)`, and its derivative with respect to each searched number."""
        table = self._table
        point = np.maximum(table.member, 0) % table.width
        moved = {name: column[point] for name, column in values.items()}
        members = {**table.hyper, **as_arrays(moved)}
        if self._shape is None:
            given = members, table.groups, self._shared
            self._shape = fitting_shape(self._slopes, *given, table.spread, self._memory)
        found = in_slices(self._slopes, self._shape, members, table.groups, self._shared)
        losses, slopes = jax.tree.map(self._means, found)
        return losses, slopes

    def done(self, visited: Visited) -> int:
        """Return the number of completed steps."""
        return visited.done

    def has_ended(self, visited: Visited) -> bool:
        """Return whether all steps have been completed."""
        return visited.done >= self.total

    def history(self, visited: Visited, since: int) -> History:
        """Return the lowest loss among all points at each step after `since`, and the lowest loss up to that step."""
        if visited.done <= since:
            return {}
        lowest = np.fmin.reduce(visited.losses[: visited.done], axis=1)
        return {"valid_loss_lowest": lowest[since:], "valid_loss_lowest_so_far": np.fmin.accumulate(lowest)[since:]}

    def saved(self, visited: Visited) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the contents of a checkpoint."""
        return {name: getattr(visited, name) for name in ("shares", "moments", "values", "losses")}, {}

    def expected(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return a template for the arrays of a checkpoint."""
        return self.saved(self.start())[0]

    def restored(self, arrays: dict[str, Any], noted: Mapping[str, Any]) -> Visited:
        """Rebuild the visited points from a checkpoint."""
        return Visited(**arrays, done=noted["epoch"])

    @property
    def lowered(self) -> list[Lowered]:
        """The programs of one member on one device, lowered but not compiled."""
        return self._members.lowered

    @property
    def _slopes(self) -> programs.Program:
        fit, table = self.program.fit, self._table
        key = tuple(self._scales), table.mesh, table.axis, self._at_once
        return memo.held(fit, (_slopes, *key), lambda: _slopes(fit, *key))

    def _means(self, by_place: Any) -> np.ndarray:
        """Average values, given by place in the table, over seeds and folds; return `(points,)`."""
        table = self._table
        held = table.member >= 0
        by_member = np.full(table.members, np.nan)
        by_member[table.member[held]] = np.asarray(by_place)[held]
        return by_member.reshape(-1, table.width).mean(0)

    def _move(self, visited: Visited, values: Mapping[str, np.ndarray], slopes: Mapping[str, np.ndarray]) -> None:
        """Make one Adam step for all points; a point whose derivatives are not all finite does not move."""
        scaled = {name: scale.slope(values[name], slopes[name]) for name, scale in self._scales.items()}
        is_finite = np.isfinite(list(scaled.values())).all(0)
        gradient = {name: jax.numpy.asarray(np.where(is_finite, each, 0.0), float) for name, each in scaled.items()}
        updates, visited.moments = self._optimizer.update(gradient, visited.moments)
        visited.shares = {
            name: jax.numpy.clip(share + jax.numpy.where(is_finite, updates[name], 0), 0, 1)
            for name, share in visited.shares.items()
        }


def _slopes(fit: Fit, names: tuple[str, ...], mesh: Any, axis: int, at_once: int | None) -> programs.Program:
    """Build the program that returns each member's lowest held-out loss and its hyper-gradient."""
    recipe = dataclasses.replace(fit, parallel=None)  # the search decides how devices are used, not the run itself

    def of_group(group: Groups, shared: tuple[Array, Fixed]) -> Any:
        key, fixed = shared
        train, valid, _ = fold_data(fixed, group.folds)
        group_key = jax.random.fold_in(key, group.seeds)

        def lowest(moving: Hyper, hyper: Hyper) -> Array:
            numbers = {**hyper, **moving}
            state = start(group_key, recipe.bind(numbers), train, valid)
            ended, _ = scan_epochs(recipe, numbers, state, train, valid, recipe.epochs)
            assert ended.best is not None
            return ended.best.loss

        return lambda hyper: jax.value_and_grad(lowest)({name: hyper[name] for name in names}, hyper)

    def over_table(members: Hyper, groups: Groups, shared: Any) -> tuple[Any, Any]:
        width = jax.tree.leaves(members)[0].shape[1]
        groups_at_once = None if at_once is None else max(1, at_once // width)

        def in_group(of: tuple[Hyper, Groups]) -> Any:
            return side_by_side(of_group(of[1], shared), of[0], at_once)

        return side_by_side(in_group, (members, groups), groups_at_once), ()

    return programs.Program(over_table, mesh, axis)


def scales_of(space: Space, program: Program) -> dict[str, Scale]:
    """Return the scales of a program's hyper-parameters that have continuous ranges."""
    ranges = {name: spaces.innermost(space[name]) for name in program.columns}
    return {name: Scale(each) for name, each in ranges.items() if isinstance(each, Uniform | LogUniform)}


def moved(points: list[Point], program: Program, values: Mapping[str, np.ndarray]) -> None:
    """Set the hyper-parameters of a program's points to the given values, in place."""
    for place, number in enumerate(program.numbers):
        points[number].update({name: float(column[place]) for name, column in values.items()})
