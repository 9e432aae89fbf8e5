"""The arguments of `prepare`: read on the host in their own precision, checked, and concatenated."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nnfx import arrays, checks
from nnfx.data import encode, sequences
from nnfx.data.frames import as_columns, check_same_order, frame_names, in_order_of, repeated
from nnfx.data.measure import device_dtype
from nnfx.data.targets import as_classes
from nnfx.types import Sequences

__all__ = ["Given", "read"]


class Given(NamedTuple):
    """The rows of both splits, training rows first.

    Attributes:
        inputs: an array of numbers `(rows, ...)`, or the columns of a frame with categories or booleans.
        targets: `(rows, ...)`; integers if they were text. Missing targets are filled with a known value of that
            output.
        weights: float64 `(rows,)`, or with more of the leading axes of the targets; 0 for missing targets.
        features: the names given to the raw features; empty if they have none.
        names: the names of the raw features for display: the given names, or default ones.
        classes: the names of the classes, if the targets were text.
        train: the number of training rows; the number of all rows if `valid` was not given.
        lengths: the number of real steps of each row if the inputs are sequences, otherwise None.
    """

    inputs: np.ndarray | tuple[encode.Column, ...]
    targets: np.ndarray
    weights: np.ndarray
    features: tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    train: int
    lengths: np.ndarray | None

    @property
    def lost(self) -> np.ndarray:
        """Return which values are missing, `(rows, raw features)` for columns, otherwise of the shape of the array."""
        if isinstance(self.inputs, np.ndarray):
            return np.isnan(self.inputs)
        return np.stack([column.missing for column in self.inputs], axis=1)


def read(
    inputs: Any, targets: Any, weights: Any, valid: Any, features: Sequence[str] | None, *, mask: bool = False
) -> Given:
    """Read the training rows and the rows of `valid`, if given, and check everything but the inputs' values.

    Args:
        inputs: the inputs, as for `prepare`, like the next four arguments.
        targets: the targets.
        weights: the weights.
        valid: the held-out split.
        features: the names of the features.
        mask: whether targets may be missing; missing targets get weight zero.

    Raises:
        TypeError, ValueError: as for `prepare`.
    """
    parts = {"": (inputs, targets, weights)}
    if valid is not None:
        if not isinstance(valid, tuple | list) or len(valid) not in (2, 3):
            raise TypeError(
                f"valid: expected (inputs, targets) or (inputs, targets, weights), got {checks.describe(valid)}"
            )
        parts[" of valid"] = (*valid, None)[:3]
    for of, part in parts.items():
        for name, value in zip(("inputs", "targets", "weights"), part, strict=True):
            if not checks.is_concrete(value):
                raise TypeError(f"{name}{of}: expected concrete values, got traced ones; prepare data outside of jit")
        for name, value in zip(("targets", "weights"), part[1:], strict=True):
            check_same_order(f"{name}{of}", value, f"the inputs{of}", part[0])
    lengths: list[np.ndarray] = []
    x: Any
    if isinstance(inputs, Sequences):
        x, of_train = sequences.read("inputs", inputs)
        lengths.append(of_train)
        given, names = _names(features, None, math.prod(x.shape[2:]))
    else:
        x, given, names = _inputs(as_columns(inputs), features)
    rows = [_rows(x)]
    if valid is not None:
        more, *of_valid = _sequences_like(x, valid[0]) if lengths else (_like(x, given, valid[0]),)
        lengths += of_valid
        rows.append(_rows(more))
        x = _joined(x, more)
    y, classes, is_known = _targets([part[1] for part in parts.values()], rows, mask)
    shapes = [(count, *y.shape[1:]) for count in rows]
    w = [_weights(f"weights{of}", part[2], shape) for (of, part), shape in zip(parts.items(), shapes, strict=True)]
    weights = _masked(_together(w), is_known)
    return Given(x, y, weights, given, names, classes, rows[0], np.concatenate(lengths) if lengths else None)


def _inputs(
    inputs: Any, features: Sequence[str] | None
) -> tuple[np.ndarray | tuple[encode.Column, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the inputs, the names given to the features, if any, and the names to display."""
    own = frame_names(inputs)
    places = arrays.column_names(inputs)
    called = None if places is None else own or tuple(f"x{i}" for i in range(len(places)))
    found = encode.columns("inputs", inputs, called)
    x = arrays.as_numpy("inputs", inputs, masked_as_nan=True) if found is None else found
    if isinstance(x, np.ndarray):
        _check_rows("inputs", x)
        if x.ndim < 2:
            raise ValueError(f"inputs: expected (rows, features, ...), got {checks.describe(x)}")
    elif not _rows(x):
        raise ValueError("inputs: expected at least one row, got a frame without rows")
    given, names = _names(features, own, x.shape[1] if isinstance(x, np.ndarray) else len(x))
    if isinstance(x, tuple):
        x = tuple(column._replace(name=name) for column, name in zip(x, names, strict=True))
    return x, given, names


