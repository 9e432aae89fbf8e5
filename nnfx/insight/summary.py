"""A summary of a model: its layers, their shapes and parameters, and the cost of a forward pass and a training step."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.interpreters import partial_eval

from nnfx import checks
from nnfx.insight.layers import WHOLE, calls_seen, watch
from nnfx.insight.objective import name_of
from nnfx.tables import table
from nnfx.training.step import init_state, make_step
from nnfx.types import Array, Batch, Model, Variables

__all__ = ["Cost", "Layer", "Summary", "summarize"]

ENTER, LEAVE = "nnfx enters ", "nnfx leaves "
"""The prefixes of names of operations that mark the beginning and the end of a layer's call in a program."""
ELSEWHERE = "elsewhere"
"""The name for everything outside the visible layers."""


class Layer(NamedTuple):
    """A layer, as defined by `nnfx.insight.features.layer_outputs`.

    Attributes:
        name: the name of the layer, such as `"hidden_0"`.
        kind: the class name of the module.
        shape: the shape of the outputs.
        parameters: the number of parameters, excluding nested layers.
        flops: the FLOPs of the forward pass on the whole batch, excluding nested layers.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


class Cost(NamedTuple):
    """The cost of a compiled program.

    Attributes:
        flops: the number of additions and multiplications in matrix products and convolutions.
        bytes: the memory for its arguments, results and temporaries, as reported by the compiler for this device.
    """

    flops: int
    bytes: int


class Summary(NamedTuple):
    """A summary of a model, which prints as a table.

    Attributes:
        layers: the layers, in the order of their calls.
        inputs: the shape of the inputs, including the batch.
        parameters: the number of trained parameters.
        parameter_bytes: the size of the parameters in bytes.
        forward: the cost of applying the model to the batch.
        step: the cost of a training step on the batch, including the gradient and the optimizer's update.
    """

    layers: tuple[Layer, ...]
    inputs: Any
    parameters: int
    parameter_bytes: int
    forward: Cost
    step: Cost

    def __str__(self) -> str:
        """Return the summary as a table."""
        rows = [
            [layer.name, layer.kind, "×".join(map(str, layer.shape)), f"{layer.parameters:,}", _count(layer.flops)]
            for layer in self.layers
        ]
        return "\n".join(
            [
                table(["layer", "kind", "outputs", "parameters", "FLOPs"], rows),
                "",
                f"inputs {self.inputs}; {self.parameters:,} parameters, {_bytes(self.parameter_bytes)}",
                f"forward: {_count(self.forward.flops)} FLOPs, {_bytes(self.forward.bytes)}",
                f"training step: {_count(self.step.flops)} FLOPs, {_bytes(self.step.bytes)}",
            ]
        )


def _count(number: int) -> str:
    """Format a large number in short form.

    >>> _count(950), _count(1_234_000)
    ('950', '1.23 M')
    """
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def _bytes(number: int) -> str:
    """Format a size in bytes in short form.

    >>> _bytes(2048)
    '2 KiB'
    """
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"


def summarize(model: Model, inputs: Any, optimizer: optax.GradientTransformation | None = None) -> Summary:
    """Summarise a model: layers, shapes, parameters, and the cost of a forward pass and a training step.

    Nothing is computed: the model is traced, and both programs are compiled. Only the operations of matrix products and
    convolutions are counted, two for each multiply-add. Products with the padding of a convolution are not counted,
    although many papers count them. The body of a loop of unknown length is counted once.

    Args:
        model: any model; only layers that are Flax Linen modules are listed.
        inputs: a batch; its shape, for floats; or its shape and dtype as `jax.ShapeDtypeStruct`.
        optimizer: the optimizer of the training step; Adam by default. The mean of the outputs is used as the loss,
            since the cost of a loss is negligible.

    Returns:
        The summary.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for inputs without a batch axis.

    Example:
        >>> from nnfx import models
        >>> found = summarize(models.mlp((16,), 10), jax.ShapeDtypeStruct((32, 64), jnp.float32))
        >>> [(layer.name, layer.shape, layer.parameters, layer.flops) for layer in found.layers]
        [('hidden_0', (32, 16), 1040, 65536), ('output', (32, 10), 170, 10240)]
        >>> found.parameters, found.forward.flops
        (1210, 75776)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model(init, apply), got {checks.describe(model)}")
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer: expected an Optax optimizer, got {checks.describe(optimizer)}")
    if isinstance(inputs, tuple) and inputs and all(isinstance(size, int) for size in inputs):
        inputs = jax.ShapeDtypeStruct(inputs, jnp.zeros(()).dtype)
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(not hasattr(leaf, "dtype") or not np.shape(leaf) for leaf in leaves):
        raise ValueError(f"inputs: expected a batch, (batch, ...), or its shape, got {checks.describe(inputs)}")
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs)
    rows = leaves[0].shape[0]

    state = jax.eval_shape(lambda x: init_state(jax.random.key(0), model, optimizer, x), inputs)
    variables = state.variables
    ones: Any = jax.ShapeDtypeStruct((rows,), jnp.zeros(()).dtype)
    step = make_step(model, lambda outputs, _: outputs.reshape(rows, -1).mean(-1), optimizer)
    params = jax.tree.leaves(state.params)
    return Summary(
        layers=_layers(model, variables, inputs),
        inputs=jax.tree.map(lambda leaf: leaf.shape, inputs),
        parameters=sum(leaf.size for leaf in params),
        parameter_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in params),
        forward=_cost(jax.jit(lambda variables, inputs: model.apply(variables, inputs)), variables, inputs),
        step=_cost(jax.jit(step, donate_argnums=0), state, Batch(inputs, ones, ones)),
    )


