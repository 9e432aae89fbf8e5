"""Conversion of the weights of recurrent layers to the layouts of Flax and PyTorch, and back.

The parameters here are those of the recurrent layers only: `{"layer_0": {"input_kernel", "recurrent_kernel", "bias"},
"layer_0_reverse": ..., "layer_1": ...}`; an `output` layer next to them is ignored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.ops import gru_cell, lstm_cell, rnn_cell
from nnfx.types import Array, at_least_float32

Layers = dict[str, dict[str, Array]]
CELLS = {cell.gates: cell for cell in (rnn_cell(), gru_cell, lstm_cell)}
GATES = {1: ("",), 3: ("r", "z", "n"), 4: ("i", "f", "g", "o")}


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the weights, named and shaped as in the `state_dict` of PyTorch's `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    PyTorch adds two biases where one would do; that of the hidden state is zero here, except for a GRU's candidate.

    Args:
        params: the parameters of a recurrent model, or of its recurrent layers.

    Returns:
        Arrays `weight_ih_l0 (gates × hidden, features)`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, and so on.

    Raises:
        ValueError: for parameters that are not those of recurrent layers.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> variables = nnfx.models.lstm(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> {name: array.shape for name, array in to_torch(variables["params"]).items()}
        {'weight_ih_l0': (32, 3), 'weight_hh_l0': (32, 8), 'bias_ih_l0': (32,), 'bias_hh_l0': (32,)}
    """
    weights: dict[str, np.ndarray] = {}
    for name, on_device in _layers(params).items():
        layer = {part: np.asarray(array.astype(at_least_float32(array.dtype))) for part, array in on_device.items()}
        suffix = "_l" + name.removeprefix("layer_")
        columns = layer["recurrent_kernel"].shape[1]
        of_hidden = np.zeros(columns, layer["bias"].dtype)
        extra = layer["bias"][columns:]
        of_hidden[columns - len(extra) :] = extra
        weights |= {
            f"weight_ih{suffix}": layer["input_kernel"].T,
            f"weight_hh{suffix}": layer["recurrent_kernel"].T,
            f"bias_ih{suffix}": layer["bias"][:columns],
            f"bias_hh{suffix}": of_hidden,
        }
    return weights


def from_torch(weights: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Layers:
    """Return the parameters of recurrent layers from the `state_dict` of a PyTorch network.

    Names and shapes identify the cell, but not the activation of an `nn.RNN`: one with `nonlinearity="relu"` needs
    `nnfx.models.rnn(activation="relu")`.

    Args:
        weights: arrays or tensors by PyTorch's names, such as a `state_dict`, or pairs of name and array,
            such as `named_parameters()`. Half precision becomes float32.

    Returns:
        The parameters of the layers, as in a recurrent model of this library, without its `output`.

    Raises:
        TypeError: for anything other than names and arrays.
        ValueError: for weights that are not those of an `nn.RNN`, `nn.LSTM` or `nn.GRU` with biases.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> params = nnfx.models.gru(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
        >>> layers = from_torch(to_torch(params))
        >>> bool((layers["layer_0"]["input_kernel"] == params["layer_0"]["input_kernel"]).all())
        True
    """
    weights = _by_name(weights)
    suffixes = [name.removeprefix("weight_hh") for name in weights if name.startswith("weight_hh_l")]
    expected = {f"{kind}{suffix}" for suffix in suffixes for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    if not suffixes or expected != set(weights):
        wrong = ", ".join(sorted(expected ^ set(weights))) or "nothing"
        raise ValueError(
            "weights: expected weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 and so on for each layer;"
            f" missing or unknown: {wrong}"
        )
    weights = {name: _floats(name, value) for name, value in weights.items()}
    layers = {}
    for suffix in suffixes:
        of_inputs, of_hidden = weights[f"bias_ih{suffix}"], weights[f"bias_hh{suffix}"]
        recurrent = weights[f"weight_hh{suffix}"].T
        hidden, columns = recurrent.shape
        if columns == 3 * hidden:  # a GRU's reset gate multiplies the bias of its candidate's hidden state
            gates = 2 * hidden
            bias = np.concatenate([(of_inputs + of_hidden)[:gates], of_inputs[gates:], of_hidden[gates:]])
        else:
            bias = of_inputs + of_hidden
        layers["layer_" + suffix.removeprefix("_l")] = {
            "input_kernel": weights[f"weight_ih{suffix}"].T,
            "recurrent_kernel": recurrent,
            "bias": bias,
        }
    return _layers(layers)


def _by_name(weights: Any) -> dict[str, Any]:
    """Return the weights as a mapping from PyTorch's names."""
    pairs = weights.items() if isinstance(weights, Mapping) else weights
    try:
        named: dict[str, Any] = dict(pairs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "weights: expected a state_dict, or pairs of names and arrays such as named_parameters(), got"
            f" {checks.describe(weights)}"
        ) from error
    for name in named:
        if not isinstance(name, str):
            raise TypeError(f"weights: expected PyTorch's names, such as 'weight_ih_l0', got {checks.describe(name)}")
    return named


def _floats(name: str, value: Any) -> np.ndarray:
    """Return weights on the host, in at least float32."""
    array: np.ndarray = arrays.as_numpy(f"weights[{name!r}]", value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"weights[{name!r}]: expected floats, got {checks.describe(array)}")
    return array.astype(at_least_float32(array.dtype))


def to_flax(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return, for each layer, the parameters of Flax's `SimpleCell`, `GRUCell` or `LSTMCell` (or `OptimizedLSTMCell`).

    Args:
        params: the parameters of a recurrent model, or of its recurrent layers.

    Raises:
        ValueError: for parameters that are not those of recurrent layers.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> params = nnfx.models.gru(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
        >>> sorted(to_flax(params)["layer_0"])
        ['hn', 'hr', 'hz', 'in', 'ir', 'iz']
    """
    return {name: _to_flax_cell(layer) for name, layer in _layers(params).items()}


def from_flax(params: Mapping[str, Any]) -> Layers:
    """Return the parameters of recurrent layers from those of Flax's cells.

    Args:
        params: those of `SimpleCell`, `GRUCell`, `LSTMCell` or `OptimizedLSTMCell`, by the names of the layers here:
            `{"layer_0": ..., "layer_1": ...}`.

    Raises:
        ValueError: for parameters that are not those of these cells.

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
    bias_of = "h" if gates == 4 else "i"  # where Flax keeps the bias that both sums share
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
    """Return the recurrent layers as arrays, after checking that they are recurrent layers."""
    layers = {name: layer for name, layer in params.items() if name.startswith("layer_")}
    if not layers:
        raise ValueError(f"params: expected recurrent layers, 'layer_0' and so on, got {sorted(params)}")
    found: Layers = {}
    for name, layer in layers.items():
        if set(layer) != {"input_kernel", "recurrent_kernel", "bias"}:
            raise ValueError(f"{name}: expected an input_kernel, a recurrent_kernel and a bias, got {sorted(layer)}")
        found[name] = {part: jnp.asarray(array) for part, array in layer.items()}
        hidden, columns = found[name]["recurrent_kernel"].shape
        cell = CELLS.get(columns // hidden)
        inputs, bias = found[name]["input_kernel"], found[name]["bias"]
        if cell is None or inputs.shape[1:] != (columns,) or bias.shape != (cell.biases * hidden,):
            shapes = {part: checks.describe(array) for part, array in found[name].items()}
            raise ValueError(f"{name}: expected kernels and a bias of 1, 3 or 4 gates, got {shapes}")
    return found
