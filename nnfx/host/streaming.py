"""A session of a run on data larger than memory: batches are read as they are needed, and the position is saved."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, distributed, memo, paths
from nnfx.checkpoint import Description
from nnfx.data.batching import Order, in_order, steps_per_epoch
from nnfx.data.prepare import Data, Preprocess
from nnfx.data.stored import Batches, Stored, prefetched
from nnfx.host import folder, signals
from nnfx.host.checkpoints import Checkpoints
from nnfx.host.folder import Owner
from nnfx.host.identity import Identity, moments, words
from nnfx.host.logs import Bar, CsvLog, Log, TensorBoardLog
from nnfx.host.session import Notes, is_read_only, leave, rows_of, warn_of_other_means
from nnfx.training import loop, streaming, validate
from nnfx.training.epochs import RUNNING
from nnfx.training.fit import Fit
from nnfx.training.loop import History
from nnfx.training.run import Run
from nnfx.training.step import split_key
from nnfx.training.streaming import Standing
from nnfx.types import Array, Batch, Hyper


def stream(
    fit: Fit,
    out: str | os.PathLike[str],
    *,
    save_every_steps: int | None = None,
    save_every_seconds: float | None = 60.0,
    keep_last: int = 2,
    keep_best: int = 1,
    skip_damaged: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> "Streaming":
    """Make a session of a run on data larger than memory: `(key, examples, valid=None, **hyper) -> Run`.

    The examples lie in a folder (see `nnfx.data.store`), from which Grain reads batches ahead of the step. The run
    takes the steps that it would with its data in memory: the same rows, in the order that the key decides.

    Killed at any moment, in the middle of an epoch as well, the same call goes on from the newest checkpoint to the
    bits of the run that was never killed, and sees every example of an epoch exactly once. What is said of
    `nnfx.session` on logs, checkpoints, signals and several processes holds here as well. Of each batch, each process
    reads its share, and their devices compute together; a run may go on with another number of processes.

    Args:
        fit: the run, as `nnfx.fit` makes it, with a batch size.
        out: a folder for this run alone, made where it is lacking.
        save_every_steps: save after every so many steps.
        save_every_seconds: save once so many seconds have passed. The run's end is saved in any case.
        keep_last: how many of the newest checkpoints to keep, at least 1.
        keep_best: how many of those of the lowest loss to keep besides.
        skip_damaged: whether to put checkpoints that cannot be used aside, and go on from the newest good one.
        progress: whether to show a bar, where tqdm is installed.
        tensorboard: whether to write logs for TensorBoard, to `out/tensorboard/`.

    Returns:
        The session's function. Calling it raises what calling `fit` does, and what `nnfx.session` does of checkpoints.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.

    Example:
        >>> import nnfx, optax, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> x = np.linspace(-1, 1, 64)[:, None]
        >>> examples = nnfx.data.store(folder / "line", [(x[:32], 3 * x[:32]), (x[32:], 3 * x[32:])])
        >>> train = nnfx.fit(
        ...     nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=8, batch_size=8
        ... )
        >>> run = stream(train, folder / "run", progress=False)(jax.random.key(0), examples, learning_rate=0.2)
        >>> round(float(run.state.params["kernel"][0, 0]))
        3
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected what nnfx.fit returns, got {checks.describe(fit)}")
    if fit.batch_size is None:
        raise ValueError("fit: expected a batch_size, for batches that are read as they are needed, got None")
    folder_of_the_run = paths.absolute("out", out)
    if save_every_steps is not None:
        checks.positive_integer("save_every_steps", save_every_steps)
    if save_every_seconds is not None:
        checks.number("save_every_seconds", save_every_seconds, minimum=0)
    checks.positive_integer("keep_last", keep_last)
    checks.non_negative_integer("keep_best", keep_best)
    return Streaming(
        fit=fit,
        out=folder_of_the_run,
        save_every_steps=save_every_steps,
        save_every_seconds=save_every_seconds,
        keep_last=keep_last,
        keep_best=keep_best,
        skip_damaged=skip_damaged,
        progress=progress,
        tensorboard=tensorboard,
    )