def _cost(program: Any, *arguments: Any) -> Cost:
    traced = program.trace(*arguments)
    memory = traced.lower().compile().memory_analysis()
    sizes = [memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes]
    used, _ = partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars), instantiate=True)
    return Cost(count_flops(used), int(sum(sizes) - memory.alias_size_in_bytes))


def _layers(model: Model, variables: Variables, inputs: Any) -> tuple[Layer, ...]:
    """Return the visible layers, and a last entry for parameters and operations elsewhere, if there are any."""
    _, seen = jax.eval_shape(partial(watch, model), variables, inputs)
    kinds: dict[str, str] = {}

    def see(name: str, module: nn.Module, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        del args
        kinds[name] = type(module).__name__
        checkpoint_name(jnp.zeros(()), ENTER + name)
        output = call()
        checkpoint_name(jnp.zeros(()), LEAVE + name)
        return output

    def marked(variables: Variables, inputs: Any) -> Array:
        with calls_seen(see):
            return model.apply(variables, inputs)

    flops = dict.fromkeys([*seen, ELSEWHERE], 0)
    within = [ELSEWHERE]
    for equation in jax.make_jaxpr(marked)(variables, inputs).jaxpr.eqns:
        mark = str(equation.params.get("name", ""))
        if mark.startswith(ENTER):
            name = mark.removeprefix(ENTER)
            within.append(name if name in seen else within[-1])
        elif mark.startswith(LEAVE):
            within.pop()
        else:
            flops[within[-1]] += _flops_of(equation)
    parameters = dict.fromkeys(flops, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        modules = name_of(path).split("/")[:-1]
        candidates = ["/".join(modules[:depth]) or WHOLE for depth in range(len(modules), -1, -1)]
        parameters[next((name for name in candidates if name in seen), ELSEWHERE)] += leaf.size
    layers = [Layer(name, kinds[name], output.shape, parameters[name], flops[name]) for name, output in seen.items()]
    if parameters[ELSEWHERE] or flops[ELSEWHERE]:
        layers.append(Layer(ELSEWHERE, "", (), parameters[ELSEWHERE], flops[ELSEWHERE]))
    return tuple(layers)


def count_flops(program: core.Jaxpr) -> int:
    """Count the additions and multiplications in the matrix products and convolutions of a traced program."""
    return sum(map(_flops_of, program.eqns))


def _flops_of(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shared = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
        return 2 * shared * math.prod(_shape(equation.outvars[0]))
    if name == "conv_general_dilated":
        return _flops_of_convolution(equation)
    inner = [count_flops(each) for each in _programs_in(parameters)]
    if name == "scan":
        return int(parameters["length"]) * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def _programs_in(parameters: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs in an equation's parameters, such as a loop body; JAX 0.9 has no public function for this."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _flops_of_convolution(equation: core.JaxprEqn) -> int:
    """Count products with values of the inputs, but not with padding or with zeros inserted by dilation."""
    dimensions, parameters = equation.params["dimension_numbers"], equation.params
    inputs, kernel, outputs = map(_shape, (*equation.invars, *equation.outvars))
    batch, features, *places = (outputs[axis] for axis in dimensions.out_spec)
    _, channels, *sizes = (kernel[axis] for axis in dimensions.rhs_spec)
    meetings = 1
    for i, (number, size) in enumerate(zip(places, sizes, strict=True)):
        stride, gap, spread = (parameters[key][i] for key in ("window_strides", "rhs_dilation", "lhs_dilation"))
        at = stride * np.arange(number)[:, None] + gap * np.arange(size)[None] - parameters["padding"][i][0]
        last = spread * (inputs[dimensions.lhs_spec[2 + i]] - 1)
        meetings *= int(((at >= 0) & (at <= last) & (at % spread == 0)).sum())
    return 2 * batch * features * channels * meetings
