"""Sequences of unequal length: their real steps and their padding."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Sequences

__all__ = ["ANY_TIME", "Steps", "is_real", "on_device", "padded", "read", "real_steps", "without_padding"]

ANY_TIME = -1
"""Replaces the number of steps, which differs between sequences, in the shape of an example."""


class Steps(NamedTuple):
    """The real steps of all sequences, concatenated.

    Attributes:
        values: `(steps, ...)`.
        rows: the sequence that each step belongs to, `(steps,)`.
    """

    values: np.ndarray
    rows: np.ndarray


def read(name: str, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of sequences, on the host and zero beyond the lengths, and the lengths, `(rows,)`.

    Raises:
        TypeError: for values that are not real numbers.
        ValueError: for values that are neither `(rows, time, features)` nor integers `(rows, time)`, such as tokens;
            for sequences with an initial state; and for lengths that do not match the values.

    >>> read("inputs", Sequences(np.array([[[1.0], [np.nan]]]), np.array([1])))
    (array([[[1.],
            [0.]]]), array([1]))
    """
    if sequences.state is not None:
        raise ValueError(f"{name}: expected sequences without an initial state, got sequences with one")
    values = arrays.as_numpy(f"values of {name}", sequences.values, masked_as_nan=True)
    is_tokens = values.ndim == 2 and values.dtype.kind in "iu"
    if not (is_tokens or values.ndim == 3) or 0 in values.shape:
        raise ValueError(
            f"{name}: expected values (rows, time, features), or integers (rows, time), got {checks.describe(values)}"
        )
    if sequences.lengths is None:
        return values, np.full(len(values), values.shape[1])
    lengths = arrays.as_numpy(f"lengths of {name}", sequences.lengths)
    Sequences(values, lengths)  # checks the lengths, which the constructor cannot do for lists
    if not (lengths > 0).any():
        raise ValueError(f"{name}: expected at least one sequence with a step, got only lengths of 0")
    return without_padding(np, values, lengths), lengths


def is_real(time: int, lengths: Any) -> Any:
    """Return which steps of each row lie within its length, `(rows, time)`."""
    return np.arange(time, dtype=np.int32)[None] < lengths[:, None]


def without_padding(library: Any, values: Any, lengths: Any) -> Any:
    """Return values `(rows, time, ...)` set to zero beyond the lengths; `library` is NumPy or `jax.numpy`."""
    real = is_real(values.shape[1], lengths)
    return library.where(real.reshape(*real.shape, *(1,) * (values.ndim - 2)), values, library.zeros((), values.dtype))


def real_steps(values: np.ndarray, lengths: np.ndarray) -> Steps:
    """Return the real steps of all sequences, row by row.

    >>> real_steps(np.array([[5, 0], [6, 7]]), np.array([1, 2]))
    Steps(values=array([5, 6, 7]), rows=array([0, 1, 1]))
    """
    real = is_real(values.shape[1], lengths)
    return Steps(values[real], np.nonzero(real)[0])


def padded(values: np.ndarray, time: int) -> np.ndarray:
    """Return values `(rows, steps, ...)` padded with zeros to `time` steps."""
    return np.pad(values, [(0, 0), (0, time - values.shape[1]), *[(0, 0)] * (values.ndim - 2)])


def on_device(values: Any, lengths: Any) -> Sequences:
    """Return sequences on the device, with lengths in int32."""
    return Sequences._make((jnp.asarray(values), jnp.asarray(lengths, jnp.int32), None))
