"""The variables of dense, convolutional and recurrent networks, as a list of layers in the order of application.

Conversions to and from other libraries use this form; see `nnfx.models.conversion`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.ops import gru_cell, lstm_cell, rnn_cell
from nnfx.types import Variables, at_least_float32

__all__ = ["CELLS", "Layer", "check_recurrent", "layers_of", "variables_of"]

CELLS = {cell.gates: cell for cell in (rnn_cell(), gru_cell, lstm_cell)}
"""The cells of recurrent layers, keyed by their number of gates."""
_KINDS: dict[str, Literal["conv", "recurrent", "dense"]] = {
    "conv": "conv",
    "layer": "recurrent",
    "hidden": "dense",
    "output": "dense",
}
_NAME = re.compile(r"(conv|layer|hidden)_(\d+)(_reverse)?|(output)")


class Layer(NamedTuple):
    """A layer of a network, and the batch norm after it, if any.

    Attributes:
        kind: the kind of layer.
        name: the name of the layer, such as `"conv_0"` or `"layer_0_reverse"`, or its name in the other library.
        weights: `kernel` and, unless a batch norm follows, `bias`; or the weights of a recurrent layer.
        norm: `scale`, `bias`, `mean`, `var` and `weight` of the batch norm, or None.
    """

    kind: Literal["conv", "recurrent", "dense"]
    name: str
    weights: dict[str, np.ndarray]
    norm: dict[str, np.ndarray] | None = None

    @property
    def inputs(self) -> int:
        """The number of inputs; for a convolution, the number of input channels."""
        return int(self.weights["input_kernel" if self.kind == "recurrent" else "kernel"].shape[-2])

    @property
    def outputs(self) -> int:
        """The number of outputs; for a convolution, the number of output channels."""
        if self.kind == "recurrent":
            return int(self.weights["recurrent_kernel"].shape[0])
        return int(self.weights["kernel"].shape[-1])


def layers_of(variables: Variables) -> list[Layer]:
    """Return the layers of an `nnfx.models` network, as arrays on the host in at least float32.

    Args:
        variables: the variables of an `mlp`, a `cnn`, an `rnn`, a `gru` or an `lstm`.

    Raises:
        ValueError: for variables of any other model.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = sorted(variables) if isinstance(variables, Mapping) else checks.describe(variables)
        raise ValueError(f"variables: expected {{'params': ...}}, got {got}")
    params, stats = (
        {**tree, **tree.get("dense", {})} for tree in (variables["params"], variables.get("batch_stats", {}))
    )
    params.pop("dense", None)
    matches = {name: _NAME.fullmatch(name) for name in params}
    if not params or not all(matches.values()):
        raise ValueError(
            f"params: expected layers of an mlp, a cnn or a recurrent network, such as conv_0, layer_0, hidden_0 and"
            f" output, got {sorted(variables['params'])}"
        )
    order = list(_KINDS)

    def place(name: str) -> tuple[int, int, bool]:
        kind, number, reverse, output = matches[name].groups()  # type: ignore[union-attr]
        return order.index(kind or output), int(number or 0), bool(reverse)

    return [
        _layer(name, _KINDS[name.partition("_")[0]], params[name], stats.get(name))
        for name in sorted(params, key=place)
    ]


def _layer(name: str, kind: Any, params: Mapping[str, Any], stats: Mapping[str, Any] | None) -> Layer:
    parts = {"input_kernel", "recurrent_kernel", "bias"} if kind == "recurrent" else {"kernel", "bias"}
    wanted = parts if stats is None else {"kernel", "batch_norm"}
    if set(params) != wanted or (stats is not None and set(stats) != {"batch_norm"}):
        raise ValueError(f"{name}: expected {', '.join(sorted(wanted))}, got {sorted(params)}")
    norm = None if stats is None else _on_host({**params["batch_norm"], **stats["batch_norm"]})
    weights = _on_host({part: array for part, array in params.items() if part != "batch_norm"})
    if kind == "recurrent":
        check_recurrent(name, weights)
    return Layer(kind, name, weights, norm)


def _on_host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {part: np.array(array, at_least_float32(array.dtype)) for part, array in arrays.items()}


