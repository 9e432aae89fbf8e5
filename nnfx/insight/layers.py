"""The layers inside a model: their names, their outputs, and their filters.

A `Model` consists of functions, such as `apply`, and does not list its layers. If it is built from Flax Linen modules,
the calls of these modules are intercepted while `apply` runs (`flax.linen.intercept_methods`). The outputs of a module
can then be read. To take derivatives with respect to them, an offset of zero is added to them.
"""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import tracers
from flax.linen.module import InterceptorContext
from jax.typing import ArrayLike

from nnfx import checks, memo
from nnfx.insight import objective
from nnfx.types import Array, Model, Sequences, Variables

WHOLE = "outputs"
"""The name given to the outermost module, which has no name in Flax."""
_current_trace: Callable[[], Any] = tracers.current_trace


def layer_outputs(model: Model, variables: Variables, inputs: Any) -> dict[str, Array]:
    """Return the outputs of each layer, `hₗ = gₗ(hₗ₋₁)`, by name, from the first layer to the last.

    A layer is a Flax Linen module that computes an output; a module that only returns the output of another, as a stack
    returns that of its last layer, is left out. Names are paths such as `"dense/hidden_0"`; the outermost module is
    `"outputs"`, and the second call of a layer is `"name[1]"`. Modules within a lifted transformation, such as
    `nn.remat` or `nn.scan`, cannot be seen.

    Args:
        model: a model built from Linen modules, as all models of `nnfx.models` are except those of `from_nnx`.
        variables: the variables of the model.
        inputs: a batch of inputs, `(batch, ...)`.

    Returns:
        The outputs of every layer in evaluation mode, each `(batch, ...)`.

    Raises:
        TypeError: if `model` is not a Model.
        ValueError: for a model without visible Linen modules.

    Example:
        >>> from nnfx import models
        >>> model = models.cnn([models.conv(4), models.max_pool()], hidden=(8,), outputs=3)
        >>> images = jnp.zeros((5, 6, 6, 1))
        >>> outputs = layer_outputs(model, model.init(jax.random.key(0), images), images)
        >>> {name: output.shape for name, output in outputs.items()}
        {'conv_0': (5, 6, 6, 4), 'dense/hidden_0': (5, 8), 'dense/output': (5, 3)}
    """
    objective.check_model(model)
    return _require_seen(_watch_compiled(model, variables, inputs)[1])


@contextlib.contextmanager
def calls_seen(see: Callable[[str, nn.Module, Callable[[], Any], tuple[Any, ...]], Any]) -> Iterator[None]:
    """Replace each call of a Linen module with `see(name, module, call, args)`, which returns the call's result."""
    outside = _current_trace()
    calls: collections.Counter[str] = collections.Counter()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: InterceptorContext) -> Any:
        # Values traced at an inner level, such as within nn.scan, must not leak out of their trace.
        if context.method_name != "__call__" or _current_trace() != outside:
            return call(*args, **kwargs)
        path = "/".join(context.module.path) or WHOLE
        name = f"{path}[{calls[path]}]" if calls[path] else path
        calls[path] += 1
        return see(name, context.module, lambda: call(*args, **kwargs), args)

    with nn.intercept_methods(intercept):
        yield


