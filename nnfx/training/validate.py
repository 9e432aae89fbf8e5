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

from nnfx import arrays, checks, losses, memo, trees
from nnfx.data.prepare import Data
from nnfx.metrics.marks import is_overall
from nnfx.training import integers, rows
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
            check_batch(name, batch)
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
    check_outputs(outputs, size)
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
    """Return a hint for a part that needs the value of a traced hyper-parameter."""
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


def check_batch(name: str, batch: Batch) -> None:
    """Check that inputs are real numbers, and that inputs, targets and weights have equally many rows, at least one."""
    weights = batch.weights
    if weights.ndim == 0 or weights.size == 0 or not jnp.issubdtype(weights.dtype, np.floating):
        raise ValueError(
            f"{name}.weights: expected floats (rows,), at least one, or (rows, ...), got {checks.describe(weights)}"
        )
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[:1] != weights.shape[:1]:
            raise ValueError(
                f"{name}: expected {weights.shape[0]} rows, as many as weights, got {checks.describe(leaf)}"
            )
    for leaf in jax.tree.leaves(batch.inputs):
        checks.numeric(f"{name}.inputs", leaf)


def as_arrays(name: str, batch: Batch) -> Batch:
    """Convert the arrays of a batch to JAX arrays.

    Raises:
        TypeError: for anything other than a batch, and arrays that do not contain real numbers.
        ValueError: for numbers that the device cannot hold.
    """
    if not isinstance(batch, Batch):
        raise TypeError(f"{name}: expected a Batch, such as data.valid, got {type(batch).__name__}")
    targets, weights = (_as_array(f"{name}.{part}", getattr(batch, part)) for part in ("targets", "weights"))
    if not jnp.issubdtype(weights.dtype, np.floating) and not jnp.issubdtype(weights.dtype, np.complexfloating):
        weights = weights.astype(float)
    return batch._replace(inputs=inputs_as_arrays(f"{name}.inputs", batch.inputs), targets=targets, weights=weights)


def inputs_as_arrays(name: str, inputs: Any) -> Any:
    """Convert inputs, an array or a tree of arrays, to JAX arrays; a list of numbers is one array."""
    leaves = jax.tree.leaves(inputs)
    if isinstance(inputs, list) and all(np.ndim(leaf) == 0 for leaf in leaves):
        return _as_array(name, inputs)
    return jax.tree.map(lambda leaf: _as_array(name, leaf), inputs)


def _as_array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return value
    return arrays.to_device(name, arrays.as_numpy(name, value))


def check_evaluation(data: Batch, measures: Mapping[str, PerExample], outputs: Any) -> None:
    """Check the data that a model is evaluated on; traced values are not checked.

    Args:
        data: the examples.
        measures: losses and metrics by name.
        outputs: the shape of the model's outputs for the examples.

    Raises:
        TypeError: for inputs that are not real numbers.
        ValueError: for sizes that do not match, numbers that are not finite, negative weights, and targets that do not
            suit a loss.
    """
    check_batch("data", data)
    check_outputs(outputs, data.weights.shape[0])
    checks.finite("data.weights", data.weights)
    weights = checks.near(data.weights)[0] if checks.is_concrete(data.weights) else None
    if weights is not None and bool((weights < 0).any()):
        raise ValueError(f"data.weights: expected non-negative numbers, got {float(weights.min()):g}")
    seen, targets = check_values("data", data, outputs)
    if weights is not None and not bool((weights != 0).any()):
        return  # all weights are zero, so the means are NaN
    _check_targets(measures, data, outputs, seen, targets)


def _check_targets(measures: Mapping[str, PerExample], batch: Batch, outputs: Any, seen: Any, targets: Any) -> None:
    """Check targets against losses and metrics; `outputs` is a shape, `seen` and `targets` come from `check_values`."""
    is_by_number = batch.weights.ndim > 1 and outputs.ndim == batch.targets.ndim == batch.weights.ndim
    for measure in measures.values():
        if not is_overall(measure):
            losses.check(measure, seen, targets)
            continue
        given = seen, trees.shapes(targets), jax.ShapeDtypeStruct(seen.shape[:1], batch.weights.dtype)
        if is_by_number:  # each output counts as a row, as in rows.overall_value
            given = jax.eval_shape(lambda *each: jax.tree.map(lambda column: column.reshape(-1), each), *given)
        own, labels, _ = jax.eval_shape(rows.by_label, *given)
        losses.check(measure, own, targets.reshape(labels.shape))


def check_outputs(outputs: Any, rows: int) -> None:
    """Check that the outputs of a model are one array with a row for each example."""
    if not hasattr(outputs, "shape") or outputs.shape[:1] != (rows,):
        raise ValueError(f"model: expected one output per example, ({rows}, ...), got {checks.describe(outputs)}")


def check_values(name: str, batch: Batch, outputs: Any) -> tuple[Any, Any]:
    """Check the inputs with positive weight, if they are concrete, and return the arguments for the losses.

    Returns:
        The shape of the outputs, and the targets, both with one row for each example, step or output.
    """
    for leaf in jax.tree.leaves((batch.inputs, batch.targets)):
        if isinstance(leaf, np.ndarray):
            arrays.to_device(name, leaf)  # raises if the device cannot hold the numbers
    has_weight = True
    if checks.is_concrete(batch):
        with jax.ensure_compile_time_eval():
            batch = jax.tree.map(lambda leaf: checks.near(leaf)[0], batch)
            has_weight = bool((batch.weights != 0).any())
            if rows.has_lengths(batch) or batch.weights.ndim > 1 or bool((batch.weights == 0).any()):
                batch = rows.filled(batch)
    for leaf in jax.tree.leaves(batch.inputs) if has_weight else ():
        checks.finite(f"{name}.inputs", leaf)
    if not rows.is_by_step(outputs, batch):
        return outputs, batch.targets
    few = (*outputs.shape[: max(2, batch.weights.ndim)], 1)[: outputs.ndim]  # the values of outputs do not matter
    with jax.ensure_compile_time_eval():
        return jax.eval_shape(rows.examples, outputs, trees.shapes(batch))[0], rows.examples(
            np.empty(few, bool), batch
        )[1]


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
    seen, targets = check_values(name, batch, jax.ShapeDtypeStruct(shape, outputs.dtype))
    integers.check(recipe.bind(hyper).model, batch)
    measured = {  # metrics over all rows at once are computed from held-out data alone
        label: function
        for label, function in recipe.measures.items()
        if name == "data.valid" or not is_overall(function)
    }
    _check_targets(measured, batch, jax.ShapeDtypeStruct(shape, outputs.dtype), seen, targets)
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
