"""Many runs as one program: seeds × folds × hyper-parameters, all to the end or by successive halving.

The runs, called members, form a table of groups (one for each seed and fold) by points (of hyper-parameters). The
members of a group share their initial weights and the order of their data, and differ only in hyper-parameters. The
host advances all members by a chunk of epochs at a time, and packs the running members into a smaller table once most
have ended.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.data.prepare import Data
from nnfx.sessions.folder import refuse_search
from nnfx.sweeps import given
from nnfx.sweeps.ahead import Ahead
from nnfx.sweeps.ensemble import Ensemble
from nnfx.sweeps.given import check, keeper_of, mesh_of, table_of
from nnfx.sweeps.halving import Halving
from nnfx.sweeps.members import Members
from nnfx.sweeps.points import LogUniform, Points, Uniform, chosen, draw, grid
from nnfx.sweeps.population import Population, population
from nnfx.sweeps.progress import Progress
from nnfx.sweeps.result import Member, Sweep, collect
from nnfx.sweeps.table import Table
from nnfx.training.fit import Fit
from nnfx.types import Array

__all__ = [
    "Ensemble",
    "Halving",
    "LogUniform",
    "Member",
    "Points",
    "Population",
    "Progress",
    "Sweep",
    "Uniform",
    "draw",
    "grid",
    "population",
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
    halving: Halving | None = None,
    epochs_per_chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    devices_per_member: int = 1,
    at_once: int | None = None,
    memory: int | None = None,
    on_chunk: Callable[[Progress], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    save_every_seconds: float | None = 60.0,
    skip_damaged: bool = False,
    progress: bool | str | None = None,
    tensorboard: bool = False,
    **values: ArrayLike | Uniform | LogUniform,
) -> Sweep:
    """Train one run for each combination of seed, fold and point of hyper-parameters.

    Args:
        fit: the run function, made by `nnfx.fit`.
        data: the data of every member.
        key: a typed key; seed i is `fold_in(key, i)`.
        seeds: the number of seeds.
        folds: K, to hold out each of K folds of `data.train` in turn; standardised features are standardised again on
            the remaining folds. None to use `data.valid`.
        points: the hyper-parameters of each point: columns by name, such as the result of `nnfx.sweeps.draw`, a data
            frame, or a list of dictionaries; or the number of points to draw.
        **values: without `points`, values for each hyper-parameter, every combination of which is a point. If `points`
            is the number of points to draw, `Uniform` and `LogUniform` ranges, or single numbers. If `points` are
            given, single numbers that all points share. Without points and values, members differ only in seed and
            fold.
        halving: when to drop all but the best points; by default, none are dropped.
        epochs_per_chunk: the number of epochs after which the host checks which members have stopped; with `halving`,
            a common divisor of the rungs and the epochs of a run, by default the largest. Without `halving`, by
            default a tenth of the run if there are stopping rules, and the whole run otherwise.
        devices: the devices over which the members are spread; by default, all devices of this process.
        devices_per_member: the number of devices over which the batches of each member are split, in the same
            way as by `nnfx.data_parallel`, for models too large to train many at once.
        at_once: the largest number of members that a device trains side by side; the others follow in a loop within
            the same program. By default, all members of the device; on CPUs, as many as fit into a core's cache, and
            only one if these would be few.
        memory: the number of bytes that each device may use; by default, most of its free memory. A sweep that needs
            more, as estimated by the compiler, runs in slices: each chunk of epochs is run for one slice of
            members after another.
        on_chunk: called with a `Progress` each time the host has checked which members have stopped.
        out: a folder for this sweep alone, created if missing, in which the sweep is saved and logged as a run is by
            `nnfx.session`. If the sweep is killed at any moment, the same call resumes from the newest checkpoint and
            gives the same result, bit for bit, or, on different devices, up to rounding. On Ctrl-C and SIGTERM, a
            checkpoint is saved. `history.csv` lists the number of running members in each epoch, with the lowest and
            the median of their losses; `members.csv` contains the returned table. A resumed sweep may have more epochs
            if `epochs_per_chunk` is given.
        save_every_seconds: the interval between checkpoints in `out`, in seconds; the end is always saved.
        skip_damaged: whether to set aside unusable checkpoints, and continue from the newest good one.
        progress: whether to show a progress bar, if tqdm is installed, or a title for the bar. By default, a bar is
            shown if `out` is given.
        tensorboard: whether to write logs for TensorBoard into `out`.

    Returns:
        A table of the members, with their best weights; its `by_point` is the table of the points.

    Raises:
        TypeError, ValueError: as calling `fit` does, for ranges without a number of points, for columns of points with
            unequal lengths, for folds that do not fit the data, and for rungs that do not fit the run.
        MemoryError: if not even one member fits into memory.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> result = sweep(train, data, key=jax.random.key(0), seeds=3, learning_rate=[0.01, 0.1, 1.0])
        >>> len(result.rows), result.best.row["learning_rate"]
        (9, 1.0)
    """
    check(fit, data, key, on_chunk)
    is_ranked = data.valid is not None or folds is not None
    epochs_per_chunk = _chunk(fit, halving, epochs_per_chunk, is_ranked)
    mesh, tried = mesh_of(devices, devices_per_member), chosen(key, points, values)
    table = table_of(fit, data, key, seeds, folds, tried, mesh, memory)
    if at_once is not None:
        checks.positive_integer("at_once", at_once)
    keeper = keeper_of(out, save_every_seconds, skip_damaged, progress, tensorboard)
    if keeper.out is not None:
        refuse_search(keeper.out)
    quotas = {} if halving is None else halving.quotas(table.width)
    running = table.running()

    def look(table: Table) -> None:
        if on_chunk is not None and (table.done % epochs_per_chunk == 0 or members.has_ended(table)):
            on_chunk(Progress(table.done, fit.epochs, table.running(), running, lambda: collect(fit, table)))

    with Ahead() as ahead:
        members = Members(fit, table, epochs_per_chunk, quotas, at_once, memory, ahead, drops=bool(quotas))
        result = collect(fit, keeper(members, look=look))
    if keeper.out is not None:
        with contextlib.suppress(OSError):  # a finished sweep is returned even if its folder is read-only
            result.save(keeper.out / "members.csv")
    return result


def _chunk(fit: Fit, halving: Halving | None, epochs_per_chunk: int | None, is_ranked: bool) -> int:
    """Check the rungs, and return the number of epochs after which the host checks the members."""
    if epochs_per_chunk is not None:
        checks.positive_integer("epochs_per_chunk", epochs_per_chunk)
    if halving is None:
        return epochs_per_chunk or given.epochs_per_chunk(fit)
    if not isinstance(halving, Halving):
        raise TypeError(f"halving: expected nnfx.sweeps.Halving(rungs=...), got {checks.describe(halving)}")
    halving.check(fit.epochs)
    if not is_ranked:
        raise ValueError("data.valid: expected held-out data to rank points by, got none")
    largest = int(np.gcd.reduce([*halving.rungs, fit.epochs]))
    if epochs_per_chunk is not None and largest % epochs_per_chunk:
        raise ValueError(
            f"epochs_per_chunk: expected a common divisor of the rungs and the run's epochs, such as {largest}, got"
            f" {epochs_per_chunk}"
        )
    return epochs_per_chunk or largest
