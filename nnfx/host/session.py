"""A session: a long run that shows how far it has come, is saved on the way, and goes on where it was cut off."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, distributed, paths
from nnfx.checkpoint import Description
from nnfx.data.prepare import Data
from nnfx.host import folder, signals
from nnfx.host.checkpoints import Checkpoints
from nnfx.host.evaluations import row_of
from nnfx.host.folder import Owner
from nnfx.host.identity import Identity, moments, words
from nnfx.host.logs import Apart, Bar, CsvLog, Log, Row, TensorBoardLog, rows_in
from nnfx.stopping import Clock
from nnfx.training import loop
from nnfx.training.epochs import RUNNING, RunState
from nnfx.training.fit import Fit
from nnfx.training.loop import History
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.types import Array, Hyper

Evaluate = Callable[[Run], Mapping[str, Any]]


def session(
    fit: Fit,
    out: str | os.PathLike[str],
    *,
    save_every_epochs: int | None = None,
    save_every_seconds: float | None = 60.0,
    keep_last: int = 2,
    keep_best: int = 1,
    skip_damaged: bool = False,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    progress: bool = True,
    tensorboard: bool = False,
) -> "Session":
    """Make a session of a run: the function `(key, data, **hyper) -> Run` itself, but one that survives.

    It returns what `fit(key, data, **hyper)` returns, bit by bit (of a run with more than one step), however often it
    was killed on the way: the same call goes on from the newest checkpoint in the folder, or returns the run that has
    ended there. More epochs may be asked for than before. Whatever else decides the run (key, data, numbers, layers,
    initial weights, loss, optimizer, rules) has to be the same, and an error says what is not; of other versions or
    another kind of device, with which it may go on to other bits, a warning tells. A run that has ended is returned
    from a folder that cannot be written, too.

    About once a second, between two epochs, the host looks after the run:

    - `out/history.csv` has each metric by epoch, and `out/evaluation.csv` what `evaluate` returns.
    - `out/checkpoints/` has the newest and the best checkpoints, written while training goes on. Each is whole, or it
      is not there. Where something else fails, such as `evaluate` or a log, the run is saved as it stands, and then the
      error is raised: the same call goes on from there.
    - `out/run.json` notes whose folder it is. Another run's folder is refused before anything is written.
    - Ctrl-C and SIGTERM are answered with a checkpoint and a word on how to go on; then `KeyboardInterrupt` or
      `SystemExit(143)` is raised. A second one ends at once.

    Several processes make one session: all of them call it, with one folder that all can read. The first writes, and
    answers signals for all; every process returns the run.

    Args:
        fit: the run, as `nnfx.fit` makes it.
        out: a folder for this run alone, made where it is lacking.
        save_every_epochs: save after every so many epochs.
        save_every_seconds: save at the end of an epoch, once so many seconds have passed. The run's end is saved in
            any case.
        keep_last: how many of the newest checkpoints to keep, at least 1.
        keep_best: how many of those of the lowest held-out loss (training loss without held-out data) to keep besides.
        skip_damaged: whether to put checkpoints that cannot be used aside, and go on from the newest good one. Else an
            error names it.
        evaluate: measures more than the run's own metrics, `run -> {name: number}`: it is given the run as it stands,
            with its best weights so far. When the run has ended, it is saved first.
        evaluate_every: after how many epochs, and at the end.
        progress: whether to show a bar, with the examples a second and the time left, where tqdm is installed.
        tensorboard: whether to write logs for TensorBoard, to `out/tensorboard/`.

    Returns:
        The session's function. Calling it raises what calling `fit` does; `ValueError` for a checkpoint that is
        damaged, a folder of another run, and within `jit`, `vmap` or `grad`; and `OSError` where the folder cannot be
        written, or another process has it open. What had been saved is whole then.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.

    Example:
        >>> import nnfx, optax, tempfile
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> run = session(train, tempfile.mkdtemp(), progress=False)(jax.random.key(0), data, learning_rate=0.1)
        >>> bool(run.best.loss == train(jax.random.key(0), data, learning_rate=0.1).best.loss)
        True
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected what nnfx.fit returns, got {checks.describe(fit)}")
    folder_of_the_run = paths.absolute("out", out)
    if save_every_epochs is not None:
        checks.positive_integer("save_every_epochs", save_every_epochs)
    if save_every_seconds is not None:
        checks.number("save_every_seconds", save_every_seconds, minimum=0)
    checks.positive_integer("keep_last", keep_last)
    checks.non_negative_integer("keep_best", keep_best)
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"evaluate: expected a function of a run, got {checks.describe(evaluate)}")
    checks.positive_integer("evaluate_every", evaluate_every)
    return Session(
        fit=fit,
        out=folder_of_the_run,
        save_every_epochs=save_every_epochs,
        save_every_seconds=save_every_seconds,
        keep_last=keep_last,
        keep_best=keep_best,
        skip_damaged=skip_damaged,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        progress=progress,
        tensorboard=tensorboard,
    )


