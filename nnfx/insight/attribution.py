"""Attribution: the positions and pixels that the logit of a class depends on."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import arrays, checks, memo
from nnfx.insight.layers import require_floating, require_layer, watch
from nnfx.types import Array, Model, Variables


def class_activation_map(
    model: Model,
    variables: Variables,
    inputs: ArrayLike,
    layer: str,
    classes: ArrayLike | None = None,
    *,
    relative: bool = False,
) -> Array:
    """Return the Grad-CAM map of a class: `ReLU(Σₖ αₖ Aₖ)`, `αₖ = meanₚ ∂z_c / ∂Aₖ(p)`, resized to the inputs.

    Aₖ are the feature maps of the layer, p their positions and z_c the logit of the class. The maps are not scaled:
    divide each by its maximum to show it as an image.

    Args:
        model: a model built from Linen modules, whose outputs are logits `(batch, classes)`.
        variables: the variables of the model.
        inputs: `(batch, height, width, channels)` or `(batch, width, channels)`.
        layer: the name of a layer of feature maps, as given by `layer_outputs`; usually the last such layer.
        classes: the class c of each input, `(batch,)`, or one for all; by default, the class with the largest logit.
        relative: whether z_c is the logit relative to the mean of all logits. Softmax ignores the mean, whose fall in
            training often leaves maps of zeros.

    Returns:
        `(batch, height, width)` or `(batch, width)`, interpolated linearly from the layer's maps.

    Raises:
        TypeError: for classes that are not integers.
        ValueError: for an unknown layer, a layer without feature maps, inputs of the wrong rank, outputs that are not
            `(batch, classes)`, classes out of range, or `relative` for a model with a single logit.

    Example:
        >>> from nnfx import models
        >>> model = models.cnn([models.conv(4), models.max_pool(), models.conv(8)], outputs=3)
        >>> images = jnp.ones((5, 12, 12, 1))
        >>> variables = model.init(jax.random.key(0), images)
        >>> class_activation_map(model, variables, images, "conv_1").shape
        (5, 12, 12)

    References:
        Selvaraju et al., *Grad-CAM: visual explanations from deep networks via gradient-based localization*,
        ICCV 2017.
    """
    inputs = require_floating(inputs)
    if inputs.ndim not in (3, 4):
        raise ValueError(f"inputs: expected (batch, [height,] width, channels), got {checks.describe(inputs)}")
    shape = require_layer(model, variables, inputs, layer)
    if len(shape) != inputs.ndim:
        raise ValueError(
            f"layer: expected a layer of feature maps, with {inputs.ndim} axes, got {layer!r} of shape {shape}"
        )
    classes = _classes(model, variables, inputs, classes)
    if relative and jax.eval_shape(model.apply, variables, inputs).shape[1] == 1:
        raise ValueError("relative: expected False for a model with a single logit, got True")
    return _class_activation_map(model, layer, relative, variables, inputs, classes)


@memo.compiled(static=3)
def _class_activation_map(
    model: Model, layer: str, relative: bool, variables: Variables, inputs: Array, classes: Array | None
) -> Array:
    def score(offset: Array) -> tuple[Array, Array]:
        outputs, seen = watch(model, variables, inputs, {layer: offset})
        if relative:
            outputs = outputs - outputs.mean(-1, keepdims=True)
        return _of_classes(outputs, classes), seen[layer]

    maps = jax.eval_shape(lambda: watch(model, variables, inputs)[1][layer])
    gradient, maps = jax.grad(score, has_aux=True)(jnp.zeros(maps.shape, maps.dtype))
    positions = tuple(range(1, maps.ndim - 1))
    alphas = gradient.mean(positions, keepdims=True)
    coarse = jax.nn.relu((alphas * maps).sum(-1))
    return jax.image.resize(coarse, inputs.shape[:-1], "bilinear")


def saliency(model: Model, variables: Variables, inputs: ArrayLike, classes: ArrayLike | None = None) -> Array:
    """Return how much a class depends on each pixel: `maxₖ |∂z_c / ∂xₖ|`, the largest over the channels k.

    Args:
        model: any model whose outputs are logits `(batch, classes)`.
        variables: the variables of the model.
        inputs: `(batch, ..., channels)`, or `(batch, features)`.
        classes: the class c of each input, `(batch,)`, or one for all; by default, the class with the largest logit.

    Returns:
        `(batch, ...)`; for inputs `(batch, features)`, |∂z_c / ∂x| of the same shape.

    Raises:
        TypeError: for classes that are not integers.
        ValueError: for inputs without features, outputs that are not `(batch, classes)`, or classes out of range.

    Example:
        The saliency of a linear unit is the magnitude of its weights:

        >>> from nnfx import models
        >>> params = {"kernel": jnp.array([[3.0], [-4.0]]), "bias": jnp.zeros(1)}
        >>> saliency(models.perceptron(), {"params": params}, jnp.ones((1, 2))).tolist()
        [[3.0, 4.0]]

    References:
        Simonyan, Vedaldi and Zisserman, *Deep inside convolutional networks*, ICLR workshop 2014.
    """
    inputs = require_floating(inputs)
    return _saliency(model, variables, inputs, _classes(model, variables, inputs, classes))


@memo.compiled()
def _saliency(model: Model, variables: Variables, inputs: Array, classes: Array | None) -> Array:
    gradient = jnp.abs(jax.grad(lambda x: _of_classes(model.apply(variables, x), classes))(inputs))
    return gradient.max(-1) if inputs.ndim > 2 else gradient


def _of_classes(outputs: Array, classes: Array | None) -> Array:
    """Sum the logits of each example's class; as examples do not mix, the gradient is that of each example."""
    chosen = outputs.argmax(-1) if classes is None else classes
    return jnp.take_along_axis(outputs, chosen[:, None], axis=-1).sum()


def _classes(model: Model, variables: Variables, inputs: Array, classes: ArrayLike | None) -> Array | None:
    """Return one class for each input, or None for the largest logits, after checking that the outputs are logits."""
    outputs = jax.eval_shape(model.apply, variables, inputs)
    if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
        raise ValueError(f"model: expected outputs (batch, classes), got {checks.describe(outputs)}")
    if classes is None:
        return None
    chosen: Array = arrays.as_labels("classes", classes)
    if not jnp.issubdtype(chosen.dtype, jnp.integer):
        raise TypeError(f"classes: expected integers, got {checks.describe(chosen)}")
    rows, known = outputs.shape
    if chosen.shape not in ((), (rows,)):
        raise ValueError(
            f"classes: expected one class for each input, {(rows,)}, or one for all, got {checks.describe(chosen)}"
        )
    if checks.is_concrete(chosen) and not bool(((chosen >= 0) & (chosen < known)).all()):
        raise ValueError(
            f"classes: expected classes from 0 to {known - 1}, got {int(chosen.min())} to {int(chosen.max())}"
        )
    return jnp.broadcast_to(chosen, (rows,))
