"""Search for the best of many runs over static choices, such as widths, and traced hyper-parameters.

Each static choice needs its own program; hyper-parameters are traced. The points of a search that share their static
choices are trained by one program, as a sweep (`nnfx.sweeps`), so that a search over three widths and a hundred
learning rates compiles three programs rather than three hundred. While one program is compiled or run, the next one
is compiled in the background.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from nnfx import checks, distributed, paths
from nnfx.data.folds import counted
from nnfx.data.prepare import Data, check_type
from nnfx.search import figures
from nnfx.search.adaptive import descended, extrapolated
from nnfx.search.ask import asked
from nnfx.search.comparison import Comparison
from nnfx.search.effects import Effects, effects
from nnfx.search.folder import facts_of, facts_of_rounds, require_same, words_of
from nnfx.search.methods import Ask, Bracket, Extrapolation, Grid, Hyperband, HyperGradient, Seconds
from nnfx.search.nested import Nested, outer_parts, scored
from nnfx.search.plan import Method, Round, rounds
from nnfx.search.programs import Maker, Program
from nnfx.search.report import report
from nnfx.search.result import Search, size_words
from nnfx.search.space import Choice, Integer, Normal, Point, Space, When, check, draw, grid
from nnfx.search.stopwatch import Stopwatch
from nnfx.search.timed import timed
from nnfx.search.training import Trained, Trainer
from nnfx.sweeps import Halving, LogUniform, Progress, Sweep, Uniform
from nnfx.sweeps.ahead import Ahead
from nnfx.training.fit import Fit
from nnfx.types import Array

__all__ = [
    "Ask",
    "Bracket",
    "Choice",
    "Comparison",
    "Effects",
    "Extrapolation",
    "Grid",
    "Halving",
    "HyperGradient",
    "Hyperband",
    "Integer",
    "LogUniform",
    "Nested",
    "Normal",
    "Program",
    "Search",
    "Seconds",
    "Uniform",
    "When",
    "draw",
    "effects",
    "figures",
    "grid",
    "nested",
    "report",
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
    budget: int | Seconds | None = None,
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
    """Find the best point of a space of static choices and traced hyper-parameters.

    The keyword arguments of `make` are static: each of their values needs its own program. Every other name is a
    hyper-parameter of the runs that `make` returns, and is traced. Points with the same static choices are trained as
    one program; points that are drawn twice are trained once. All programs use the same seeds and folds, so points
    are compared in pairs of runs, and a point's result does not depend on the other points, up to rounding. Compiled
    programs belong to the run that `make` returns: decorate `make` with `functools.cache` to keep them for the next
    search.

    Args:
        make: the result of `nnfx.fit`, or a function of static choices that returns it.
        data: the data of every member.
        space: a range for each name: `Choice`, `Integer`, `Uniform`, `LogUniform` or `Normal`. For a name that is
            present only if another name has a given value, put the range into a `When`. The range of a static name must
            be a `Choice` or an `Integer`.
        key: a typed key; seed i is `fold_in(key, i)`, and the points are drawn with a key derived from `key` too.
        points: the number of points to draw, `Grid(per_number)` to try every combination, or a list of points, each a
            dictionary of values by name. With a list, `space` may only add names that have the same value in all
            points, each as `Choice(value)`. With `Ask`, `points` is the total number; with `Hyperband`, which
            determines the number, it is None.
        method: None to train all points to the end; `Halving(rungs, keep)`, `Hyperband(min_epochs, eta)` or
            `Extrapolation(rungs)` to drop worse points during training, compared across all programs;
            `HyperGradient(steps)` to descend the gradient from each point; or `Ask(sampler)` for an Optuna sampler.
        budget: the maximum number of member-epochs, where a member-epoch is one epoch of one run. It is spent
            according to `method`. None and `Halving`: rounds of `points` new points as long as they fit; if `points` is
            None, a single round of as many points as fit. `Extrapolation`: rounds of `points` new points, compared with
            all earlier points, as long as the next round is sure to fit. `Hyperband`: its brackets, repeatedly.
            `HyperGradient` and `Ask`: as many points as fit. Or `Seconds(600)`, the time that the search may use:
            rounds of `points` new points, brackets or batches, as long as another one fits, judging by the time that
            the previous one took; not for `HyperGradient`, which has no rounds. With `out`, the time used and the
            rounds begun are saved: a killed search continues with the remaining time, and a finished one gives the
            same result when called again.
        seeds: the number of seeds.
        folds: K, to hold out each of K folds of `data.train` in turn; None to use `data.valid`.
        devices: the devices to use, as for `nnfx.sweeps.sweep`.
        devices_per_member: the number of devices over which the batches of each member are split.
        at_once: the number of members that a device trains side by side, as for `nnfx.sweeps.sweep`.
        memory: the number of bytes that each device may use, as for `nnfx.sweeps.sweep`.
        on_chunk: called with a `Progress` of the program being trained, or of all programs if points are dropped
            during training.
        out: a folder for this search alone. If the search is killed at any moment, the same call resumes it and gives
            the same result, bit for bit. Each program has its own subfolder, such as `00-width=8`, and is not trained
            again once it has finished; programs whose points are ranked together are saved together, in one subfolder
            per bracket. At the end, `members.csv` contains the returned table.

            Several processes that make the same call share the work, program by program (programs ranked together
            count as one): under `nnfx.distributed`, or started independently, on one machine, or on several with a
            shared file system that supports locks (`flock`), as NFS does. Each process returns the whole result.
            Independent processes may join or fail at any time: the others continue their programs from the newest
            checkpoint. On Windows, which has no such locks, run one process.
        save_every_seconds: the interval between checkpoints in `out`, in seconds.
        skip_damaged: whether to set aside unusable checkpoints, and continue from the newest good one.
        progress: whether to print the number of programs and show progress bars, or a title for the bars. By default,
            both are shown if `out` is given.

    Returns:
        The members of all programs, the ranking of their points, and the best run.

    Raises:
        TypeError, ValueError: for an invalid space; for required names that are missing, and names that neither `make`
            nor its runs take; for static names with continuous ranges; for values out of bounds; for a method that
            cannot be used with the given points; and in the same cases as `nnfx.sweeps.sweep`. These errors are raised
            before anything is trained; with `Ask`, each batch is checked before it is trained.

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
    out = None if out is None else paths.absolute("out", out)
    if out is not None and out.is_file():
        raise NotADirectoryError(f"{out}: expected a folder, got a file")
    title = progress if isinstance(progress, str) else "search"
    is_shown = out is not None if progress is None else bool(progress)
    if isinstance(budget, Seconds):
        budget.check()
    watch = Stopwatch(budget if isinstance(budget, Seconds) else None, out)
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
        out=out,
        save_every_seconds=save_every_seconds,
        skip_damaged=skip_damaged,
        title=title if is_shown else None,
        ahead=Ahead(),
        watch=watch,
    )
    checks.positive_integer("seeds", seeds)
    for name, number in {"folds": folds, "budget": budget}.items():
        if number is not None and not isinstance(number, Seconds):
            checks.positive_integer(name, number)
    trained: Iterable[Trained]
    if isinstance(method, Ask):
        sizes = f"{'' if points is None else f'{points} '}points in batches of {method.batch}"
        trained = asked(maker, trainer, key, space, points, method, budget)
        facts = {"space": words_of(space or {}), "batch": str(method.batch)}  # a resumed search may ask for more points
        if isinstance(budget, Seconds):
            sizes, facts["budget"] = f"batches of {method.batch} points for {budget.seconds:g} seconds", str(budget)
    elif isinstance(budget, Seconds):
        sizes = f"{'brackets' if points is None else f'rounds of {points} points'} for {budget.seconds:g} seconds"
        trained = timed(maker, trainer, key, space, points, method)
        facts = {"space": words_of(space or {}), "points": str(points), "method": str(method), "budget": str(budget)}
    elif isinstance(method, HyperGradient):
        sizes = f"{method.steps} steps from each point"
        trained, facts = descended(maker, trainer, key, space, points, method, budget)
    elif isinstance(method, Extrapolation) and budget is not None:
        sizes = f"rounds of {points} points"
        trained = extrapolated(maker, trainer, key, space, points, method, budget)
        facts = {"space": words_of(space or {}), "points": str(points), "method": str(method), "budget": str(budget)}
    else:
        planned = [
            (each, maker.programs(each.points))
            for each in rounds(maker, key, space, points, method, budget, trainer.groups)
        ]
        for each, programs in planned:
            trainer.check(programs, each.dropping)
        count = sum(len(each.points) for each, _ in planned)
        sizes = size_words(count, sum(len(programs) for _, programs in planned), count * trainer.groups)
        facts = facts_of_rounds([each for each, _ in planned])
        trained = _trained(trainer, planned)
    if trainer.out is not None:
        require_same(trainer.out, facts_of(key, seeds, folds) | facts)
    if is_shown and distributed.is_first():
        print(f"{title}: {sizes}")
    with trainer.ahead:
        found = _combined(trained)
    if trainer.out is not None:
        with contextlib.suppress(OSError):  # a finished search is returned even if its folder is read-only
            found.save(trainer.out / "members.csv")
    return found


