"""The values of a series as passed by users: with or without times, in frames or arrays, of any precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.data.frames import as_columns
from nnfx.data.times import irregularity, numbers_of, times_of
from nnfx.types import Array

__all__ = ["as_series", "check_times", "floating", "in_floats", "on_hand"]


def as_series(name: str, values: Any) -> Any:
    """Return a series or a panel in its own precision, after checking it; on the host unless it is a JAX array.

    Args:
        name: the name of the argument, for error messages.
        values: the values as the user passed them; a single column, such as a pandas Series, is one channel.
    """
    check_times(name, values)
    x = on_hand(name, values)
    checks.numeric(name, x)
    if x.ndim not in (2, 3):
        hint = f"; for a single channel, pass {name}[:, None]" if x.ndim == 1 else ""
        raise ValueError(
            f"{name}: expected (time, channels) or (series, time, channels), got {checks.describe(x)}{hint}"
        )
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one series, step and channel, got {checks.describe(x)}")
    checks.finite(name, x)
    return x


def check_times(name: str, values: Any) -> None:
    """Raise an error if the values have times, or an index of numbers, that are not regular."""
    times = times_of(values)
    times = numbers_of(values) if times is None else times
    irregular = None if times is None else irregularity(times)
    if irregular is not None:
        raise ValueError(
            f"{name}: expected regular times, got {irregular}; first sort rows, fill gaps, and remove repeated times"
        )


def on_hand(name: str, values: Any) -> Any:
    """Return values as NumPy arrays in their own precision; leave JAX arrays, which are already rounded, unchanged."""
    if hasattr(values, "values") and hasattr(values, "times"):  # an nnfx.data.Series
        values = values.values
    if isinstance(values, jax.Array | jax.ShapeDtypeStruct):
        checks.numeric(name, values)
        return values
    return arrays.as_numpy(name, as_columns(values))


def in_floats(name: str, values: Any) -> Array:
    """Return a series or a panel as floats on the device, after checking that distinct values stay distinct."""
    x = as_series(name, values)
    dtype = floating(x)
    if isinstance(x, jax.Array) and (x.dtype == dtype or not checks.is_concrete(x)):
        return x.astype(dtype)
    x = np.asarray(x)
    arrays.check_range(name, x, dtype)
    arrays.check_spread(name, x, axis=-2, dtype=dtype)
    return arrays.to_device(name, x, dtype)


def floating(x: Any) -> Any:
    """Return the floating-point dtype that the device uses for an array.

    >>> floating(np.ones(1)), floating(np.ones(1, np.float16)), floating(np.ones(1, int))
    (dtype('float32'), dtype('float16'), dtype('float32'))
    """
    return jax.dtypes.canonicalize_dtype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else float)
