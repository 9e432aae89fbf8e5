"""Convolutional networks: any stack of convolutions and pooling layers, LeNet, and a residual network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike

from nnfx import activations, arrays, checks, ops
from nnfx.activations import Activation
from nnfx.bounds import BelowOne
from nnfx.models import initializers
from nnfx.models.adapters import from_linen
from nnfx.models.dense import MLP, Perceptron
from nnfx.models.normalization import BatchNorm
from nnfx.ops import windows
from nnfx.types import Array, Model, Variables


class Convolution(NamedTuple):
    """The settings of a convolutional layer; see `conv`."""

    features: int
    kernel: int | Sequence[int]
    strides: int | Sequence[int]
    padding: windows.Padding
    dilation: int | Sequence[int]


Layer = Convolution | Callable[[Array], Array]


def conv(
    features: int,
    kernel: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: windows.Padding = "SAME",
    dilation: int | Sequence[int] = 1,
) -> Convolution:
    """A convolutional layer in the stack of a `cnn`: `g(x ⋆ K + b)`.

    Here x is the input, K the kernels, b the bias, and g the activation of the network.

    Args:
        features: the number of kernels that slide over the input; each kernel produces one feature map.
        kernel: the size of the kernels, one number for all axes or one per axis.
        strides: the distance by which the kernels move, one number for all axes or one per axis.
        padding: `"SAME"`, `"VALID"`, or a pair `(before, after)` for each axis.
        dilation: the distance between the elements of a kernel, one number for all axes or one per axis.

    Raises:
        ValueError: for a number of features that is not positive.

    Example:
        >>> conv(32, kernel=5).kernel
        5
    """
    checks.positive_integer("features", features)
    return Convolution(features, kernel, strides, padding, dilation)


def max_pool(
    window: int | Sequence[int] = 2,
    strides: int | Sequence[int] | None = None,
    padding: windows.Padding = "VALID",
) -> Layer:
    """A max-pooling layer in the stack of a `cnn`; see `nnfx.ops.max_pool`."""
    return partial(ops.max_pool, window=window, strides=strides, padding=padding)


def avg_pool(
    window: int | Sequence[int] = 2,
    strides: int | Sequence[int] | None = None,
    padding: windows.Padding = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """An average-pooling layer in the stack of a `cnn`; see `nnfx.ops.avg_pool`."""
    return partial(ops.avg_pool, window=window, strides=strides, padding=padding, count_include_pad=count_include_pad)


class ConvolutionLayer(nn.Module):
    """A convolution, its bias or batch norm, and an activation."""

    convolution: Convolution
    activation: Activation
    initializer: Initializer
    bias_initializer: Initializer
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return feature maps, `(batch, ..., features)`."""
        features, size, strides, padding, dilation = self.convolution
        features *= activations.pieces(self.activation)
        window = windows.per_axis("kernel", size, len(windows.sizes(x)))
        x, kernel = arrays.promoted(x, self.param("kernel", self.initializer, (*window, x.shape[-1], features)))
        maps = ops.convolution(x, kernel, strides=strides, padding=padding, dilation=dilation)
        if self.batch_norm:  # batch norm has its own bias
            maps = BatchNorm(name="batch_norm")(maps, weights=weights, train=train)
        else:
            maps, bias = arrays.promoted(maps, self.param("bias", self.bias_initializer, (features,)))
            maps = maps + bias.reshape(*[1] * (maps.ndim - 1), -1)
        return self.activation(maps)


