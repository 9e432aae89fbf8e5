"""The result of a run."""

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, memo
from nnfx.data.prepare import Preprocess
from nnfx.training import batch_checks, integers
from nnfx.training.epochs import Best, reason
from nnfx.training.padded_predictions import apply_padded
from nnfx.training.parts import Recipe
from nnfx.training.step import evaluate
from nnfx.types import Array, Batch, Hyper, Model, TrainState, Variables


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "best", "columns", "epochs", "stopped_by", "hyper", "preprocess"],
    meta_fields=["fit"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished training run: a tree of arrays, so `vmap` stacks runs and `grad` differentiates through them.

    Attributes:
        state: the training state after the last epoch.
        best: the weights with the lowest held-out loss; without held-out data, the last weights.
        columns: the columns of `history`, with zeros for epochs after the stop.
        epochs: the number of epochs run.
        stopped_by: the position of the stopping rule that ended the run, −1 if it ran to its last epoch.
        hyper: the hyper-parameters of the run.
        preprocess: the preprocessing of raw features, and the map from outputs back to the units of the raw targets.
        fit: the run function that made the run.
    """

    state: TrainState
    best: Best
    columns: dict[str, Array]
    epochs: Array
    stopped_by: Array
    hyper: Hyper
    preprocess: Preprocess
    fit: Recipe

    @property
    def history(self) -> dict[str, Array]:
        """The values of each metric by epoch, `(epochs,)`; NaN for epochs after the run stopped.

        For example, `train_loss` is averaged over the steps of the epoch, and `valid_loss` is measured at its end. A
        metric with nothing to average, as in an epoch whose steps were all skipped, is also NaN.
        """
        if not self.fit.rule_names:
            return dict(self.columns)
        return {name: padded(values, self.epochs) for name, values in self.columns.items()}

    def __repr__(self) -> str:
        """Return a summary: the epochs run, the final and best metrics, and the number of parameters.

        >>> import nnfx, optax
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
        >>> data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
        >>> train(jax.random.key(0), data, learning_rate=0.5)  # doctest: +ELLIPSIS
        Run: 2 of 2 epochs, last epoch; learning_rate 0.5
          epoch 2, the best: train_loss ...
          3 parameters
        """
        numbers = "".join(f"; {name} {_in_short(value)}" for name, value in self.hyper.items())
        if np.ndim(self.epochs) or not checks.is_concrete(self.epochs):
            return f"Run: {checks.describe(self.epochs)} of {self.fit.epochs} epochs{numbers}"
        last, best = int(self.epochs), int(self.best.epoch)
        lines = [f"Run: {last} of {self.fit.epochs} epochs, {self.reason}{numbers}"]
        told = {last: self.final} | ({best: self.best_metrics} if best else {})
        for epoch, metrics in sorted(told.items()):
            measured = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
            lines.append(f"  epoch {epoch}{', the best' if epoch == best else ''}: {measured}")
        lines.append(f"  {sum(leaf.size for leaf in jax.tree.leaves(self.best.params))} parameters")
        return "\n".join([*lines, *([f"  {self.fault}"] if self.fault else [])])

    @property
    def reason(self) -> str:
        """Why the run ended: the name of the stopping rule, or `"last epoch"`."""
        self._require_single()
        return reason(int(self.stopped_by), self.fit.rule_names)

    @property
    def fault(self) -> str:
        """A description of what was not finite in the first skipped step; empty if no step was skipped."""
        self._require_single()
        skipped, step, where = (int(number) for number in self.state.fault)
        if not skipped:
            return ""
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.state.params)]
        what = "the loss" if where == 0 else f"the gradient of {paths[where - 1]}"
        return f"{what} was not finite at step {step}; {skipped} steps were skipped"

    @property
    def final(self) -> dict[str, Array]:
        """The metrics of the last epoch run, for the last weights; `predict` uses the best weights instead."""
        return _at(self.columns, self.epochs)

    @property
    def best_metrics(self) -> dict[str, Array]:
        """The metrics of the epoch with the best weights, which `apply`, `predict` and `evaluate` use."""
        return _at(self.columns, self.best.epoch)

    @property
    def model(self) -> Model:
        """The model, with the run's hyper-parameters filled in."""
        return self.fit.bind(self.hyper).model

    def apply(self, inputs: ArrayLike, variables: Variables | None = None) -> Array:
        """Return the model's outputs for inputs preprocessed like `data.train.inputs`, `(batch, ...)`.

        Args:
            inputs: the preprocessed inputs.
            variables: the variables to use, such as `run.state.variables` for the last weights; by default, the best.
        """
        self._require_single()
        inputs = batch_checks.inputs_as_arrays("inputs", inputs)
        chosen = self._chosen(variables)
        integers.check_inputs(self.fit, self.model, chosen, inputs)
        return apply_padded(
            self.fit,
            lambda rows: _apply(self.fit, _shapes(rows), self.hyper, chosen, rows),
            inputs,
            (self.hyper, chosen),
        )

    def predict(self, inputs: Any, variables: Variables | None = None) -> Array:
        """Preprocess raw inputs, `(batch, features)` or `Sequences`, and return the model's outputs.

        The argument `variables` is described in `apply`.

        If the targets were standardised, the outputs of `apply` are in standardised units; the outputs of `predict` are
        in the units of the raw targets.
        """
        self._require_single()
        return self.preprocess.raw_outputs(self.apply(self.preprocess(inputs), variables))

    def evaluate(self, data: Batch, variables: Variables | None = None) -> dict[str, Array]:
        """Return the loss and the metrics on preprocessed data, such as `data.valid`; see `apply` for `variables`."""
        self._require_single()
        if not isinstance(data, Batch):
            raise TypeError(f"data: expected a Batch, such as data.valid, got {type(data).__name__}")
        data = batch_checks.as_arrays("data", data)
        chosen = self._chosen(variables)
        outputs = _apply.eval_shape(self.fit, _shapes(data.inputs), self.hyper, chosen, data.inputs)
        batch_checks.check_evaluation(data, self.fit.measures, outputs)
        integers.check(self.model, data, chosen)
        return _evaluate(self.fit, _shapes(data), self.hyper, chosen, data)

    def save(self, path: str | os.PathLike[str], inputs: Any = None) -> None:
        """Write the model with its best weights, so that `nnfx.load` predicts with it in another process.

        The folder contains the weights, the preprocessing, the names of features and classes, the hyper-parameters, the
        metrics, the package versions, a checksum of every file, and the model as a portable program for CPUs, CUDA and
        TPUs, where supported. It contains neither Python code nor pickles. The program takes any number of rows, and
        any number of steps of a sequence if the model allows it. Releases of JAX from the following six months can read
        it.

        Args:
            path: a folder that does not exist yet.
            inputs: preprocessed example inputs. Pass them if the model's inputs are not a single array with the shape
                of the preprocessed features, for example if they are `Sequences`.

        Raises:
            FileExistsError: if the path already exists.
            ValueError: for a model that cannot be exported, such as one that calls cuDNN, and for a call within `jit`
                or `grad`. Nothing is written in these cases.

        Example:
            >>> import nnfx, optax, tempfile
            >>> data = nnfx.data.prepare([[1.0], [2.0], [4.0]], [2.0, 4.0, 8.0])
            >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
            >>> path = f"{tempfile.mkdtemp()}/saved"
            >>> train(jax.random.key(0), data, learning_rate=0.3).save(path)
            >>> nnfx.load(path)
            Predictor: float32[batch,1] -> float32[batch,1]
              epoch 2: train_loss ...
              2 parameters
              saved by nnfx ... and JAX ...
        """
        from nnfx.saving.saved import save

        self._require_finished()
        inputs = None if inputs is None else batch_checks.inputs_as_arrays("inputs", inputs)
        save(path, self.model, self.best.variables, self.preprocess, notes_of(self), inputs)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write one portable file that maps raw inputs, `(batch, features)`, to outputs, for any number of rows.

        The preprocessing is included, so inputs are raw float32 (int32 for tokens), with NaN for missing values if the
        run fills them. The categories of a data frame are an exception: the file takes a 0/1 column for each category,
        in the order of `data.features` but without the indicators of missing values, whereas `save` keeps the frame's
        own columns. Before the file is moved to `path`, its outputs are compared with `predict` on a few rows.

        Args:
            path: a file that does not exist yet. Its suffix determines the format: `.stablehlo` is written by
                `jax.export`, and needs only JAX:
                `predict = jax.export.deserialize(bytearray(open(path, "rb").read())).call`. `.onnx` is written by
                jax2onnx, for onnxruntime and others:
                `pip install 'nnfx[onnx]'` and then `pip install --no-deps jax2onnx`.

        Raises:
            FileExistsError: if the path already exists.
            ImportError: if a package that the format needs is missing.
            ValueError: for any other suffix; for a model, preprocessing or precision that the format does not support,
                such as cuDNN, or features too far from zero for float32; and if the outputs of the file differ from
                the outputs of `predict`.

        Example:
            >>> import jax.export, nnfx, optax, pathlib, tempfile
            >>> data = nnfx.data.prepare([[1.0], [2.0], [4.0]], [2.0, 4.0, 8.0])
            >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=50)
            >>> run = train(jax.random.key(0), data, learning_rate=0.3)
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "twice.stablehlo"
            >>> run.export(path)
            >>> predict = jax.export.deserialize(bytearray(path.read_bytes())).call
            >>> bool(jnp.allclose(predict(np.float32([[3.0]])), run.predict([[3.0]])))
            True
        """
        from nnfx.saving.exporting import export

        self._require_finished()
        export(path, self.model, self.best.variables, self.preprocess)

    def _chosen(self, variables: Variables | None) -> Variables:
        if variables is None:
            return self.best.variables
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise TypeError(
                "variables: expected {'params': ...}, such as run.state.variables, got"
                f" {list(variables) if isinstance(variables, Mapping) else type(variables).__name__}"
            )
        return variables

    def _require_single(self) -> None:
        if np.ndim(self.epochs):
            raise ValueError(f"run: expected a single run, got {self.epochs.shape} runs; map over runs with jax.vmap")

    def _require_finished(self) -> None:
        self._require_single()
        if not checks.is_concrete(self):
            raise ValueError("run: expected a finished run, got a traced run; write runs outside jit and grad")


def _in_short(value: Any) -> str:
    """Format a hyper-parameter for printing: `0.1` rather than all digits of the float32 number nearest to it."""
    is_number = np.ndim(value) == 0 and checks.is_concrete(value)
    return f"{float(value):g}" if is_number else checks.describe(value)


def notes_of(run: Run) -> dict[str, Any]:
    """Return the notes about a run that are stored in a saved model."""
    epoch = int(run.best.epoch)
    return {
        "hyper": {name: np.asarray(value).tolist() for name, value in run.hyper.items()},
        "metrics": {name: float(np.asarray(values)[epoch - 1]) for name, values in run.columns.items()},
        "epoch": epoch,
    }


def _shapes(inputs: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(inputs))


def _at(columns: dict[str, Array], epoch: Array) -> dict[str, Array]:
    if checks.is_concrete((columns, epoch)):  # on the host, which takes no program
        at = (np.asarray(epoch) - 1)[..., None]
        found = {name: np.take_along_axis(np.asarray(column), at, -1)[..., 0] for name, column in columns.items()}
        return jax.device_put(found)
    place = (epoch - 1)[..., None]
    return {name: jnp.take_along_axis(column, place, -1)[..., 0] for name, column in columns.items()}


def padded(values: Any, epochs: Any) -> Any:
    """Return columns of a history, `(..., epochs)`, with NaN after the number of epochs run, `(...)`.

    Concrete values are padded on the host, so that the NaN values do not trigger `jax_debug_nans`.

    >>> padded(np.array([2.0, 1.0, 0.0]), np.array(2))
    array([ 2.,  1., nan])
    """
    numbers = np.arange(values.shape[-1])
    if checks.is_concrete((values, epochs)):
        is_run = numbers < np.asarray(epochs)[..., None]
        columns = np.where(is_run, np.asarray(values), np.asarray(np.nan, values.dtype))
        return jax.device_put(columns) if isinstance(values, jax.Array) else columns
    return jnp.where(numbers < epochs[..., None], values, jnp.nan)


@memo.compiled(static=2)
def _apply(
    recipe: Recipe, shapes: tuple[tuple[int, ...], ...], hyper: Hyper, variables: Variables, inputs: ArrayLike
) -> Array:
    del shapes  # one memo entry per number of rows, so that old programs are released if there are too many
    return recipe.bind(hyper).model.apply(variables, inputs)


@memo.compiled(static=2)
def _evaluate(
    recipe: Recipe, shapes: tuple[tuple[int, ...], ...], hyper: Hyper, variables: Variables, data: Batch
) -> dict[str, Array]:
    del shapes  # one memo entry per number of rows, as in `_apply`
    parts = recipe.bind(hyper)
    return {name: mean.value for name, mean in evaluate(parts.model, parts.measures, variables, data).items()}
