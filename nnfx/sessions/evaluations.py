"""Conversion of the results of a user's `evaluate` function to rows of numbers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.sessions.logs import Row


def row_of(measured: Any, epoch: int, before: Row) -> Row:
    """Check the result of `evaluate` after an epoch, and convert it to a row of numbers.

    Args:
        measured: the result of `evaluate`: numbers by name, finite or not.
        epoch: the epoch.
        before: the row of the previous evaluation, which must have the same names; empty if there is none.

    Raises:
        TypeError: for anything other than numbers by name.
        ValueError: for names that differ from those of the previous row, or the reserved name `epoch`.

    Example:
        >>> row_of({"loss": np.float32(0.5), "right": True}, 3, {})
        {'epoch': 3, 'loss': 0.5, 'right': 1.0}
    """
    if not isinstance(measured, Mapping) or not measured:
        raise TypeError(f"evaluate: expected it to return numbers by name, got {checks.describe(measured)}")
    if "epoch" in measured:
        raise ValueError("evaluate: expected names other than 'epoch', which is recorded in any case, got 'epoch'")
    row = {"epoch": epoch, **{_name(name): _number(name, value) for name, value in measured.items()}}
    if before and before.keys() != row.keys():
        raise ValueError(f"evaluate: expected {list(before)[1:]} as before, got {list(measured)}")
    return row


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"evaluate: expected strings as names, got {checks.describe(name)}")
    return name


def _number(name: str, value: Any) -> float:
    """Convert a value to a float, which need not be finite."""
    array = np.asarray(value)
    is_real = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    if array.ndim or not is_real or np.iscomplexobj(array):
        raise TypeError(f"evaluate: expected it to return numbers by name, got {checks.describe(value)} as {name!r}")
    return float(array)