class CNN(nn.Module):
    """Convolutional and pooling layers, followed by dense layers."""

    layers: tuple[Layer, ...]
    outputs: int | None
    hidden: tuple[int, ...]
    activation: Activation
    initializer: Initializer
    bias_initializer: Initializer
    dropout: ArrayLike
    batch_norm: bool
    axes: int | None

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return `(batch, outputs)` before any output activation; the last feature maps if `outputs` is None."""
        _check_inputs(x, self.axes)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.result_type(float))  # the first layer may be a pool, which needs floats
        options = (self.activation, self.initializer, self.bias_initializer)
        number = 0
        for layer in self.layers:
            if isinstance(layer, Convolution):
                module = ConvolutionLayer(layer, *options, self.batch_norm, name=f"conv_{number}")
                x = module(x, weights=weights, train=train)
                number += 1
            else:
                x = layer(x)
        if self.outputs is None:
            return x
        dense = MLP(self.hidden, self.outputs, *options, self.dropout, self.batch_norm, name="dense")
        return dense(x, weights=weights, train=train)


def cnn(
    layers: Sequence[Layer],
    outputs: int | None = 10,
    hidden: Sequence[int] = (),
    activation: str | Activation = "relu",
    initializer: str | Initializer = "he_normal",
    bias_initializer: str | Initializer = "zeros",
    dropout: BelowOne = 0.0,
    batch_norm: bool = False,
    axes: int | None = None,
) -> Model:
    """A convolutional network: convolutions and pools in any order, followed by dense layers.

    Args:
        layers: the layers from the input on: `conv(...)`, `max_pool(...)`, `avg_pool(...)`, or any function of feature
            maps without parameters, such as `nnfx.ops.global_avg_pool`.
        outputs: the number of outputs; None to return the last feature maps.
        hidden: the widths of the dense layers before the outputs.
        activation: the activation after each convolution and each hidden layer, by name or as a function.
        initializer: the initialiser of the kernels and weights, by name or as a function; see
            `nnfx.models.initializers`.
        bias_initializer: the initialiser of the biases.
        dropout: the fraction of each hidden layer dropped in training, at least 0 and below 1; may be traced.
        batch_norm: whether to normalise after each convolution and each hidden layer, before the activation.
        axes: the number of spatial axes: 2 for images, 1 for sequences. If None, it is inferred from the inputs, and
            inputs `(batch, size, size)` are rejected, since they could be images without a channel axis.

    Returns:
        A model from inputs `(batch, height, width, channels)` or `(batch, width, channels)` to logits
        `(batch, outputs)`.

    Raises:
        TypeError: for layers that are neither convolutions nor functions.
        ValueError: for an unknown name, a width that is not positive, a dropout rate outside `[0, 1)`, or hidden
            layers with `outputs=None`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = cnn([conv(32), max_pool(), conv(64), max_pool()], hidden=(256,), outputs=10)
        >>> images = jnp.zeros((5, 28, 28, 1))
        >>> model.apply(model.init(jax.random.key(0), images), images).shape
        (5, 10)

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, Proceedings of the IEEE 1998.
    """
    if not isinstance(layers, Sequence) or isinstance(layers, Convolution):
        raise TypeError(f"layers: expected a sequence, such as [conv(32), max_pool()], got {checks.describe(layers)}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Convolution) and not callable(layer):
            raise TypeError(f"layers[{i}]: expected conv(...) or a function, got {checks.describe(layer)}")
    for i, width in enumerate(hidden):
        checks.positive_integer(f"hidden[{i}]", width)
    if outputs is not None:
        checks.positive_integer("outputs", outputs)
    elif hidden:
        raise ValueError(f"hidden: expected an empty sequence if outputs=None, got {tuple(hidden)}")
    checks.number("dropout", dropout, minimum=0, below=1)
    if axes not in (None, 1, 2):
        raise ValueError(f"axes: expected 1, 2 or None, got {axes!r}")
    return from_linen(
        CNN(
            tuple(layers),
            outputs,
            tuple(hidden),
            activations.get(activation),
            initializers.get(initializer),
            initializers.get(bias_initializer, "bias_initializer", axes=1),
            dropout,
            batch_norm,
            axes,
        )
    )


def _check_inputs(x: Array, axes: int | None) -> None:
    """Check that inputs are images or sequences with channels, with the number of axes that the model expects."""
    layouts = {1: "(batch, width, channels)", 2: "(batch, height, width, channels)"}
    checks.one_array("inputs", x, layouts[axes] if axes else f"{layouts[1]} or {layouts[2]}")
    if axes is None and x.ndim == 3 and x.shape[1] == x.shape[2] > 1:
        raise ValueError(
            f"inputs: expected {layouts[2]}, got {checks.describe(x)}; add a channel to images with inputs[..., None],"
            " or pass axes=1 for sequences with as many steps as channels"
        )
    if axes is None and x.ndim not in (3, 4):
        raise ValueError(f"inputs: expected {layouts[1]} or {layouts[2]}, got {checks.describe(x)}")
    if axes is not None and x.ndim != axes + 2:
        hint = "; add a channel with inputs[..., None]" if x.ndim == axes + 1 else ""
        raise ValueError(f"inputs: expected {layouts[axes]}, got {checks.describe(x)}{hint}")


def reshaped(model: Model, shape: Sequence[int]) -> Model:
    """A model whose inputs are reshaped first, for example from rows of pixels to images for a `cnn`.

    Args:
        model: a model for inputs `(batch, *shape)`.
        shape: the shape of one example; one size may be −1, which is inferred.

    Returns:
        A model for inputs of any shape with the same number of values per example, such as `(batch, features)`.

    Raises:
        TypeError: if `model` is not a `Model`, or a size is not an integer.
        ValueError: if more than one size is −1, or another size is below 1; and, when the model is applied, if the
            inputs cannot be reshaped.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = reshaped(cnn([conv(4), max_pool()], outputs=10), (8, 8, 1))
        >>> pixels = jnp.zeros((5, 64))
        >>> model.apply(model.init(jax.random.key(0), pixels), pixels).shape
        (5, 10)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as nnfx.models.cnn(...), got {checks.describe(model)}")
    for i, size in enumerate(shape):
        if size != -1:
            checks.positive_integer(f"shape[{i}]", size)
    if list(shape).count(-1) > 1:
        raise ValueError(f"shape: expected at most one size of -1, got {tuple(shape)}")

    def seen(inputs: Array) -> Array:
        checks.one_array("inputs", inputs, "(batch, ...)")
        try:
            return jax.vmap(lambda example: example.reshape(shape))(inputs)  # infers a size of -1 even without rows
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"inputs: expected examples of shape {tuple(shape)}, got {checks.describe(inputs)}"
            ) from error

    def init(key: Array, inputs: Any) -> Variables:
        return model.init(key, seen(inputs))

    def apply(variables: Variables, inputs: Any, **options: Any) -> Any:
        return model.apply(variables, seen(inputs), **options)

    return Model(init, apply)


