"""Descriptions of a run's parts that stay valid across releases of Python, JAX and this library.

Each part is described recursively. Functions and classes of installed packages are identified by name, and their
arguments, such as an optimizer's hyper-parameters, by value; the user's own functions are identified by their
source and by the values that they use. Every fact is stored under a path, such as `optimizer.learning_rate`. If the
path leads through the internals of a package, it contains `~` and the package's name, since internals may differ in
another release.
"""

import collections
import dataclasses
import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from nnfx.sessions import source
from nnfx.training.parts import Recipe

_NUMBERS = int | float | complex | str | bytes | None
_OWN = ("function ", "class ", "array ")
"""Prefixes of descriptions that do not depend on any package."""
_UNTOLD = ("None", "dtype ", "the same as ")
"""Prefixes of descriptions that may differ in another release of a package although the meaning is the same."""
_DEPTH = 60
_HIDDEN = {"name", "parent", "scope"}
"""The fields that Flax adds to a module."""
_PASSING = ("__", "_nnfx")
"""Prefixes of the names of attributes that do not describe an object, such as its compiled programs."""
_CONFIGURED = ("jax_default_matmul_precision", "jax_threefry_partitionable")
"""Global settings of JAX that affect results."""


def parts_of(recipe: Recipe) -> dict[str, str]:
    """Describe a run's parts by path, except for the number of epochs and settings that do not affect the results.

    >>> import nnfx, optax
    >>> found = parts_of(nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2))
    >>> found["loss"], found["optimizer"], found["batch_size"]
    ('nnfx.mean_square_error', 'optax.sgd', 'None')
    """
    walk = _Walk()
    for name, given in recipe.given.items():
        walk.into(given, name)
    walk.into(dict(recipe.metrics), "metrics")
    walk.into(recipe.make_step, "make_step")
    walk.into(recipe.batch_size, "batch_size")
    for name in _CONFIGURED:
        walk.into(getattr(jax.config, name, None), name)
    return walk.facts


def differences(expected: Mapping[str, str], got: Mapping[str, str], changed: Iterable[str] = ()) -> list[str]:
    """Return the parts in which two runs differ, as one line of text for each.

    Args:
        expected: the parts of one run.
        got: the parts of the other.
        changed: packages whose releases differ between the runs. In their internals, only facts that both runs have
            are compared, together with any functions and arrays of the user.

    Example:
        >>> differences({"optimizer": "optax.adam", "optimizer.b1": "0.9"}, {"optimizer": "optax.sgd"})
        ['optimizer: expected optax.adam, got optax.sgd']
    """
    others, found = set(changed), list[tuple[str, str]]()
    moved: tuple[list[str], list[str]] = ([], [])
    for path in {**expected, **got}:
        first, second = expected.get(path), got.get(path)
        if first == second:
            continue
        if others.intersection(re.findall(r"~(\w+)", path)):
            words = [word for word in (first, second) if word is not None]
            if len(words) == 1 or any(word.startswith(_UNTOLD) for word in words):
                for word, side in ((first, moved[0]), (second, moved[1])):
                    if word is not None and word.startswith(_OWN):
                        side.append(word)
                continue
        if not any(path.startswith((f"{above}.", f"{above}[", f"{above}~")) for above, _ in found):
            # the path through package internals is meaningless to users, and left out
            shown = ".".join(dict.fromkeys([path.partition("~")[0], re.split(r"~\w+\.", path)[-1]]))
            found.append((path, f"{shown}: expected {first or 'nothing'}, got {second or 'nothing'}"))
    lines = list(dict.fromkeys(line for _, line in found))
    if sorted(moved[0]) != sorted(moved[1]):
        lost, new = (list(collections.Counter(a) - collections.Counter(b)) for a, b in (moved, moved[::-1]))
        lines.append(f"parts: expected {', '.join(lost) or 'nothing'}, got {', '.join(new) or 'nothing'}")
    return lines


def array_words(array: Any) -> str:
    """Describe an array by dtype, shape and checksum."""
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.dtype == object:
        return f"object[{','.join(map(str, array.shape))}]"
    # viewed as bytes, since not every dtype supports the buffer protocol
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return f"{array.dtype}[{','.join(map(str, array.shape))}] {hashlib.sha256(flat).hexdigest()[:16]}"


