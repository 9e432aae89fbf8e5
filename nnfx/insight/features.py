"""What a network responds to: filters and feature maps, the inputs that excite units most, and attribution maps.

All functions take any `Model` built from Flax Linen modules, apply it in evaluation mode, and work under `jax.jit`.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nnfx import checks, memo, ops
from nnfx.insight.attribution import class_activation_map, saliency
from nnfx.insight.layers import drawable, filters, layer_outputs, require_floating, require_layer, watch
from nnfx.types import Array, Model, Variables

__all__ = [
    "Maximum",
    "Top",
    "class_activation_map",
    "drawable",
    "filters",
    "layer_outputs",
    "maximize",
    "saliency",
    "top_inputs",
]

Pool = Literal["mean", "max", "center"]
"""How a unit's feature map is reduced to one number: its mean, its largest element, or its central element."""


class Maximum(NamedTuple):
    """An input that excites a unit.

    Attributes:
        inputs: the input.
        activation: the unit's activation for this input.
    """

    inputs: Array
    activation: Array


def maximize(
    key: Array,
    model: Model,
    variables: Variables,
    layer: str,
    unit: ArrayLike,
    shape: Sequence[int],
    *,
    steps: int = 256,
    learning_rate: ArrayLike = 0.05,
    l2: ArrayLike = 0.01,
    total_variation: ArrayLike = 0.0,
    jitter: ArrayLike = 0,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    starts: int = 4,
    pool: Pool = "mean",
) -> Maximum:
    """Search for the input that excites a unit most: `argmax_x a(x) − λ Σᵢ xᵢ² − τ Σ (xᵢ − xⱼ)²`, j next to i.

    Adam ascends from several random inputs, within one compiled scan; the best result is returned. A unit that ReLU
    sets to zero at a starting point has no gradient there; more starts help, as does pooling by `"max"`. For several
    units, use `jax.vmap` over `unit`.

    Args:
        key: a typed key, from which the jitter and the starting points are drawn; these are uniform within the bounds
            if given, otherwise normal.
        model: a model built from Linen modules.
        variables: the variables of the model.
        layer: the name of a layer, as given by `layer_outputs`.
        unit: the index of a feature of the layer, on the last axis.
        shape: the shape of one input, such as `(28, 28, 1)`.
        steps: the number of steps to take.
        learning_rate: Adam's learning rate.
        l2: λ, at least 0.
        total_variation: τ, at least 0, the weight of squared differences of neighbours along all axes but the last.
        jitter: before each step the input is rolled by up to this many pixels along all axes but the last.
        bounds: the smallest and the largest value allowed in an input, such as `(0, 1)`; None for no bounds.
        starts: the number of random inputs to start from.
        pool: how a feature map is reduced to one activation a: `"mean"`, `"max"` or `"center"`.

    Returns:
        The input, of the given shape, and its activation a.

    Raises:
        TypeError: for a key that is not typed, or a unit or jitter that is not an integer.
        ValueError: for an unknown layer, a unit out of range, a shape without elements, or other values out of range.

    Example:
        The input that excites a linear unit most is w / 2λ, proportional to its weights w:

        >>> from nnfx import models
        >>> params = {"kernel": jnp.array([[3.0], [-4.0]]), "bias": jnp.zeros(1)}
        >>> found = maximize(jax.random.key(0), models.perceptron(), {"params": params}, "outputs", 0, (2,), l2=0.5)
        >>> found.inputs.round(1).tolist()
        [3.0, -4.0]

    References:
        Erhan, Bengio, Courville and Vincent, *Visualizing higher-layer features of a deep network*, Montreal 2009.
        Simonyan, Vedaldi and Zisserman, *Deep inside convolutional networks*, ICLR workshop 2014.
    """
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape: expected the shape of one input, such as (28, 28, 1), got {checks.describe(shape)}")
    for i, size in enumerate(shape):
        checks.positive_integer(f"shape[{i}]", size)
    checks.positive_integer("steps", steps)
    checks.positive_integer("starts", starts)
    checks.key("key", key)
    checks.number("learning_rate", learning_rate, above=0)
    penalties = {"l2": l2, "total_variation": total_variation, "jitter": jitter}
    for name, value in penalties.items():
        checks.number(name, value, minimum=0)
    _require_integer("jitter", jitter)
    if bounds is not None:
        checks.number("bounds[0]", bounds[0])
        lowest = float(np.asarray(bounds[0])) if checks.is_concrete(bounds[0]) else None
        checks.number("bounds[1]", bounds[1], above=lowest)
    checks.choice("pool", pool, ("mean", "max", "center"))
    example = jax.ShapeDtypeStruct((1, *shape), jnp.zeros(()).dtype)
    _require_unit(unit, require_layer(model, variables, example, layer))
    settings = (learning_rate, l2, total_variation, jitter, bounds)
    return _maximize(model, layer, tuple(shape), steps, starts, pool, variables, unit, key, settings)


