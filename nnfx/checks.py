"""Checks of user input: each error names the argument, what was expected and what was passed.

Values are checked only if they are concrete; traced values, under `jit`, `grad` and `vmap`, are accepted.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(tree: Any) -> bool:
    """Return whether every leaf of a tree has a value that can be inspected, that is, none is traced."""
    return not any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def describe(value: Any) -> str:
    """Describe a value briefly for an error message: an array by its dtype and shape.

    >>> describe(np.zeros((3, 2), np.float32)), describe("tanh")
    ('float32[3,2]', "'tanh'")
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        is_ours = isinstance(value, np.ndarray | np.generic | jax.Array)  # JAX knows no other library's dtypes
        if is_ours and value.shape == () and is_concrete(value) and jnp.issubdtype(value.dtype, np.number):
            return f"{value}"
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def key(name: str, value: Any) -> None:
    """Require one typed random key, as returned by `jax.random.key`."""
    typed = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed:
        raise TypeError(f"{name}: expected a typed key, such as jax.random.key(0), got {describe(value)}")
    if value.shape != ():
        raise ValueError(f"{name}: expected one key, got {describe(value)}; map over keys with jax.vmap")


def positive_integer(name: str, value: Any) -> None:
    """Require an integer of at least 1 (not a bool, not traced: it determines shapes)."""
    _integer(name, value, 1, "a positive integer")


def non_negative_integer(name: str, value: Any) -> None:
    """Require an integer of at least 0 (not a bool, not traced)."""
    _integer(name, value, 0, "a non-negative integer")