def lenet(outputs: int = 10, activation: str | Activation = "tanh") -> Model:
    """LeNet-5: two convolutions of 6 and 16 features with average pooling, then dense layers of 120 and 84 units.

    As in most modern versions, the pools have no weights, every map of the second convolution sees all maps of the
    first, and the outputs are logits. Images of 28 × 28 are padded to 32 × 32 by the first convolution.

    Args:
        outputs: the number of outputs.
        activation: the activation function, by name or as a function.

    Returns:
        A model from images `(batch, height, width, channels)`, 12 × 12 or larger, to logits `(batch, outputs)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = lenet().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
        61706

    References:
        LeCun et al., *Gradient-based learning applied to document recognition*, Proceedings of the IEEE 1998.
    """
    layers = [conv(6, 5), avg_pool(), conv(16, 5, padding="VALID"), avg_pool()]
    return cnn(layers, outputs, hidden=(120, 84), activation=activation, initializer="lecun_normal", axes=2)


class ResNet(nn.Module):
    """A residual network for small images."""

    blocks: int
    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return logits, `(batch, outputs)`."""
        _check_inputs(x, 2)

        def layer(name: str, x: Array, features: int, kernel: int, strides: int, activation: Activation) -> Array:
            module = ConvolutionLayer(
                Convolution(features, kernel, strides, "SAME", 1),
                activation,
                nn.initializers.he_normal(),
                nn.initializers.zeros,
                batch_norm=True,
                name=name,
            )
            return module(x, weights=weights, train=train)

        x = layer("stem", x, self.width, 3, 1, activations.relu)
        for stage in range(3):
            features = self.width * 2**stage
            for block in range(self.blocks):
                name, strides = f"stage_{stage}_block_{block}", 2 if stage and not block else 1
                shortcut = x
                if x.shape[-1] != features:
                    shortcut = layer(f"{name}_shortcut", x, features, 1, strides, activations.identity)
                inner = layer(f"{name}_conv_0", x, features, 3, strides, activations.relu)
                inner = layer(f"{name}_conv_1", inner, features, 3, 1, activations.identity)
                x = activations.relu(inner + shortcut)
        return Perceptron(self.outputs, name="output")(ops.global_avg_pool(x))


def resnet(depth: int = 20, width: int = 16, outputs: int = 10) -> Model:
    """A residual network with batch norm, whose blocks learn a correction to their input: `x + F(x)`.

    It has three stages, with w, 2w and 4w features at full, half and quarter resolution. Each stage has n blocks, and
    each block has two 3 × 3 convolutions. Global average pooling and a dense layer follow. Where the number of features
    changes, the shortcut is a 1 × 1 convolution.

    Args:
        depth: the number of layers with weights from input to output, not counting shortcuts; 6n + 2 for n blocks in
            each stage.
        width: w, the number of features in the first stage.
        outputs: the number of outputs.

    Returns:
        A model from images `(batch, height, width, channels)` to logits `(batch, outputs)`; its state consists of
        the running statistics of batch norm.

    Raises:
        ValueError: for a depth that is not 6n + 2, or for a width or a number of outputs that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = resnet(depth=8, width=4).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sorted(variables)
        ['batch_stats', 'params']

    References:
        He et al., *Deep residual learning for image recognition*, CVPR 2016, section 4.2 (shortcuts of option B).
    """
    checks.positive_integer("depth", depth)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: expected 6n + 2, such as 8, 14 or 20, got {depth}")
    checks.positive_integer("width", width)
    checks.positive_integer("outputs", outputs)
    return from_linen(ResNet((depth - 2) // 6, width, outputs))