def check_recurrent(name: str, weights: Mapping[str, Any]) -> None:
    """Check that the kernels and the bias of a recurrent layer have the shapes of a known cell."""
    hidden, columns = weights["recurrent_kernel"].shape
    cell = CELLS.get(columns // hidden)
    if (
        cell is None
        or weights["input_kernel"].shape[1:] != (columns,)
        or weights["bias"].shape != (cell.biases * hidden,)
    ):
        shapes = {part: checks.describe(array) for part, array in weights.items()}
        raise ValueError(f"{name}: expected kernels and a bias of 1, 3 or 4 gates, got {shapes}")


def variables_of(layers: Sequence[Layer]) -> dict[str, Any]:
    """Build the variables of an `nnfx.models` model from its layers in order.

    Convolutions and dense layers are renamed, to `conv_0`, `hidden_0` and so on, and the last dense layer to `output`;
    recurrent layers keep their names.

    Raises:
        ValueError: for layers whose sizes do not fit together, or whose order does not match any model.
    """
    _check_order(layers)
    dense = [layer for layer in layers if layer.kind == "dense"]
    is_convolutional = any(layer.kind == "conv" for layer in layers)
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    counts = {kind: itertools.count() for kind in ("conv", "dense")}
    for layer in layers:
        name, places = layer.name, (params, stats)
        if layer.kind != "recurrent":
            name = f"{'conv' if layer.kind == 'conv' else 'hidden'}_{next(counts[layer.kind])}"
        if dense and layer is dense[-1]:
            name = "output"
        if layer.kind == "dense" and is_convolutional:
            places = (params.setdefault("dense", {}), stats.setdefault("dense", {}))
        places[0][name] = dict(layer.weights)
        if layer.norm is not None:
            places[0][name]["batch_norm"] = {part: layer.norm[part] for part in ("scale", "bias")}
            places[1][name] = {"batch_norm": {part: layer.norm[part] for part in ("mean", "var", "weight")}}
    stats = {name: each for name, each in stats.items() if each}
    return {"params": params} | ({"batch_stats": stats} if stats else {})


def _check_order(layers: Sequence[Layer]) -> None:
    """Check that the outputs of each layer match the inputs of the next, and that the order of layers is supported."""
    kinds = [layer.kind for layer in layers]
    order = list(dict.fromkeys(kinds))
    is_sorted = kinds == sorted(kinds, key=order.index)
    if (
        not layers
        or not is_sorted
        or order not in (["dense"], ["conv"], ["conv", "dense"], ["recurrent"], ["recurrent", "dense"])
    ):
        raise ValueError(
            "weights: expected convolutions or recurrent layers, then dense layers, got"
            f" {', '.join(kinds) or 'none of these'}"
        )
    if order == ["recurrent", "dense"] and kinds.count("dense") > 1:
        raise ValueError(f"weights: expected one dense layer after recurrent layers, got {kinds.count('dense')}")
    if layers[-1].kind == "dense" and layers[-1].norm is not None:
        raise ValueError("weights: expected no batch norm after the last layer, got one")
    for layer in layers:
        _check_vectors(layer)
    for before, layer in itertools.pairwise(layers):
        if layer.kind == "recurrent":
            continue
        outputs = before.outputs
        if before.kind == "recurrent":
            last = before.name.removesuffix("_reverse")
            outputs = sum(each.outputs for each in layers if each.name.removesuffix("_reverse") == last)
        is_flattened = before.kind == "conv" and layer.kind == "dense"
        if layer.inputs % outputs if is_flattened else layer.inputs != outputs:
            wanted = f"a multiple of {outputs}" if is_flattened else str(outputs)
            raise ValueError(
                f"weights: expected {wanted} inputs for {layer.name}, which follows {before.name}, got {layer.inputs}"
            )


def _check_vectors(layer: Layer) -> None:
    """Check that a layer has a bias or a batch norm, with one number for each output."""
    if layer.kind == "recurrent":
        check_recurrent(layer.name, layer.weights)
        return
    if layer.norm is None and "bias" not in layer.weights:
        raise ValueError(f"weights: expected a bias for {layer.name}, or a batch norm after it, got neither")
    vectors = {**layer.weights, **(layer.norm or {})}
    for part, array in vectors.items():
        if part not in ("kernel", "weight") and array.shape != (layer.outputs,):
            raise ValueError(
                f"weights: expected the {part} of {layer.name} to be ({layer.outputs},), got {checks.describe(array)}"
            )
