"""Search for the best of many runs over static choices, such as widths and activations, and traced numbers.

Each static choice needs its own program; numbers are traced. The points of a search that share their static
choices are trained by one program, as a sweep (`nnfx.sweeps`), so that a search over three widths and a hundred
learning rates compiles three programs rather than three hundred.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence

import jax

from nnfx import distributed, paths
from nnfx.data.prepare import Data
from nnfx.search.ask import asked
from nnfx.search.comparison import Comparison
from nnfx.search.methods import Ask, Bracket, Grid, Hyperband
from nnfx.search.plan import Method, rounds
from nnfx.search.programs import Maker, Program
from nnfx.search.result import Search, size_words
from nnfx.search.space import Choice, Integer, Normal, Point, Space, When, check, draw, grid
from nnfx.search.training import Trained, Trainer
from nnfx.sweeps import Halving, LogUniform, Progress, Sweep, Uniform
from nnfx.training.fit import Fit
from nnfx.types import Array

__all__ = [
    "Ask",
    "Bracket",
    "Choice",
    "Comparison",
    "Grid",
    "Halving",
    "Hyperband",
    "Integer",
    "LogUniform",
    "Normal",
    "Program",
    "Search",
    "Uniform",
    "When",
    "draw",
    "grid",
    "search",
]


def search(
    make: Fit | Callable[..., Fit],
    data: Data,
    space: Space | None = None,
    *,
    key: Array,
    points: int | Grid | Sequence[Point] | None = None,
    method: Method | None = None,
    seeds: int = 1,
    folds: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    devices_per_member: int = 1,
    at_once: int | None = None,
    memory: int | None = None,
    on_chunk: Callable[[Progress], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    save_every_seconds: float | None = 60.0,
    skip_damaged: bool = False,
    progress: bool | str | None = None,
) -> Search:
    """Find the best point of a space of static choices and numbers.

    The keyword arguments of `make` are static: each of their values needs its own program. Every other name is a
    hyper-parameter of the runs that it returns, and is traced. Points with the same static choices are trained as one
    program; points that are drawn twice are trained once. All programs use the same seeds and folds, so points are
    compared in pairs, and a point's result does not depend on the other points, up to rounding. Compiled programs
    belong to the run that `make` returns: decorate `make` with `functools.cache` to keep them for the next search.

    Args:
        make: the result of `nnfx.fit`, or a function of static choices that returns it.
        data: the data of every member.
        space: a range for each name: `Choice`, `Integer`, `Uniform`, `LogUniform`, `Normal`, or any of these `When`
            another name has a given value. Static names take a `Choice` or an `Integer`.
        key: a typed key; seed i is `fold_in(key, i)`, and the points are drawn with a key folded from it too.
        points: the number of points to draw, `Grid(per_number)` to try every combination, or a list of points, without
            `space`. With `Ask`, the total number; None with `Hyperband`, which determines it.
        method: None to train all points to the end; `Halving(rungs, keep)` or `Hyperband(min_epochs, eta)` to drop the
            worse ones along the way, ranked across all programs; or `Ask(sampler)` for an Optuna sampler.
        seeds: the number of seeds.
        folds: K, to hold out each of K parts of `data.train` in turn; None to use `data.valid`.
        devices: as for `nnfx.sweeps.sweep`, and so are the next three.
        devices_per_member: the number of devices over which the batches of each member are split.
        at_once: the number of members that a device trains side by side.
        memory: the number of bytes that each device may use.
        on_chunk: called with a `Progress` of the program being trained, or of all programs if points are dropped along
            the way.
        out: a folder for this search alone. If the search is killed at any moment, the same call resumes it and gives
            the same result, bit for bit. Each program has a folder in it, such as `00-width=8`, and is not trained
            again once it has finished; programs that are ranked together are saved together, in one folder for each
            bracket. At the end, `members.csv` is the returned table.
        save_every_seconds: save into `out` once this many seconds have passed.
        skip_damaged: whether to set aside checkpoints that cannot be used, and continue from the newest good one.
        progress: whether to print the number of programs and show progress bars, or the bars' title. By default, both
            are shown if `out` is given.

    Returns:
        The members of all programs, their points ranked, and the best run.

    Raises:
        TypeError, ValueError: before anything is trained: for a wrong space, names that neither `make` nor its runs
            take, missing ones, static choices given as ranges of numbers, other values out of bounds, a method that
            does not suit the points, and as `nnfx.sweeps.sweep`. With `Ask`, each batch is checked when it is known.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> def make(width):
        ...     model = nnfx.models.mlp(hidden=(width,), activation="tanh")
        ...     return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=10)
        >>> space = {"width": Choice(2, 4), "learning_rate": LogUniform(0.01, 1.0)}
        >>> found = search(make, data, space, key=jax.random.key(0), points=8, seeds=2)
        >>> len(found.programs), len(found.rows), found.best.predict([[71.28, 38.0]]).shape
        (2, 16, (1, 1))
    """
    maker = Maker(make)
    if space is not None:
        check(space)
        maker.check(space)
    title = progress if isinstance(progress, str) else "search"
    is_shown = out is not None if progress is None else bool(progress)
    trainer = Trainer(
        data=data,
        key=key,
        seeds=seeds,
        folds=folds,
        devices=devices,
        devices_per_member=devices_per_member,
        at_once=at_once,
        memory=memory,
        on_chunk=on_chunk,
        out=None if out is None else paths.absolute("out", out),
        save_every_seconds=save_every_seconds,
        skip_damaged=skip_damaged,
        title=title if is_shown else None,
    )
    trained: Iterable[Trained]
    if isinstance(method, Ask):
        sizes = f"{points} points in batches of {method.batch}"
        trained = asked(maker, trainer, key, space, points, method)
    else:
        planned = [(each, maker.programs(each.points)) for each in rounds(maker, key, space, points, method)]
        for each, programs in planned:
            trainer.check(programs, each.quotas)
        count = sum(len(each.points) for each, _ in planned)
        sizes = size_words(count, sum(len(programs) for _, programs in planned), count * seeds * (folds or 1))
        trained = ((each, programs, trainer.train(each, programs)) for each, programs in planned)
    if is_shown and distributed.is_first():
        print(f"{title}: {sizes}")
    found = _combined(trained)
    if trainer.out is not None:
        with contextlib.suppress(OSError):  # a finished search is returned even if its folder is read-only
            found.save(trainer.out / "members.csv")
    return found


def _combined(trained: Iterable[Trained]) -> Search:
    """Return the rounds of a search as one result, with their points numbered consecutively."""
    points: list[Point] = []
    programs: list[Program] = []
    sweeps: list[Sweep] = []
    for each, some, results in trained:
        programs += [program.moved(len(points)) for program in some]
        points += each.points
        sweeps += results
    return Search.of(points, programs, sweeps)
