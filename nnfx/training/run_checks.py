"""Checks before training: shapes once for each signature, values once for each `Data`.

JAX arrays are immutable, so the results of checks are kept, and further calls of a run function skip them.
"""

import dataclasses
import functools
import re
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, losses, memo, trees
from nnfx.data.prepare import Data
from nnfx.metrics.marks import is_overall
from nnfx.training import batch_checks, integers, rows
from nnfx.training.hyperparameters import innermost, name_of
from nnfx.training.parts import Recipe, how_to_adapt
from nnfx.types import Array, Batch, Hyper, Model, PerExample


@dataclasses.dataclass
class Checked:
    """Results of the checks that a run function has passed in previous calls.

    Attributes:
        outputs: the shape of the outputs, for each signature that has been checked.
        data: the data whose values have been checked.
    """

    outputs: dict[Any, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    data: weakref.WeakSet[Data] = dataclasses.field(default_factory=weakref.WeakSet)


def check_model(model: Any) -> None:
    """Check that `model` is a `Model` rather than a factory or a module of another library."""
    if not isinstance(model, Model):
        hint = how_to_adapt(model)
        raise TypeError(f"model: expected a Model, such as nnfx.models.mlp((16,)), got {checks.describe(model)}{hint}")


def check_functions(loss: Any, metrics: Any, name: str = "metrics") -> None:
    """Check that the loss (or None) and the metrics are functions, and that no metric is named `loss`.

    Raises:
        TypeError: for anything that is not a function.
        ValueError: for a metric named `loss`, which would replace the loss.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f'{name}: expected functions by name, such as {{"accuracy": nnfx.metrics.accuracy}}, got'
            f" {checks.describe(metrics)}"
        )
    if loss is not None and "loss" in (metrics or {}):
        raise ValueError(f"{name}: expected names other than 'loss', the name of the loss itself, got 'loss'")
    functions = dict(metrics or {}) if loss is None else {"loss": loss, **(metrics or {})}
    for each, function in functions.items():
        if not callable(function):
            raise TypeError(f"{each}: expected a function of outputs and targets, got {checks.describe(function)}")
        inner = innermost(function)
        package = (getattr(inner, "__module__", None) or type(inner).__module__).partition(".")[0]
        if package in _NOT_ON_JAX:
            raise TypeError(
                f"{each}: expected a function of JAX arrays, got {name_of(function)} of {package}; {_INSTEAD}"
            )
    if loss is not None and is_overall(loss):
        raise TypeError(
            f"loss: expected one value per example, got {name_of(loss)}, which is a metric over all rows at once"
        )


_NOT_ON_JAX = ("keras", "numpy", "scipy", "sklearn", "torch", "torchmetrics")
"""Packages whose losses and metrics cannot be traced."""
_INSTEAD = (
    "use functions of nnfx.losses and nnfx.metrics, or names such as 'roc_auc'; other libraries can measure the"
    " outputs of run.predict after the run, or in evaluate= of a session"
)


def check_run(recipe: Recipe, data: Data, hyper: Hyper) -> None:
    """Check the data of a run.

    Args:
        recipe: the recipe of the run.
        data: the data passed to the run.
        hyper: the hyper-parameters of the run, as arrays.

    Raises:
        TypeError: for arrays that do not contain real numbers, and for a loss of numbers if the targets were three or
            more names of classes.
        ValueError: for invalid sizes, shapes or values.
    """
    loss = recipe.measures["loss"]
    if len(data.classes) > 2 and losses.is_of_numbers(loss):  # of two classes, 0 and 1, errors are meaningful
        raise TypeError(
            f"loss: expected a loss of classes, such as nnfx.losses.categorical_cross_entropy, for the classes"
            f" {checks.listed([repr(name) for name in data.classes], ', ', most=3)}, got {name_of(loss)}"
        )
    shapes = trees.shapes((data.train, data.valid, hyper))
    leaves, tree = jax.tree.flatten(shapes)
    signature = (tree, tuple(leaves))
    checked = memo.held(recipe, Checked, Checked)
    if signature not in checked.outputs:
        checked.outputs[signature] = _check_shapes(recipe, *shapes)
    if data in checked.data:
        return
    outputs = checked.outputs[signature]
    for name, batch in (("data.train", data.train), ("data.valid", data.valid)):
        if batch is not None:
            _check_data(recipe, name, batch, hyper, outputs)
    if all(isinstance(leaf, jax.Array) and checks.is_concrete(leaf) for leaf in jax.tree.leaves(data)):
        checked.data.add(data)


def _check_shapes(recipe: Recipe, train: Batch, valid: Batch | None, hyper: Hyper) -> jax.ShapeDtypeStruct:
    """Check all shapes by tracing the model and the loss, and return the shape of the training outputs."""
    size = train.weights.shape[0] if train.weights.ndim else 0
    for name, batch in (("data.train", train), ("data.valid", valid)):
        if batch is not None:
            batch_checks.check_batch(name, batch)
    if recipe.batch_size is not None and recipe.batch_size > size:
        raise ValueError(f"batch_size: expected at most the {size} rows of data.train, got {recipe.batch_size}")
    if valid is not None:
        for part in ("inputs", "targets"):
            ours, theirs = (jax.tree.map(lambda leaf: leaf.shape[1:], getattr(batch, part)) for batch in (train, valid))
            if ours != theirs:
                raise ValueError(f"data.valid.{part}: expected examples of shape {ours}, got {theirs}")

    def forward(hyper: Hyper, key: Array, batch: Batch) -> tuple[Array, Any]:
        parts = recipe.bind(hyper)
        for name, rule in zip(recipe.rule_names, parts.stop, strict=True):
            if rule.needs_valid and valid is None:
                raise ValueError(f"data.valid: expected held-out data for {name}, got none")
        variables = parts.model.init(key, batch.inputs)
        if "params" not in variables:
            raise ValueError(f"model: expected init to return {{'params': ...}}, got {list(variables)}")
        seen = batch if parts.augment is None else parts.augment(key, batch)
        if not isinstance(seen, Batch) or _shapes(seen.inputs) != _shapes(batch.inputs):
            got = checks.describe(seen.inputs) if isinstance(seen, Batch) else type(seen).__name__
            raise ValueError(
                f"augment: expected a Batch whose inputs are {checks.describe(batch.inputs)} as before, got {got}"
            )
        outputs = parts.model.apply(variables, batch.inputs)
        if parts.penalty is not None:
            _check_number("penalty", parts.penalty(variables["params"]))
        if parts.average is not None:
            _check_number("average", parts.average(jnp.ones((), jnp.int32)))
        weights = rows.model_weights(outputs, seen) if hasattr(outputs, "shape") else seen.weights
        trained = parts.model.apply(variables, seen.inputs, key=key, weights=weights, train=True)
        if not isinstance(trained, tuple) or len(trained) != 2:
            raise ValueError("model: expected apply(..., train=True) to return (outputs, model_state)")
        return outputs, trained[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        outputs, _ = jax.eval_shape(forward, hyper, key, train)
    except TypeError as error:
        if isinstance(error, jax.errors.ConcretizationTypeError) or re.search(r"Tracer|\w+\d\[\]", str(error)):
            error.add_note(_traced_note(re.findall(r"hyper\['(\w+)'\]", str(error)) or hyper))
        raise
    batch_checks.check_outputs(outputs, size)
    for batch in (train, valid) if valid is not None else (train,):
        of_batch = jax.ShapeDtypeStruct((batch.weights.shape[0], *outputs.shape[1:]), outputs.dtype)
        if batch.weights.ndim > 1 or rows.has_lengths(batch):  # sequences may have another length in `valid`
            of_batch = jax.eval_shape(forward, hyper, key, batch)[0]
        seen, targets, weights = jax.eval_shape(rows.examples, of_batch, batch)
        for name, function in recipe.measures.items():
            numbers = recipe.factories["loss"][0].pick(hyper) if name == "loss" else {}
            if is_overall(function):
                _check_overall(name, function, of_batch, batch)
                continue
            try:
                if name == "loss":
                    losses.check(function, seen, targets)
                values = jax.eval_shape(function, seen, targets, **numbers)
            except jax.errors.TracerArrayConversionError as error:
                error.add_note(
                    f"{name}: expected a function of JAX arrays, got a function that computes with NumPy; {_INSTEAD}"
                )
                raise
            except ValueError as error:
                if batch.weights.shape != of_batch.shape:
                    raise
                raise ValueError(
                    f"{name}: expected a mean over outputs, since outputs have their own weights, got a function"
                    f" that cannot be computed from single outputs: {error}"
                ) from error
            if getattr(values, "shape", None) != weights.shape:
                raise ValueError(
                    f"{name}: expected one value per example, [{weights.shape[0]}], got {checks.describe(values)};"
                    " the step computes the mean"
                )
            checks.numeric(name, values)
    return outputs


def _check_number(name: str, value: Any) -> None:
    """Check that a part of a run returns one number."""
    if jnp.shape(value) != ():
        raise ValueError(f"{name}: expected a function that returns one number, got one of {checks.describe(value)}")


def _traced_note(names: Iterable[str]) -> str:
    """Return the text of a hint, for errors of parts that need the value of a traced hyper-parameter."""
    return (
        f"{', '.join(names)}: hyper-parameters are traced, so they cannot determine a shape, a branch or a Python"
        " number: fix such a value with functools.partial; the schedules of nnfx.schedules and the dropout of nnfx.ops"
        " and nnfx.models take traced numbers"
    )


def _check_overall(name: str, metric: PerExample, outputs: Any, batch: Any) -> None:
    """Check that a metric over all rows at once returns one number."""
    value = jax.eval_shape(functools.partial(rows.overall_value, metric), outputs, batch)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"{name}: expected one number for all rows together, got {checks.describe(value)}")
    checks.numeric(name, value)


def check_stored(recipe: Recipe, data: Data, hyper: Hyper, targets: np.ndarray, weights: np.ndarray) -> None:
    """Check stored targets and weights, in chunks of bounded size.

    Args:
        recipe: the recipe of the run.
        data: a sample of the data that has already been checked.
        hyper: the hyper-parameters of the run, as arrays.
        targets: all stored targets, `(rows, ...)`.
        weights: all stored weights, `(rows,)`.

    Raises:
        ValueError: for invalid values.
    """
    _check_batch_size(recipe, weights)
    model = recipe.bind(hyper).model
    inputs = trees.shapes(data.train.inputs)
    outputs = jax.eval_shape(lambda key, x: model.apply(model.init(key, x), x), jax.random.key(0), inputs)
    for i in range(0, len(targets), _ROWS_AT_ONCE):
        part = np.asarray(targets[i : i + _ROWS_AT_ONCE])
        shape = jax.ShapeDtypeStruct((len(part), *outputs.shape[1:]), outputs.dtype)
        for function in recipe.measures.values():
            if not is_overall(function):
                losses.check(function, shape, part)


_ROWS_AT_ONCE = 2**18


def _shapes(inputs: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), inputs)


def _check_data(recipe: Recipe, name: str, batch: Batch, hyper: Hyper, outputs: jax.ShapeDtypeStruct) -> None:
    """Check the values of a split of the data, if they are concrete."""
    checks.weights(f"{name}.weights", batch.weights)
    if checks.is_concrete(batch.weights) and name == "data.train":
        _check_batch_size(recipe, batch.weights)
    size = batch.weights.shape[0]
    shape = (size, *outputs.shape[1:])
    if batch.weights.ndim > 1 or rows.has_lengths(batch):
        is_by_step = batch.weights.ndim > 1
        time = batch.weights.shape[1:2] if is_by_step else jax.tree.leaves(batch.inputs)[0].shape[1:2]
        shape = (size, *time, *outputs.shape[2:]) if outputs.ndim > 2 or is_by_step else shape
    seen, targets = batch_checks.check_values(name, batch, jax.ShapeDtypeStruct(shape, outputs.dtype))
    integers.check(recipe.bind(hyper).model, batch)
    measured = {  # metrics over all rows at once are computed from held-out data alone
        label: function
        for label, function in recipe.measures.items()
        if name == "data.valid" or not is_overall(function)
    }
    batch_checks.check_targets(measured, batch, jax.ShapeDtypeStruct(shape, outputs.dtype), seen, targets)
    users_own = [
        label
        for label, function in recipe.measures.items()
        if not str(getattr(innermost(function), "__module__", "")).startswith("nnfx.") and not is_overall(function)
    ]
    if users_own and checks.is_concrete((targets, hyper)):
        # the outputs are random, so the results need not be finite
        with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
            trial = jax.random.uniform(jax.random.key(0), seen.shape, jnp.float32, 0.1, 0.9)
            measures = recipe.bind(hyper).measures
            for label in users_own:
                _check_rows_apart(label, measures[label], trial.astype(seen.dtype), jnp.asarray(targets))


def _check_batch_size(recipe: Recipe, weights: Any) -> None:
    """Check that batches of one row are used only if all weights are equal."""
    if recipe.batch_size == 1:
        with jax.ensure_compile_time_eval():
            used = weights[weights > 0]
            if used.min() != used.max():
                raise ValueError("batch_size: expected more than 1, since weights are relative within a batch, got 1")


def _check_rows_apart(label: str, function: PerExample, outputs: Array, targets: Array) -> None:
    """Check that the value of each row depends only on that row: accidental broadcasting mixes rows."""
    together = function(outputs, targets)
    for i in range(min(3, len(outputs))):
        alone = function(outputs[i : i + 1], targets[i : i + 1])
        if not np.allclose(np.float64(together[i]), np.float64(alone[0]), rtol=0.02, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{label}: expected the value of an example to depend on that example alone, got"
                f" {float(together[i]):g} for example {i} among others and {float(alone[0]):g} by itself; does it"
                f" broadcast outputs {checks.describe(outputs)} against targets {checks.describe(targets)}?"
            )
