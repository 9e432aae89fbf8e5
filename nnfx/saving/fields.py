"""Conversion of this library's dataclasses to arrays and strict JSON, and back without running any code."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ARRAY, _CLASS, _MAPPING = "array", "class", "mapping"
_HOME = "nnfx.data."
"""The package whose classes may be restored: a file cannot cause any other import."""


def split(value: Any) -> tuple[Any, list[Any]]:
    """Split a dataclass into JSON, and the arrays that the JSON refers to by number.

    Args:
        value: a dataclass or named tuple of `nnfx.data`, whose fields are arrays, plain values, tuples, or such
            dataclasses.

    Raises:
        TypeError: for a field of any other type.

    Example:
        >>> import nnfx
        >>> notes, found = split(nnfx.data.prepare([[1.0], [3.0]], [0, 1]).preprocess)
        >>> notes["fields"]["mean"], notes["fields"]["shape"], len(found)
        ({'array': 0}, [1], 4)
        >>> joined(notes, found)([[1.0]])
        Array([[-1.]], dtype=float32)
    """
    found: list[Any] = []
    return _split("", value, found), found


def _split(path: str, value: Any, found: list[Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic) and _is_numeric(value):
        found.append(value)
        return {_ARRAY: len(found) - 1}
    kind = type(value)
    is_named = isinstance(value, tuple) and hasattr(value, "_fields")
    if dataclasses.is_dataclass(value) or is_named:
        if not kind.__module__.startswith(_HOME):
            raise TypeError(f"preprocess{path}: expected classes of nnfx.data, got {_name(kind)}")
        names = kind._fields if is_named else [field.name for field in dataclasses.fields(value) if field.init]
        fields = {name: _split(f"{path}.{name}", getattr(value, name), found) for name in names}
        return {_CLASS: _name(kind), "fields": fields}
    if isinstance(value, tuple | list):
        return [_split(f"{path}[{i}]", each, found) for i, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_MAPPING: {name: _split(f"{path}[{name!r}]", each, found) for name, each in value.items()}}
    raise TypeError(f"preprocess{path}: expected arrays, numbers, strings, or tuples of these, got {kind.__name__}")


def joined(notes: Any, found: Sequence[Any]) -> Any:
    """Restore a dataclass from the parts returned by `split`; sequences become tuples.

    Raises:
        ValueError: for a class or a field that does not exist in this version of the library.
    """
    if isinstance(notes, list):
        return tuple(joined(each, found) for each in notes)
    if not isinstance(notes, dict):
        return notes
    if _ARRAY in notes:
        return jnp.asarray(found[notes[_ARRAY]])
    if _MAPPING in notes:
        return {name: joined(each, found) for name, each in notes[_MAPPING].items()}
    fields = {name: joined(each, found) for name, each in notes["fields"].items()}
    try:
        return _class_named(notes[_CLASS])(**fields)
    except TypeError as error:
        raise ValueError(f"preprocess: expected the fields of {notes[_CLASS]}, got different ones: {error}") from error


def _name(kind: type) -> str:
    """Return the name by which a class is looked up."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _class_named(name: str) -> Any:
    module, _, label = name.rpartition(".")
    found = None
    if module.startswith(_HOME):
        try:
            found = getattr(importlib.import_module(module), label, None)
        except ModuleNotFoundError:
            found = None
    is_ours = isinstance(found, type) and found.__module__.startswith(_HOME)
    if not is_ours or not (dataclasses.is_dataclass(found) or hasattr(found, "_fields")):
        raise ValueError(f"preprocess: expected a class in this version of nnfx.data, got {name}")
    return found


def _is_numeric(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_)
