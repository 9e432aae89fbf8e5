"""Bounds for numeric parameters, declared in the signature: `delta: Positive`.

A function itself can check only concrete numbers. Inside a run all hyper-parameters are traced, so a run reads the
bounds from the signatures of its parts and checks the hyper-parameters against them when it is called.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from jax.typing import ArrayLike

from nnfx import checks

__all__ = ["FREE", "AtLeastOne", "BelowOne", "Bounds", "Inside", "NonNegative", "Positive", "Share", "bounds_of"]


class Bounds(NamedTuple):
    """The allowed range of a number, for use in `Annotated`; None means no bound on that side.

    >>> Bounds(above=0).check("delta", 0.0)
    Traceback (most recent call last):
      ...
    ValueError: delta: expected a finite number above 0, got 0
    """

    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Require one number; if it is concrete, it must be finite and within the bounds."""
        checks.number(name, value, **self._asdict())


Positive = Annotated[ArrayLike, Bounds(above=0)]
"""A number above 0."""
NonNegative = Annotated[ArrayLike, Bounds(minimum=0)]
"""A number of at least 0."""
AtLeastOne = Annotated[ArrayLike, Bounds(minimum=1)]
"""A number of at least 1."""
Share = Annotated[ArrayLike, Bounds(minimum=0, maximum=1)]
"""A number from 0 to 1."""
BelowOne = Annotated[ArrayLike, Bounds(minimum=0, below=1)]
"""A number from 0 (inclusive) to 1 (exclusive)."""
Inside = Annotated[ArrayLike, Bounds(above=0, below=1)]
"""A number between 0 and 1, both exclusive."""

FREE = Bounds()
"""Any finite number."""
_OF_OPTAX = {
    "learning_rate": Bounds(above=0),
    "momentum": Bounds(minimum=0, below=1),
    "weight_decay": Bounds(minimum=0),
    "delta": Bounds(above=0),
    "b1": Bounds(minimum=0, below=1),
    "b2": Bounds(minimum=0, below=1),
    "decay": Bounds(minimum=0, below=1),
    "eps": Bounds(minimum=0),
}
"""The bounds of parameters of Optax's functions, whose signatures do not declare them."""
_TO_ONE = {
    "adamax",
    "adamaxw",
    "ema",
    "lion",
    "novograd",
    "scale_by_adamax",
    "scale_by_lion",
    "scale_by_novograd",
    "scale_by_sm3",
    "trace",
}
"""Optax functions that accept a decay of 1, with which nothing is forgotten; they do not divide by 1 − decay."""


def bounds_of(function: Callable[..., Any], name: str) -> Bounds:
    """Return the bounds of a parameter, from its annotation or, for Optax's functions, from a table of names.

    If a wrapper names the parameter in its own signature, the parameter is the wrapper's own and has no bounds; if it
    only passes the parameter on, the bounds of the wrapped function apply.

    Args:
        function: any callable, possibly decorated or a `functools.partial`.
        name: the name of the parameter.

    Example:
        >>> def loss(outputs, targets, delta: Positive): ...
        >>> bounds_of(functools.partial(loss, targets=None), "delta")
        Bounds(above=0, minimum=None, below=None, maximum=None)
    """
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            # decorators copy annotations too, so they say nothing about the wrapper's own parameters
            if isinstance(function, types.FunctionType) and name in _own_names(function):
                return FREE
            function = function.__wrapped__
        else:
            break
    if str(getattr(function, "__module__", "")).partition(".")[0] == "optax":
        bounds = _OF_OPTAX.get(name, FREE)
        is_to_one = name in ("b1", "b2", "decay") and getattr(function, "__name__", "") in _TO_ONE
        return bounds._replace(below=None, maximum=1) if is_to_one else bounds
    parameter = inspect.signature(function).parameters.get(name)
    metadata = getattr(None if parameter is None else parameter.annotation, "__metadata__", ())
    return next((each for each in metadata if isinstance(each, Bounds)), FREE)


def _own_names(function: types.FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
