"""A keeper runs a program: it resumes it after an interruption, saves and logs its progress, and handles signals."""

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, Generic, NamedTuple, TypeVar

from nnfx import distributed
from nnfx.checkpoint import Description
from nnfx.sessions import folder, signals
from nnfx.sessions.checkpoints import Checkpoints
from nnfx.sessions.evaluations import row_of
from nnfx.sessions.identity import Identity, moments
from nnfx.sessions.logs import Logs, Row, rows_in
from nnfx.sessions.progress_bar import ProgressBar
from nnfx.training.driver import Program, drive
from nnfx.types import Array, Hyper

State = TypeVar("State")


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Settings for saving and logging a program; see `nnfx.session`.

    Attributes:
        out: the folder; None to save and log nothing.
        save_every_seconds: the interval between checkpoints, in seconds; None for no such interval.
        keep_last: the number of newest checkpoints to keep.
        keep_best: the number of checkpoints with the lowest losses to keep in addition.
        skip_damaged: whether to set aside unusable checkpoints.
        title: the title of the progress bar; None to show no bar.
        tensorboard: whether to write logs for TensorBoard.
        json_lines: whether to write logs as JSON lines.
        log: a function called with each row of the logs; None for no calls.
        evaluate_every: the number of epochs between evaluations.
        save_every: also save whenever the number of completed units is a multiple of one of these numbers.
    """

    out: Path | None
    save_every_seconds: float | None = None
    keep_last: int = 2
    keep_best: int = 1
    skip_damaged: bool = False
    title: str | None = None
    tensorboard: bool = False
    json_lines: bool = False
    log: Callable[[Row], object] | None = None
    evaluate_every: int = 1
    save_every: tuple[int, ...] = ()

    def __call__(
        self,
        program: Program[State],
        *,
        evaluate: Callable[[State], Any] | None = None,
        look: Callable[[State], None] = lambda _: None,
        publish: Callable[[State], None] = lambda _: None,
    ) -> State:
        """Run a program to its end, resuming after an interruption.

        Args:
            program: the program to run.
            evaluate: a function that returns numbers by name for a state between epochs, or None. It requires `out`.
            look: a function called with the state after each pause of the program.
            publish: a function called with each state that is saved, and with the state from which the program
                resumes.

        Returns:
            The final state.
        """
        if self.out is not None:
            return _Keeping(self, self.out, program, evaluate, look, publish).run()
        state, shown = program.start(), 0
        with contextlib.ExitStack() as stack:
            bar = ProgressBar.open(stack, self.title, program, state)
            for progress in drive(program, state, is_hurried=bar is not None):
                state = progress.state
                if bar is not None:
                    rows = rows_of(program.history(state, shown), shown)
                    shown += len(rows)
                    bar.show(progress.done, rows)
                look(state)
        return state


class Snapshot(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
        key: the program's key.
        hyper: the program's hyper-parameters.
        state: the arrays of the program's state.
    """

    key: Array
    hyper: Hyper
    state: Any


