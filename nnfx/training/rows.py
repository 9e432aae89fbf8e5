"""Handling of rows and steps of weight zero, which must not affect the model, the loss or the gradient.

Zero times a non-finite value is NaN, in the forward pass and in the gradient. So rows of weight zero are replaced by
copies of a row with positive weight before anything is computed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.data import sequences
from nnfx.data.batching import Order
from nnfx.metrics.marks import is_counted, is_overall
from nnfx.types import Array, Batch, Mean, PerExample, Sequences

MaybeBatch = TypeVar("MaybeBatch", Batch, Batch | None)


class Filled(Batch):
    """A batch returned by `filled`, or rows of such a batch; the type tells later functions that it has been filled."""

    __slots__ = ()


class Weighted(Filled):
    """A filled batch with at least one positive weight, or data with only such batches, so that no step is skipped."""

    __slots__ = ()


def known(data: MaybeBatch) -> MaybeBatch:
    """Return data as `Weighted` if there is one weight per row, and all weights are concrete and positive.

    A run on such data, the common case, is thus compiled without handling of rows of weight zero.

    Example:
        >>> type(known(Batch(jnp.ones((2, 1)), jnp.ones(2), jnp.ones(2)))).__name__
        'Weighted'
        >>> type(known(Batch(jnp.ones((2, 1)), jnp.ones(2), jnp.array([0.0, 1.0])))).__name__
        'Batch'
    """
    if data is None:
        return data
    weights = data.weights
    is_here = checks.is_concrete(weights) and getattr(weights, "is_fully_addressable", True)
    if not is_here or weights.ndim != 1 or has_lengths(data) or not (np.asarray(weights) > 0).all():
        return data
    return Weighted(*data)


def filled(batch: Batch) -> Filled:
    """Replace rows of weight zero by copies of the first row with positive weight, and set padding to zero.

    Padding means the steps of `Sequences` beyond their lengths. Weights are unchanged. If all weights are zero, all
    rows become copies of the first row. NumPy arrays stay NumPy arrays.

    Example:
        >>> filled(Batch(jnp.array([[jnp.nan], [1.0]]), jnp.array([7, 1]), jnp.array([0.0, 1.0]))).inputs.tolist()
        [[1.0], [1.0]]
    """
    if isinstance(batch, Filled):
        return batch
    library = _library(batch)
    has_weight = _has_weight(library.asarray(batch.weights))
    first = has_weight.argmax()
    return _replaced(batch, library, has_weight, lambda leaf: library.asarray(leaf)[first])


def zeroed(batch: Batch) -> Filled:
    """Set padding and rows of weight zero to zero; no row is copied from another.

    Example:
        >>> zeroed(Batch(jnp.array([[jnp.nan], [1.0]]), jnp.array([7, 1]), jnp.array([0.0, 1.0]))).inputs.tolist()
        [[0.0], [1.0]]
    """
    if isinstance(batch, Filled):
        return batch
    return _replaced(batch, jnp, _has_weight(batch.weights), lambda _: 0)


def _replaced(batch: Batch, library: Any, has_weight: Any, instead: Callable[[Any], Any]) -> Filled:
    """Set padding to zero, and replace the rows of weight zero of each array by `instead(array)`."""

    def fill(leaf: Any) -> Any:
        if leaf.shape[:1] != has_weight.shape:
            return leaf
        return library.where(has_weight.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, instead(leaf))

    return Filled(jax.tree.map(fill, without_padding(batch).inputs), fill(batch.targets), batch.weights)


def _has_weight(weights: Any) -> Any:
    """Return the mask of rows with a positive weight, `(rows,)`, given weights `(rows, ...)`."""
    return (weights != 0).reshape(weights.shape[0], -1).any(1)


def _library(tree: Any) -> Any:
    """Return `jax.numpy` if any array is a JAX array, and NumPy otherwise."""
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)) else np


def weighted(order: Order, weights: Array) -> Order:
    """Replace rows of weight zero in an order by the first row with positive weight, and mark them as not real.

    This fills the batches of a whole epoch at once, without copying data.

    Args:
        order: the rows of each batch.
        weights: the weights of all rows, `(rows,)` or `(rows, ...)`.

    Example:
        >>> weighted(Order(jnp.array([1, 0]), jnp.array([True, True])), jnp.array([0.0, 1.0])).rows.tolist()
        [1, 1]
    """
    has_weight = _has_weight(weights)
    is_real = order.is_real & has_weight[order.rows]
    return Order(jnp.where(has_weight[order.rows], order.rows, has_weight.argmax()), is_real)


def without_padding(batch: Batch) -> Batch:
    """Set sequences to zero beyond their lengths."""

    def cut(node: Any) -> Any:
        if not isinstance(node, Sequences) or node.lengths is None:
            return node
        return node._replace(values=sequences.without_padding(_library(node), node.values, node.lengths))

    return batch._replace(inputs=jax.tree.map(cut, batch.inputs, is_leaf=lambda node: isinstance(node, Sequences)))


def has_lengths(batch: Batch) -> bool:
    """Return whether the inputs are sequences with lengths."""
    return isinstance(batch.inputs, Sequences) and batch.inputs.lengths is not None


def is_by_step(outputs: Any, batch: Batch) -> bool:
    """Return whether losses and metrics are computed for each step or output rather than for each example.

    This is the case if steps or outputs have weights, or if sequences of unequal length have outputs and targets at
    every step.

    Args:
        outputs: the outputs of the model, or their shape.
        batch: the batch to which the outputs belong.

    Raises:
        ValueError: if steps or outputs have weights, but the outputs or targets do not have the same leading axes.
    """
    axes = batch.weights.ndim
    if axes > 1:
        for name, array in (("model", outputs), ("targets", batch.targets)):
            if array.shape[:axes] != batch.weights.shape:
                raise ValueError(
                    f"{name}: expected {'outputs ' if name == 'model' else ''}(batch, {'time, ' * (axes == 2)}...) for"
                    f" the weights of each step or output, {checks.describe(batch.weights)}, got"
                    f" {checks.describe(array)}"
                )
        return True
    if not has_lengths(batch) or outputs.ndim < 3:
        return False
    steps = batch.inputs.values.shape[:2]
    return bool(outputs.shape[:2] == steps and batch.targets.shape[:2] == steps)


def measured_weights(outputs: Any, batch: Batch) -> Any:
    """Return the weights for losses and metrics: `(batch,)`, or `(batch, time, ...)` for each step or output."""
    if not is_by_step(outputs, batch):
        return batch.weights
    weights = batch.weights if batch.weights.ndim > 1 else batch.weights[:, None]
    if not has_lengths(batch) or outputs.ndim < 3:
        return weights
    is_real = sequences.is_real(batch.inputs.values.shape[1], batch.inputs.lengths)
    is_real = is_real.reshape(*is_real.shape, *(1,) * (weights.ndim - 2))
    library = _library((weights, is_real))
    return library.where(is_real, weights, library.zeros((), weights.dtype))


def model_weights(outputs: Any, batch: Batch) -> Any:
    """Return the weights that a model sees: `(batch,)`, or `(batch, time)` if steps have weights.

    If outputs have their own weights, the weight of an example or step is the largest weight of its outputs.

    Args:
        outputs: the shape of the outputs.
        batch: the batch to which the outputs belong.
    """
    weights = batch.weights
    axes = weights.ndim - (outputs.shape == weights.shape)
    has_steps = axes > 1 and jax.tree.leaves(batch.inputs)[0].ndim <= 3
    kept = 2 if has_steps else 1
    return weights if weights.ndim <= kept else weights.reshape(*weights.shape[:kept], -1).max(-1)


def examples(outputs: Any, batch: Batch) -> tuple[Any, Any, Any]:
    """Return the outputs, targets and weights for losses and metrics, with one row for each example, step or output.

    Targets of weight zero are replaced by the targets of a row with positive weight. If outputs have their own weights,
    outputs and targets become `(rows, 1)`, so the loss sees examples with a single output.
    """
    weights = measured_weights(outputs, batch)
    if weights.ndim == 1:
        return outputs, batch.targets, weights
    is_by_number = outputs.ndim == weights.ndim == batch.targets.ndim
    own = (1,) if is_by_number else None

    def flat(array: Any) -> Any:
        return array.reshape(-1, *(array.shape[weights.ndim :] if own is None else own))

    steps = filled(Batch((), flat(batch.targets), weights.reshape(-1)))
    return flat(outputs), steps.targets, steps.weights


def measure(measures: Mapping[str, PerExample], outputs: Array, batch: Batch) -> dict[str, Mean]:
    """Return the means of the per-example losses and metrics, given the outputs for a batch."""
    outputs, targets, weights = examples(outputs, batch)
    return {
        name: Mean.of(function(outputs, targets), _counted(weights) if is_counted(function) else weights)
        for name, function in measures.items()
        if not is_overall(function)
    }


def measure_overall(measures: Mapping[str, Callable[..., Array]], outputs: Array, batch: Batch) -> dict[str, Mean]:
    """Return the metrics over all rows at once, such as areas under curves, given the outputs for all rows.

    If outputs have their own weights, a metric is the mean of its values for each output with a positive weight.
    """
    found = {}
    for name, function in measures.items():
        if is_overall(function):
            value = overall_value(function, outputs, batch)
            found[name] = Mean(value, jnp.ones((), value.dtype))
    return found


def overall_value(function: Callable[..., Array], outputs: Array, batch: Batch) -> Array:
    """Return one metric over all rows at once; see `measure_overall`."""

    def value(outputs: Array, targets: Array, weights: Array) -> Array:
        return function(outputs, targets, _counted(weights) if is_counted(function) else weights)

    weights = measured_weights(outputs, batch)
    if weights.ndim == 1 or outputs.ndim != weights.ndim or batch.targets.ndim != weights.ndim:
        return value(*by_label(*examples(outputs, batch)))
    rows = weights.shape[:2] if has_lengths(batch) and weights.ndim > 2 else weights.shape[:1]
    columns = [jnp.asarray(each).reshape(math.prod(rows), -1) for each in (outputs, batch.targets, weights)]
    values = jax.vmap(value, in_axes=1)(*columns)
    is_some = (columns[2] != 0).any(0)
    return Mean.of(values, is_some.astype(values.dtype)).value


def by_label(outputs: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return examples that have several labels each, such as one for each step, with one row for each label."""
    has_several = targets.ndim > 1 and outputs.shape[:-1] == targets.shape
    if not has_several or not jnp.issubdtype(targets.dtype, np.integer):
        return outputs, targets, weights
    weights = jnp.broadcast_to(weights.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
    return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), weights.reshape(-1)


def _counted(weights: Array) -> Array:
    """Return 1 for rows with positive weight, and 0 for other rows."""
    return (weights != 0).astype(weights.dtype)
