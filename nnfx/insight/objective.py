"""The objective: the empirical loss of a model on a batch, as a function of the parameters only."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from nnfx import checks, losses, memo
from nnfx.training import rows
from nnfx.training.batch_checks import check_batch, check_outputs, check_values
from nnfx.training.step import evaluate
from nnfx.types import Array, Batch, Model, Params, PerExample, Variables

ELEMENTS_AT_ONCE = 2**15
"""How many parameters and inputs to hold at once when many copies of a small network are evaluated together: with the
activations, they fit in the cache of a core."""
EXAMPLES_ALONE = 256
"""With this many examples or more, networks are evaluated one at a time."""
LARGE = 2**25
"""With this many parameters times examples or more, one evaluation keeps all cores busy by itself."""


def check(
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    key: Array | None = None,
    train: bool = False,
) -> Any:
    """Check that a model, a loss, variables and a batch match each other, before anything is traced.

    Returns:
        The shape of the model's outputs.

    Raises:
        TypeError: for arguments of the wrong type, or parameters that are not floats.
        ValueError: for variables without parameters, values that are not finite, lengths that differ, targets that
            do not suit the loss, and a loss that is not per example.
    """
    check_model(model)
    if not callable(loss):
        raise TypeError(f"loss: expected a function of outputs and targets, got {checks.describe(loss)}")
    check_variables(variables)
    if not isinstance(batch, Batch):
        raise TypeError(f"batch: expected a Batch, such as data.train, got {type(batch).__name__}")
    check_batch("batch", batch)
    checks.weights("batch.weights", batch.weights)
    if key is not None:
        checks.key("key", key)

    try:
        outputs = _applied.eval_shape(model, train, variables, batch, key)
    except InvalidRngError as error:
        raise ValueError(
            "train: expected False for a model that draws random numbers in training and is given no key for them,"
            " got True"
        ) from error
    check_outputs(outputs, batch.weights.shape[0])
    seen, targets = check_values("batch", batch, outputs)
    losses.check(loss, seen, targets)
    values = _per_example.eval_shape(loss, seen, targets)
    if getattr(values, "shape", None) != seen.shape[:1]:
        raise ValueError(f"loss: expected one value per example, [{seen.shape[0]}], got {checks.describe(values)}")
    return outputs


@memo.compiled(static=2)  # compiled, so that a model is traced once for many checks
def _applied(model: Model, train: bool, variables: Variables, batch: Batch, key: Array | None) -> Any:
    """Return a model's outputs for a batch."""
    return _trained(model, variables, batch, key) if train else model.apply(variables, batch.inputs)


def _trained(model: Model, variables: Variables, batch: Batch, key: Array | None) -> Array:
    """Return a model's outputs for a batch, applied as in training."""
    weights = batch.weights
    if weights.ndim > 1:
        weights = rows.model_weights(jax.eval_shape(model.apply, variables, batch.inputs), batch)
    return model.apply(variables, batch.inputs, key=key, weights=weights, train=True)[0]


@memo.compiled()
def _per_example(loss: PerExample, outputs: Any, targets: Any) -> Array:
    """Return the loss of each example."""
    return loss(outputs, targets)


def check_model(model: Any) -> None:
    """Require a model."""
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model(init, apply), got {checks.describe(model)}")


def check_variables(variables: Any) -> None:
    """Raise an error for variables without parameters, or with parameters that are not finite floats."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables: expected variables of a model, {{'params': ...}}, got {checks.describe(variables)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    if not leaves:
        raise ValueError("variables: expected at least one parameter, got none")
    for path, leaf in leaves:
        name = f"variables: {name_of(path)}"
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name}: expected floats, got {checks.describe(leaf)}")
        checks.finite(name, leaf)


def name_of(path: Any) -> str:
    """Return the name of a leaf, such as `hidden_0/kernel`; for a tree that is a single array, `params`."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def objective(
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    key: Array | None = None,
    train: bool = False,
) -> Callable[[Params], Array]:
    """Return the empirical loss `Σ wᵢ ℓᵢ / Σ wᵢ` as a function of the parameters, with all else fixed.

    Args:
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; their parameters are not used.
        batch: the examples over which the loss is averaged.
        key: a typed key for the model's noise in training mode, the same at every call; None for models without noise.
        train: whether to apply the model in training mode: with noise, and with batch norm by batch statistics.
    """
    state = {name: value for name, value in variables.items() if name != "params"}

    def of(params: Params) -> Array:
        applied = {"params": params, **state}
        if not train:
            return evaluate(model, {"loss": loss}, applied, batch)["loss"].value
        filled = rows.filled(batch)
        return rows.measure({"loss": loss}, _trained(model, applied, filled, key), filled)["loss"].value

    return of


def at_once(params: Params, batch: Batch) -> int:
    """Return how many networks to evaluate together: many if they are small, one if they are large.

    Small networks evaluated together use a CPU's vector units better; with many examples, a single network suffices,
    and large networks evaluated together overflow the caches.
    """
    if batch.weights.shape[0] >= EXAMPLES_ALONE:
        return 1
    elements = sum(leaf.size for leaf in jax.tree.leaves((params, batch.inputs)))
    return max(1, ELEMENTS_AT_ONCE // elements)


def unroll(params: Params, batch: Batch) -> int:
    """Return how many networks to evaluate per iteration of a loop, for networks that are evaluated one at a time.

    XLA distributes independent operations over a CPU's cores. Convolutions use all cores by themselves and gain
    nothing.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return 3 if size * batch.weights.shape[0] < LARGE else 1
