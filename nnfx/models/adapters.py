"""Adapters that turn a module of Flax (Linen or NNX), Equinox or Haiku into a `Model` of pure functions."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError

from nnfx import checks, trees
from nnfx.types import Apply, Array, Model, Variables

if TYPE_CHECKING:
    from flax import nnx


def _switches(call: Callable[..., Any], train: bool, weights: Array | None) -> dict[str, Any]:
    """Return the keyword arguments that a module's call accepts among the known names of switches and `weights`."""
    accepted = inspect.signature(call).parameters
    offered = {
        **dict.fromkeys(("train", "training", "is_training"), train),
        **dict.fromkeys(("deterministic", "use_running_average", "inference"), not train),
        "weights": weights,
    }
    return {name: value for name, value in offered.items() if name in accepted}


@contextlib.contextmanager
def _named(inputs: Any) -> Iterator[None]:
    """Turn errors about inputs that are not arrays, or do not match the variables, into errors that name the inputs."""
    for leaf in jax.tree.leaves(inputs):
        is_array = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm"
        if not (is_array or isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | bool | int | float | complex)):
            raise TypeError(
                f"inputs: expected an array of numbers, or a tree of them, got {checks.describe(leaf)};"
                " nnfx.data.prepare converts data frames to arrays"
            )
    try:
        yield
    except ScopeParamShapeError as error:
        given = ", ".join(map(checks.describe, jax.tree.leaves(inputs)))
        raise ValueError(f"inputs: expected sizes that match the variables, got {given}; {error}") from error


