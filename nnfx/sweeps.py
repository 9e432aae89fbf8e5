"""Many runs as one program: seeds × folds × hyper-parameters, and successive halving.

The runs lie in a table of groups (one for each seed and fold) by points (of hyper-parameters). The members of a group
share its initial weights and the order of its data, so that only hyper-parameters differ between them. The host
advances all of them by a chunk of epochs at a time, and packs those still running into a smaller table once the
larger part has ended.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.data.prepare import Data
from nnfx.scale.caches import is_large
from nnfx.scale.ensemble import Ensemble
from nnfx.scale.parallel import AXIS
from nnfx.scale.points import LogUniform, Points, Uniform, chosen, draw, grid, number_of
from nnfx.scale.programs import MEMBERS, programs_of
from nnfx.scale.progress import Progress, bar
from nnfx.scale.result import Sweep, collect
from nnfx.scale.slices import fitting_shape, free_memory, in_slices
from nnfx.scale.table import DROPPED, Table
from nnfx.stopping import Clock
from nnfx.training import hyperparameters, validate
from nnfx.training.fit import Fit
from nnfx.training.run import Run
from nnfx.types import Array

__all__ = [
    "Ensemble",
    "LogUniform",
    "Points",
    "Progress",
    "Sweep",
    "Uniform",
    "bar",
    "draw",
    "grid",
    "successive_halving",
    "sweep",
]


def sweep(
    fit: Fit,
    data: Data,
    *,
    key: Array,
    seeds: int = 1,
    folds: int | None = None,
    points: Any = None,
    epochs_per_chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    devices_per_member: int = 1,
    at_once: int | None = None,
    memory: int | None = None,
    on_chunk: Callable[[Progress], None] | None = None,
    **values: ArrayLike | Uniform | LogUniform,
) -> Sweep:
    """Train one run for each seed, fold and point of hyper-parameters.

    Args:
        fit: the run, as `nnfx.fit` makes it.
        data: what every member is trained on.
        key: a typed key; seed i is `fold_in(key, i)`.
        seeds: how many seeds.
        folds: K, to hold out each of K parts of `data.train` in turn; standardised features are standardised
            anew from what is left. None to use `data.valid`.
        points: hyper-parameters of each point: columns by name, such as `nnfx.sweeps.draw` returns, a frame, or a list
            of dictionaries; or else
        **values: numbers for each hyper-parameter, of which every combination is a point; or, where `points` says how
            many to draw, `Uniform` and `LogUniform` ranges. Without either, seeds and folds alone differ.
        epochs_per_chunk: after how many epochs the host looks at who has stopped; a tenth of the run where it
            has stopping rules, else the whole.
        devices: over which the members are spread; all of this process unless given.
        devices_per_member: over how many of them the batches of each member are split, as by `nnfx.data_parallel`: for
            models too large to train many at once.
        at_once: how many members a device trains side by side, the others following in a loop of the same program.
            Unless given, all of them; but one on CPUs, where those that read long sequences or make many maps of images
            push each other out of the caches.
        memory: bytes that each device may use; most of those free unless given. A sweep that needs more, by the
            compiler's account, runs in slices: chunk after chunk of some members and then of others.
        on_chunk: called with a `Progress` after each chunk, such as `nnfx.sweeps.bar()`, which shows it.

    Returns:
        A table of the members, with their best weights; its `by_point` is that of the points.

    Raises:
        TypeError, ValueError: as calling `fit` does, for ranges without a number of points, and for points of unequal
            lengths or folds that do not fit.
        MemoryError: where not even one member fits into memory.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> result = sweep(train, data, key=jax.random.key(0), seeds=3, learning_rate=[0.01, 0.1, 1.0])
        >>> len(result.rows), result.best.row["learning_rate"]
        (9, 1.0)
    """
    _check(fit, data, key, on_chunk)
    if epochs_per_chunk is None:
        epochs_per_chunk = max(1, fit.epochs // 10) if fit.rule_names else fit.epochs
    checks.positive_integer("epochs_per_chunk", epochs_per_chunk)
    mesh, tried = _mesh(devices, devices_per_member), chosen(key, points, values)
    table = _table(fit, data, key, seeds, folds, tried, mesh, memory)
    return _advance(fit, table, epochs_per_chunk, {}, on_chunk, memory, at_once)


def successive_halving(
    fit: Fit,
    data: Data,
    *,
    key: Array,
    rungs: Sequence[int],
    keep: float = 1 / 3,
    seeds: int = 1,
    folds: int | None = None,
    points: Any = None,
    devices: Sequence[jax.Device] | None = None,
    devices_per_member: int = 1,
    at_once: int | None = None,
    memory: int | None = None,
    on_chunk: Callable[[Progress], None] | None = None,
    **values: ArrayLike | Uniform | LogUniform,
) -> Sweep:
    """Train all points a little, keep the better part at each rung, and train only the best to the end.

    Points are ranked by their best held-out loss so far, averaged over seeds and folds; the more of their members have
    none that is a finite number, the further behind.

    Args:
        fit: the run, as `nnfx.fit` makes it.
        data: what every member is trained on, with held-out data unless folds are asked for.
        key: a typed key.
        rungs: after how many epochs to drop, increasing and below the epochs of the run.
        keep: the part of the points kept at each rung, above 0 and below 1.
        seeds: as for `sweep`.
        folds: as for `sweep`.
        points: as for `sweep`.
        devices: as for `sweep`.
        devices_per_member: as for `sweep`.
        at_once: as for `sweep`.
        memory: as for `sweep`.
        on_chunk: as for `sweep`.
        **values: as for `sweep`.

    Returns:
        A table of the members; those dropped say so in the column `reason`.

    Raises:
        TypeError, ValueError: as `sweep`, and for rungs that do not increase, or without held-out data.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=40)
        >>> result = successive_halving(
        ...     train, data, key=jax.random.key(0), rungs=(5, 10), keep=0.5, learning_rate=np.logspace(-3, 0, 8)
        ... )
        >>> sorted(row["epochs"] for row in result.rows)
        [5, 5, 5, 5, 10, 10, 40, 40]

    References:
        Jamieson and Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, 2016.
    """
    _check(fit, data, key, on_chunk)
    if isinstance(rungs, str) or not isinstance(rungs, Sequence | np.ndarray):
        raise TypeError(f"rungs: expected a sequence of epochs, such as (5, 10), got {checks.describe(rungs)}")
    for i, rung in enumerate(rungs):
        checks.positive_integer(f"rungs[{i}]", rung)
    rungs = [int(rung) for rung in rungs]
    if not rungs or rungs != sorted(set(rungs)) or rungs[-1] >= fit.epochs:
        raise ValueError(f"rungs: expected epochs that increase and stay below {fit.epochs}, got {tuple(rungs)}")
    checks.number("keep", keep, above=0, below=1)
    if data.valid is None and folds is None:
        raise ValueError("data.valid: expected held-out data to rank points by, got none")
    mesh, tried = _mesh(devices, devices_per_member), chosen(key, points, values)
    table = _table(fit, data, key, seeds, folds, tried, mesh, memory)
    left = table.width
    quotas = {}
    for rung in rungs:
        left = max(1, round(left * keep))
        quotas[rung] = left
    return _advance(fit, table, int(np.gcd.reduce([*rungs, fit.epochs])), quotas, on_chunk, memory, at_once)


def _mesh(devices: Sequence[jax.Device] | None, per_member: int) -> Mesh:
    """Return the mesh over which members are spread, and their batches where several devices share one."""
    checks.positive_integer("devices_per_member", per_member)
    if devices is not None and not (
        isinstance(devices, Sequence | np.ndarray) and all(isinstance(device, jax.Device) for device in devices)
    ):
        raise TypeError(f"devices: expected a sequence of devices, as jax.devices(), got {checks.describe(devices)}")
    used = np.array(jax.local_devices() if devices is None or len(devices) == 0 else devices)
    if len(used) % per_member:
        raise ValueError(f"devices_per_member: expected a divisor of the {len(used)} devices, got {per_member}")
    return Mesh(used, MEMBERS) if per_member == 1 else Mesh(used.reshape(-1, per_member), (MEMBERS, AXIS))


def _check(fit: Fit, data: Data, key: Array, on_chunk: Callable[[Progress], None] | None) -> None:
    """Require what is needed to look at anything else."""
    if not isinstance(fit, Fit):
        hint = "; its attribute `fit` made it" if isinstance(fit, Run) else ""
        raise TypeError(f"fit: expected what nnfx.fit returns, got {checks.describe(fit)}{hint}")
    if not isinstance(data, Data):
        raise TypeError(f"data: expected nnfx.data.Data, as nnfx.data.prepare makes it, got {type(data).__name__}")
    checks.key("key", key)
    if on_chunk is not None and not callable(on_chunk):
        raise TypeError(f"on_chunk: expected a function such as nnfx.sweeps.bar(), got {checks.describe(on_chunk)}")


def _table(
    fit: Fit,
    data: Data,
    key: Array,
    seeds: int,
    folds: int | None,
    points: Points,
    mesh: Mesh,
    memory: int | None,
) -> Table:
    """Check everything that can be, and lay out the members."""
    checks.positive_integer("seeds", seeds)
    if memory is not None:
        checks.positive_integer("memory", memory)
    if not points and fit.required_names:
        raise ValueError(
            f"points: expected at least one hyper-parameter, got none, not even {', '.join(fit.required_names)}"
        )
    for i in range(number_of(points)):
        hyperparameters.check({name: column[i] for name, column in points.items()}, fit.all_factories)
    if folds is not None:
        rows = data.train.weights.shape[0]
        checks.positive_integer("folds", folds)
        if not 2 <= folds <= rows:
            raise ValueError(f"folds: expected 2 to {rows}, the rows of data.train, got {folds}")
        if data.valid is not None:
            raise ValueError("folds: expected data without a held-out part, got data.valid as well")
    first = hyperparameters.as_arrays({name: column[0] for name, column in points.items()})
    checked = data if folds is None else Data(data.train, data.train, data.preprocess)
    validate.check_run(fit, checked, first)
    return Table.of(fit, data, key, seeds, folds, points, mesh)


def _advance(
    fit: Fit,
    table: Table,
    epochs_per_chunk: int,
    quotas: dict[int, int],
    on_chunk: Callable[[Progress], None] | None,
    memory: int | None,
    at_once: int | None,
) -> Sweep:
    """Run chunk after chunk, dropping points at the rungs and packing who is left."""
    if at_once is not None:
        checks.positive_integer("at_once", at_once)
    elif table.mesh.devices.flat[0].platform == "cpu":
        first = jax.tree.map(lambda column: column[0, 0], table.hyper)
        at_once = 1 if is_large(fit, table.fixed.train, first) else None
    began, clock, done = time.monotonic(), Clock(np.float32(0), np.float32(0)), 0
    members, size, slice_shape = table.member.size, None, (0, 0)
    memory = free_memory(tuple(table.mesh.devices.flat)) if memory is None else memory
    shared = jax.device_put((table.key, table.fixed), NamedSharding(table.mesh, PartitionSpec()))
    while done < fit.epochs and (table.state is None or table.running()):
        chunk_began = time.monotonic()
        epochs = min(epochs_per_chunk, fit.epochs - done)
        programs = programs_of(fit, table.mesh, table.axis, at_once)
        advance, arguments = programs.chunk(epochs), (*shared, np.int32(done), clock)
        if size != table.member.shape:
            size = table.member.shape
            state = programs.start.shapes(table.hyper, table.groups, shared) if table.state is None else table.state
            slice_shape = fitting_shape(advance, (state, table.hyper), table.groups, arguments, table.spread, memory)
        if table.state is None:
            table.state = in_slices(programs.start, slice_shape, table.hyper, table.groups, shared)
            members = table.running()
        table.state, history = in_slices(advance, slice_shape, (table.state, table.hyper), table.groups, arguments)
        table.record(jax.tree.map(np.asarray, history), done)
        now = time.monotonic()
        # the first chunk is compiled while it is timed, so that it says little of those to come
        clock = Clock(np.float32(now - began), np.float32((now - chunk_began) / epochs if done else 0))
        done += epochs
        if done in quotas:
            table.drop_all_but(quotas[done], DROPPED)
        if on_chunk is not None:
            on_chunk(Progress(done, fit.epochs, table.running(), members, lambda: collect(fit, table)))
        if done < fit.epochs:
            table.pack()
    return collect(fit, table)
