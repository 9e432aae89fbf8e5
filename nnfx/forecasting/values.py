"""The values of a series as users hold them: with their times, in frames or arrays, of any precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.data.preprocess import as_columns
from nnfx.data.times import irregularity, times_of
from nnfx.types import Array

__all__ = ["as_series", "check_times", "floating", "in_floats", "on_hand"]


def as_series(name: str, values: Any) -> Any:
    """Return a series or a panel in its own precision, on the host unless it is on the device, checked.

    Args:
        name: of the argument, for errors.
        values: what users hold; one column, as of a Series of pandas, is one channel.
    """
    check_times(name, values)
    x = on_hand(name, values)
    checks.numeric(name, x)
    if x.ndim not in (2, 3):
        hint = f"; one series of one channel is {name}[:, None]" if x.ndim == 1 else ""
        raise ValueError(
            f"{name}: expected (time, channels) or (series, time, channels), got {checks.describe(x)}{hint}"
        )
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one series, step and channel, got {checks.describe(x)}")
    checks.finite(name, x)
    return x


def check_times(name: str, values: Any) -> None:
    """Require that the times that values have, if any, are regular."""
    irregular = None if (times := times_of(values)) is None else irregularity(times)
    if irregular is not None:
        raise ValueError(
            f"{name}: expected regular times, got {irregular}; fill gaps, sort, and keep one row a time, first"
        )


def on_hand(name: str, values: Any) -> Any:
    """Return values on the host in their own precision; those of JAX, which it has rounded already, as they are."""
    if hasattr(values, "values") and hasattr(values, "times"):  # an nnfx.data.Series
        values = values.values
    if isinstance(values, jax.Array | jax.ShapeDtypeStruct):
        checks.numeric(name, values)
        return values
    return arrays.as_numpy(name, as_columns(values))


def in_floats(name: str, values: Any) -> Array:
    """Return a series or a panel in floats on the device, whose dtype tells its values apart."""
    x = as_series(name, values)
    dtype = floating(x)
    if isinstance(x, jax.Array) and (x.dtype == dtype or not checks.is_concrete(x)):
        return x.astype(dtype)
    x = np.asarray(x)
    arrays.check_range(name, x, dtype)
    arrays.check_spread(name, x, axis=-2, dtype=dtype)
    return arrays.to_device(name, x, dtype)


def floating(x: Any) -> Any:
    """Return the dtype of floats that the device has for an array's.

    >>> floating(np.ones(1)), floating(np.ones(1, np.float16)), floating(np.ones(1, int))
    (dtype('float32'), dtype('float16'), dtype('float32'))
    """
    return jax.dtypes.canonicalize_dtype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else float)