class _Walk:
    """Walks through objects and collects facts by path."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self._seen: dict[int, str] = {}
        self._kept: list[Any] = []  # keeps described objects alive, so that their ids are not reused
        self._above: list[int] = []

    def into(self, value: Any, path: str) -> None:
        """Describe a value and its components."""
        if isinstance(value, bool | np.bool_ | _NUMBERS) and not isinstance(value, enum.Enum):
            self.facts[path] = repr(value.item() if isinstance(value, np.generic) else value)
        elif id(value) in self._above or len(self._above) > _DEPTH:
            self.facts[path] = "the same as above"
        else:
            self._above.append(id(value))
            try:
                self._describe(value, path)
            finally:
                self._above.pop()

    def _describe(self, value: Any, path: str) -> None:
        if isinstance(value, enum.Enum):
            self.facts[path] = f"{type(value).__qualname__}.{value.name}"
        elif isinstance(value, np.dtype | PurePath):
            self.facts[path] = f"{'dtype ' if isinstance(value, np.dtype) else ''}{value}"
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            shown = (
                f" {value}" if isinstance(value, np.number) or (value.ndim == 0 and value.dtype.kind in "iuf") else ""
            )
            self.facts[path] = f"array {array_words(value)}{shown}"
        elif isinstance(value, type):
            self._class(value, path)
        elif isinstance(value, functools.partial):
            self._partial(value, path)
        elif isinstance(value, types.MethodType):
            self.into(value.__func__, path)
            self.into(value.__self__, f"{path}.self")
        elif isinstance(value, types.FunctionType):
            self._function(value, path)
        elif isinstance(value, types.ModuleType):
            self.facts[path] = f"module {value.__name__}"
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            self._fields(value, path, value._fields)
        elif isinstance(value, tuple | list):
            self.facts[path] = f"{len(value) or 'none'} of them"
            for i, each in enumerate(value):
                self.into(each, f"{path}[{i}]")
        elif isinstance(value, Mapping):
            self.facts[path] = f"{len(value) or 'none'} by name"
            for name, each in sorted(((_plain(name), each) for name, each in value.items()), key=lambda pair: pair[0]):
                self.into(each, f"{path}.{name}")
        elif isinstance(value, Set):
            self.facts[path] = f"the set {', '.join(sorted(map(_plain, value)))}"
        elif hasattr(value, "dtype") and isinstance(getattr(value, "dtype", None), np.dtype) and callable(value):
            self.facts[path] = f"dtype {value.dtype}"  # a scalar type, such as jnp.float32
        elif isinstance(getattr(value, "__wrapped__", None), Callable):  # type: ignore[arg-type]
            self._wrapper(value, path)
        elif callable(value) and not _is_own(type(value)) and getattr(value, "__name__", None):
            self.facts[path] = f"{_package(value)}.{getattr(value, '__qualname__', None) or value.__name__}"
        elif dataclasses.is_dataclass(value):
            hidden = _HIDDEN if _is_flax(type(value)) else set()
            self._fields(value, path, [each.name for each in dataclasses.fields(value) if each.name not in hidden])
        else:
            self._object(value, path)

    def _partial(self, value: Any, path: str) -> None:
        self.into(value.func, path)
        try:
            fixed = inspect.signature(value.func).bind_partial(*value.args, **value.keywords).arguments
        except (TypeError, ValueError):
            fixed = {**{str(i): each for i, each in enumerate(value.args)}, **value.keywords}
        for name, each in fixed.items():
            if isinstance(each, dict) and name not in value.keywords:  # keyword arguments collected by **name
                for inner, one in each.items():
                    self.into(one, f"{path}.{inner}")
            else:
                self.into(each, f"{path}.{name}")

    def _function(self, value: types.FunctionType, path: str) -> None:
        cells = {
            name: cell.cell_contents
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            if _is_filled(cell)
        }
        if not _is_own(value):
            package, name = _package(value), value.__qualname__
            # if its module contains it under its name, the name identifies it
            if getattr(sys.modules.get(_module(value)), name, None) is value:
                self.facts[path] = f"{package}.{name}"
                return
            # a wrapper, which takes its name from its code
            if (getattr(value, "__module__", None) or "").partition(".")[0] != package:
                name = value.__code__.co_qualname
            # the name of the enclosing function, such as a factory, not of the inner function
            self.facts[path] = f"{package}.{name.partition('.<locals>')[0]}"
            for name, each in cells.items():
                self.into(each, f"{path}~{package}.{name}")
            return
        if self._is_known(value, path):
            return
        text = source.text_of(value)
        words = source.constants_of(value.__code__) if text is None else text
        self.facts[path] = f"function {value.__name__}, source {source.checksum(words)}"
        if text is None:
            release = ".".join(map(str, sys.version_info[:2]))
            self.facts[f"{path}~python.bytecode of {release}"] = source.checksum(source.bytecode_of(value.__code__))
        for parameter in inspect.signature(value, follow_wrapped=False).parameters.values():
            if parameter.default is not parameter.empty:
                self.into(parameter.default, f"{path}.{parameter.name}")
        for used in dict.fromkeys(source.used_in(value.__code__)):
            names = cells if used.name in cells else value.__globals__
            if used.name in names:
                self._used(names[used.name], used, path)

    def _used(self, value: Any, used: source.Used, path: str) -> None:
        """Describe a global or captured value that a function uses, or only the attribute that it accesses."""
        name = used.name
        for attribute in used.attributes:
            is_open = isinstance(value, types.ModuleType | types.SimpleNamespace) or (
                not callable(value) and (dataclasses.is_dataclass(value) or attribute in getattr(value, "_fields", ()))
            )
            if not is_open or not hasattr(value, attribute):
                break
            value, name = getattr(value, attribute), f"{name}.{attribute}"
        # modules are identified by the attributes that are used, and the functions of packages by the names in the
        # source
        if not isinstance(value, types.ModuleType):
            self.into(value, f"{path}.{name}")

    def _class(self, value: type, path: str) -> None:
        if not _is_own(value):
            package = _package(value)
            kind = "dtype " if issubclass(value, np.generic) else ""
            self.facts[path] = f"{kind}{package}.{value.__qualname__}"
            return
        if self._is_known(value, path):
            return
        self.facts[path] = f"class {value.__name__}"
        for i, base in enumerate(value.__bases__):
            if base is not object:
                self.into(base, f"{path}.bases[{i}]")
        hidden = _HIDDEN if _is_flax(value) else set()
        for name, each in sorted((name, each) for name, each in vars(value).items() if name not in hidden):
            each = each.__func__ if isinstance(each, staticmethod | classmethod) else each
            each = each.fget if isinstance(each, property) else each
            inner = inspect.unwrap(each) if callable(each) else each
            if isinstance(inner, types.FunctionType) and _is_own(inner):
                if not inner.__code__.co_filename.startswith("<"):  # skips methods generated by dataclasses
                    self.into(inner, f"{path}.{name}")
            elif not name.startswith("_") and isinstance(inner, bool | _NUMBERS | np.ndarray | jax.Array | tuple):
                self.into(inner, f"{path}.{name}")

    def _wrapper(self, value: Any, path: str) -> None:
        """Describe a function transformed by `jax.jit` or similar by describing the function it wraps."""
        self.into(value.__wrapped__, path)
        for name in ("jvp", "fwd", "bwd"):  # the functions of custom derivatives
            if isinstance(each := getattr(value, name, None), types.FunctionType) and _is_own(each):
                self.into(each, f"{path}.{name}")

    def _fields(self, value: Any, path: str, names: Iterable[str]) -> None:
        self.into(type(value), path)
        inside = "" if _is_own(type(value)) else f"~{_package(type(value))}"
        for name in names:
            if hasattr(value, name):
                self.into(getattr(value, name), f"{path}{inside}.{name}")

    def _object(self, value: Any, path: str) -> None:
        package = _package(type(value))
        if not _is_own(type(value)) and package in ("python", "numpy", "jaxlib"):
            self.facts[path] = f"a {package}.{type(value).__qualname__}"
            return
        held = vars(value) if hasattr(value, "__dict__") else {}
        slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
        self._fields(value, path, sorted(name for name in {*held, *slots} if not name.startswith(_PASSING)))

    def _is_known(self, value: Any, path: str) -> bool:
        """Return whether a function or class was described before; if so, refer to that, otherwise remember it."""
        if id(value) in self._seen:
            self.facts[path] = f"the same as {self._seen[id(value)]}"
            return True
        self._seen[id(value)] = path
        self._kept.append(value)
        return False


def _plain(value: Any) -> str:
    """Return a set's element or a mapping's key as text, without a memory address."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, bool | _NUMBERS) and not isinstance(value, enum.Enum):
        return str(value)
    return str(getattr(value, "__qualname__", None) or f"a {type(value).__qualname__}")


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- raises if the name is not bound yet
    except ValueError:
        return False
    return True


def _module(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(getattr(value, "__module__", None) or type(value).__module__)


def _package(value: Any) -> str:
    top = _module(value).partition(".")[0]
    return "python" if top == "builtins" or top in sys.stdlib_module_names else top


def _is_own(value: Any) -> bool:
    """Return whether a function or class is the user's own, rather than from an installed package."""
    return _package(value) != "python" and not _is_installed(_package(value))


@functools.cache
def _is_installed(top: str) -> bool:
    if top in ("nnfx", "numpy", "jax", "jaxlib", "flax", "optax"):
        return True
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return any(part in ("site-packages", "dist-packages") for place in places for part in PurePath(place).parts)


def _is_flax(value: type) -> bool:
    return any(base.__module__.startswith("flax.") for base in value.__mro__)
