"""Points suggested by an Optuna sampler, one batch at a time; the sampler is told their losses."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search import space as spaces
from nnfx.search.methods import Ask
from nnfx.search.plan import Round, check_budget, drawn, epochs_of
from nnfx.search.programs import Maker, Program, distinct, identity
from nnfx.search.result import Search
from nnfx.search.space import Choice, Integer, Normal, Point, Space
from nnfx.search.training import Trained, Trainer
from nnfx.sweeps import LogUniform, Sweep, Uniform
from nnfx.types import Array


def asked(
    maker: Maker, trainer: Trainer, key: Array, space: Space | None, points: Any, method: Ask, budget: int | None
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
    if budget is not None:
        if points is not None:
            raise TypeError("points: expected None, since the budget decides how many to ask for, got both")
        each = epochs_of(maker, drawn(key, space, 1)) * trainer.groups
        check_budget(budget, each, "one run of each seed and fold")
        points = budget // each
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


def _batches(maker: Maker, trainer: Trainer, space: Space, points: int, method: Ask) -> Iterator[Trained]:
    """Train the points that a sampler asks for, and yield each batch."""
    import optuna

    names = spaces.check(space)
    study = optuna.study.create_study(sampler=copy.deepcopy(method.sampler))  # so that the same search can be repeated
    ended: list[bool] = []
    study.stop = lambda: ended.append(True)  # samplers of finite spaces call it once they have suggested everything
    losses: dict[Any, float] = {}
    for number, begin in enumerate(range(0, points, method.batch)):
        trials = [study.ask() for _ in range(min(method.batch, points - begin))]
        suggested = [_suggested(trial, names, space) for trial in trials]
        each = Round(f"batch-{number:03d}", [point for point in distinct(suggested) if identity(point) not in losses])
        if each.points:
            programs = maker.programs(each.points)
            trainer.check(programs, None)
            sweeps = trainer.train(each, programs)
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
