"""Values that are computed once per object, such as compiled programs, and freed with the object.

`jax.jit` with static arguments keeps a strong reference to every argument it has seen, and to its program: a process
that makes many models in turn would hold the programs of all of them. Here a program is attached to the object that it
was compiled for, so that both are freed together. The values of objects that do not accept new attributes are kept in
one shared store.
"""

import collections
import functools
import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

__all__ = ["LIMIT", "Compiled", "compiled", "held", "one_program"]

R = TypeVar("R")
T = TypeVar("T")

LIMIT = 64
"""The maximum number of values per object; beyond it, the least recently used value is dropped."""
_ATTRIBUTE = "_nnfx_memo"


one_program = functools.partial(jax.jit, inline=True)
"""Compiles a small function, whose operations would otherwise be separate programs; within `jit`, it is inlined."""


class _Memo:
    """The values that an object holds, by key; copies and pickles of the object start without them."""

    def __init__(self) -> None:
        self.made = collections.OrderedDict[Any, Any]()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Memo, ()

    def __deepcopy__(self, _: Any) -> "_Memo":
        return _Memo()


_ELSEWHERE = _Memo()


def held(owner: Any, key: Any, make: Callable[[], T]) -> T:
    """Return the result of `make`, which is called once per owner and key; the owner holds the result.

    Args:
        owner: the object whose lifetime the result shares: a model, a function, or any object with attributes.
        key: everything that the result depends on besides the owner; hashable.
        make: computes the result.

    Example:
        >>> def owner(): ...
        >>> held(owner, "answer", lambda: 42), held(owner, "answer", lambda: 43)
        (42, 42)
    """
    # a model is a tuple, which takes no attributes, so `apply` holds the values
    holder = getattr(owner, "apply", owner)
    attributes: Any = getattr(holder, "__dict__", None)
    can_hold = isinstance(attributes, dict) and not isinstance(holder, types.MethodType | type)
    made = (attributes.setdefault(_ATTRIBUTE, _Memo()) if can_hold else _ELSEWHERE).made
    key = (owner, key)  # decorators copy the attributes of the functions they wrap
    if key not in made:
        made[key] = make()
        while len(made) > LIMIT:
            made.popitem(last=False)
    made.move_to_end(key)
    return made[key]


class Compiled(Generic[R]):
    """A function compiled for given values of its leading, static arguments; the first of these holds the program.

    Args:
        function: the function.
        static: the number of leading arguments that are static, at least one.
        donate: the positions of the arguments whose buffers are donated.
    """

    def __init__(self, function: Callable[..., R], static: int, donate: tuple[int, ...]) -> None:
        self._function, self._static = function, static
        self._donate = tuple(number - static for number in donate)
        functools.update_wrapper(self, function)

    def program(self, *static: Any) -> Any:
        """Return the jitted function of the remaining arguments for given static arguments."""
        if len(static) != self._static:
            raise TypeError(f"static: expected {self._static} arguments, got {len(static)}")
        owner, *others = static
        fixed = functools.partial(self._function, *static)
        return held(owner, (self._function, tuple(others)), lambda: jax.jit(fixed, donate_argnums=self._donate))

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the compiled function."""
        return self.program(*args[: self._static])(*args[self._static :], **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Lower the function, as `jax.jit(...).lower` does."""
        return self.program(*args[: self._static]).lower(*args[self._static :], **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return the shapes and dtypes of the function's results."""
        return self.program(*args[: self._static]).eval_shape(*args[self._static :], **kwargs)


def compiled(static: int = 1, donate: tuple[int, ...] = ()) -> Callable[[Callable[..., R]], Compiled[R]]:
    """Compile a function like `jax.jit` with leading static arguments; the first argument holds the program.

    Args:
        static: the number of leading arguments that are static; the first is a model, a run function, or any
            other function.
        donate: the positions of the arguments whose buffers are donated; these must not be static.

    Example:
        >>> @compiled()
        ... def power(exponent, x):
        ...     return x ** exponent()
        >>> def two():
        ...     return 2
        >>> power(two, 3.0)
        Array(9., dtype=float32, weak_type=True)
    """
    return lambda function: Compiled(function, static, donate)
