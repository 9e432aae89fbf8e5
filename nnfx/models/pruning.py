"""Pruned models: masks that hold weights at zero, and masks that keep the largest weights."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, trees
from nnfx.bounds import Share
from nnfx.types import Apply, Array, Model, Params, Stream, Variables, at_least_float32

MASKS = "masks"
"""The collection of variables that holds the masks."""


def masked(model: Model, masks: Params | Callable[[Params], Params]) -> Model:
    """A pruned model: `model` with the parameters `m ⊙ w`, where the masks m are zero or one.

    Pruned weights are initialised to zero. Their gradient is zero, so they remain zero in training, even with weight
    decay. The masks are a collection of variables, `masks`, so each member of a sweep has its own masks, and masks are
    saved with the weights.

    Args:
        model: the model.
        masks: booleans, True for the weights to keep, in the tree of the parameters; or a function from the initial
            parameters to such masks, such as `functools.partial(magnitude_masks, keep=0.2)`.

    Returns:
        A model with the inputs, outputs, parameters and stream of `model`.

    Raises:
        TypeError: if `model` is not a `Model`; and, when `init` is called, if the masks are not booleans.
        ValueError: when `init` is called, for masks whose tree or shapes differ from those of the parameters, or for a
            model that already has masks.

    Example:
        Train three networks, with all, half and a tenth of their weights, as one program:

        >>> import nnfx, optax
        >>> def pruned(keep):
        ...     return masked(nnfx.models.mlp((8,)), lambda params: magnitude_masks(params, keep))
        >>> train = nnfx.fit(pruned, nnfx.losses.mean_square_error, optax.adamw, epochs=3)
        >>> data = nnfx.data.prepare(np.eye(4), np.arange(4.0))
        >>> fractions = jnp.array([1.0, 0.5, 0.1])
        >>> runs = jax.vmap(lambda keep: train(jax.random.key(0), data, learning_rate=0.1, keep=keep))(fractions)
        >>> kernels = [leaf for leaf in jax.tree.leaves(runs.best.params) if leaf.ndim > 2]
        >>> sum((kernel != 0).sum((1, 2)) for kernel in kernels).tolist()
        [40, 20, 4]

    References:
        Han, Pool, Tran and Dally, *Learning both weights and connections for efficient neural networks*, NeurIPS 2015.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as nnfx.models.mlp((16,)), got {checks.describe(model)}")

    def init(key: Array, inputs: Any) -> Variables:
        variables = model.init(key, inputs)
        if MASKS in variables:
            raise ValueError(f"model: expected variables without {MASKS!r}, got masks; is the model already masked?")
        chosen = masks(variables["params"]) if callable(masks) else masks
        chosen = _as_masks(chosen, variables["params"])
        return {**variables, "params": _multiplied(chosen, variables["params"]), MASKS: chosen}

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        pruned = _pruned(variables)
        if not train:
            return model.apply(pruned, inputs, key=key, weights=weights)
        outputs, state = model.apply(pruned, inputs, key=key, weights=weights, train=True)
        return outputs, {**state, MASKS: variables[MASKS]}

    def step(variables: Variables, state: Any, x: Array) -> tuple[Any, Array]:
        assert model.stream is not None
        return model.stream.step(_pruned(variables), state, x)

    stream = None if model.stream is None else Stream(model.stream.start, step)
    return Model(init, cast(Apply, apply), stream)


def magnitude_masks(params: Params, keep: Share, per_layer: bool = False) -> Params:
    """Return masks that keep the weights of largest magnitude and prune all others.

    Arrays with two axes or more count as weights; arrays with fewer axes, such as biases, are not pruned. Of n weights,
    `round(keep × n)` are kept; in a tie, the first ones. If the parameters of several models are stacked, map over them
    with `jax.vmap`.

    Args:
        params: a tree of arrays.
        keep: the fraction of the weights to keep, from 0 to 1; may be traced.
        per_layer: whether to keep this fraction of each leaf, rather than of all weights together.

    Returns:
        Booleans in the tree of the parameters, True for the weights to keep.

    Raises:
        TypeError: for leaves that are not arrays.
        ValueError: for a fraction outside `[0, 1]`.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.zeros(2)}
        >>> magnitude_masks(params, keep=0.5)["kernel"].tolist()
        [[True, False], [False, True]]

    References:
        Frankle and Carbin, *The lottery ticket hypothesis: finding sparse, trainable neural networks*, ICLR 2019.
    """
    checks.number("keep", keep, minimum=0, maximum=1)
    for name, leaf in trees.named(params).items():
        if not hasattr(leaf, "ndim"):
            raise TypeError(f"params: expected arrays by name, got {checks.describe(leaf)} for {name}")
    weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
    groups = [[leaf] for leaf in weights] if per_layer or not weights else [weights]
    found = iter([mask for group in groups for mask in _largest(group, keep)])
    return jax.tree.map(lambda leaf: next(found) if leaf.ndim >= 2 else jnp.ones(leaf.shape, bool), params)


def _largest(leaves: Sequence[Array], keep: ArrayLike) -> list[Array]:
    """Return masks of the numbers of largest magnitude among all of the arrays together."""
    magnitudes = jnp.concatenate([jnp.abs(leaf).astype(at_least_float32(leaf.dtype)).ravel() for leaf in leaves])
    order = jnp.argsort(magnitudes, descending=True, stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    marked = rank < jnp.round(jnp.asarray(keep, float) * order.size).astype(order.dtype)
    parts = jnp.split(marked, np.cumsum([leaf.size for leaf in leaves[:-1]], dtype=int))
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def _pruned(variables: Variables) -> Variables:
    """Return the variables without the masks, with the pruned weights set to zero."""
    others = {name: tree for name, tree in variables.items() if name != MASKS}
    return {**others, "params": _multiplied(variables[MASKS], variables["params"])}


def _multiplied(masks: Params, params: Params) -> Params:
    # selected rather than multiplied, so that a pruned weight becomes zero even if it is not finite
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)


def _as_masks(masks: Params, params: Params) -> Params:
    """Return masks as arrays, checked against the parameters."""
    given, wanted = trees.named(masks), trees.named(params)
    form: Any = jax.tree.structure(params)
    if jax.tree.structure(masks) != form:
        raise ValueError(f"masks: expected the tree of the parameters, {', '.join(wanted)}, got {', '.join(given)}")
    for name, leaf in wanted.items():
        mask = given[name]
        if not hasattr(mask, "dtype") or mask.dtype != np.bool_:
            raise TypeError(f"masks: expected booleans for {name}, got {checks.describe(mask)}")
        if mask.shape != leaf.shape:
            raise ValueError(f"masks: expected the shape {leaf.shape} for {name}, got {checks.describe(mask)}")
    return jax.tree.map(jnp.asarray, masks)
