"""Searches with a budget of seconds: rounds of new points, as long as there is time for another."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search.dropping import Hopeless
from nnfx.search.methods import Extrapolation, Hyperband
from nnfx.search.plan import Round, bracket_name, drawn, dropping_of, epochs_of, member_epochs, needed, new_points, told
from nnfx.search.programs import Maker
from nnfx.search.result import Search
from nnfx.search.space import Space
from nnfx.search.training import Trained, Trainer
from nnfx.sweeps import Halving
from nnfx.types import Array


def timed(
    maker: Maker, trainer: Trainer, key: Array, space: Space | None, points: Any, method: Any
) -> Iterator[Trained]:
    """Check the arguments, and return an iterator that trains a round of points whenever it is advanced.

    Raises:
        TypeError, ValueError: as `nnfx.search.plan.rounds` does.
    """
    if method is not None and not isinstance(method, Halving | Hyperband | Extrapolation):
        raise TypeError(
            "method: expected Halving, Hyperband, Extrapolation, Ask or None with Seconds, since the others have no"
            f" rounds, got {checks.describe(method)}"
        )
    if not isinstance(method, Hyperband):
        checks.positive_integer("points", points)
    elif points is not None:
        raise TypeError(f"points: expected None, since Hyperband determines how many to draw, got {told(points)}")
    first = drawn(key, space, 1)
    epochs = epochs_of(maker, first)
    each, _ = _round(method, 0, new_points(key, space, _size(method, 0, points, epochs)), epochs, np.inf)
    trainer.check(maker.programs(each.points), each.dropping)
    return _timed(maker, trainer, key, needed(space), points, method, epochs)


def _timed(
    maker: Maker, trainer: Trainer, key: Array, space: Space, points: Any, method: Any, epochs: int
) -> Iterator[Trained]:
    """Train rounds of new points as long as there is time; `Extrapolation` compares them with all earlier ones."""
    tried, best = 0, np.inf
    for number in itertools.count():
        some = new_points(key, space, tried + _size(method, number, points, epochs))[tried:]
        if not some:  # the space is exhausted
            return
        epochs_of(maker, some, same=True)
        each, cost = _round(method, number, some, epochs, best)
        if not trainer.has_time(number, cost):
            return
        programs = maker.programs(some)
        sweeps = trainer.train(each, programs)
        trainer.watch.end(number, cost)
        yield each, programs, sweeps
        if isinstance(method, Extrapolation):
            values, _ = Search.of(some, programs, sweeps).by_group("valid_loss")
            best = float(np.fmin(best, np.fmin.reduce(values.mean(0))))
        tried += len(some)


def _size(method: Any, number: int, points: Any, epochs: int) -> int:
    """Return the number of points in a round."""
    if not isinstance(method, Hyperband):
        return int(points)
    brackets = method.brackets(epochs)
    return brackets[number % len(brackets)].points


def _round(method: Any, number: int, some: list[Any], epochs: int, best: float) -> tuple[Round, int]:
    """Return a round of these points, and its cost in epochs of one point, which is lower if points are dropped."""
    if isinstance(method, Hyperband):
        brackets = method.brackets(epochs)
        bracket = brackets[number % len(brackets)]
        dropping = dropping_of(bracket, len(some), epochs)
        return Round(bracket_name(number, len(brackets)), some, dropping), member_epochs(
            len(some), bracket.quotas, epochs
        )
    dropping = dropping_of(method, len(some), epochs)
    if isinstance(dropping, Hopeless):
        dropping = dropping._replace(best=best)
    kept = method.quotas(len(some)) if isinstance(method, Halving) else {}
    return Round(f"round-{number:03d}", some, dropping), member_epochs(len(some), kept, epochs)
