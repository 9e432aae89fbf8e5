"""The perceptron, and multilayer perceptrons."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike

from nnfx import activations, arrays, checks, ops
from nnfx.activations import Activation
from nnfx.bounds import BelowOne
from nnfx.models import initializers
from nnfx.models.adapters import from_linen
from nnfx.models.normalization import BatchNorm
from nnfx.types import Array, Model


class Perceptron(nn.Module):
    """A layer of perceptrons, `g(xW + b)`, on inputs `(batch, features)`."""

    outputs: int
    activation: Activation = activations.identity
    initializer: Initializer = nn.initializers.lecun_normal()
    bias_initializer: Initializer = nn.initializers.zeros
    batch_norm: bool = False
    axes: int | None = None  # the number of axes that inputs must have; None if not checked

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return `(batch, outputs)`."""
        checks.one_array("inputs", x, "(batch, features)")
        if self.axes is not None and x.ndim != self.axes:
            raise ValueError(
                f"inputs: expected (batch, features), got {checks.describe(x)}; nnfx.models.mlp flattens inputs"
            )
        width = self.outputs * activations.pieces(self.activation)
        x, kernel = arrays.promoted(x, self.param("kernel", self.initializer, (x.shape[-1], width)))

        dot_product = ops.dot_product(x, kernel)
        if self.batch_norm:  # batch norm has its own bias
            pre_activation = BatchNorm(name="batch_norm")(dot_product, weights=weights, train=train)
        else:
            dot_product, bias = arrays.promoted(dot_product, self.param("bias", self.bias_initializer, (width,)))
            pre_activation = dot_product + jnp.broadcast_to(bias, dot_product.shape)
        return self.activation(pre_activation)


class MLP(nn.Module):
    """Stacked perceptrons, with dropout after each hidden layer."""

    hidden: tuple[int, ...]
    outputs: int
    activation: Activation
    initializer: Initializer
    bias_initializer: Initializer
    dropout: ArrayLike
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Array, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return `(batch, outputs)` before any output activation."""
        checks.one_array("inputs", x, "(batch, ...)")
        if x.ndim < 2:
            raise ValueError(f"inputs: expected (batch, features) or more axes, got {checks.describe(x)}")
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 could not be inferred if there are no rows
        for i, width in enumerate(self.hidden):
            options = (self.activation, self.initializer, self.bias_initializer, self.batch_norm)
            x = Perceptron(width, *options, name=f"hidden_{i}")(x, weights=weights, train=train)
            if train and not (isinstance(self.dropout, float) and self.dropout == 0):
                x = ops.dropout(self.make_rng("dropout"), x, self.dropout)
        return Perceptron(self.outputs, activations.identity, self.initializer, self.bias_initializer, name="output")(x)


def perceptron(
    outputs: int = 1,
    activation: str | Activation = "identity",
    initializer: str | Initializer = "lecun_normal",
    bias_initializer: str | Initializer = "zeros",
) -> Model:
    """A single layer of perceptrons: dot product, bias and activation, `g(xW + b)`.

    With the default activation the outputs are logits, as the losses expect.

    Args:
        outputs: the number of perceptrons, all of which take the same inputs.
        activation: g, by name (`nnfx.activations.names()`) or as a function.
        initializer: the initialiser of the weights, by name or as a function; see `nnfx.models.initializers`.
        bias_initializer: the initialiser of the bias.

    Returns:
        A model from inputs `(batch, features)` to `(batch, outputs)`, with the parameters
        `kernel (features, outputs)` and `bias (outputs,)`.

    Raises:
        ValueError: for an unknown name, or a number of outputs that is not positive.

    Example:
        Evaluate the perceptron `g(1 + 3x₁ − 2x₂)` at the point (−1, 2):

        >>> model = perceptron(activation="sigmoid")
        >>> params = {"kernel": jnp.array([[3.0], [-2.0]]), "bias": jnp.array([1.0])}
        >>> model.apply({"params": params}, jnp.array([[-1.0, 2.0]]))
        Array([[0.00247262]], dtype=float32)

    References:
        Rosenblatt, *The perceptron: a probabilistic model*, Psychological Review, 1958.
    """
    checks.positive_integer("outputs", outputs)
    return from_linen(
        Perceptron(
            outputs,
            activations.get(activation),
            initializers.get(initializer),
            initializers.get(bias_initializer, "bias_initializer", axes=1),
            axes=2,
        )
    )


def mlp(
    hidden: Sequence[int],
    outputs: int = 1,
    activation: str | Activation = "relu",
    initializer: str | Initializer = "lecun_normal",
    bias_initializer: str | Initializer = "zeros",
    dropout: BelowOne = 0.0,
    batch_norm: bool = False,
) -> Model:
    """A multilayer perceptron: hidden layers `hₗ = g(hₗ₋₁Wₗ + bₗ)`, then logits `h W + b`.

    With the activation `"identity"`, the network is linear, whatever its depth. All axes of the input except the first
    are flattened.

    Args:
        hidden: the widths of the hidden layers.
        outputs: the number of outputs.
        activation: g, by name (`nnfx.activations.names()`) or as a function; with maxout, each unit has one set of
            weights per affine piece.
        initializer: the initialiser of the weights, by name or as a function; see `nnfx.models.initializers`.
        bias_initializer: the initialiser of the biases.
        dropout: the fraction of each hidden layer dropped in training, at least 0 and below 1; may be traced.
        batch_norm: whether to normalise the pre-activations of the hidden layers by the statistics of the batch.

    Returns:
        A model from inputs `(batch, ...)` to logits `(batch, outputs)`.

    Raises:
        ValueError: for an unknown name, a width that is not positive, or a dropout rate outside `[0, 1)`.

    Example:
        >>> import jax
        >>> model = mlp(hidden=(16, 16), outputs=3, activation="tanh")
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden: expected a sequence of widths, such as (16, 16), got {checks.describe(hidden)}")
    for i, width in enumerate(hidden):
        checks.positive_integer(f"hidden[{i}]", width)
    checks.positive_integer("outputs", outputs)
    checks.number("dropout", dropout, minimum=0, below=1)
    return from_linen(
        MLP(
            tuple(hidden),
            outputs,
            activations.get(activation),
            initializers.get(initializer),
            initializers.get(bias_initializer, "bias_initializer", axes=1),
            dropout,
            batch_norm,
        )
    )