class _Keeping(Generic[State]):
    """One call of a keeper that has a folder."""

    state: State

    def __init__(
        self,
        keeper: Keeper,
        out: Path,
        program: Program[State],
        evaluate: Callable[[State], Any] | None,
        look: Callable[[State], None],
        publish: Callable[[State], None],
    ) -> None:
        self.keeper, self.out, self.program = keeper, out, program
        self.evaluate, self.look, self.publish = evaluate, look, publish
        self.identity = Identity.of(program)
        self.seconds = 0.0
        self.evaluations: list[Row] = []

    @property
    def epochs(self) -> int:
        """The number of completed epochs."""
        return self.program.done(self.state) // self.program.units_per_epoch

    def run(self) -> State:
        """Run from the newest checkpoint, or from the start, to the end or until a signal requests a stop."""
        keeper, program, out = self.keeper, self.program, self.out
        if distributed.is_first():
            folder.require_usable(out, self.identity)
        note_saved = partial(folder.note_saved, out, self.identity)
        kept = {"keep_last": keeper.keep_last, "keep_best": keeper.keep_best}
        with (
            Checkpoints(out / "checkpoints", **kept, unit=self.identity.unit, on_saved=note_saved) as checkpoints,
            signals.caught() as asked,
        ):
            self._resume(checkpoints)
            if not self._is_read_only(checkpoints):
                if distributed.is_first():
                    note_saved() if program.done(self.state) else folder.note(out, self.identity, saved=False)
                with self._logs() as logs:
                    self._go_on(checkpoints, logs, asked)
            checkpoints.wait()
            distributed.wait()
            newest = checkpoints.paths()[-1]
        if ending := distributed.agree([*asked]):
            epochs = f"epoch {self.epochs} of {program.recipe.epochs}"
            signals.leave(ending[0], f"stopped after {epochs}, saved as {newest}")
        return self.state

    def _resume(self, checkpoints: Checkpoints) -> None:
        """Take the state of the newest checkpoint, or the initial state if there is none."""
        program, out = self.program, self.out
        start = functools.cache(program.start)

        def of_start() -> dict[str, list[float]]:
            return moments(program.saved(start())[0])

        def expected(description: Description) -> Snapshot:
            folder.require_same(out, description.about, self.identity, of_start)
            return Snapshot(program.key, program.hyper, program.expected(description.about))

        found = checkpoints.resume(expected, skip_damaged=self.keeper.skip_damaged)
        if found is None:
            self.state = start()
            self.identity = self.identity._replace(start=of_start())
            return
        path, description, snapshot = found
        about = description.about
        if others := Identity.noted(about).other_means(self.identity):
            warnings.warn(
                f"{path}: saved with {', '.join(others)}: the run resumes, but may not end with the same bits",
                stacklevel=6,
            )
        self.state = program.restored(snapshot.state, about)
        if self.epochs > program.recipe.epochs:
            raise ValueError(f"epochs: expected at least {self.epochs}, as in {path}, got {program.recipe.epochs}")
        self.identity, self.seconds = self.identity._replace(start=about["start"]), about["seconds"]
        logged = rows_in(out / "evaluation.csv") if distributed.is_first() else []
        rows = {row["epoch"]: row for row in [*about["evaluations"], *logged] if row["epoch"] <= self.epochs}
        self.evaluations = distributed.agree([rows[epoch] for epoch in sorted(rows)])

    def _is_read_only(self, checkpoints: Checkpoints) -> bool:
        """Return whether the folder of a finished run is read-only; every process must call this method.

        Raises:
            OSError: if the folder is read-only and the run has not ended.
        """
        if not distributed.agree(checkpoints.unwritable is not None):
            return False
        if not self.program.has_ended(self.state):
            raise checkpoints.unwritable or PermissionError(f"{checkpoints.folder}: expected a writable folder")
        return True

    def _go_on(self, checkpoints: Checkpoints, logs: Logs, asked: list[Signals]) -> None:
        """Drive the program to its end or until a signal requests a stop, saving and logging at each pause."""
        keeper, program = self.keeper, self.program
        saved, saved_at, logged = program.done(self.state), time.monotonic(), self.epochs
        pauses = [*keeper.save_every, *([self._evaluate_every] if self.evaluate else [])]

        def save() -> None:
            nonlocal saved, saved_at
            done = program.done(self.state)
            if done == saved:
                return
            arrays, noted = program.saved(self.state)
            latest = program.history(self.state, max(self.epochs - 1, 0))
            losses = [*latest.get("valid_loss", latest.get("train_loss", [])), float("nan")]
            about = {**self.identity._asdict(), "seconds": self.seconds, "evaluations": [*self.evaluations], **noted}
            snapshot = Snapshot(program.key, program.hyper, arrays)
            checkpoints.save(done, snapshot, loss=float(losses[0]), about=about)
            saved, saved_at = done, time.monotonic()
            self.publish(self.state)

        if saved:
            self.publish(self.state)  # in case the program was interrupted between saving and publishing
        try:
            self._evaluate(logs)  # in case the last evaluation failed or was interrupted
            for progress in drive(program, self.state, seconds=self.seconds, pause_every=pauses):
                self.state, self.seconds = progress.state, progress.seconds
                rows = rows_of(program.history(self.state, logged), logged)
                logged += len(rows)
                logs.history(rows, progress.done)
                is_due = any(progress.done % every == 0 for every in keeper.save_every)
                if keeper.save_every_seconds is not None:
                    is_due |= time.monotonic() - saved_at >= keeper.save_every_seconds
                if is_due or program.has_ended(self.state):
                    save()
                self.look(self.state)
                self._evaluate(logs)
                if distributed.agree(bool(asked)):
                    break
        except (Exception, SystemExit) as error:
            # keep the work done so far, whatever the error; only a second Ctrl-C ends the run at once
            try:
                save()
            except (OSError, RuntimeError) as unsaved:  # no disk, or a failed program has deleted its state
                error.add_note(str(unsaved))
            raise
        save()

    @property
    def _evaluate_every(self) -> int:
        return self.keeper.evaluate_every * self.program.units_per_epoch

    def _evaluate(self, logs: Logs) -> None:
        """Call the user's `evaluate`, at most once per epoch."""
        done, epoch = self.program.done(self.state), self.epochs
        is_due = done and (done % self._evaluate_every == 0 or self.program.has_ended(self.state))
        before = self.evaluations[-1] if self.evaluations else {}
        if self.evaluate is None or not is_due or before.get("epoch") == epoch:
            return
        row = row_of(self.evaluate(self.state), epoch, before)
        self.evaluations.append(row)
        logs.evaluation([row])

    @contextlib.contextmanager
    def _logs(self) -> Iterator[Logs]:
        """Open the logs with the rows recorded so far, in the first process only."""
        keeper, program = self.keeper, self.program
        if not distributed.is_first():
            yield Logs()
            return
        with contextlib.ExitStack() as stack:
            logs = Logs.open(
                stack,
                self.out,
                rows_of(program.history(self.state, 0), 0),
                None if self.evaluate is None else self.evaluations,
                tensorboard=keeper.tensorboard,
                json_lines=keeper.json_lines,
                call=keeper.log,
            )
            yield logs._replace(bar=ProgressBar.open(stack, keeper.title, program, self.state))


def rows_of(history: Mapping[str, Any], before: int) -> list[Row]:
    """Convert a history to one row per epoch, where `before` epochs precede the first.

    >>> rows_of({"train_loss": [2.0, 1.0]}, 3)
    [{'epoch': 4, 'train_loss': 2.0}, {'epoch': 5, 'train_loss': 1.0}]
    """
    epochs = len(next(iter(history.values()))) if history else 0
    return [{"epoch": before + i + 1, **{name: values[i] for name, values in history.items()}} for i in range(epochs)]
