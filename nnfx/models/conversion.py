"""Conversion of variables to the layouts of PyTorch, Keras and Flax, and back.

For PyTorch and Keras, stacks of dense, convolutional or recurrent layers, with batch norm, are converted; for Flax, the
cells of recurrent layers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.models import stacks
from nnfx.models.flax_cells import from_flax, to_flax
from nnfx.models.stacks import Layer
from nnfx.types import Variables, at_least_float32

__all__ = ["from_flax", "from_keras", "from_torch", "to_flax", "to_keras", "to_torch"]

EPSILON = 1e-5
"""The default epsilon of batch norm, here and in PyTorch."""
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
"""The names of batch norm's arrays in PyTorch, and their names here."""
_COUNT = "num_batches_tracked"


def to_torch(variables: Variables, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Convert variables to the `state_dict` of a PyTorch network with the same layers.

    Load them into a network `net` by `net.load_state_dict({name: torch.from_numpy(array) for name, array in
    to_torch(variables, net.state_dict()).items()})`.

    - Kernels `(height, width, in, out)` become `(out, in, height, width)`.
    - The inputs of a dense layer after convolutions are put in the order `(channels, height, width)`, in which PyTorch
      flattens feature maps.
    - Recurrent layers of PyTorch add two biases, one for the inputs and one for the hidden state, where one would
      suffice. The bias for the hidden state is set to zero, except in the candidate of a GRU, which needs both.
    - The weight of the running statistics of batch norm, rounded to an integer, becomes `num_batches_tracked`.

    Args:
        variables: the variables of an `mlp`, a `cnn`, an `rnn`, a `gru` or an `lstm`: `{"params": ..., ...}`.
        names: the names of the PyTorch network's weights in the order of its layers, such as its `state_dict`; a bias
            before a batch norm, which is redundant, becomes zero. By default, names such as `hidden_0.weight`, or the
            names of `nn.LSTM` if all layers are recurrent.

    Raises:
        ValueError: for variables of any other model, or names that belong to other layers.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> variables = nnfx.models.mlp((8,), outputs=2).init(jax.random.key(0), jnp.ones((1, 3)))
        >>> weights = to_torch(variables, ["0.weight", "0.bias", "2.weight", "2.bias"])
        >>> {name: array.shape for name, array in weights.items()}
        {'0.weight': (8, 3), '0.bias': (8,), '2.weight': (2, 8), '2.bias': (2,)}
    """
    groups = _torch_groups(stacks.layers_of(variables))
    if names is None:
        is_bare = list(groups) == ["recurrent"]
        theirs = [("" if is_bare else prefix, list(group)) for prefix, group in groups.items()]
    else:
        theirs = [(prefix, list(leaves)) for prefix, leaves in _by_prefix(names).items()]
    if len(theirs) != len(groups):
        raise ValueError(
            f"names: expected names of {len(groups)} layers, {', '.join(groups)}, got names of {len(theirs)}:"
            f" {', '.join(prefix for prefix, _ in theirs) or 'none'}"
        )
    weights: dict[str, np.ndarray] = {}
    for (ours, group), (prefix, leaves) in zip(groups.items(), theirs, strict=True):
        if f"{ours}.batch_norm" in groups and "bias" in leaves:
            group = {**group, "bias": np.zeros(len(group["weight"]), group["weight"].dtype)}
        if set(leaves) != set(group):
            raise ValueError(f"names: expected {', '.join(group)} in {prefix!r} for {ours}, got {', '.join(leaves)}")
        weights |= {f"{prefix}.{leaf}".removeprefix("."): np.array(group[leaf], order="C") for leaf in leaves}
    return weights


def _torch_groups(layers: list[Layer]) -> dict[str, dict[str, np.ndarray]]:
    """Return the weights of PyTorch's modules by name, in order; all recurrent layers form one module."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for before, layer in zip([None, *layers], layers, strict=False):
        if layer.kind == "recurrent":
            groups.setdefault("recurrent", {}).update(_to_torch_cell(layer))
            continue
        kernel = layer.weights["kernel"]
        if layer.kind == "dense":
            channels = before.outputs if before is not None and before.kind == "conv" else 1
            weight = kernel.reshape(-1, channels, layer.outputs).swapaxes(0, 1).reshape(kernel.shape).T
        else:
            weight = np.moveaxis(kernel, (-1, -2), (0, 1))
        groups[layer.name] = {"weight": weight} | {
            part: layer.weights[part] for part in ("bias",) if layer.norm is None
        }
        if layer.norm is not None:
            norm = {theirs: layer.norm[ours] for theirs, ours in _NORM.items()}
            groups[f"{layer.name}.batch_norm"] = norm | {_COUNT: np.array(round(float(layer.norm["weight"])), np.int64)}
    return groups


def _to_torch_cell(layer: Layer) -> dict[str, np.ndarray]:
    suffix, bias = "_l" + layer.name.removeprefix("layer_"), layer.weights["bias"]
    columns = layer.weights["recurrent_kernel"].shape[1]
    of_hidden = np.zeros(columns, bias.dtype)
    extra = bias[columns:]
    of_hidden[columns - len(extra) :] = extra
    return {
        f"weight_ih{suffix}": layer.weights["input_kernel"].T,
        f"weight_hh{suffix}": layer.weights["recurrent_kernel"].T,
        f"bias_ih{suffix}": bias[:columns],
        f"bias_hh{suffix}": of_hidden,
    }


def from_torch(weights: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Convert the `state_dict` of a PyTorch network to the variables of a model.

    The result is for a `cnn`, an `mlp`, an `rnn`, a `gru` or an `lstm`, made with `batch_norm=True` if there is batch
    norm. Convolutions are named `conv_0` and so on, recurrent layers `layer_0` and so on, dense layers `hidden_0` and
    so on, and the last dense layer `output`. Kernels are transposed; see `to_torch`. A bias before a batch norm is
    subtracted from its running mean.

    Names and shapes do not determine everything: layers must be registered in the order in which they are applied;
    batch norm must come before the activation, with PyTorch's epsilon of 1e-5; and activations, strides, paddings
    and pools must be set in the model, such as `nnfx.models.rnn(activation="relu")` for `nonlinearity="relu"`.

    Args:
        weights: arrays or tensors keyed by PyTorch's names, such as a `state_dict`, or pairs of name and array,
            such as `named_parameters()`. Half precision becomes float32.

    Returns:
        `{"params": ...}`, and `"batch_stats"` if there is batch norm.

    Raises:
        TypeError: for anything other than names and arrays.
        ValueError: for weights of layers other than `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.BatchNorm1d`,
            `nn.BatchNorm2d`, `nn.RNN`, `nn.LSTM` or `nn.GRU` with biases, or for layers whose sizes or order do not
            fit together.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> variables = nnfx.models.gru(hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> back = from_torch(to_torch(variables))
        >>> bool((back["params"]["output"]["kernel"] == variables["params"]["output"]["kernel"]).all())
        True
    """
    weights = _by_name(weights)
    layers: list[Layer] = []
    for prefix, leaves in _by_prefix(weights).items():
        group = {leaf: _floats(name, weights[name]) for leaf, name in leaves.items() if leaf != _COUNT}
        if any(leaf.startswith("weight_hh_l") for leaf in group):
            layers += _from_torch_cells(group)
        elif "running_mean" in group:
            count = int(arrays.as_numpy(_COUNT, weights[leaves[_COUNT]])) if _COUNT in leaves else 0
            _attach(layers, prefix, {ours: group.get(theirs) for theirs, ours in _NORM.items()}, count)
        elif group.keys() <= {"weight", "bias"} and getattr(group.get("weight"), "ndim", 0) in (2, 3, 4):
            layers.append(_from_torch_layer(prefix, layers[-1:], group))
        else:
            raise ValueError(
                "weights: expected weights of nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.RNN,"
                f" nn.LSTM or nn.GRU, got {', '.join(leaves) or 'none'} in {prefix!r}"
            )
    return _on_device(layers)


def _from_torch_layer(prefix: str, before: list[Layer], group: dict[str, np.ndarray]) -> Layer:
    weight = group.pop("weight")
    if weight.ndim > 2:
        return Layer("conv", prefix, {"kernel": np.moveaxis(weight, (0, 1), (-1, -2)), **group})
    kernel = weight.T
    if before and before[0].kind == "conv" and len(kernel) % before[0].outputs == 0:
        kernel = kernel.reshape(before[0].outputs, -1, len(weight)).swapaxes(0, 1).reshape(kernel.shape)
    return Layer("dense", prefix, {"kernel": kernel, **group})


def _from_torch_cells(weights: dict[str, np.ndarray]) -> list[Layer]:
    suffixes = [name.removeprefix("weight_hh") for name in weights if name.startswith("weight_hh_l")]
    expected = {f"{kind}{suffix}" for suffix in suffixes for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    if expected != set(weights):
        wrong = ", ".join(sorted(expected ^ set(weights)))
        raise ValueError(
            "weights: expected weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 and so on for each layer;"
            f" missing or unknown: {wrong}"
        )
    layers = []
    for suffix in suffixes:
        of_inputs, of_hidden = weights[f"bias_ih{suffix}"], weights[f"bias_hh{suffix}"]
        recurrent = weights[f"weight_hh{suffix}"].T
        hidden, columns = recurrent.shape
        cell = {
            "input_kernel": weights[f"weight_ih{suffix}"].T,
            "recurrent_kernel": recurrent,
            "bias": _joined(of_inputs, of_hidden, hidden) if columns == 3 * hidden else of_inputs + of_hidden,
        }
        layers.append(Layer("recurrent", "layer_" + suffix.removeprefix("_l"), cell))
    return layers


def _joined(of_inputs: np.ndarray, of_hidden: np.ndarray, hidden: int) -> np.ndarray:
    """Return the bias of a GRU in our layout: both biases are summed, except for the candidate."""
    gates = 2 * hidden
    return np.concatenate([(of_inputs + of_hidden)[:gates], of_inputs[gates:], of_hidden[gates:]])


def to_keras(variables: Variables, epsilon: float = 1e-3) -> list[np.ndarray]:
    """Convert variables to arrays for `set_weights` of a Keras model with the same layers.

    The Keras layers are `Dense`, `Conv1D`, `Conv2D`, `BatchNormalization`, `SimpleRNN`, `LSTM` and `GRU` with
    `reset_after=True` (the default), and `Bidirectional`; layers before a batch norm have `use_bias=False`.

    Args:
        variables: the variables of an `mlp`, a `cnn`, an `rnn`, a `gru` or an `lstm`: `{"params": ..., ...}`.
        epsilon: the epsilon of the Keras model's batch norm; by default, Keras's default. The variances are adjusted
            for the difference from this library's epsilon, 1e-5, so that the outputs are the same.

    Raises:
        ValueError: for variables of any other model.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> variables = nnfx.models.gru(hidden=(8,), outputs=2).init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> [array.shape for array in to_keras(variables)]
        [(3, 24), (8, 24), (2, 24), (8, 2), (2,)]
    """
    checks.number("epsilon", epsilon, above=0)
    found: list[np.ndarray] = []
    for layer in stacks.layers_of(variables):
        if layer.kind == "recurrent":
            found += _to_keras_cell(**layer.weights)
            continue
        found += [layer.weights[part] for part in ("kernel", "bias") if part in layer.weights]
        if layer.norm is not None:
            scale, bias, mean, var = (layer.norm[part] for part in _NORM.values())
            found += [scale, bias, mean, var - np.asarray(epsilon - EPSILON, var.dtype)]
    return found


def _to_keras_cell(input_kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    hidden, columns = recurrent_kernel.shape
    if columns != 3 * hidden:
        return [input_kernel, recurrent_kernel, bias]
    of_hidden = np.concatenate([np.zeros(2 * hidden, bias.dtype), bias[columns:]])
    both = np.stack([bias[:columns], of_hidden])
    return [_swapped(array) for array in (input_kernel, recurrent_kernel, both)]


def _swapped(array: np.ndarray) -> np.ndarray:
    """Exchange the reset and update gates of a GRU: reset comes first in PyTorch and here, update in Keras."""
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)


def from_keras(weights: Iterable[Any], bidirectional: bool = False, epsilon: float = 1e-3) -> dict[str, Any]:
    """Convert the `get_weights()` of a Keras model to the variables of a model.

    `to_keras` lists the layers that are supported, and `from_torch` describes the names that they get. A bias before a
    batch norm is subtracted from its moving mean. Keras does not record how many batches its statistics come from, so
    they start with weight zero: they are used for predictions, but the first training batch replaces them.

    Args:
        weights: the arrays in the order of the layers.
        bidirectional: whether the recurrent layers are `Bidirectional`.
        epsilon: the epsilon of the Keras model's batch norm; by default, Keras's default; see `to_keras`.

    Returns:
        `{"params": ...}`, and `"batch_stats"` if there is batch norm.

    Raises:
        TypeError: for anything other than arrays of floats.
        ValueError: for weights of other layers, or for layers whose sizes or order do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, nnfx
        >>> variables = nnfx.models.mlp((8,)).init(jax.random.key(0), jnp.ones((1, 3)))
        >>> back = from_keras(to_keras(variables))
        >>> bool((back["params"]["output"]["kernel"] == variables["params"]["output"]["kernel"]).all())
        True
    """
    checks.number("epsilon", epsilon, above=0)
    if isinstance(weights, str | Mapping) or not isinstance(weights, Iterable):
        raise TypeError(f"weights: expected arrays, as from model.get_weights(), got {checks.describe(weights)}")
    left = [_floats(str(i), array) for i, array in enumerate(weights)]
    axes = [array.ndim for array in left]
    layers: list[Layer] = []
    while left:
        place = f"weights[{len(axes) - len(left)}]"
        if axes[-len(left) :][:2] == [2, 2] and len(left) > 2:
            number = sum(layer.kind == "recurrent" for layer in layers)
            name = f"layer_{number // 2}{'_reverse' * (number % 2)}" if bidirectional else f"layer_{number}"
            layers.append(Layer("recurrent", name, _from_keras_cell(place, *left[:3])))
            left = left[3:]
            continue
        kernel, *others = left
        vectors = others[: next((i for i, array in enumerate(others) if array.ndim != 1), len(others))]
        if kernel.ndim not in (2, 3, 4) or len(vectors) not in (1, 4, 5):
            raise ValueError(
                f"{place}: expected a kernel followed by a bias, the four arrays of a batch norm, or both, got"
                f" {', '.join(map(checks.describe, [kernel, *vectors]))}"
            )
        bias = {"bias": vectors[0]} if len(vectors) != 4 else {}
        layers.append(Layer("dense" if kernel.ndim == 2 else "conv", place, {"kernel": kernel, **bias}))
        if len(vectors) > 1:
            scale, shift, mean, var = vectors[-4:]
            var = var + np.asarray(epsilon - EPSILON, var.dtype)
            _attach(layers, place, {"scale": scale, "bias": shift, "mean": mean, "var": var}, 0)
        left = left[1 + len(vectors) :]
    return _on_device(layers)


def _from_keras_cell(place: str, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    hidden, columns = recurrent.shape
    if columns == 3 * hidden:
        if bias.shape != (2, columns):
            raise ValueError(
                f"{place}: expected a GRU with reset_after=True, whose bias is (2, {columns}), got"
                f" {checks.describe(bias)}"
            )
        kernel, recurrent, bias = (_swapped(array) for array in (kernel, recurrent, bias))
        bias = _joined(bias[0], bias[1], hidden)
    return {"input_kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


def _attach(layers: list[Layer], name: str, norm: Mapping[str, np.ndarray | None], weight: int) -> None:
    """Add a batch norm to the last layer, and subtract the bias of that layer from the running mean."""
    given = {part: array for part, array in norm.items() if array is not None}
    if not layers or layers[-1].kind == "recurrent" or layers[-1].norm is not None or len(given) < len(norm):
        raise ValueError(f"weights: expected a batch norm with scale and bias after a layer, got {name!r}")
    weights = dict(layers[-1].weights)
    if (bias := weights.pop("bias", None)) is not None:
        given["mean"] = given["mean"] - bias
    given["weight"] = np.asarray(weight, given["mean"].dtype)
    layers[-1] = layers[-1]._replace(weights=weights, norm=given)


def _on_device(layers: list[Layer]) -> dict[str, Any]:
    variables: dict[str, Any] = jax.tree.map(jnp.asarray, stacks.variables_of(layers))
    return variables


def _by_prefix(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Group PyTorch's names by module, in order; within a module, full names are keyed by their last component."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        modules.setdefault(prefix, {})[leaf] = name
    return modules


def _by_name(weights: Any) -> dict[str, Any]:
    """Return the weights as a dictionary keyed by PyTorch's names."""
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