def watch(
    model: Model, variables: Variables, inputs: Any, offsets: Mapping[str, Array] | None = None, **training: Any
) -> tuple[Any, dict[str, Array]]:
    """Apply a model with offsets added to the outputs of layers, and return its outputs and the outputs of all layers.

    With `train=True`, and a key and weights as for `apply`, the model's new state is returned with its outputs. If no
    call of a Linen module is visible, the layers are empty.
    """
    seen: dict[str, Array] = collections.OrderedDict()  # a pytree that keeps its order, whereas a dict is sorted by key

    def see(name: str, module: nn.Module, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        del module, args
        output = call()
        if not isinstance(output, jax.Array):
            return output
        if offsets is not None and name in offsets:
            output = output + offsets[name]
        if not any(output is other for other in seen.values()):
            seen[name] = output
        return output

    with calls_seen(see):
        outputs = model.apply(variables, inputs, **training)
    return outputs, seen


_watch_compiled = memo.compiled()(watch)


def _require_seen(seen: dict[str, Any]) -> dict[str, Any]:
    """Return the visible layers; raise an error if there are none."""
    if not seen:
        raise ValueError(
            "model: expected a model of Flax Linen modules, such as those of nnfx.models or from_linen, whose apply"
            " calls its layers directly, got a model without visible layers"
        )
    return seen


def require_layer(model: Model, variables: Variables, inputs: Any, layer: str) -> tuple[int, ...]:
    """Return the shape of a layer's output, after checking that the model has a layer of this name."""
    objective.check_model(model)
    _, shapes = jax.eval_shape(partial(watch, model), variables, inputs)
    checks.choice("layer", layer, _require_seen(shapes))
    return shapes[layer].shape


def require_floating(inputs: ArrayLike) -> Array:
    """Return inputs as a floating-point array `(batch, ...)`, with respect to which derivatives can be taken."""
    if isinstance(inputs, tuple | dict):
        hint = "; pass the values of sequences of one length" if isinstance(inputs, Sequences) else ""
        raise TypeError(f"inputs: expected one array (batch, ...), got {type(inputs).__name__}{hint}")
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"inputs: expected an array of floats, (batch, ...), got {checks.describe(inputs)}")
    if inputs.ndim < 2 or not math.prod(inputs.shape):
        raise ValueError(f"inputs: expected (batch, ...) with at least one element, got {checks.describe(inputs)}")
    return inputs


def filters(variables: Variables, layer: str, shape: Sequence[int] | None = None) -> Array:
    """Return a layer's filters as images, with the kernel's last axis first, `(features, height, width, channels)`.

    Only filters of the first layer see pixels; `drawable` scales them to [0, 1].

    Args:
        variables: the variables of the model, with `"params"`.
        layer: the name of a convolution (Flax's, or one of `nnfx.models`) or of a dense layer, as given by
            `layer_outputs`.
        shape: the shape of a dense layer's inputs, such as `(28, 28, 1)`, so that its weights become images.

    Returns:
        `(features, height, width, channels)`, or `(features, width, channels)` in one dimension; for a dense layer
        `(features, *shape)`.

    Raises:
        ValueError: for an unknown layer, a missing shape or a shape of the wrong size for a dense layer, or a shape for
            a convolution.

    Example:
        >>> from nnfx import models
        >>> variables = models.cnn([models.conv(6, kernel=5)]).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        >>> filters(variables, "conv_0").shape
        (6, 5, 5, 1)
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables: expected variables of a model, {{'params': ...}}, got {checks.describe(variables)}"
        )
    kernels = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *module, name = (key.key for key in path)
        if name == "kernel":
            kernels["/".join(module) or WHOLE] = leaf
    checks.choice("layer", layer, kernels)
    kernel = jnp.asarray(kernels[layer])
    if kernel.ndim == 2:
        if shape is None or math.prod(shape) != kernel.shape[0]:
            raise ValueError(
                f"shape: expected the shape of the inputs of {layer!r}, a dense layer of {kernel.shape[0]} inputs,"
                f" got {shape}"
            )
        return jnp.moveaxis(kernel.reshape(*shape, -1), -1, 0)
    if shape is not None:
        raise ValueError(f"shape: expected None for a convolution, whose kernel has a shape, got {tuple(shape)}")
    return jnp.moveaxis(kernel, -1, 0)


def drawable(images: Array) -> Array:
    """Scale each image to [0, 1], with zero at mid-grey: `1/2 + x / (2 max|x|)`.

    Args:
        images: `(images, ...)`, such as filters.

    Returns:
        Scaled images of the same shape; an image of zeros becomes mid-grey.

    Raises:
        ValueError: for an array of fewer than two axes.

    Example:
        >>> drawable(jnp.array([[-1.0, 0.0, 4.0], [0.0, 0.0, 0.0]])).tolist()
        [[0.375, 0.5, 1.0], [0.5, 0.5, 0.5]]
    """
    images = jnp.asarray(images)
    if images.ndim < 2:
        raise ValueError(f"images: expected (images, ...), got {checks.describe(images)}")
    largest = jnp.abs(images).max(range(1, images.ndim), keepdims=True)
    return 0.5 + images / (2 * jnp.where(largest == 0, 1, largest))