class Snapshot(NamedTuple):
    """All arrays that a run goes on from.

    Attributes:
        key: the run's.
        hyper: its hyper-parameters.
        state: where it stands.
        history: each metric by epoch so far, `(epochs,)`.
    """

    key: Array
    hyper: Hyper
    state: RunState
    history: History

    @property
    def epoch(self) -> int:
        """How many epochs have been run."""
        return len(next(iter(self.history.values())))

    @property
    def loss(self) -> float:
        """The latest held-out loss; without held-out data the training loss."""
        return float(self.history.get("valid_loss", self.history["train_loss"])[-1])


@dataclasses.dataclass
class Notes:
    """What is noted beside the arrays.

    Attributes:
        owner: the run.
        seconds: that it has taken.
        evaluations: what `evaluate` has returned, with the epochs.
    """

    owner: Owner
    seconds: float = 0.0
    evaluations: list[Row] = dataclasses.field(default_factory=list)

    @property
    def about(self) -> dict[str, Any]:
        """The notes as checkpoints keep them."""
        return {**self.owner.notes, "seconds": self.seconds, "evaluations": [*self.evaluations]}


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A run that is looked after, made by `session`; see there."""

    fit: Fit
    out: Path
    save_every_epochs: int | None
    save_every_seconds: float | None
    keep_last: int
    keep_best: int
    skip_damaged: bool
    evaluate: Evaluate | None
    evaluate_every: int
    progress: bool
    tensorboard: bool

    def __call__(self, key: Array, data: Data, **hyper: ArrayLike) -> Run:
        """Train from the newest checkpoint, or from initialisation, to the stop.

        Args:
            key: as for `fit`.
            data: as for `fit`.
            **hyper: as for `fit`.

        Returns:
            The run, as `fit` returns it.
        """
        numbers = self.fit.check(key, data, hyper)
        if not checks.is_concrete((key, data, numbers)):
            raise ValueError("session: expected a call outside of jit, vmap and grad, which no files are written in")
        data = dataclasses.replace(data, train=known(data.train), valid=known(data.valid))
        beginning, owner = self._begin(key, data, numbers)
        if distributed.is_first():
            folder.require_usable(self.out, owner)
        saved = partial(folder.note_saved, self.out, owner)
        with (
            Checkpoints(
                self.out / "checkpoints", keep_last=self.keep_last, keep_best=self.keep_best, on_saved=saved
            ) as checkpoints,
            signals.caught() as asked,
        ):
            snapshot, notes = self._resume(checkpoints, beginning, owner, data)
            if not is_read_only(checkpoints, self._has_ended(snapshot)):
                if distributed.is_first():
                    (saved if snapshot.epoch else partial(folder.note, self.out, owner, saved=False))()
                with self._logs(snapshot, notes, len(data.train.weights)) as logs:
                    snapshot = self._go_on(snapshot, notes, data, checkpoints, logs, asked)
            checkpoints.wait()
            distributed.wait()
            newest = checkpoints.paths()[-1]
        if ending := distributed.agree([*asked]):
            leave(ending[0], f"left after epoch {snapshot.epoch} of {self.fit.epochs}, saved as {newest}")
        return self._run(snapshot, data)

    def _begin(self, key: Array, data: Data, hyper: Hyper) -> tuple[Snapshot, Owner]:
        """Return the shapes of where the run begins, and what tells it from others."""
        starting = loop.begin.lower(self.fit.alone, key, data.train, data.valid, hyper)
        train, valid, numbers = jax.eval_shape(lambda *arrays: arrays, data.train, data.valid, hyper)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), starting.out_info)
        clock = Clock(np.float32(0), np.float32(0))
        advancing = loop.advance.lower(self.fit.alone, state, train, valid, numbers, np.int32(0), clock)
        _, history = advancing.out_info
        owner = Owner("session", key, hyper, Identity.of(self.fit, [starting, advancing], words(data)))
        return Snapshot(key, hyper, state, {name: np.zeros(0, each.dtype) for name, each in history.items()}), owner

    def _has_ended(self, snapshot: Snapshot) -> bool:
        return snapshot.epoch >= self.fit.epochs or int(snapshot.state.stopped_by) != RUNNING

    def _resume(
        self, checkpoints: Checkpoints, beginning: Snapshot, owner: Owner, data: Data
    ) -> tuple[Snapshot, Notes]:
        """Return where the run stands: in the newest checkpoint, or at its beginning."""
        start = functools.cache(lambda: loop.begin(self.fit, owner.key, data.train, data.valid, owner.hyper))

        def expected(description: Description) -> Snapshot:
            folder.require_same(self.out, description.about, owner, lambda: moments(start()))
            epoch = description.about["epoch"]
            return beginning._replace(
                history={name: np.zeros(epoch, none.dtype) for name, none in beginning.history.items()}
            )

        found = checkpoints.resume(expected, skip_damaged=self.skip_damaged)
        if found is None:
            owner = owner.starting_from(moments(start()))
            return beginning._replace(state=start()), Notes(owner)
        path, description, snapshot = found
        about = description.about
        warn_of_other_means(path, about, owner)
        if snapshot.epoch > self.fit.epochs:
            raise ValueError(f"epochs: expected at least the {snapshot.epoch} of {path}, got {self.fit.epochs}")
        logged = rows_in(self.out / "evaluation.csv") if distributed.is_first() else []
        evaluations = {row["epoch"]: row for row in [*about["evaluations"], *logged] if row["epoch"] <= snapshot.epoch}
        rows = distributed.agree([evaluations[epoch] for epoch in sorted(evaluations)])
        return snapshot, Notes(owner.starting_from(about["start"]), about["seconds"], rows)

    def _go_on(
        self,
        snapshot: Snapshot,
        notes: Notes,
        data: Data,
        checkpoints: Checkpoints,
        logs: "_Logs",
        asked: list[signal.Signals],
    ) -> Snapshot:
        """Train to the stop, or until asked to end, and look after the run between two chunks."""
        saved_epoch, saved_at = snapshot.epoch, time.monotonic()
        pauses = [self.save_every_epochs, self.evaluate_every if self.evaluate else None]

        def save() -> None:
            nonlocal saved_epoch, saved_at
            if snapshot.epoch != saved_epoch:
                checkpoints.save(snapshot.epoch, snapshot, loss=snapshot.loss, about=notes.about)
                saved_epoch, saved_at = snapshot.epoch, time.monotonic()

        try:
            self._evaluate(snapshot, notes, data, logs)  # where that failed, or was cut off
            for chunk in loop.chunks(
                self.fit,
                snapshot.state,
                data.train,
                data.valid,
                snapshot.hyper,
                seconds=notes.seconds,
                pause_every=[every for every in pauses if every],
            ):
                rows = rows_of(chunk.history, snapshot.epoch)
                history = loop.joined([snapshot.history, chunk.history])
                snapshot = snapshot._replace(state=chunk.state, history=history)
                notes.seconds = chunk.seconds
                logs.history(rows)
                is_due = self.save_every_epochs is not None and snapshot.epoch % self.save_every_epochs == 0
                if self.save_every_seconds is not None:
                    is_due |= time.monotonic() - saved_at >= self.save_every_seconds
                if is_due or self._has_ended(snapshot):
                    save()
                self._evaluate(snapshot, notes, data, logs)
                if distributed.agree([*asked]):
                    break
        except (Exception, SystemExit) as error:
            # whatever it is, what was trained is kept; Ctrl-C alone ends at once, when it comes a second time
            try:
                save()
            except OSError as unsaved:
                error.add_note(str(unsaved))
            raise
        save()
        return snapshot

    def _evaluate(self, snapshot: Snapshot, notes: Notes, data: Data, logs: "_Logs") -> None:
        """Measure what the user wants measured, once an epoch at most."""
        is_due = snapshot.epoch and (snapshot.epoch % self.evaluate_every == 0 or self._has_ended(snapshot))
        before = notes.evaluations[-1] if notes.evaluations else {}
        if self.evaluate is None or not is_due or before.get("epoch") == snapshot.epoch:
            return
        measured = self.evaluate(self._run(snapshot, data))
        row = row_of(measured, snapshot.epoch, before)
        notes.evaluations.append(row)
        logs.evaluation([row])

    def _run(self, snapshot: Snapshot, data: Data) -> Run:
        history = loop.padded(snapshot.history, self.fit.epochs)
        return self.fit.run_of(snapshot.state, history, data, snapshot.hyper)

    @contextlib.contextmanager
    def _logs(self, snapshot: Snapshot, notes: Notes, examples: int) -> Iterator["_Logs"]:
        """Open the logs, with what is known; of several processes the first does."""
        if not distributed.is_first():
            yield _Logs([], [])
            return
        with contextlib.ExitStack() as stack:

            def opened(log: Log) -> Log:
                stack.callback(log.close)
                return log

            known = rows_of(snapshot.history, 0)
            both = [opened(TensorBoardLog(self.out / "tensorboard", known))] if self.tensorboard else []
            history = [*both, opened(CsvLog(self.out / "history.csv", known))]
            if self.progress:
                history.append(opened(Bar(self.out.name, self.fit.epochs, snapshot.epoch, examples)))
            evaluation: list[Log] = [Apart(log, snapshot.history) for log in both]
            for log in evaluation:
                log.add(notes.evaluations)
            if self.evaluate is not None:
                evaluation.append(opened(CsvLog(self.out / "evaluation.csv", notes.evaluations)))
            yield _Logs(history, evaluation)


class _Logs(NamedTuple):
    """Who is told of each epoch, and who of each evaluation."""

    of_history: list[Log]
    of_evaluation: list[Log]

    def history(self, rows: list[Row]) -> None:
        for log in self.of_history:
            log.add(rows)

    def evaluation(self, rows: list[Row]) -> None:
        for log in self.of_evaluation:
            log.add(rows)


def rows_of(history: History, before: int) -> list[Row]:
    """Return one row an epoch."""
    epochs = len(next(iter(history.values())))
    return [{"epoch": before + i + 1, **{name: values[i] for name, values in history.items()}} for i in range(epochs)]


def is_read_only(checkpoints: Checkpoints, has_ended: bool) -> bool:
    """Say whether nothing can be written, which is enough for a run that has ended; every process has to ask.

    Raises:
        OSError: where it has not.
    """
    if not distributed.agree(checkpoints.unwritable is not None):
        return False
    if not has_ended:
        raise checkpoints.unwritable or PermissionError(f"{checkpoints.folder}: expected a folder that can be written")
    return True


def warn_of_other_means(path: Path, saved: Mapping[str, Any], owner: Owner) -> None:
    """Warn of a checkpoint that was computed with other versions or on another kind of device."""
    identity = Identity(**{name: saved[name] for name in Identity._fields})
    if others := identity.other_means(owner.identity):
        warnings.warn(
            f"{path}: made with {', '.join(others)}: the run goes on, perhaps not to the bits that it would have had",
            stacklevel=4,
        )


def leave(asked: int, where: str) -> NoReturn:
    """End as the signal asks, with a word on how to go on."""
    if distributed.is_first():
        print(f"{signal.Signals(asked).name}: {where}; the same call goes on from there", file=sys.stderr, flush=True)
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + asked)
