"""Adapters that turn a Flax module, Linen or NNX, into a `Model` of pure functions."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax

from nnfx import checks
from nnfx.types import Apply, Array, Model, Variables

if TYPE_CHECKING:
    from flax import nnx


def _switches(call: Callable[..., Any], train: bool, weights: Array | None) -> dict[str, Any]:
    """Return the keyword arguments that a module's `__call__` accepts, under the names that it uses for them."""
    accepted = inspect.signature(call).parameters
    offered = {
        **dict.fromkeys(("train", "training", "is_training"), train),
        **dict.fromkeys(("deterministic", "use_running_average"), not train),
        "weights": weights,
    }
    return {name: value for name, value in offered.items() if name in accepted}


def from_linen(module: nn.Module) -> Model:
    """Make a `Model` from a Flax Linen module.

    The module's `__call__(x)` may accept a switch (`train`, `training`, `is_training`, `deterministic` or
    `use_running_average`) and `weights` (one per example). In training, every collection of variables except `params`
    is updated, and the key seeds all random streams.

    Args:
        module: an instance, which maps inputs `(batch, ...)` to outputs `(batch, ...)`.

    Raises:
        TypeError: for anything but a Linen module.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = from_linen(nn.Dense(3))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an instance of flax.linen.Module, got {checks.describe(module)}")

    @jax.jit  # one small program; op by op, the whole forward pass would run just to find the shapes
    def variables_of(key: Array, inputs: Any) -> Variables:
        return cast(Variables, module.init(key, inputs, **_switches(type(module).__call__, False, None)))

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
        switches = _switches(type(module).__call__, train, weights)
        rngs = None if key is None else {"params": key}
        if not train:
            return module.apply(variables, inputs, rngs=rngs, **switches)
        state = [name for name in variables if name != "params"]
        return module.apply(variables, inputs, rngs=rngs, mutable=state, **switches)

    return Model(init, cast(Apply, apply))


def from_nnx(build: Callable[["nnx.Rngs"], "nnx.Module"]) -> Model:
    """Make a `Model` from a Flax NNX module, given as a function of its `Rngs`.

    It takes a function rather than an instance because an instance already holds its weights, so every key would
    give the same ones. `module.train()` or `module.eval()` is called when the model is applied, and random streams
    are seeded from the key that is passed then.

    Args:
        build: a function that returns the module, such as `lambda rngs: Net(rngs=rngs)`. The parameters
            (`nnx.Param`) become `params`; variables of every other kind become the collection `state`.

    Raises:
        TypeError: for a module instead of a function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(variables, jnp.ones((5, 2))).shape
        (5, 3)
    """
    from flax import nnx  # adds a tenth to the start-up time, which only its users should pay

    if isinstance(build, nnx.Module) or not callable(build):
        raise TypeError(
            "build: expected a function of rngs, such as lambda rngs: Net(rngs=rngs),"
            f" got {checks.describe(build)}; an instance already has weights"
        )

    def split(key: Array) -> tuple[Any, Any, Any, Any]:
        module = build(nnx.Rngs(key))
        return cast(tuple[Any, Any, Any, Any], nnx.split(module, nnx.Param, nnx.RngState, ...))

    def init(key: Array, inputs: Any) -> Variables:  # noqa: ARG001 -- NNX modules state their input sizes
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
