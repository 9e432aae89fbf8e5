"""Searches whose points, or the epochs at which points are dropped, depend on the results of earlier rounds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search.descent import Descent, Scale, moved, scales_of
from nnfx.search.dropping import Hopeless
from nnfx.search.folder import checksum, words_of
from nnfx.search.methods import GRADIENT_COST, Extrapolation, Grid, HyperGradient
from nnfx.search.plan import Round, check_budget, drawn, epochs_of, given, needed, new_points, told
from nnfx.search.programs import Maker, Program, distinct, in_program
from nnfx.search.result import Search
from nnfx.search.space import Point, Space
from nnfx.search.training import Trained, Trainer
from nnfx.training import hyperparameters
from nnfx.types import Array


def extrapolated(
    maker: Maker, trainer: Trainer, key: Array, space: Space | None, points: Any, method: Extrapolation, budget: int
) -> Iterator[Trained]:
    """Check the arguments, and return an iterator that trains a round of points whenever it is advanced.

    Raises:
        TypeError, ValueError: as `nnfx.search.plan.rounds` does.
    """
    checks.positive_integer("points", points)
    first = drawn(key, space, 1)
    epochs = epochs_of(maker, first)
    method.check(epochs)
    check_budget(budget, epochs * trainer.groups, "one run of each seed and fold")
    trainer.check(maker.programs(first), Hopeless(tuple(method.rungs), method.level, epochs))
    return _extrapolated(maker, trainer, key, needed(space), int(points), method, budget, epochs)


def _extrapolated(
    maker: Maker,
    trainer: Trainer,
    key: Array,
    space: Space,
    points: int,
    method: Extrapolation,
    budget: int,
    epochs: int,
) -> Iterator[Trained]:
    """Train rounds of points, compared with all earlier rounds, as long as the next is sure to fit into the budget."""
    tried = begin = 0
    best, left = np.inf, budget // trainer.groups
    while size := min(points, left // epochs):
        some = new_points(key, space, tried + size)[tried:]
        if not some:  # the space is exhausted
            return
        epochs_of(maker, some, same=True)
        each = Round(
            f"round-{begin:03d}", some, Hopeless(tuple(map(int, method.rungs)), float(method.level), epochs, best)
        )
        programs = maker.programs(some)
        sweeps = trainer.train(each, programs)
        yield each, programs, sweeps
        values, _ = Search.of(some, programs, sweeps).by_group("valid_loss")
        best = float(np.fmin(best, np.fmin.reduce(values.mean(0))))
        left -= sum(int(row["epochs"]) for sweep in sweeps for row in sweep.rows) // trainer.groups
        tried, begin = tried + len(some), begin + 1


def descended(
    maker: Maker,
    trainer: Trainer,
    key: Array,
    space: Space | None,
    points: Any,
    method: HyperGradient,
    budget: int | None,
) -> tuple[Iterator[Trained], dict[str, str]]:
    """Return an iterator that descends from all points and trains the best points found, and facts about the search.

    Raises:
        TypeError, ValueError: for a space without continuous ranges of hyper-parameters, runs that cannot be
            differentiated, and as `nnfx.search.plan.rounds` does.
    """
    method.check()
    if trainer.devices_per_member != 1:
        raise ValueError(f"devices_per_member: expected 1 with HyperGradient, got {trainer.devices_per_member}")
    if budget is not None:
        if points is not None:
            raise TypeError("points: expected None, since the budget determines how many to draw, got both")
        each = (GRADIENT_COST * method.steps + 1) * epochs_of(maker, drawn(key, space, 1)) * trainer.groups
        check_budget(budget, each, f"{method.steps} steps from one point and a run of the best")
        points = budget // each
    trainer.check_held_out()
    if isinstance(points, Sequence) and not isinstance(points, Grid):
        raise TypeError(
            "points: expected the number to draw or Grid(per_number), since method is HyperGradient, got"
            f" {told(points)}"
        )
    starts = distinct(given(key, needed(space), points))
    programs = maker.programs(starts)
    if budget is not None:
        epochs_of(maker, starts, same=True)
    descents = []
    for program, table in zip(programs, trainer.check(programs, None), strict=True):
        with in_program(program.static):
            scales = scales_of(needed(space), program)
            _check_scales(program, scales)
            descent = Descent(program, table, scales, method, trainer.at_once, trainer.memory)
            descent.check()
        descents.append(descent)
    facts = {"space": words_of(needed(space)), "points": checksum(starts), "method": str(method)}
    return _descended(maker, trainer, starts, descents), facts


def _descended(maker: Maker, trainer: Trainer, starts: list[Point], descents: Sequence[Descent]) -> Iterator[Trained]:
    """Descend from all points, and train the best points found."""
    points = [dict(point) for point in starts]
    for descent, visited in zip(descents, trainer.descend(descents), strict=True):
        moved(points, descent.program, visited.best()[0])
    each = Round("", points)
    programs = maker.programs(points)
    yield each, programs, trainer.train(each, programs)


def _check_scales(program: Program, scales: Mapping[str, Scale]) -> None:
    """Check that a program's runs have hyper-parameters to optimise, with ranges in bounds, and no stopping rules."""
    if program.fit.rule_names:
        raise ValueError(
            "make: expected runs without stopping rules, since the number of epochs cannot be differentiated, got"
            f" {', '.join(program.fit.rule_names)}"
        )
    if not scales:
        raise TypeError(
            "space: expected Uniform or LogUniform for at least one hyper-parameter of the runs, got"
            f" {', '.join(program.columns) or 'no hyper-parameters'} with other ranges"
        )
    first = {name: column[0] for name, column in program.columns.items()}
    for end in range(2):
        ends = {name: scale.range[end] for name, scale in scales.items()}
        hyperparameters.check({**first, **ends}, program.fit.all_factories)
