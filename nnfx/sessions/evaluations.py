"""The result of a user's `evaluate`, as a row of numbers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.sessions.logs import Row


def row_of(measured: Any, epoch: int, before: Row) -> Row:
    """Return the numbers that were measured after an epoch.

    Args:
        measured: the result of `evaluate`: numbers by name, finite or not.
        epoch: the epoch.
        before: the row of the previous evaluation, with the same names; empty if there is none.

    Raises:
        TypeError: for anything other than numbers by name.
        ValueError: for names that differ from those before, or the reserved name `epoch`.

    Example:
        >>> row_of({"loss": np.float32(0.5), "right": True}, 3, {})
        {'epoch': 3, 'loss': 0.5, 'right': 1.0}
    """
    if not isinstance(measured, Mapping) or not measured:
        raise TypeError(f"evaluate: expected it to return numbers by name, got {checks.describe(measured)}")
    if "epoch" in measured:
        raise ValueError("evaluate: expected names other than 'epoch', which is always recorded")
    row = {"epoch": epoch, **{_name(name): _number(name, value) for name, value in measured.items()}}
    if before and before.keys() != row.keys():
        raise ValueError(f"evaluate: expected {list(before)[1:]} as before, got {list(measured)}")
    return row


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"evaluate: expected strings as names, got {checks.describe(name)}")
    return name


def _number(name: str, value: Any) -> float:
    """Return a measured value as a number, which need not be finite."""
    array = np.asarray(value)
    is_real = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    if array.ndim or not is_real or np.iscomplexobj(array):
        raise TypeError(f"evaluate: expected it to return numbers by name, got {checks.describe(value)} as {name!r}")
    return float(array)
