"""What is checked of a run before anything is trained: shapes once for each signature, values every time."""

import functools
from typing import TYPE_CHECKING, Any

import jax

from nnfx import checks, losses
from nnfx.data.prepare import Data
from nnfx.types import Array, Batch, Hyper

if TYPE_CHECKING:
    from nnfx.training.fit import Fit


def run(fit: "Fit", data: Data, hyper: Hyper) -> None:
    """Raise on data that a run cannot be meant for.

    Args:
        fit: the run's function.
        data: what it was given.
        hyper: its hyper-parameters, as arrays.

    Raises:
        TypeError: for arrays that are not of real numbers.
        ValueError: for sizes, shapes or values that do not fit.
    """
    rows = data.train.weights.shape[0]
    if fit.batch_size is not None and fit.batch_size > rows:
        raise ValueError(f"batch_size: expected at most the {rows} rows of data.train, got {fit.batch_size}")
    if data.valid is None:
        for rule in fit.rules:
            if rule.build(rule.pick(hyper)).needs_valid:
                raise ValueError(f"data.valid: expected held-out data for {rule.name}, got none")
    for name, batch in (("data.train", data.train), ("data.valid", data.valid)):
        if batch is None:
            continue
        leaves, tree = jax.tree.flatten(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (batch, hyper))
        )
        outputs = _outputs(fit, name, tree, tuple(leaves))
        for leaf in jax.tree.leaves(batch.inputs):
            checks.finite(f"{name}.inputs", leaf)
        checks.finite(f"{name}.weights", batch.weights)
        losses.check(fit.loss.function, outputs, batch.targets)


@functools.lru_cache(maxsize=1024)
def _outputs(fit: "Fit", name: str, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> jax.ShapeDtypeStruct:
    """Return the shape of a model's outputs on a whole batch, after checking every shape on the way."""
    batch, hyper = jax.tree.unflatten(tree, leaves)
    for leaf in jax.tree.leaves(batch):
        if leaf.ndim == 0 or leaf.shape[0] != batch.weights.shape[0]:
            raise ValueError(
                f"{name}: expected {batch.weights.shape[0]} rows, as many as weights, got {checks.describe(leaf)}"
            )
    if batch.weights.ndim != 1 or batch.weights.shape[0] == 0:
        raise ValueError(f"{name}.weights: expected (rows,), at least one, got {checks.describe(batch.weights)}")
    for leaf in jax.tree.leaves(batch.inputs):
        checks.numeric(f"{name}.inputs", leaf)

    def forward(hyper: Hyper, key: Array, batch: Batch) -> Array:
        model = fit.model.build(hyper)
        return model.apply(model.init(key, batch.inputs), batch.inputs)

    outputs = jax.eval_shape(forward, hyper, jax.eval_shape(lambda: jax.random.key(0)), batch)
    if not hasattr(outputs, "shape") or not outputs.shape or outputs.shape[0] != batch.weights.shape[0]:
        raise ValueError(f"model: expected one output per example, got {checks.describe(outputs)}")
    losses.check(fit.loss.function, outputs, batch.targets)
    per_example = {"loss": fit.loss.function, **dict(fit.metrics)}
    for name_of_measure, function in per_example.items():
        numbers = fit.loss.pick(hyper) if name_of_measure == "loss" else {}
        values = jax.eval_shape(function, outputs, batch.targets, **numbers)
        if getattr(values, "shape", None) != batch.weights.shape:
            raise ValueError(
                f"{name_of_measure}: expected one value per example, {list(batch.weights.shape)},"
                f" got {checks.describe(values)}; leave the mean to the step"
            )
    return outputs