@memo.compiled(static=6)
def _maximize(
    model: Model,
    layer: str,
    shape: tuple[int, ...],
    steps: int,
    starts: int,
    pool: Pool,
    variables: Variables,
    unit: Array,
    key: Array,
    settings: tuple[Any, ...],
) -> Maximum:
    learning_rate, l2, total_variation, jitter, bounds = settings
    positions = tuple(range(1, len(shape)))

    def activations(x: Array) -> Array:
        return _pooled(watch(model, variables, x)[1][layer], unit, pool)

    def objectives(x: Array, rolled: Array) -> Array:
        rough = sum(jnp.square(jnp.diff(x, axis=axis)).reshape(starts, -1).sum(-1) for axis in positions)
        return activations(rolled) - l2 * jnp.square(x).reshape(starts, -1).sum(-1) - total_variation * rough

    def ascend(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], None]:
        x, state = carry
        shifts = jax.random.randint(key, (len(positions),), -jitter, jitter + 1)
        gradient = jax.grad(lambda x: -objectives(x, jnp.roll(x, shifts, positions)).sum())(x)
        updates, state = optimizer.update(gradient, state)
        x = optax.apply_updates(x, updates)
        return (x if bounds is None else jnp.clip(x, *bounds), state), None

    start_key, jitter_key = jax.random.split(key)
    if bounds is None:
        start = jax.random.normal(start_key, (starts, *shape))
    else:
        start = jax.random.uniform(start_key, (starts, *shape), minval=bounds[0], maxval=bounds[1])
    optimizer = optax.adam(learning_rate)
    (x, _), _ = jax.lax.scan(ascend, (start, optimizer.init(start)), jax.random.split(jitter_key, steps))
    best = objectives(x, x).argmax()
    return Maximum(x[best], activations(x)[best])


class Top(NamedTuple):
    """The inputs that excite a unit most, in descending order of activation.

    Attributes:
        rows: the positions of these inputs among all inputs, `(count,)`.
        activations: the unit's activations for these inputs, `(count,)`.
    """

    rows: Array
    activations: Array


def top_inputs(
    model: Model,
    variables: Variables,
    inputs: ArrayLike,
    layer: str,
    unit: ArrayLike,
    count: int,
    *,
    chunk: int = 256,
    pool: Pool = "mean",
) -> Top:
    """Find the given inputs that excite a unit most: those with the `count` largest activations a(x).

    For several units, use `jax.vmap` over `unit`: the network is still applied only once.

    Args:
        model: a model built from Linen modules.
        variables: the variables of the model.
        inputs: the inputs to choose from, `(rows, ...)`.
        layer: the name of a layer, as given by `layer_outputs`.
        unit: the index of a feature of the layer, on the last axis.
        count: the number of inputs to find.
        chunk: the number of inputs to pass through the network at once.
        pool: how a feature map is reduced to one activation a: `"mean"`, `"max"` or `"center"`.

    Returns:
        The positions of these inputs and the activations, in descending order.

    Raises:
        TypeError: for a unit that is not an integer.
        ValueError: for an unknown layer, a unit out of range, or a count above the number of inputs.

    Example:
        >>> from nnfx import models
        >>> params = {"kernel": jnp.array([[1.0], [-1.0]]), "bias": jnp.zeros(1)}
        >>> inputs = jnp.array([[0.0, 1.0], [3.0, 1.0], [1.0, 0.0]])
        >>> top_inputs(models.perceptron(), {"params": params}, inputs, "outputs", 0, count=2)
        Top(rows=Array([1, 2], dtype=int32), activations=Array([2., 1.], dtype=float32))
    """
    inputs = require_floating(inputs)
    checks.positive_integer("count", count)
    checks.positive_integer("chunk", chunk)
    if count > len(inputs):
        raise ValueError(f"count: expected at most the {len(inputs)} inputs given, got {count}")
    checks.choice("pool", pool, ("mean", "max", "center"))
    _require_unit(unit, require_layer(model, variables, inputs, layer))
    return _top_inputs(model, layer, count, min(chunk, len(inputs)), pool, variables, inputs, unit)


@memo.compiled(static=5)
def _top_inputs(
    model: Model, layer: str, count: int, chunk: int, pool: Pool, variables: Variables, inputs: Array, unit: Array
) -> Top:
    def activations(first: Array) -> Array:
        rows = jnp.minimum(first + jnp.arange(chunk), len(inputs) - 1)  # the last chunk repeats the last row
        return _pooled(watch(model, variables, inputs[rows])[1][layer], unit, pool)

    found = jax.lax.map(activations, jnp.arange(0, len(inputs), chunk)).reshape(-1)[: len(inputs)]
    largest, rows = jax.lax.top_k(found, count)
    return Top(rows, largest)


def _pooled(maps: Array, unit: Array, pool: Pool) -> Array:
    """Return the activation of a unit for each example, `(batch,)`."""
    of_unit = jnp.take(maps, unit, axis=-1)
    if pool == "center":
        return of_unit[:, *(size // 2 for size in of_unit.shape[1:])]
    flat = of_unit.reshape(len(of_unit), -1)
    return ops.largest(flat, -1) if pool == "max" else flat.mean(-1)


def _require_unit(unit: Any, shape: tuple[int, ...]) -> None:
    """Raise an error for an invalid index into the last axis; a traced index is not checked."""
    checks.number("unit", unit, minimum=0, below=shape[-1])
    _require_integer("unit", unit)


def _require_integer(name: str, value: ArrayLike) -> None:
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name}: expected an integer, got {checks.describe(value)}")
