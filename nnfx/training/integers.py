"""Checks of integer inputs, such as tokens: a model may reject their values, but only outside compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, memo
from nnfx.training import rows
from nnfx.types import Batch, Model, Variables


def check(model: Model, batch: Batch, variables: Variables | None = None) -> None:
    """Apply the model to concrete integers, such as tokens, so that it can raise an error for invalid values."""
    if not _integers(batch.inputs) or not checks.is_concrete(batch):
        return
    with jax.ensure_compile_time_eval():
        inputs = rows.filled(batch).inputs if bool((batch.weights != 0).any()) else batch.inputs
    if variables is None:
        jax.eval_shape(lambda key: model.init(key, inputs), jax.random.key(0))
    else:
        jax.eval_shape(lambda variables: model.apply(variables, inputs), variables)


def check_inputs(owner: Any, model: Model, variables: Variables, inputs: Any) -> None:
    """Check integers with `check`, unless they lie in a range that was checked before for this `owner`."""
    if not _integers(inputs) or not checks.is_concrete(inputs):
        return
    size = jax.tree.leaves(inputs)[0].shape[0]
    ones: Any = np.ones(size, np.float32)
    batch = Batch(inputs, ones, ones)
    with jax.ensure_compile_time_eval():
        leaves = [checks.near(leaf)[0] for leaf in _integers(rows.without_padding(batch).inputs) if leaf.size]
    ends = [(int(leaf.min()), int(leaf.max())) for leaf in leaves]
    seen: dict[int, list[tuple[int, int]]] = memo.held(owner, check_inputs, dict)
    known = seen.get(len(ends))
    if known is None or any(low < least or high > most for (low, high), (least, most) in zip(ends, known, strict=True)):
        check(model, batch, variables)
        pairs = zip(ends, known or ends, strict=True)
        seen[len(ends)] = [(min(low, least), max(high, most)) for (low, high), (least, most) in pairs]


def _integers(inputs: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(inputs) if jnp.issubdtype(leaf.dtype, np.integer)]
