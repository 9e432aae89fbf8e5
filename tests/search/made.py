"""Searches and sweeps with given scores, made without any training."""

import numpy as np

from nnfx.search import Search
from nnfx.search.programs import Program, identity
from nnfx.sweeps import Sweep


def sweep_of(columns, values, epochs=3, reasons=None):
    """Return a sweep of these numbers by name, `(points,)`, and losses `(seeds, points)`."""
    values = np.asarray(values, float)
    seeds, width = values.shape
    rows = []
    for number in range(seeds * width):
        seed, point = divmod(number, width)
        reason = "epochs" if np.isfinite(values[seed, point]) else "not finite"
        row = {"member": number, "seed": seed} | {name: float(column[point]) for name, column in columns.items()}
        row |= {"epochs": epochs, "best_epoch": epochs, "valid_loss": float(values[seed, point])}
        rows.append({**row, "reason": reason if reasons is None else reasons[point]})
    hyper = {name: np.tile(column, seeds) for name, column in columns.items()}
    histories = {"valid_loss": np.repeat(values.reshape(-1, 1), epochs, 1)}
    return Sweep(rows, None, {}, histories, hyper, None, None, ("valid_loss", False)).sort("valid_loss")


def search_of(points, values, static=(), reasons=None):
    """Return a search of these points, with losses `(seeds, points)`; the names in `static` decide the programs."""
    values = np.asarray(values, float)
    groups = {}
    for number, point in enumerate(points):
        chosen = {name: point[name] for name in point if name in static}
        groups.setdefault((identity(chosen), frozenset(point)), (chosen, []))[1].append(number)
    programs, sweeps = [], []
    for chosen, numbers in groups.values():
        names = [name for name in points[numbers[0]] if name not in static]
        columns = {name: np.array([points[number][name] for number in numbers]) for name in names}
        programs.append(Program(chosen, None, tuple(numbers), columns))
        some = None if reasons is None else [reasons[number] for number in numbers]
        sweeps.append(sweep_of(columns, values[:, numbers], reasons=some))
    return Search.of(points, programs, sweeps)