def _names(
    features: Sequence[str] | None, columns: tuple[str, ...] | None, count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names given to the features, if any, and the names to display."""
    if isinstance(features, str):
        raise TypeError(f"features: expected a sequence of names, got {features!r}")
    if features is not None and len(features) != count:
        raise ValueError(f"features: expected {count} names, got {len(features)}")
    given = columns or () if features is None else tuple(map(str, features))
    for name in repeated(given):
        which = "features" if features is not None else "inputs"
        raise ValueError(f"{which}: expected a unique name for each feature, got {name!r} twice")
    return given, given or tuple(f"x{i}" for i in range(count))


def _like(
    x: np.ndarray | tuple[encode.Column, ...], names: tuple[str, ...], inputs: Any
) -> np.ndarray | tuple[encode.Column, ...]:
    """Read held-out inputs, which must be of the same kind as the training inputs."""
    name = "inputs of valid"
    inputs = in_order_of(names, inputs, name)
    if isinstance(x, tuple):
        found = encode.columns(name, inputs, [each.name for each in x], [each.kind for each in x])
        if found is None:
            raise TypeError(f"{name}: expected a frame, like the training inputs, got {checks.describe(inputs)}")
        return found
    more = arrays.as_numpy(name, inputs, masked_as_nan=True)
    _check_rows(name, more)
    if more.shape[1:] != x.shape[1:]:
        expected = ", ".join(["rows", *map(str, x.shape[1:])])
        raise ValueError(f"{name}: expected ({expected}), like the training rows, got {checks.describe(more)}")
    return more


def _joined(
    x: np.ndarray | tuple[encode.Column, ...], more: np.ndarray | tuple[encode.Column, ...]
) -> np.ndarray | tuple[encode.Column, ...]:
    if isinstance(x, np.ndarray):
        more = np.asarray(more)
        time = max(x.shape[1], more.shape[1])  # they differ only for sequences
        return np.concatenate([each if each.shape[1] == time else sequences.padded(each, time) for each in (x, more)])
    return tuple(column.joined(other) for column, other in zip(x, more, strict=True))


def _sequences_like(x: Any, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read held-out sequences, which may be longer or shorter than the training sequences."""
    name = "inputs of valid"
    if not isinstance(inputs, Sequences):
        raise TypeError(f"{name}: expected Sequences, like the training inputs, got {checks.describe(inputs)}")
    more, lengths = sequences.read(name, inputs)
    if more.shape[2:] != x.shape[2:]:
        expected = ", ".join(["rows", "time", *map(str, x.shape[2:])])
        raise ValueError(f"{name}: expected ({expected}), like the training rows, got {checks.describe(more)}")
    return more, lengths


def _targets(parts: list[Any], rows: list[int], mask: bool) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Return the targets of all splits, the names of the classes if they are text, and which targets are known.

    The last is None if all targets are known. Unknown targets are filled with the first known value of the same output.
    """
    found: list[np.ndarray] = []
    is_known: list[np.ndarray] = []
    names = ("targets", "targets of valid")
    texts = [encode.labels(name, part, mask=mask) for name, part in zip(names, parts, strict=False)]
    for name, part, labels, count in zip(names, parts, texts, rows, strict=False):
        y = arrays.as_numpy(name, part, masked_as_nan=mask) if labels is None else labels
        _check_rows(name, y)
        is_known.append(~np.isnan(y) if mask and y.dtype.kind == "f" else np.ones(y.shape, bool))
        y = _whole(y, part) if mask else y
        if len(y) != count:
            raise ValueError(f"{name}: expected as many rows as inputs, {count}, got {len(y)}")
        if y.shape[1:] != (found or [y])[0].shape[1:]:
            raise ValueError(f"{name}: expected the shape of the training targets, got {checks.describe(y)}")
        if (labels is None) != (texts[0] is None):
            raise TypeError(f"{name}: expected {'text' if labels is None else 'numbers'}, like the training targets")
        found.append(y)
    y = np.concatenate(found)
    if texts[0] is not None:
        return *as_classes(y), None
    known = np.concatenate(is_known)
    if not known.all():
        lacking = np.flatnonzero(~known.reshape(len(y), -1).any(0))
        if len(lacking):
            raise ValueError(f"targets: expected at least one known value of output {lacking[0]}, got none")
        first = np.take_along_axis(y, known.argmax(0)[None], 0)
        y = np.where(known, y, first)
    checks.finite("targets", y)
    dtype = device_dtype(y.dtype, at_least=int)
    arrays.check_range("targets", y, dtype)
    arrays.narrowed("targets", y, dtype)
    arrays.check_spread("targets", y)
    return y, (), None if known.all() else known


def _whole(y: np.ndarray, given: Any) -> np.ndarray:
    """Convert targets back to integers if they are floats only because some are missing."""
    dtypes = [given.dtype] if hasattr(given, "dtype") else list(getattr(given, "dtypes", ()))
    text = [str(getattr(dtype, "numpy_dtype", dtype)).lower() for dtype in dtypes]
    if y.dtype.kind != "f" or not text or not all(each.startswith(("int", "uint", "bool")) for each in text):
        return y
    return np.where(np.isnan(y), 0, y).astype(np.int64)


def _weights(name: str, weights: Any, targets: tuple[int, ...]) -> np.ndarray:
    """Return a split's weights in float64: one per row, or one per step or output if the targets have this shape."""
    w = np.ones(targets[0]) if weights is None else arrays.as_numpy(name, weights).astype(np.float64)
    if w.ndim == 0 or w.shape != targets[: w.ndim]:
        others = f", or the leading axes of the targets, {targets}" if len(targets) > 1 else ""
        raise ValueError(f"{name}: expected one per row, ({targets[0]},){others}, got {checks.describe(w)}")
    checks.weights(name, w)
    return w


def _together(weights: list[np.ndarray]) -> np.ndarray:
    """Concatenate the weights of both splits; if either split has one weight per step or output, so does the result."""
    first, *others = sorted(weights, key=np.ndim, reverse=True)
    shape = first.shape[1:]
    return (
        np.concatenate([np.broadcast_to(_with_axes(w, first.ndim), (len(w), *shape)) for w in weights])
        if others
        else first
    )


def _masked(weights: np.ndarray, is_known: np.ndarray | None) -> np.ndarray:
    """Return weights that are zero for unknown targets, with as few axes as possible."""
    if is_known is None:
        return weights
    axes = weights.ndim
    masked = _with_axes(weights, is_known.ndim) * is_known
    while masked.ndim > axes and (masked == masked[..., :1]).all():
        masked = masked[..., 0]
    return masked


def _with_axes(weights: np.ndarray, count: int) -> np.ndarray:
    """Return weights with axes of size 1 appended."""
    return weights.reshape(*weights.shape, *(1,) * (count - weights.ndim))


def _rows(x: np.ndarray | tuple[encode.Column, ...]) -> int:
    return len(x) if isinstance(x, np.ndarray) else len(x[0].values)


def _check_rows(name: str, array: np.ndarray) -> None:
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name}: expected at least one row, got {checks.describe(array)}")
