"""Held-out rows: drawn at random, stratified by class if desired, or given as positions or by a splitter."""

from fractions import Fraction
from typing import Any, cast

import jax
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Array

__all__ = ["at_random", "by_class", "given", "is_splitter"]


def at_random(key: Array | None, rows: np.ndarray, valid_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to hold out, and return the training and held-out rows, each in the order of the data."""
    count = _count(key, rows, valid_fraction)
    if not count:
        return rows, rows[:0]
    order = np.asarray(jax.random.permutation(cast(Array, key), len(rows)))
    return np.sort(rows[order[count:]]), np.sort(rows[order[:count]])


def by_class(
    key: Array | None, rows: np.ndarray, valid_fraction: float, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to hold out, stratified by class; return training and held-out rows, each in the order of the data.

    Args:
        key: a typed key, from which the seed of scikit-learn's `StratifiedShuffleSplit` is drawn.
        rows: the positions to draw from.
        valid_fraction: the fraction to hold out, above 0.
        targets: the class of each row, by position.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
        ValueError: for targets that are not classes, and classes too small for both splits.
    """
    try:
        from sklearn.model_selection import StratifiedShuffleSplit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scikit-learn: required for stratify=True, but not installed: pip install 'nnfx[datasets]'"
        ) from error
    count = _count(key, rows, valid_fraction)
    splitter = StratifiedShuffleSplit(1, test_size=count, random_state=int(jax.random.bits(cast(Array, key))))
    try:
        train, valid = next(splitter.split(np.zeros(len(rows)), targets[rows]))
    except ValueError as error:
        raise ValueError(f"stratify: expected classes that can be held out in proportion, got: {error}") from error
    return np.sort(rows[train]), np.sort(rows[valid])


def given(split: Any, groups: Any, inputs: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and held-out rows that the user has chosen, in the order given.

    Args:
        split: a pair of arrays of positions, `(train_rows, valid_rows)`, or a scikit-learn splitter, whose first split
            is used.
        groups: the group of each row, `(rows,)`, for splitters that need it; or None.
        inputs: the inputs as given by the user.
        targets: the targets of all rows.

    Raises:
        TypeError: for a `split` that is neither.
        ValueError: for positions that are out of range or in both splits, and for an empty split.
    """
    rows = len(targets)
    if is_splitter(split):
        if groups is not None and np.shape(groups) != (rows,):
            raise ValueError(f"groups: expected one per row, ({rows},), got shape {np.shape(groups)}")
        split = next(iter(split.split(inputs, targets, groups)))
    if not isinstance(split, tuple | list) or len(split) != 2:
        raise TypeError(
            f"split: expected a pair of arrays, (train_rows, valid_rows), or a splitter such as scikit-learn's, got"
            f" {checks.describe(split)}"
        )
    parts = []
    for name, part in zip(("train_rows", "valid_rows"), split, strict=True):
        positions = arrays.as_numpy(f"split: {name}", part)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise TypeError(f"split: expected the positions of {name}, integers (n,), got {checks.describe(positions)}")
        if not len(positions) or positions.min() < 0 or positions.max() >= rows:
            got = f"{positions.min()} to {positions.max()}" if len(positions) else "none"
            raise ValueError(f"split: expected positions of {name} from 0 to {rows - 1}, got {got}")
        parts.append(positions.astype(np.int64))
    both = np.intersect1d(*parts)
    if len(both):
        raise ValueError(f"split: expected each row in one split only, got row {both[0]} in both")
    return parts[0], parts[1]


def is_splitter(split: Any) -> bool:
    """Return whether an object has the interface of scikit-learn's splitters."""
    return hasattr(split, "split") and not isinstance(split, str)


def _count(key: Array | None, rows: np.ndarray, valid_fraction: float) -> int:
    """Return how many rows to hold out."""
    if len(rows) == 0:
        raise ValueError("inputs: expected at least one row without a missing value, got none")
    checks.number("valid_fraction", valid_fraction, minimum=0, below=1)
    if valid_fraction == 0:
        return 0
    checks.key("key", key)
    count = round(Fraction(str(valid_fraction)) * len(rows))  # of the decimal fraction, not its binary approximation
    if not 0 < count < len(rows):
        raise ValueError(
            f"valid_fraction: expected a fraction that leaves rows in both splits, got"
            f" {valid_fraction:g} of {len(rows)} rows"
        )
    return count
