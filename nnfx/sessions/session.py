"""A session: a long run that shows its progress, saves checkpoints, and resumes after an interruption."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import checks, distributed, paths
from nnfx.data.batching import Order, in_order, steps_per_epoch
from nnfx.data.prepare import Data, Preprocess
from nnfx.data.stored import Batches, Stored, prefetched
from nnfx.sessions.best_model import BestModel
from nnfx.sessions.folder import refuse_search
from nnfx.sessions.keeper import Keeper
from nnfx.training import run_checks, streamed
from nnfx.training.driver import Program
from nnfx.training.fit import Fit
from nnfx.training.in_memory import InMemory, columns_of
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.training.step import split_key
from nnfx.training.streamed import Streamed
from nnfx.types import Array, Batch

Evaluate = Callable[[Run], Mapping[str, Any]]


def session(
    fit: Fit,
    out: str | os.PathLike[str],
    *,
    save_every_epochs: int | None = None,
    save_every_steps: int | None = None,
    save_every_seconds: float | None = 60.0,
    keep_last: int = 2,
    keep_best: int = 1,
    skip_damaged: bool = False,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    progress: bool = True,
    tensorboard: bool = False,
    json_lines: bool = False,
    log: Callable[[Mapping[str, Any]], object] | None = None,
) -> "Session":
    """Turn a run function into a session: the same function `(key, data, **hyper) -> Run`, but robust to interruptions.

    A session returns the same result as `fit(key, data, **hyper)`, bit for bit (for a run of more than one step),
    however often it was killed: the same call resumes from the newest checkpoint in the folder, or returns the
    finished run. A run may be resumed with more epochs. Everything else that determines the run (key, data,
    hyper-parameters, layers, initial weights, loss, optimizer, rules) must be the same; otherwise, an error lists the
    differences. If package versions or the kind of device differ, a warning is given, since the following results may
    differ in rounding. A finished run is returned even if its folder is read-only.

    Data larger than memory is kept in a folder (see `nnfx.data.store`), from which Grain prefetches batches. The
    session is then called with the stored examples and the held-out data, as in `(key, examples, valid, **hyper) ->
    Run`. The rows are visited in the same order as for data in memory. Such a run is also saved within epochs, and
    sees every example of an epoch exactly once, however often it was killed.

    About once a second, the host updates the folder and checks for signals:

    - `out/history.csv` contains each metric by epoch, and `out/evaluation.csv` the results of `evaluate`.
    - `out/checkpoints/` contains the newest and the best checkpoints, written while training continues. A checkpoint
      is either complete or absent. If something else fails, such as `evaluate` or a log, the current state is saved
      before the error is raised: the same call continues from there.
    - `out/predictor/` contains the model with its best weights so far, written with a checkpoint, but at most once a
      minute, and at the end: `nnfx.load(out)` opens it in any process, even if the session was killed. If the model
      cannot be exported, or flatbuffers is not installed, the session runs nevertheless, and `nnfx.load` reports why
      there is no model.
    - `out/run.json` records which run the folder belongs to. The folder of another run is rejected before anything is
      written.
    - On Ctrl-C or SIGTERM, a checkpoint is saved and a message explains how to continue; then `KeyboardInterrupt` or
      `SystemExit(143)` is raised. A second signal ends the process at once.

    Several processes form one session if all of them call it with the same folder, which all of them must be able to
    read. Only the first process writes files, and a signal that it receives applies to all; every process returns the
    run. Each process reads its part of each stored batch, and all devices compute together; a run may resume with a
    different number of processes.

    Args:
        fit: the run function, made by `nnfx.fit`, with a batch size if the data is stored.
        out: a folder for this run alone, created if missing.
        save_every_epochs: the number of epochs between checkpoints.
        save_every_steps: the number of steps between checkpoints, for a run on stored data.
        save_every_seconds: the interval between checkpoints, in seconds; with data in memory, checkpoints are saved at
            the end of an epoch. The end of the run is always saved.
        keep_last: the number of newest checkpoints to keep, at least 1.
        keep_best: the number of checkpoints with the lowest held-out loss (training loss without held-out data) to
            keep in addition.
        skip_damaged: whether to set aside unusable checkpoints, and continue from the newest good one. Otherwise, an
            error names the unusable checkpoint.
        evaluate: a function that computes further metrics, `run -> {name: number}`, from the current run with its best
            weights so far. At the end, the run is saved before it is evaluated.
        evaluate_every: the number of epochs between evaluations; the end of the run is always evaluated.
        progress: whether to show a progress bar, with examples per second and the remaining time, if tqdm is
            installed.
        tensorboard: whether to write logs for TensorBoard, to `out/tensorboard/`.
        json_lines: whether to write `out/history.jsonl` and `out/evaluation.jsonl` too, with a line of JSON per row.
        log: a function called with the metrics of each epoch and the results of `evaluate`, as numbers by name, with
            `epoch`: for example, `lambda row: wandb.log(row, step=row["epoch"])` for Weights & Biases, or `lambda row:
            mlflow.log_metrics(row, step=row["epoch"])` for MLflow. After a kill, epochs that were not yet saved are
            passed again, with the same numbers.

    Returns:
        The session, which is a function. A call raises the same errors as `fit`. In addition, it raises `ValueError`
        for a damaged checkpoint, for the folder of another run, and within `jit`, `vmap` or `grad`; and `OSError` if
        the folder is not writable, or is in use by another process. Saved checkpoints stay intact.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or out of range.

    Example:
        >>> import nnfx, optax, tempfile
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> run = session(train, tempfile.mkdtemp(), progress=False)(jax.random.key(0), data, learning_rate=0.1)
        >>> bool(run.best.loss == train(jax.random.key(0), data, learning_rate=0.1).best.loss)
        True

        Stored data:

        >>> folder, x = tempfile.mkdtemp(), jnp.linspace(-1, 1, 64)[:, None]
        >>> examples = nnfx.data.store(f"{folder}/line", [(x[:32], 3 * x[:32]), (x[32:], 3 * x[32:])])
        >>> train = nnfx.fit(
        ...     nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=8, batch_size=8
        ... )
        >>> run = session(train, f"{folder}/run", progress=False)(jax.random.key(0), examples, learning_rate=0.2)
        >>> round(float(run.state.params["kernel"][0, 0]))
        3
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected the result of nnfx.fit, got {checks.describe(fit)}")
    folder = paths.absolute("out", out)
    for name, each in {"save_every_epochs": save_every_epochs, "save_every_steps": save_every_steps}.items():
        if each is not None:
            checks.positive_integer(name, each)
    if save_every_seconds is not None:
        checks.number("save_every_seconds", save_every_seconds, minimum=0)
    checks.positive_integer("keep_last", keep_last)
    checks.non_negative_integer("keep_best", keep_best)
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"evaluate: expected a function of a run, got {checks.describe(evaluate)}")
    if log is not None and not callable(log):
        raise TypeError(f"log: expected a function of a row of numbers, got {checks.describe(log)}")
    checks.positive_integer("evaluate_every", evaluate_every)
    keeper = Keeper(
        out=folder,
        save_every_seconds=save_every_seconds,
        keep_last=keep_last,
        keep_best=keep_best,
        skip_damaged=skip_damaged,
        title=folder.name if progress else None,
        tensorboard=tensorboard,
        json_lines=json_lines,
        log=log,
        evaluate_every=evaluate_every,
    )
    return Session(fit, keeper, save_every_epochs, save_every_steps, evaluate)


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A run function with logs and checkpoints, as returned by `session`."""

    fit: Fit
    keeper: Keeper
    save_every_epochs: int | None
    save_every_steps: int | None
    evaluate: Evaluate | None

    def __call__(self, key: Array, data: Data | Stored, valid: Batch | None = None, **hyper: ArrayLike) -> Run:
        """Train from the newest checkpoint, or from initialisation, until the run ends.

        Args:
            key: a typed key; it determines the initial weights, the order of the rows, and all other random draws.
            data: the data, as returned by `nnfx.data.prepare`; or stored training examples, as opened by
                `nnfx.data.stored`.
            valid: for stored examples, the held-out data in memory, such as `nnfx.data.stored(...).load()`; or None.
            **hyper: a number for each hyper-parameter.

        Returns:
            The run, as returned by `fit`.
        """
        if isinstance(data, Stored):
            return self._on_stored(key, data, valid, hyper)
        if valid is not None:
            raise TypeError(
                f"valid: expected None, since data in memory contain their held-out part, got {checks.describe(valid)}"
            )
        if self.save_every_steps is not None:
            raise ValueError(
                f"save_every_steps: expected None, since runs on data in memory are saved between epochs, got"
                f" {self.save_every_steps}"
            )
        numbers = self.fit.check(key, data, hyper)
        _require_no_tracers(key, data, numbers)
        data = dataclasses.replace(data, train=known(data.train), valid=known(data.valid))
        program = InMemory(self.fit, key, data.train, data.valid, numbers, data)
        return self._kept(program, data, [self.save_every_epochs])

    def _on_stored(self, key: Array, examples: Stored, valid: Batch | None, hyper: Mapping[str, ArrayLike]) -> Run:
        """Train on stored examples, reading batches as needed."""
        data, size = _sample(self.fit, examples, valid)
        numbers = self.fit.check(key, data, hyper)
        _require_no_tracers(key, numbers)
        examples.verify(("targets", "weights"))
        run_checks.check_stored(self.fit, data, numbers, examples.targets, examples.weights)
        described: dict[str, Any] = {f"train.{name}": text for name, text in examples.words.items()}
        described |= {"valid": data.valid, "preprocess": data.preprocess}
        steps = steps_per_epoch(len(examples), size)
        save_every = [self.save_every_steps, self.save_every_epochs and self.save_every_epochs * steps]
        batches = Batches(examples, split_key(key).order, size, self.fit.epochs, distributed.share(size))
        with contextlib.closing(prefetched(batches)) as reader:
            program = Streamed(self.fit, key, data.train, data.valid, numbers, reader, steps, described)
            return self._kept(program, data, save_every)

    def _kept(self, program: Program[Any], data: Data, save_every: Sequence[int | None]) -> Run:
        """Run a program with its keeper, and return the run."""

        def run_of(standing: Any) -> Run:
            history = columns_of(standing.history, self.fit.epochs)
            return self.fit.run_of(standing.run, history, data, program.hyper)

        def measured(standing: Any) -> Any:
            assert self.evaluate is not None
            return self.evaluate(run_of(standing))

        keeper = dataclasses.replace(self.keeper, save_every=tuple(every for every in save_every if every))
        assert keeper.out is not None
        refuse_search(keeper.out)
        with contextlib.ExitStack() as stack:
            best = BestModel(stack, keeper.out, data.train.inputs)
            standing = keeper(
                program,
                evaluate=None if self.evaluate is None else measured,
                publish=lambda standing: best.save(run_of(standing)),
            )
        return run_of(standing)


def _sample(fit: Fit, examples: Stored, valid: Batch | None) -> tuple[Data, int]:
    """Return the first batch as a `Data` object, for the usual checks, and the batch size."""
    if fit.batch_size is None:
        raise ValueError("fit: expected a batch_size, since batches are read as needed, got None")
    if valid is not None and not isinstance(valid, Batch):
        raise TypeError(f"valid: expected a Batch, such as nnfx.data.stored(...).load(), got {type(valid).__name__}")
    if fit.batch_size % jax.device_count() and jax.process_count() > 1:
        raise ValueError(
            f"batch_size: expected a multiple of the {jax.device_count()} devices of all processes,"
            f" got {fit.batch_size}"
        )
    rows = min(fit.batch_size, len(examples))
    read = examples.take(Order(*(each[0] for each in in_order(rows, rows))))
    read = jax.tree.map(jnp.asarray, read)  # later rows may have weights even if the first ones have none
    first = streamed.in_floats(read._replace(weights=jnp.ones_like(read.weights)))
    if valid is not None:
        valid = jax.tree.map(jnp.asarray, streamed.in_floats(valid))
    none, one = (jnp.asarray(number, float) for number in (0, 1))
    return Data(first, valid, Preprocess(None, none, one, (), examples.inputs.shape[1:])), fit.batch_size


def _require_no_tracers(*given: Any) -> None:
    if not checks.is_concrete(given):
        raise ValueError("session: expected a call outside jit, vmap and grad, since it writes files, got tracers")
