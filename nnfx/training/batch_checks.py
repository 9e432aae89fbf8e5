"""Checks of batches: that arrays are numbers of matching shapes, and that concrete values are valid."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks, losses, trees
from nnfx.metrics.marks import is_overall
from nnfx.training import rows
from nnfx.types import Batch, PerExample


def check_batch(name: str, batch: Batch) -> None:
    """Check that inputs are real numbers, and that all arrays have the same number of rows, and at least one.

    The arrays are the inputs, the targets and the weights.
    """
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
    check_targets(measures, data, outputs, seen, targets)


def check_targets(measures: Mapping[str, PerExample], batch: Batch, outputs: Any, seen: Any, targets: Any) -> None:
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