class Snapshot(NamedTuple):
    """All arrays that a run goes on from.

    Attributes:
        key: the run's.
        hyper: its hyper-parameters.
        standing: where it stands.
        history: each metric by epoch so far, `(epochs,)`.
    """

    key: Array
    hyper: Hyper
    standing: Standing
    history: History

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return len(next(iter(self.history.values())))

    @property
    def loss(self) -> float:
        """The latest held-out loss; without held-out data the training loss; NaN before the first epoch has ended."""
        losses = self.history.get("valid_loss", self.history["train_loss"])
        return float(losses[-1]) if len(losses) else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Streaming:
    """A run on data larger than memory, made by `stream`; see there."""

    fit: Fit
    out: Path
    save_every_steps: int | None
    save_every_seconds: float | None
    keep_last: int
    keep_best: int
    skip_damaged: bool
    progress: bool
    tensorboard: bool

    def __call__(self, key: Array, examples: Stored, valid: Batch | None = None, **hyper: ArrayLike) -> Run:
        """Train from the newest checkpoint, or from initialisation, to the stop.

        Args:
            key: as for `fit`.
            examples: what to train on, as `nnfx.data.stored` opens it.
            valid: what is held out, in memory, such as `nnfx.data.stored(...).load()`; or None.
            **hyper: as for `fit`.

        Returns:
            The run, as `fit` returns it.
        """
        data = self._sample(examples, valid)
        numbers = self.fit.check(key, data, hyper)
        if not checks.is_concrete((key, numbers)):
            raise ValueError("stream: expected a call outside of jit, vmap and grad, which no files are written in")
        examples.verify(("targets", "weights"))
        validate.check_stored(self.fit, data, numbers, examples.targets, examples.weights)
        beginning, owner = self._begin(key, data, numbers, examples)
        if distributed.is_first():
            folder.require_usable(self.out, owner)
        saved = partial(folder.note_saved, self.out, owner)
        kept = {"keep_last": self.keep_last, "keep_best": self.keep_best}
        with (
            Checkpoints(self.out / "checkpoints", **kept, unit=owner.unit, on_saved=saved) as checkpoints,
            signals.caught() as asked,
            contextlib.closing(self._reader(key, examples)) as reader,
        ):
            snapshot, notes, position = self._resume(checkpoints, beginning, owner)
            if not is_read_only(checkpoints, self._has_ended(snapshot)):
                if distributed.is_first():
                    (saved if position is not None else partial(folder.note, self.out, owner, saved=False))()
                if position is not None:
                    reader.set_state(position)
                snapshot = self._go_on(snapshot, notes, data.valid, examples, reader, checkpoints, asked)
            checkpoints.wait()
            distributed.wait()
            newest = checkpoints.paths()[-1]
        if ending := distributed.agree([*asked]):
            leave(ending[0], f"left with {snapshot.epoch} of {self.fit.epochs} epochs ended, saved as {newest}")
        return self.fit.run_of(snapshot.standing.run, loop.padded(snapshot.history, self.fit.epochs), data, numbers)

    @property
    def _batch_size(self) -> int:
        assert self.fit.batch_size is not None
        return self.fit.batch_size

    def _sample(self, examples: Stored, valid: Batch | None) -> Data:
        """Return the first batch as data, for what is asked of all data."""
        if not isinstance(examples, Stored):
            raise TypeError(f"examples: expected what nnfx.data.stored opens, got {checks.describe(examples)}")
        if valid is not None and not isinstance(valid, Batch):
            raise TypeError(
                f"valid: expected a Batch, such as nnfx.data.stored(...).load(), got {type(valid).__name__}"
            )
        if self._batch_size % jax.device_count() and jax.process_count() > 1:
            raise ValueError(
                f"batch_size: expected a multiple of the {jax.device_count()} devices of all processes,"
                f" got {self._batch_size}"
            )
        rows = min(self._batch_size, len(examples))
        read = examples.take(Order(*(each[0] for each in in_order(rows, rows))))
        read = jax.tree.map(jnp.asarray, read)  # later ones may have weights where these have none
        first = streaming.in_floats(read._replace(weights=jnp.ones_like(read.weights)))
        if valid is not None:
            valid = jax.tree.map(jnp.asarray, streaming.in_floats(valid))
        none, one = (jnp.asarray(number, float) for number in (0, 1))
        shape = examples.inputs.shape[1:]
        return Data(first, valid, Preprocess(None, none, one, (), shape))

    def _reader(self, key: Array, examples: Stored) -> Any:
        """Return what reads this process's share of each batch."""
        share = distributed.share(self._batch_size)
        return prefetched(Batches(examples, split_key(key).order, self._batch_size, self.fit.epochs, share))

    def _begin(self, key: Array, data: Data, hyper: Hyper, examples: Stored) -> tuple[Snapshot, Owner]:
        """Return where the run begins, and what tells it from others."""
        first, valid = data.train, data.valid
        standing = streaming.begin(self.fit, key, first, valid, hyper)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (standing, first, hyper))
        alone = self.fit.alone
        starting = jax.jit(partial(streaming.begin, alone)).lower(key, first, valid, hyper)
        lowered = memo.compiled()(streaming.step).lower(alone, shapes[0].run.train, shapes[0].measured, *shapes[1:])
        ending = memo.compiled()(streaming.end_epoch).lower(
            alone, shapes[0].run, shapes[0].before, shapes[0].measured, valid, hyper, np.float32(0)
        )
        described = {f"train.{name}": text for name, text in examples.words.items()}
        described |= words({"valid": data.valid, "preprocess": data.preprocess})
        identity = Identity.of(self.fit, [starting, lowered, ending], described)
        owner = Owner("stream", key, hyper, identity).starting_from(moments(distributed.local(standing.run)))
        _, history = ending.out_info
        return Snapshot(key, hyper, standing, {name: np.zeros(0, each.dtype) for name, each in history.items()}), owner

    def _resume(self, checkpoints: Checkpoints, beginning: Snapshot, owner: Owner) -> tuple[Snapshot, Notes, Any]:
        """Return where the run stands, in the newest checkpoint or at its beginning, and the reader's position."""

        def expected(description: Description) -> Snapshot:
            folder.require_same(self.out, description.about, owner)
            epochs = description.about["epochs"]
            columns = {name: np.zeros(epochs, none.dtype) for name, none in beginning.history.items()}
            return beginning._replace(history=columns)

        found = checkpoints.resume(expected, skip_damaged=self.skip_damaged)
        if found is None:
            return beginning, Notes(owner), None
        path, description, snapshot = found
        about = description.about
        warn_of_other_means(path, about, owner)
        if snapshot.epoch > self.fit.epochs:
            raise ValueError(f"epochs: expected at least the {snapshot.epoch} of {path}, got {self.fit.epochs}")
        return snapshot, Notes(owner, about["seconds"]), about["position"]

    def _has_ended(self, snapshot: Snapshot) -> bool:
        return snapshot.epoch >= self.fit.epochs or int(snapshot.standing.run.stopped_by) != RUNNING

    def _go_on(
        self,
        snapshot: Snapshot,
        notes: Notes,
        valid: Batch | None,
        examples: Stored,
        reader: Any,
        checkpoints: Checkpoints,
        asked: list[signal.Signals],
    ) -> Snapshot:
        """Train to the stop, or until asked to end, and look after the run between two strides."""
        steps = saved_step = reader.get_state()["next_index"]
        saved_at = time.monotonic()

        def save() -> None:
            about = {"epochs": snapshot.epoch, "position": reader.get_state()}
            # the next step uses up what it is given
            mine = distributed.local(snapshot)
            copied = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, mine)
            checkpoints.save(steps, copied, loss=snapshot.loss, about={**notes.about, **about})

        batches = map(distributed.from_shares, reader) if jax.process_count() > 1 else reader
        with self._logs(snapshot, len(examples)) as (logs, bar):
            for stride in streaming.strides(
                self.fit,
                snapshot.standing,
                batches,
                valid,
                snapshot.hyper,
                steps=steps,
                steps_per_epoch=steps_per_epoch(len(examples), self._batch_size),
                seconds=notes.seconds,
                pause_every=self.save_every_steps,
            ):
                steps, notes.seconds = stride.steps, stride.seconds
                rows = rows_of(stride.history, snapshot.epoch) if stride.history else []
                if rows:
                    snapshot = snapshot._replace(history=loop.joined([snapshot.history, stride.history]))
                snapshot = snapshot._replace(standing=stride.standing)
                try:
                    for log in logs if rows else ():
                        log.add(rows)
                except Exception as error:
                    # what was trained is kept
                    try:
                        save()
                    except OSError as unsaved:
                        error.add_note(str(unsaved))
                    raise
                if bar is not None and not rows:
                    bar.reach(steps * self._batch_size)
                is_due = self.save_every_steps is not None and steps % self.save_every_steps == 0
                if self.save_every_seconds is not None:
                    is_due |= time.monotonic() - saved_at >= self.save_every_seconds
                is_asked, is_due = distributed.agree([bool(asked), is_due])
                if is_asked:
                    break
                if is_due:
                    save()
                    saved_step, saved_at = steps, time.monotonic()
        if steps != saved_step:
            save()
        return distributed.local(snapshot)

    @contextlib.contextmanager
    def _logs(self, snapshot: Snapshot, examples: int) -> Iterator[tuple[list[Log], Bar | None]]:
        """Open the logs, with what is known; of several processes the first does."""
        if not distributed.is_first():
            yield [], None
            return
        with contextlib.ExitStack() as stack:
            known = rows_of(snapshot.history, 0)
            logs: list[Log] = [CsvLog(self.out / "history.csv", known)]
            stack.callback(logs[0].close)
            bar = None
            if self.tensorboard:
                logs.append(TensorBoardLog(self.out / "tensorboard", known))
                stack.callback(logs[-1].close)
            if self.progress:
                bar = Bar(self.out.name, self.fit.epochs, snapshot.epoch, examples)
                logs.append(bar)
                stack.callback(bar.close)
            yield logs, bar