def nested(
    make: Fit | Callable[..., Fit],
    data: Data,
    space: Space | None = None,
    *,
    key: Array,
    outer_folds: int = 5,
    folds: int = 5,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Nested:
    """Score a whole search by nested cross-validation.

    The score of the best of many points is optimistic: the point was chosen partly because it was lucky on the
    held-out rows. So for each outer fold the whole search runs on the other rows, with its own inner folds, and the
    members of the best point are then evaluated on the rows of the outer fold, which affected neither the search nor
    the statistics for standardising features. `optimism` is the difference between these members' scores in the search
    and on the outer fold.

    The score is that of the search as a procedure, not of one point: the best points of the outer folds may differ.
    All outer folds train on the same number of rows, leaving out one row if necessary, so that programs are compiled
    for the first fold and reused by the others.

    Args:
        make: as for `nnfx.search.search`, like `space` and `options`.
        data: data without a held-out split.
        space: the space of the search.
        key: a typed key; the search of outer fold k uses `fold_in(key, k)`, and thus its own points and seeds.
        outer_folds: the number of outer folds, at least 2.
        folds: the number of folds of each search, at least 2.
        out: a folder with one subfolder per search, such as `outer-0`.
        **options: the other arguments of `nnfx.search.search`.

    Returns:
        A table of the outer folds, with the score and its standard error.

    Raises:
        TypeError, ValueError: as `nnfx.search.search` does; for data with a held-out split, and for overlapping
            windows of a series.

    Example:
        >>> import nnfx, optax
        >>> from nnfx.search import Grid, LogUniform
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1))
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=5)
        >>> space = {"learning_rate": LogUniform(0.01, 1.0)}
        >>> found = nested(train, data, space, key=jax.random.key(0), outer_folds=3, folds=2, points=Grid(3))
        >>> len(found.rows), 0.6 < found.score < 0.7
        (3, True)

    References:
        Cawley and Talbot, *On over-fitting in model selection and subsequent selection bias in performance
        evaluation*, JMLR 2010; Varma and Simon, *Bias in error estimation when using cross-validation for model
        selection*, 2006.
    """
    checks.key("key", key)
    for name, count in {"outer_folds": outer_folds, "folds": folds}.items():
        checks.positive_integer(name, count)
        if count < 2:
            raise ValueError(f"{name}: expected at least 2, got {count}")
    check_type(data)
    if data.valid is not None:
        raise ValueError("data.valid: expected None, since rows are held out in folds, got a held-out split")
    if hasattr(data, "history"):
        raise ValueError("data: expected rows to be divided into folds, got windows of a series, which overlap")
    rows = int(counted(data.train.weights).sum())
    if outer_folds > rows // 2:
        raise ValueError(
            f"outer_folds: expected at most {rows // 2}, half of the rows with positive weight, got {outer_folds}"
        )
    maker = Maker(make)  # calls `make` once per static choice for all searches, so that they share programs
    place = None if out is None else paths.absolute("out", out)
    searches, scores = [], []
    for fold, (own, held_out) in enumerate(outer_parts(data, jax.random.fold_in(key, outer_folds), outer_folds)):
        fold_key = jax.random.fold_in(key, fold)
        where = None if place is None else place / f"outer-{fold}"
        found = search(maker.make, own, space, key=fold_key, folds=folds, out=where, **options)
        searches.append(found)
        scores.append({"outer_fold": fold, **scored(found, own, fold_key, folds, held_out)})
    return Nested(scores, tuple(searches))


def _trained(trainer: Trainer, planned: Sequence[tuple[Round, list[Program]]]) -> Iterator[Trained]:
    """Train the points of all rounds, and yield each round."""
    for (each, programs), sweeps in zip(planned, trainer.train_all(planned), strict=True):
        yield each, programs, sweeps


def _combined(trained: Iterable[Trained]) -> Search:
    """Combine the rounds of a search into one result, with consecutively numbered points."""
    points: list[Point] = []
    programs: list[Program] = []
    sweeps: list[Sweep] = []
    for each, some, results in trained:
        programs += [program.moved(len(points)) for program in some]
        points += each.points
        sweeps += results
    return Search.of(points, programs, sweeps)
