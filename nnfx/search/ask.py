"""Points suggested by an Optuna sampler, one batch at a time, whose losses are reported back to the sampler."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search import space as spaces
from nnfx.search.methods import Ask, Seconds
from nnfx.search.plan import MOST_DRAWS, Round, check_budget, drawn, epochs_of
from nnfx.search.programs import Maker, Program, distinct, identity
from nnfx.search.result import Search
from nnfx.search.space import Choice, Integer, Normal, Point, Space
from nnfx.search.training import Trained, Trainer
from nnfx.sweeps import LogUniform, Sweep, Uniform
from nnfx.types import Array


def asked(
    maker: Maker,
    trainer: Trainer,
    key: Array,
    space: Space | None,
    points: Any,
    method: Ask,
    budget: int | Seconds | None,
) -> Iterator[Trained]:
    """Check the arguments, and return an iterator that trains a batch of points whenever it is advanced.

    Raises:
        ModuleNotFoundError: if Optuna is not installed.
        TypeError, ValueError: for a missing space or number of points, a sampler that is not Optuna's, and as `Maker`
            does.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Optuna: required for its samplers, but not installed: pip install 'nnfx[optuna]'"
        ) from error

    checks.key("key", key)
    if budget is not None and points is not None:
        raise TypeError("points: expected None, since the budget determines how many to ask for, got both")
    if budget is not None and not isinstance(budget, Seconds):
        each = epochs_of(maker, drawn(key, space, 1)) * trainer.groups
        check_budget(budget, each, "one run of each seed and fold")
        points = budget // each
    if not isinstance(budget, Seconds):
        checks.positive_integer("points", points)
    checks.positive_integer("batch", method.batch)
    spaces.check(space)
    if not isinstance(method.sampler, optuna.samplers.BaseSampler):
        raise TypeError(
            "sampler: expected an Optuna sampler, such as optuna.samplers.TPESampler(seed=0), got"
            f" {checks.describe(method.sampler)}"
        )
    trainer.check(maker.programs(drawn(key, space, 1)), None)
    return _batches(maker, trainer, dict(space or {}), points, method)


def _batches(maker: Maker, trainer: Trainer, space: Space, points: int | None, method: Ask) -> Iterator[Trained]:
    """Train the points that a sampler asks for, and yield each batch; without a number, as long as there is time."""
    import optuna

    names = spaces.check(space)
    study = optuna.study.create_study(sampler=copy.deepcopy(method.sampler))  # so that the same search can be repeated
    ended: list[bool] = []
    study.stop = lambda: ended.append(True)  # samplers of finite spaces call it once they have suggested everything
    losses: dict[Any, float] = {}
    trained = unused = 0
    for number in itertools.count():
        size = method.batch if points is None else min(method.batch, points - number * method.batch)
        if size < 1 or (points is None and unused >= MOST_DRAWS):  # it no longer suggests anything new
            return
        trials = [study.ask() for _ in range(size)]
        suggested = [_suggested(trial, names, space) for trial in trials]
        each = Round(f"batch-{number:03d}", [point for point in distinct(suggested) if identity(point) not in losses])
        unused = 0 if each.points else unused + 1
        if each.points:
            programs = maker.programs(each.points)
            cost = sum(len(program.numbers) * program.fit.epochs for program in programs)
            if points is None and not trainer.has_time(trained, cost):
                return
            trainer.check(programs, None)
            sweeps = trainer.train(each, programs)
            if points is None:
                trainer.watch.end(trained, cost)
            trained += 1
            losses |= zip(map(identity, each.points), _losses(each.points, programs, sweeps), strict=True)
        for trial, point in zip(trials, suggested, strict=True):
            loss = losses[identity(point)]
            if np.isfinite(loss):
                study.tell(trial, loss)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if each.points:
            yield each, programs, sweeps
        if ended:
            return


def _suggested(trial: Any, names: list[str], space: Space) -> Point:
    """Return the point that a trial suggests."""
    point: Point = {}
    for name in names:
        if spaces.is_active(space, name, point):
            point[name] = _suggest(trial, name, spaces.innermost(space[name]))
    return {name: point[name] for name in space if name in point}


def _suggest(trial: Any, name: str, given: Any) -> Any:
    match given:
        case Choice():  # by index, since Optuna takes only numbers, strings and None
            return given.members[trial.suggest_categorical(name, tuple(range(len(given.members))))]
        case Integer(low, high):
            return trial.suggest_int(name, int(low), int(high))
        case LogUniform(low, high):
            return trial.suggest_float(name, float(low), float(high), log=True)
        case Uniform(low, high):
            return trial.suggest_float(name, float(low), float(high))
        case Normal():  # as a quantile of the distribution, since Optuna has only uniform distributions of floats
            return spaces.quantile(given, trial.suggest_float(name, 1e-9, 1 - 1e-9))
    raise TypeError(f"{name}: expected a range, got {checks.describe(given)}")


def _losses(points: list[Point], programs: list[Program], sweeps: list[Sweep]) -> list[float]:
    """Return the mean loss of each point; NaN if one of the point's runs failed."""
    values, _ = Search.of(points, programs, sweeps).by_group(sweeps[0].judged_by[0])
    return [float(loss) for loss in values.mean(0)]
