"""Checks of the arguments of sweeps and searches, and their conversion to a table of members and a keeper."""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from nnfx import checks, paths
from nnfx.data.folds import counted
from nnfx.data.prepare import Data, check_type
from nnfx.sessions.keeper import Keeper
from nnfx.sweeps.points import Points, number_of
from nnfx.sweeps.programs import MEMBERS
from nnfx.sweeps.progress import Progress
from nnfx.sweeps.table import Table
from nnfx.training import hyperparameters, run_checks
from nnfx.training.data_parallel import AXIS
from nnfx.training.fit import Fit
from nnfx.training.run import Run
from nnfx.types import Array


def keeper_of(
    out: str | os.PathLike[str] | None,
    save_every_seconds: float | None,
    skip_damaged: bool,
    progress: bool | str | None,
    tensorboard: bool,
    kind: str = "sweep",
) -> Keeper:
    """Return the keeper of a sweep; without a folder, the keeper saves and logs nothing."""
    if save_every_seconds is not None:
        checks.number("save_every_seconds", save_every_seconds, minimum=0)
    folder = None if out is None else paths.absolute("out", out)
    for name, given in {"skip_damaged": skip_damaged, "tensorboard": tensorboard}.items():
        if given and folder is None:
            raise ValueError(f"{name}: expected the argument `out` as well, got none")
    is_shown = folder is not None if progress is None else bool(progress)
    title = progress if isinstance(progress, str) else kind if folder is None else folder.name
    return Keeper(
        out=folder,
        save_every_seconds=save_every_seconds,
        keep_best=0,
        skip_damaged=skip_damaged,
        title=title if is_shown else None,
        tensorboard=tensorboard,
    )


def mesh_of(devices: Sequence[jax.Device] | None, per_member: int) -> Mesh:
    """Return the mesh over which members are spread, with a second axis for batches if members span devices."""
    checks.positive_integer("devices_per_member", per_member)
    if devices is not None and not (
        isinstance(devices, Sequence | np.ndarray) and all(isinstance(device, jax.Device) for device in devices)
    ):
        raise TypeError(
            f"devices: expected a sequence of devices, such as jax.devices(), got {checks.describe(devices)}"
        )
    used = np.array(jax.local_devices() if devices is None or len(devices) == 0 else devices)
    if len(used) % per_member:
        raise ValueError(f"devices_per_member: expected a divisor of the {len(used)} devices, got {per_member}")
    return Mesh(used, MEMBERS) if per_member == 1 else Mesh(used.reshape(-1, per_member), (MEMBERS, AXIS))


def check(fit: Fit, data: Data, key: Array, on_chunk: Callable[[Progress], None] | None) -> None:
    """Check the arguments that other checks depend on."""
    if not isinstance(fit, Fit):
        hint = "; pass its attribute `fit`" if isinstance(fit, Run) else ""
        raise TypeError(f"fit: expected the result of nnfx.fit, got {checks.describe(fit)}{hint}")
    check_type(data)
    checks.key("key", key)
    if on_chunk is not None and not callable(on_chunk):
        raise TypeError(f"on_chunk: expected a function of a Progress, got {checks.describe(on_chunk)}")


def epochs_per_chunk(fit: Fit) -> int:
    """Return the number of epochs after which the host checks which members have stopped, by default."""
    return max(1, fit.epochs // 10) if fit.rule_names else fit.epochs


def table_of(
    fit: Fit,
    data: Data,
    key: Array,
    seeds: int,
    folds: int | None,
    points: Points,
    mesh: Mesh,
    memory: int | None,
) -> Table:
    """Check the remaining arguments, and lay out the members in a table."""
    checks.positive_integer("seeds", seeds)
    if memory is not None:
        checks.positive_integer("memory", memory)
    if not points and fit.required_names:
        raise ValueError(
            f"points: expected at least one hyper-parameter, got none; required: {', '.join(fit.required_names)}"
        )
    for i in range(number_of(points)):
        hyperparameters.check({name: column[i] for name, column in points.items()}, fit.all_factories)
    if folds is not None:
        rows = int(counted(data.train.weights).sum())
        checks.positive_integer("folds", folds)
        if not 2 <= folds <= rows:
            raise ValueError(
                f"folds: expected 2 to {rows}, the number of rows of data.train with positive weight, got {folds}"
            )
        if data.valid is not None:
            raise ValueError("folds: expected data without a held-out split, got data.valid as well")
        if hasattr(data, "history"):
            raise ValueError(
                "folds: expected None for windows of a series, which overlap, got a number; hold out the end of the"
                " series with valid_windows"
            )
    first = hyperparameters.as_arrays({name: column[0] for name, column in points.items()})
    checked = data if folds is None else Data(data.train, data.train, data.preprocess)
    run_checks.check_run(fit, checked, first)
    return Table.of(fit, data, key, seeds, folds, points, mesh)
