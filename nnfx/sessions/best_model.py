"""The model of a session with its best weights so far, saved for `nnfx.load`."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax

from nnfx import distributed, paths
from nnfx.saving import saved
from nnfx.sessions.checkpoints import Checkpoints
from nnfx.training.run import Run, notes_of

SAVE_EVERY_SECONDS = 60.0
"""The shortest interval between two saved models: saving one takes about as long as saving a checkpoint."""


class BestModel:
    """A saved model in the folder of a session, replaced by better weights at most once a minute, and at the end.

    The model is exported once, when it is first saved; if that fails, the reason is written instead.

    Args:
        stack: an exit stack, which waits for the last save when it is closed.
        out: the folder of the session.
        inputs: example inputs, preprocessed.
    """

    def __init__(self, stack: contextlib.ExitStack, out: Path, inputs: Any) -> None:
        self._stack, self._folder, self._inputs = stack, out / saved.WITHIN, inputs
        self._models: Checkpoints | None = None
        self._epoch = 0
        self._saved_at = -SAVE_EVERY_SECONDS
        self._waiting: Run | None = None
        self._unfilled: saved.Unfilled | None = None
        self._is_hopeless = False

    def save(self, run: Run) -> None:
        """Save the best weights of a run in the background, at once or, if the last save was too recent, later.

        Weights that have already been saved are not saved again.

        Raises:
            OSError: if the previous save failed, or the folder is not writable.
        """
        epoch = int(run.best.epoch)
        if self._is_hopeless or not epoch or not distributed.is_first():
            return
        if self._models is None:
            models = Checkpoints(self._folder, keep_last=1, keep_best=0)
            self._models = self._stack.enter_context(models)
            self._stack.callback(self._save_waiting)
            self._epoch = max((int(path.name.removeprefix("epoch-")) for path in models.paths()), default=0)
        if epoch <= self._epoch:
            return
        reason = self._folder / saved.REASON
        if self._unfilled is None:
            try:
                self._unfilled = saved.Unfilled.of(run.model, run.best.variables, run.preprocess, self._example(run))
            except Exception as error:  # after any error, the run continues without a saved model
                self._is_hopeless = True
                with paths.replace(reason) as aside:
                    aside.write_text(str(error))
                return
            paths.remove(reason)
        self._epoch, self._waiting = epoch, run
        if time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self._save_waiting()

    def _save_waiting(self) -> None:
        """Save the run that is waiting to be saved, if there is one."""
        run, self._waiting = self._waiting, None
        if run is None or self._models is None or self._unfilled is None:
            return
        arrays, about = self._unfilled.filled(run.best.variables, notes_of(run))
        self._saved_at = time.monotonic()
        self._models.save(int(run.best.epoch), arrays, loss=float(run.best.loss), about=about)

    def _example(self, run: Run) -> Any:
        """Return None if the model takes the outputs of `preprocess`; otherwise the shapes of its training inputs."""
        if run.preprocess.takes_sequences:
            return None
        inputs = jax.eval_shape(lambda each: each, self._inputs)
        prepared = saved.prepared_shapes(run.preprocess)
        return None if getattr(inputs, "shape", (0,))[1:] == prepared.shape[1:] else inputs
