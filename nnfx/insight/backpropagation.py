"""Backpropagation in detail: every factor of the chain rule in a small dense network."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, losses, memo
from nnfx.insight import objective
from nnfx.insight.layers import calls_seen
from nnfx.models.dense import MLP, Perceptron
from nnfx.tables import table
from nnfx.training import rows
from nnfx.types import Array, Batch, Mean, Model, Params, PerExample, Variables

__all__ = ["Backpropagation", "Layer", "lay_open"]


class Layer(NamedTuple):
    """A layer `h = g(z)`, `z = xW + b`: its values in the forward and backward pass; k is 1 except for maxout.

    Attributes:
        name: the name of the layer, as given by `nnfx.insight.features.layer_outputs`.
        inputs: x, `(batch, inputs)`.
        kernel: W, `(inputs, k · units)`.
        bias: b, `(k · units,)`.
        pre_activations: z, `(batch, k · units)`.
        outputs: h, `(batch, units)`.
        local_derivatives: `g'(z) = ∂h/∂z`, `(batch, k · units)`; for maxout, 1 for the largest piece, else 0.
        errors: `∂L/∂h`, passed back from the layer above, `(batch, units)`.
        deltas: `δ = ∂L/∂z = ∂L/∂h · g'(z)`, `(batch, k · units)`.
        kernel_gradient: `∂L/∂W = xᵀδ`, summed over the batch, `(inputs, k · units)`.
        bias_gradient: `∂L/∂b = Σ δ`, `(k · units,)`.
        passed_back: `∂L/∂x = δWᵀ`, the errors of the layer below, `(batch, inputs)`.
    """

    name: str
    inputs: Array
    kernel: Array
    bias: Array
    pre_activations: Array
    outputs: Array
    local_derivatives: Array
    errors: Array
    deltas: Array
    kernel_gradient: Array
    bias_gradient: Array
    passed_back: Array


class Backpropagation(NamedTuple):
    """The results of a forward and a backward pass; prints as a table for each layer.

    Attributes:
        layers: the layers, from the inputs to the outputs.
        losses: the loss of each example, `(batch,)`; the weighted mean over its outputs if each of them has a weight.
        loss: the empirical loss L.
    """

    layers: tuple[Layer, ...]
    losses: Array
    loss: Array

    @property
    def gradient(self) -> Params:
        """The gradient with respect to all parameters, as the tree returned by `jax.grad`."""
        found: dict[str, Any] = {}
        for layer in self.layers:
            place = found
            for part in layer.name.split("/") if layer.name != "outputs" else ():
                place = place.setdefault(part, {})
            place |= {"kernel": layer.kernel_gradient, "bias": layer.bias_gradient}
        return found

    def __str__(self) -> str:
        """Return tables of each layer's forward and backward values by unit and example, and of its gradients."""
        parts = [f"loss {float(self.loss):.6g}, the mean of {len(self.losses)}"]
        for layer in self.layers:
            width = layer.kernel.shape[1]
            pieces = width // layer.outputs.shape[1]
            columns = (
                layer.pre_activations,
                np.repeat(layer.outputs, pieces, axis=1),
                layer.local_derivatives,
                np.repeat(layer.errors, pieces, axis=1),
                layer.deltas,
            )
            units = [f"{i // pieces}" + (f" piece {i % pieces}" if pieces > 1 else "") for i in range(width)]
            values = np.stack([np.asarray(column, np.float64) for column in columns], axis=-1)
            rows = [
                [f"example {n}, unit {unit}", *map(float, values[n, i])]
                for n in range(len(values))
                for i, unit in enumerate(units)
            ]
            gradients = [[f"input {i}", *map(float, row)] for i, row in enumerate(layer.kernel_gradient)]
            gradients.append(["bias", *map(float, layer.bias_gradient)])
            parts += [
                f"\n{layer.name}: z = xW + b, h = g(z)\n",
                table(["", "z", "h", "g'(z)", "∂L/∂h", "δ = ∂L/∂z"], rows),
                "",
                table(["∂L/∂W = xᵀδ from", *(f"to unit {unit}" for unit in units)], gradients),
            ]
        return "\n".join(parts)


