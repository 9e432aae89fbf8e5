"""Conversion of parameters between recurrent layers and Flax's cells; see `nnfx.models.conversion`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from nnfx.models import stacks
from nnfx.models.stacks import CELLS
from nnfx.types import Array

__all__ = ["Layers", "from_flax", "to_flax"]

Layers = dict[str, dict[str, Array]]
GATES = {1: ("",), 3: ("r", "z", "n"), 4: ("i", "f", "g", "o")}


def to_flax(params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert recurrent layers to the parameters of Flax's `SimpleCell`, `GRUCell` or `(Optimized)LSTMCell`, by layer.

    Args:
        params: the parameters of a recurrent model, or of its recurrent layers.

    Raises:
        ValueError: for parameters of other layers.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> params = nnfx.models.gru(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
        >>> sorted(to_flax(params)["layer_0"])
        ['hn', 'hr', 'hz', 'in', 'ir', 'iz']
    """
    return {name: _to_flax_cell(layer) for name, layer in _layers(params).items()}


def from_flax(params: Mapping[str, Any]) -> Layers:
    """Convert the parameters of Flax's cells to parameters of recurrent layers.

    Args:
        params: the parameters of `SimpleCell`, `GRUCell`, `LSTMCell` or `OptimizedLSTMCell`, by layer name:
            `{"layer_0": ..., "layer_1": ...}`.

    Raises:
        ValueError: for parameters of other modules.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> params = nnfx.models.rnn(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
        >>> from_flax(to_flax(params))["layer_0"]["recurrent_kernel"].shape
        (8, 8)
    """
    return _layers({name: _from_flax_cell(name, cell) for name, cell in params.items()})


def _to_flax_cell(layer: dict[str, Array]) -> dict[str, Any]:
    gates = layer["recurrent_kernel"].shape[1] // layer["recurrent_kernel"].shape[0]
    inputs = jnp.split(layer["input_kernel"], gates, axis=1)
    recurrent = jnp.split(layer["recurrent_kernel"], gates, axis=1)
    biases = jnp.split(layer["bias"], CELLS[gates].biases)
    bias_of = "h" if gates == 4 else "i"  # Flax stores the bias of a gate with these weights
    cell: dict[str, Any] = {}
    for gate, kernel, of_hidden, bias in zip(GATES[gates], inputs, recurrent, biases, strict=False):
        cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": kernel}, {"kernel": of_hidden}
        cell[f"{bias_of}{gate}"]["bias"] = bias
    if gates == 3:
        cell["hn"]["bias"] = biases[3]
    return cell


def _from_flax_cell(name: str, cell: Mapping[str, Any]) -> dict[str, Array]:
    gates = next((gates for gates, names in GATES.items() if {"i" + gate for gate in names} <= set(cell)), None)
    if gates is None or len(cell) != 2 * gates:
        raise ValueError(f"{name}: expected the parameters of a SimpleCell, GRUCell or LSTMCell, got {sorted(cell)}")
    bias_of = "h" if gates == 4 else "i"
    biases = [cell[bias_of + gate]["bias"] for gate in GATES[gates]]
    return {
        "input_kernel": jnp.concatenate([cell["i" + gate]["kernel"] for gate in GATES[gates]], axis=1),
        "recurrent_kernel": jnp.concatenate([cell["h" + gate]["kernel"] for gate in GATES[gates]], axis=1),
        "bias": jnp.concatenate([*biases, cell["hn"]["bias"]] if gates == 3 else biases),
    }


def _layers(params: Mapping[str, Any]) -> Layers:
    """Return the parameters of recurrent layers as arrays, after checking their names and shapes."""
    layers = {name: layer for name, layer in params.items() if name.startswith("layer_")}
    if not layers:
        raise ValueError(f"params: expected recurrent layers, 'layer_0' and so on, got {sorted(params)}")
    found: Layers = {}
    for name, layer in layers.items():
        if set(layer) != {"input_kernel", "recurrent_kernel", "bias"}:
            raise ValueError(f"{name}: expected an input_kernel, a recurrent_kernel and a bias, got {sorted(layer)}")
        found[name] = {part: jnp.asarray(array) for part, array in layer.items()}
        stacks.check_recurrent(name, found[name])
    return found