def from_linen(module: nn.Module) -> Model:
    """Make a `Model` from a Flax Linen module.

    Besides the inputs, the module's `__call__` may accept a switch between training and prediction (`train`,
    `training`, `is_training`, `deterministic` or `use_running_average`) and `weights` (one per example). In training,
    every collection of variables except `params` is updated, and the key seeds all random streams.

    Args:
        module: an instance that maps inputs `(batch, ...)` to outputs `(batch, ...)`.

    Raises:
        TypeError: if `module` is not an instance of a Linen module.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = from_linen(nn.Dense(3))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an instance of flax.linen.Module, got {checks.describe(module)}")

    @jax.jit  # without jit, the whole forward pass would run just to find the shapes
    def variables_of(key: Array, inputs: Any) -> Variables:
        return cast(Variables, module.init(key, inputs, **_switches(type(module).__call__, False, None)))

    def init(key: Array, inputs: Any) -> Variables:
        checks.key("key", key)
        with _named(inputs):
            return variables_of(key, inputs)

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        switches = _switches(type(module).__call__, train, weights)
        rngs = None if key is None else {"params": key}
        mutable = [name for name in variables if name != "params"] if train else False
        with _named(inputs):
            return module.apply(variables, inputs, rngs=rngs, mutable=mutable, **switches)

    return Model(init, cast(Apply, apply))


def from_nnx(build: Callable[["nnx.Rngs"], "nnx.Module"]) -> Model:
    """Make a `Model` from a Flax NNX module, given as a function of its `Rngs`.

    A function is needed rather than an instance because an instance already holds its weights, so every key would give
    the same weights. `module.train()` or `module.eval()` is called when the model is applied, and random streams are
    seeded from the key passed to it.

    Args:
        build: a function that returns the module, such as `lambda rngs: Net(rngs=rngs)`. The parameters
            (`nnx.Param`) become `params`; all other variables become the collection `state`.

    Raises:
        TypeError: if `build` is not a function, for example if it is a module.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)
    """
    from flax import nnx  # increases the import time by a tenth, so it is imported only if it is used

    if isinstance(build, nnx.Module) or not callable(build):
        raise TypeError(
            "build: expected a function of rngs, such as lambda rngs: Net(rngs=rngs),"
            f" got {checks.describe(build)}; an instance already has weights"
        )

    def split(key: Array) -> tuple[Any, Any, Any, Any]:
        module = build(nnx.Rngs(key))
        return cast(tuple[Any, Any, Any, Any], nnx.split(module, nnx.Param, nnx.RngState, ...))

    def init(key: Array, inputs: Any) -> Variables:  # noqa: ARG001 -- NNX modules declare their input sizes
        checks.key("key", key)
        _, params, _, state = split(key)
        pure = {"params": nnx.to_pure_dict(params)}
        return pure | ({"state": nnx.to_pure_dict(state)} if state else {})

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        seed = jax.random.key(0) if key is None else key
        graph, params, streams, state = jax.eval_shape(split, seed)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(state, variables.get("state", {}))
        if train and streams and key is None:
            raise ValueError("key: expected a key, since this module draws random numbers in training, got None")
        streams = split(seed)[2] if streams else streams
        module = nnx.merge(graph, params, streams, state)
        module.train() if train else module.eval()
        outputs = module(inputs, **_switches(type(module).__call__, train, weights))
        if not train:
            return outputs
        updated: Any = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
        return outputs, ({"state": nnx.to_pure_dict(updated)} if updated else {})

    return Model(init, cast(Apply, apply))


def from_equinox(build: Callable[[Array], Any], axis_name: str = "batch") -> Model:
    """Make a `Model` from an Equinox module, given as a function of a key.

    Equinox modules take one example. The model maps the module over a batch with a named axis, as `eqx.nn.BatchNorm`
    and some other layers require. `eqx.nn.inference_mode` is set when the model is applied. If the module's `__call__`
    accepts `key`, each example gets its own key, from `jax.random.split(key, batch)`. `__call__` may also accept a
    switch such as `inference` (see `from_linen`), and `weights`, the weight of the example.

    Args:
        build: a function that returns the module, such as `lambda key: eqx.nn.MLP(2, 1, 16, 2, key=key)`, or a pair of
            module and state, such as `eqx.nn.make_with_state(Net)`; to start from the weights of an instance,
            `lambda key: module`. Its floating-point arrays become `params`, its other
            arrays the collection `constants`, and the contents of `eqx.nn.State` the collection `state`, all as dicts
            keyed by the names of the module's attributes.
        axis_name: the name of the batch axis, as in the module's `eqx.nn.BatchNorm`.

    Raises:
        ModuleNotFoundError: if Equinox is not installed.
        TypeError: if `build` is not a function of a key that returns an Equinox module.
        ValueError: for a batch norm whose axis has another name, or a dropout whose rate is an array, which would
            become a parameter; and, when the model is applied, for a state that differs between examples.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> model = from_equinox(lambda key: eqx.nn.Linear(2, 3, key=key))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)

    References:
        Kidger and Garcia, *Equinox: neural networks in JAX via callable PyTrees and filtered transformations*, 2021.
    """
    eqx = _imported("equinox")
    wanted = "build: expected a function of a key, such as lambda key: Net(key=key)"
    if isinstance(build, eqx.Module):
        raise TypeError(
            f"{wanted}, got an instance of {type(build).__name__}; to use its weights, pass lambda key: module"
        )
    if not callable(build):
        raise TypeError(f"{wanted}, got {checks.describe(build)}")

    def is_index(node: Any) -> bool:
        return isinstance(node, eqx.nn.StateIndex)

    returned = eqx.filter_eval_shape(build, jax.random.key(0))
    has_state = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], eqx.nn.State)
    with_state = build if has_state else eqx.nn.make_with_state(build)
    module_shapes, state_shapes = eqx.filter_eval_shape(with_state, jax.random.key(0))
    if not isinstance(module_shapes, eqx.Module) or not callable(module_shapes):
        raise TypeError(
            f"{wanted}, that returns an Equinox module, got a function that returns {type(module_shapes).__name__}"
        )
    _check_equinox_layers(eqx, module_shapes, axis_name)
    indices = [each for each in trees.named(module_shapes, is_leaf=is_index).items() if is_index(each[1])]
    call = type(module_shapes).__call__

    def collections_of(module: Any, state: Any) -> dict[str, Any]:
        arrays = [(name, leaf) for name, leaf in trees.named(module).items() if eqx.is_array(leaf)]
        of_kind = {
            "params": trees.nested((name, leaf) for name, leaf in arrays if eqx.is_inexact_array(leaf)),
            "constants": trees.nested((name, leaf) for name, leaf in arrays if not eqx.is_inexact_array(leaf)),
            "state": trees.nested((name, state.get(index)) for name, index in indices),
        }
        return {name: tree for name, tree in of_kind.items() if tree or name == "params"}

    @jax.jit  # one small program
    def variables_of(key: Array) -> Variables:
        return collections_of(*with_state(key))

    def init(key: Array, inputs: Any) -> Variables:  # noqa: ARG001 -- Equinox modules state their input sizes
        checks.key("key", key)
        return variables_of(key)

    def assembled(variables: Variables) -> tuple[Any, Any]:
        """Return the module and its state, with their arrays taken from the variables."""

        def array(path: Any, leaf: Any) -> Any:
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf
            kind = "params" if jnp.issubdtype(leaf.dtype, jnp.inexact) else "constants"
            return trees.at(variables[kind], trees.name_of(path))

        held = [leaf for name, _ in indices for leaf in jax.tree.leaves(trees.at(variables["state"], name))]
        state = jax.tree.unflatten(jax.tree.structure(state_shapes), held)
        return jax.tree_util.tree_map_with_path(array, module_shapes), state

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        module, state = assembled(variables)
        module = eqx.nn.inference_mode(module, value=not train)
        takes_key = "key" in inspect.signature(call).parameters
        # a module may split the key even if it draws nothing
        key = jax.random.key(0) if key is None and not train else key
        batch = jax.tree.leaves(inputs)[0].shape[0]
        keys = jax.random.split(key, batch) if takes_key and key is not None else None

        def of_example(example: Any, key: Array | None, weight: Array | None, state: Any) -> tuple[Any, Any]:
            switches = _switches(call, train, weight) | ({"key": key} if takes_key else {})
            if not indices:
                return module(example, **switches), state
            return cast(tuple[Any, Any], module(example, state, **switches))

        mapped = jax.vmap(of_example, in_axes=(0, 0, 0, None), out_axes=(0, None), axis_name=axis_name)
        try:
            outputs, state = mapped(inputs, keys, weights, state)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ValueError(
                "build: expected a module with the same state for all examples of a batch, got a state that differs;"
                f" average it in the module with jax.lax.pmean(value, {axis_name!r})"
            ) from error
        if not train:
            return outputs
        updated = {"state": trees.nested((name, state.get(index)) for name, index in indices)} if indices else {}
        return outputs, {name: tree for name, tree in {**variables, **updated}.items() if name != "params"}

    return Model(init, cast(Apply, apply))


def _check_equinox_layers(eqx: Any, module: Any, axis_name: str) -> None:
    """Check the axis names of batch norm layers, and that dropout rates are not arrays."""

    def is_layer(node: Any) -> bool:
        return isinstance(node, eqx.nn.BatchNorm | eqx.nn.Dropout)

    for layer in filter(is_layer, jax.tree.leaves(module, is_leaf=is_layer)):
        if isinstance(layer, eqx.nn.Dropout):
            if isinstance(layer.p, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"p: expected a Python number as the rate of eqx.nn.Dropout, got {checks.describe(layer.p)}, which"
                    " would be a parameter; to sweep the rate, use nnfx.ops.dropout in the module"
                )
        elif layer.axis_name != axis_name:
            raise ValueError(f"axis_name: expected {layer.axis_name!r}, as in eqx.nn.BatchNorm, got {axis_name!r}")


def from_haiku(function: Callable[..., Any]) -> Model:
    """Make a `Model` from a Haiku function of inputs, before `hk.transform`.

    The function may accept a switch such as `is_training` (see `from_linen`), and `weights` (one per example). The
    variables are initialised with inputs of zeros in training mode, since Haiku's batch norm creates its averages only
    in that mode.

    Args:
        function: a function from inputs `(batch, ...)` to outputs `(batch, ...)` that creates its modules itself, such
            as `lambda x: hk.nets.MLP([16, 1])(x)`. Its parameters become `params`, its state the collection `state`.

    Raises:
        ModuleNotFoundError: if Haiku is not installed.
        TypeError: if `function` is something else, such as the result of `hk.transform` or a module class.

    Example:
        >>> import haiku as hk, jax, jax.numpy as jnp
        >>> model = from_haiku(lambda x: hk.Linear(3)(x))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)

    References:
        Hennigan et al., *Haiku: Sonnet for JAX*, 2020.
    """
    hk = _imported("haiku")
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            "function: expected a function that creates its modules, such as lambda x: hk.nets.MLP([16, 1])(x),"
            f" before hk.transform, got {checks.describe(function)}"
        )
    transformed = hk.transform_with_state(function)

    def variables_as(params: Any, state: Any) -> dict[str, Any]:
        return {"params": params} | ({"state": state} if state else {})

    @jax.jit  # one small program
    def variables_of(key: Array, inputs: Any) -> Variables:
        zeros = jax.tree.map(jnp.zeros_like, inputs)
        return variables_as(*transformed.init(key, zeros, **_switches(function, True, None)))

    def init(key: Array, inputs: Any) -> Variables:
        checks.key("key", key)
        return variables_of(key, inputs)

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        switches = _switches(function, train, weights)
        outputs, state = transformed.apply(variables["params"], variables.get("state", {}), key, inputs, **switches)
        return (outputs, {"state": state} if state else {}) if train else outputs

    return Model(init, cast(Apply, apply))


def _imported(package: str) -> Any:
    """Return an optional package; if it is missing, raise an error that says how to install it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        wanted = f"{package}: required for its modules, but not installed: pip install 'nnfx[{package}]'"
        raise ModuleNotFoundError(wanted) from error