def lay_open(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> Backpropagation:
    """Compute and return every factor of the chain rule in a forward and a backward pass through a dense network.

    From the outputs down: `δ = ∂L/∂h · g'(z)`, `∂L/∂W = xᵀδ`, `∂L/∂b = Σ δ`, and `∂L/∂x = δWᵀ` for the layer below.
    Only g' and the derivative of the loss with respect to the outputs come from JAX; the product of all factors is the
    gradient.

    Args:
        model: a stack of perceptrons, made by `nnfx.models.perceptron` or `mlp` without batch norm; it is applied
            in evaluation mode, so without dropout.
        loss: the per-example loss.
        variables: the variables of the model.
        batch: one or more examples; L is their empirical loss.

    Returns:
        The values, local derivatives, errors and gradients of every layer, and the losses.

    Raises:
        TypeError, ValueError: as for `nnfx.insight.audit.gradient`, for models that are not a stack of perceptrons, and
            for activations that mix units, such as softmax, whose derivative is not one number per unit.

    Example:
        >>> from nnfx import losses, models
        >>> params = {"kernel": jnp.array([[3.0], [-2.0]]), "bias": jnp.array([1.0])}
        >>> batch = Batch(jnp.array([[-1.0, 2.0]]), jnp.array([1.0]), jnp.ones(1))
        >>> model = models.perceptron(activation="sigmoid")
        >>> layer = lay_open(model, losses.mean_square_error, {"params": params}, batch).layers[0]
        >>> layer.pre_activations.tolist(), round(float(layer.local_derivatives[0, 0]), 5)
        ([[-6.0]], 0.00247)

    References:
        Rumelhart, Hinton and Williams, *Learning representations by back-propagating errors*, Nature 1986.
    """
    objective.check(model, loss, variables, batch)
    factors, values, mean = _lay_open(model, loss, variables, batch)
    layers = []
    for name, (found, mixed) in factors.items():
        if checks.is_concrete(mixed) and mixed > 1e-3:
            raise ValueError(
                f"model: expected activations that act on each unit alone, got one in {name!r} that mixes units"
            )
        layers.append(Layer(name, *found))
    return Backpropagation(tuple(layers), values, mean)


@memo.compiled(static=2)
def _lay_open(
    model: Model, loss: PerExample, variables: Variables, batch: Batch
) -> tuple[dict[str, tuple[list[Array], Array]], Array, Array]:
    """Return each layer's factors and how much its activation mixes units, by name; the losses; and their mean."""
    filled, size = rows.filled(batch), len(batch.weights)
    # rows of weight zero are shown as they are, but zero times a number that is not finite would be NaN
    has_weight = (batch.weights != 0).reshape(size, -1).any(1)

    def shown(leaf: Array) -> Array:
        return jnp.where(has_weight.reshape(size, *[1] * (leaf.ndim - 1)) | jnp.isfinite(leaf), leaf, 0)

    seen = _forward(model, variables, jax.tree.map(shown, batch.inputs))

    def total(outputs: Array) -> tuple[Array, Array]:
        shown, targets, weights = rows.examples(outputs, filled)
        values = loss(shown, targets)
        mean = losses.empirical(values, weights)
        if batch.weights.ndim == 1:
            return mean, loss(outputs, batch.targets)
        of_each = (each.reshape(size, -1) for each in (values, weights))
        return mean, jax.vmap(lambda *pair: Mean.of(*pair).value)(*of_each)

    (mean, values), errors = jax.value_and_grad(total, has_aux=True)(seen[-1].outputs)
    factors: dict[str, tuple[list[Array], Array]] = collections.OrderedDict()
    for name, activation, inputs, kernel, bias, z, outputs in reversed(seen):
        local, mixed = _local_derivatives(activation, z)
        deltas = jnp.repeat(errors, local.shape[1] // errors.shape[1], axis=1) * local
        passed_back = deltas @ kernel.T
        gradients = [inputs.T @ deltas, deltas.sum(0)]
        factors[name] = ([inputs, kernel, bias, z, outputs, local, errors, deltas, *gradients, passed_back], mixed)
        errors = passed_back
    return collections.OrderedDict(reversed(factors.items())), values, mean


class _Seen(NamedTuple):
    """The values recorded for a layer while the model is applied."""

    name: str
    activation: Callable[[Array], Array]
    inputs: Array
    kernel: Array
    bias: Array
    pre_activations: Array
    outputs: Array


def _forward(model: Model, variables: Variables, inputs: Array) -> list[_Seen]:
    """Apply the model and record each of its perceptrons; raise an error if it contains other layers."""
    seen: list[_Seen] = []
    others: set[str] = set()

    def see(name: str, module: nn.Module, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        outputs = call()
        if isinstance(module, Perceptron) and not module.batch_norm and args[0].ndim == 2:
            kernel, bias = (module.variables["params"][part] for part in ("kernel", "bias"))
            seen.append(_Seen(name, module.activation, args[0], kernel, bias, args[0] @ kernel + bias[None], outputs))
        elif not isinstance(module, MLP):
            others.add(type(module).__name__)
        return outputs

    with calls_seen(see):
        outputs = model.apply(variables, inputs)
    if not seen or others or seen[-1].outputs is not outputs:
        raise ValueError(
            "model: expected stacked perceptrons, such as nnfx.models.mlp, without batch norm, got a model"
            f" with {', '.join(sorted(others)) or 'other layers'}"
        )
    return seen


def _local_derivatives(activation: Callable[[Array], Array], z: Array) -> tuple[Array, Array]:
    """Return the derivative of each unit with respect to its pre-activation, and its relative error.

    For an elementwise function, the gradient of the sum of the units contains the derivative of each, and predicts any
    joint change; for other functions, there is an error.
    """
    local = jax.grad(lambda z: activation(z).sum())(z)
    trial = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
    _, change = jax.jvp(activation, (z,), (trial,))
    apart = (local * trial).reshape(*change.shape, -1).sum(-1)
    return local, jnp.abs(change - apart).max() / jnp.maximum(jnp.abs(change).max(), jnp.finfo(z.dtype).tiny)