def _integer(name: str, value: Any, minimum: int, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected {wanted}, got {describe(value)}")
    if value < minimum:
        raise ValueError(f"{name}: expected {wanted}, got {value}")


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> None:
    """Require one finite real number, within the bounds if any are given."""
    shape = getattr(value, "shape", ())
    dtype = getattr(value, "dtype", None)
    real = isinstance(value, numbers.Real) if dtype is None else jnp.issubdtype(dtype, np.number)
    if isinstance(value, bool) or not real or (dtype is not None and jnp.issubdtype(dtype, np.complexfloating)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if shape != ():
        raise ValueError(f"{name}: expected one number, got {describe(value)}; map over several with jax.vmap")
    if not is_concrete(value):
        return
    try:
        given = float(value)
    except OverflowError:  # an integer too large for a float
        given = math.inf
    bounds = [
        (above is not None and given <= above, f"above {above:g}" if above is not None else ""),
        (minimum is not None and given < minimum, f"at least {minimum:g}" if minimum is not None else ""),
        (below is not None and given >= below, f"below {below:g}" if below is not None else ""),
        (maximum is not None and given > maximum, f"at most {maximum:g}" if maximum is not None else ""),
    ]
    if not math.isfinite(given) or any(outside for outside, _ in bounds):
        wanted = " and ".join(words for _, words in bounds if words)
        raise ValueError(f"{name}: expected a finite number{' ' + wanted if wanted else ''}, got {given:g}")


def position(name: str, value: Any, count: int) -> None:
    """Require an integer position, from 0 to `count` − 1.

    >>> position("member", 3, 3)
    Traceback (most recent call last):
      ...
    ValueError: member: expected 0 to 2, got 3
    """
    non_negative_integer(name, value)
    if value >= count:
        raise ValueError(f"{name}: expected 0 to {count - 1}, got {value}")


def choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Require one of the known names; the error lists them, and suggests the closest one."""
    names = list(known)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, names))}, got {value!r}{hint}")


def numeric(name: str, value: Any) -> None:
    """Require an array of real numbers or booleans: no strings, objects or complex numbers."""
    dtype = value.dtype
    if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_) or jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(f"{name}: expected an array of real numbers, got {describe(value)}")


def one_array(name: str, value: Any, wanted: str) -> None:
    """Require one array of real numbers with non-empty examples, not a list or a tree such as `Sequences`.

    >>> one_array("inputs", {"age": np.ones(3)}, "(batch, features)")
    Traceback (most recent call last):
      ...
    TypeError: inputs: expected an array (batch, features), got {'age': array([1., 1., 1.])}
    """
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name}: expected an array {wanted}, got {describe(value)}")
    numeric(name, value)
    if any(size == 0 for size in value.shape[1:]):
        raise ValueError(f"{name}: expected {wanted} with non-empty examples, got {describe(value)}")


def near(value: Any) -> tuple[Any, Any]:
    """Return an array and the library that inspects it fastest: on CPUs NumPy, which compiles nothing."""
    on_cpu = isinstance(value, jax.Array) and {device.platform for device in value.devices()} == {"cpu"}
    if (on_cpu and value.is_fully_addressable) or isinstance(value, np.ndarray):
        return np.asarray(value), np
    return value, jnp


def finite(name: str, value: Any) -> None:
    """Require that an array of concrete values contains neither NaN nor an infinity."""
    if not is_concrete(value) or not jnp.issubdtype(value.dtype, np.inexact):
        return
    with jax.ensure_compile_time_eval():  # so that constants inside a jit are checked too
        value, library = near(value)
        if not bool(library.isfinite(value).all()):
            bad = np.argwhere(~np.isfinite(np.asarray(value, np.float64)))
            first = tuple(int(i) for i in bad[0])
            raise ValueError(f"{name}: expected finite numbers, got {len(bad)} not finite, the first at {first}")


def weights(name: str, value: Any, *, may_be_zero: bool = False) -> None:
    """Require concrete weights to be finite and non-negative, with at least one positive unless all may be zero."""
    finite(name, value)
    if is_concrete(value) and (value.size or not may_be_zero):
        with jax.ensure_compile_time_eval():
            value, _ = near(value)
            lowest, highest = float(value.min()), float(value.max())
        if may_be_zero and lowest < 0:
            raise ValueError(f"{name}: expected non-negative numbers, got {lowest:g}")
        if not may_be_zero and (lowest < 0 or highest <= 0):
            raise ValueError(
                f"{name}: expected non-negative numbers, at least one of them positive, got {lowest:g} to {highest:g}"
            )


def binary_labels(name: str, value: Any) -> None:
    """Require concrete labels to be 0 or 1."""
    numeric(name, value)
    if is_concrete(value):
        with jax.ensure_compile_time_eval():
            value, _ = near(value)
            is_wrong = (value != 0) & (value != 1)
            if is_wrong.any():
                raise ValueError(f"{name}: expected binary labels, 0 or 1, got {value[is_wrong][0]:g}")


def class_labels(name: str, value: Any, classes: int, what: str = "labels") -> None:
    """Require concrete labels, called `what` in the message, to be whole numbers from 0 to classes − 1."""
    if not is_concrete(value) or value.size == 0:
        return
    finite(name, value)
    with jax.ensure_compile_time_eval():
        value, _ = near(value)
        if jnp.issubdtype(value.dtype, np.floating) and (is_part := value % 1 != 0).any():
            raise ValueError(
                f"{name}: expected whole numbers from 0 to {classes - 1}, got {float(value[is_part][0]):g}"
            )
        low, high = int(value.min()), int(value.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected {what} from 0 to {classes - 1}, got {what} from {low} to {high}")


SUM_TOLERANCE = 0.01
"""How far the sum of a row of probabilities may deviate from 1, to allow for rounding in half precision."""


def are_shares(rows: Any) -> Any:
    """Return which rows are one-hot, or probabilities that sum to 1."""
    return (rows >= 0).all(-1) & (abs(rows.sum(-1) - 1) < SUM_TOLERANCE)


def shares(name: str, value: Any, instead: str) -> None:
    """Require concrete rows to be one-hot, or probabilities that sum to 1; `instead` is what to use for other rows.

    >>> shares("labels", np.array([[0, 1], [1, 1]]), "binary_accuracy")
    Traceback (most recent call last):
      ...
    ValueError: labels: expected one-hot rows or probabilities that sum to 1, got [1, 1]; for several labels per row use
        binary_accuracy
    """
    if not is_concrete(value):
        return
    with jax.ensure_compile_time_eval():
        value, _ = near(value)
        is_wrong = ~are_shares(value)
        if is_wrong.any():
            row = ", ".join(f"{number:g}" for number in np.asarray(value[is_wrong][0], np.float64)[:10])
            raise ValueError(
                f"{name}: expected one-hot rows or probabilities that sum to 1, got [{row}]; for several labels per row"
                f" use {instead}"
            )


def listed(lines: list[str], separator: str, most: int = 20) -> str:
    """Join the first few of many lines for a message, and say how many more there are.

    >>> listed(["a is missing", "b is altered", "c is altered"], ", ", most=2)
    'a is missing, b is altered, and 1 more'
    """
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return separator.join([*lines[:most], *more])
