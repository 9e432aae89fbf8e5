"""Hyper-parameters: the numeric keyword arguments of the parts of a run.

The model's factory, the loss, the optimizer's factory and the stopping rules are plain functions. Their keyword
arguments become keyword arguments of the run: `run(key, data, learning_rate=0.1, patience=10)` passes each number to
the part that takes it. Hyper-parameters are traced, so changing one needs no recompilation.
"""

import dataclasses
import difflib
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.bounds import FREE, Bounds, bounds_of
from nnfx.types import Hyper


@dataclasses.dataclass(frozen=True)
class Made:
    """A factory that returns an existing instance.

    Attributes:
        value: the instance.
    """

    value: Any

    def __call__(self) -> Any:
        """Return the value."""
        return self.value


class Factory(NamedTuple):
    """A function that takes hyper-parameters.

    Attributes:
        name: the function's name in error messages.
        function: the function, possibly a `functools.partial`.
        names: the names of its hyper-parameters.
        required: the names of hyper-parameters without a default.
        bounds: the bounds of hyper-parameters that have any, by name.
    """

    name: str
    function: Callable[..., Any]
    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    bounds: Mapping[str, Bounds] = types.MappingProxyType({})

    def bind(self, hyper: Mapping[str, Any]) -> Callable[..., Any]:
        """Fix the hyper-parameters that the function takes, and leave its other arguments open."""
        picked = self.pick(hyper)
        return functools.partial(self.function, **picked) if picked else self.function

    def pick(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Select the hyper-parameters that the function takes."""
        return {name: value for name, value in hyper.items() if name in self.names}


def factory(function: Callable[..., Any], leading: int = 0) -> Factory:
    """Read the hyper-parameters of a function from its signature.

    Args:
        function: a factory or a loss.
        leading: the number of leading arguments that are not hyper-parameters, such as a loss's outputs and targets.

    Example:
        >>> import optax
        >>> factory(optax.sgd).names, factory(optax.sgd).required
        (('learning_rate', 'momentum'), ('learning_rate',))
    """
    named = [
        parameter
        for parameter in list(inspect.signature(function).parameters.values())[leading:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    _check_fixed(function)
    numbers = [p for p in named if not isinstance(p.default, bool | str) and not p.name.endswith("dtype")]
    bounds = {parameter.name: bounds_of(function, parameter.name) for parameter in numbers}
    return Factory(
        name=name_of(function),
        function=function,
        names=tuple(parameter.name for parameter in numbers),
        required=tuple(parameter.name for parameter in named if parameter.default is parameter.empty),
        bounds=types.MappingProxyType({name: each for name, each in bounds.items() if each != FREE}),
    )


def _check_fixed(function: Callable[..., Any]) -> None:
    """Check that numbers fixed by `functools.partial` are within the bounds of their parameters."""
    if isinstance(function, functools.partial):
        fixed = inspect.signature(function.func).bind_partial(*function.args, **function.keywords).arguments
        for name, value in fixed.items():
            bounds = bounds_of(function.func, name)
            if bounds != FREE and isinstance(value, int | float | np.generic | jax.Array):
                bounds.check(name, value)
        _check_fixed(function.func)


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside any nested `functools.partial`.

    >>> innermost(functools.partial(max, 1))
    <built-in function max>
    """
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, even inside `functools.partial`.

    >>> name_of(functools.partial(max, 1))
    'max'
    """
    function = innermost(function)
    return getattr(function, "__name__", type(function).__name__)


def check(hyper: Mapping[str, Any], factories: Sequence[Factory]) -> None:
    """Check that no name is unknown or missing, and that each value is one finite number within its bounds.

    Raises:
        TypeError: for an unknown or missing name, or a value that is not a number.
        ValueError: for a number out of bounds, or an array of several numbers.
    """
    known = sorted({name for each in factories for name in each.names})
    for name, value in hyper.items():
        if name not in known:
            hint = _hint_for(name, known, factories)
            raise TypeError(f"{name}: expected one of the hyper-parameters {', '.join(known) or '(none)'}{hint}")
        if isinstance(value, bool) or not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
            raise TypeError(
                f"{name}: expected a number, got {checks.describe(value)}; fix other values"
                " beforehand with functools.partial"
            )
        takers = [each for each in factories if name in each.names]
        if len(takers) > 1:
            names = " and ".join(each.name for each in takers)
            raise TypeError(
                f"{name}: expected a hyper-parameter of one part only, got one of {names}; rename it in one of them"
            )
        takers[0].bounds.get(name, FREE).check(name, value)
        _check_representable(name, value)
    for each in factories:
        for name in each.required:
            if name not in hyper:
                raise TypeError(
                    f"{name}: expected a number for {each.name}, got nothing; pass it to the run, or fix it"
                    f" beforehand with functools.partial{_OF_MODULES.get(name, '')}"
                )


def _check_representable(name: str, value: Any) -> None:
    """Check that a number neither overflows nor underflows to zero in the dtype in which it is traced."""
    if not checks.is_concrete(value):
        return
    dtype, given = jax.dtypes.canonicalize_dtype(float), float(value)
    with np.errstate(over="ignore", under="ignore"):
        held = np.asarray(given).astype(dtype)
    if not np.isfinite(held) or (held == 0) != (given == 0):
        raise ValueError(f"{name}: expected a number that {dtype} can represent, got {given:g}")


_OF_MODULES = {
    argument: f"; a function of {argument} that makes a module is converted with nnfx.models.{adapter}"
    for argument, adapter in {"key": "from_equinox", "rngs": "from_nnx", "x": "from_haiku"}.items()
}
"""Hints for functions that make a module of another library, by the name of their argument."""


def _hint_for(name: str, known: Sequence[str], factories: Sequence[Factory]) -> str:
    """Return the text of a hint, for the end of an error message about an unknown name."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    made = [each.function.value for each in factories if isinstance(each.function, Made)]
    if any(isinstance(each, optax.GradientTransformation) for each in made):
        return "; the optimizer is an instance: to pass its hyper-parameters, use its factory, such as optax.adam"
    return ""


def as_arrays(hyper: Mapping[str, ArrayLike]) -> Hyper:
    """Convert every number to the default float, so that `1`, `1.0` and `np.float32(1)` are traced alike."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    return {
        name: value if isinstance(value, jax.core.Tracer) else np.asarray(value, dtype)
        for name, value in sorted(hyper.items())
    }
