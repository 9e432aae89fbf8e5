"""Pandas and polars frames, recognised by their methods rather than their types, without importing either library."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nnfx.arrays import column_names

__all__ = ["as_columns", "check_same_order", "frame_names", "in_order_of", "places", "repeated"]


def as_columns(inputs: Any) -> Any:
    """Return a pandas or polars Series as a frame of one column, and anything else unchanged."""
    return inputs.to_frame() if getattr(inputs, "ndim", 1) == 1 and hasattr(inputs, "to_frame") else inputs


def frame_names(inputs: Any) -> tuple[str, ...] | None:
    """Return the column names of a frame; None if its columns are merely numbered, or it is not a frame."""
    names = column_names(inputs)
    return None if names is None or names in (tuple(map(str, range(len(names)))), ("",)) else names


def in_order_of(features: tuple[str, ...], inputs: Any, name: str = "inputs") -> Any:
    """Return a frame's columns in the order of the features, and anything without names unchanged.

    Args:
        features: the names of the features; empty if they have none.
        inputs: a frame, a Series, or anything else.
        name: the name of the argument, for error messages.

    Raises:
        ValueError: for columns that are missing, unknown or repeated.
    """
    inputs = as_columns(inputs)
    names = frame_names(inputs)
    if names is None or not features or names == features:
        return inputs
    order = places(features, names, name)
    return inputs.iloc[:, order] if hasattr(inputs, "iloc") else inputs[:, order]


def places(features: tuple[str, ...], names: tuple[str, ...], name: str = "inputs") -> list[int]:
    """Return the position of each feature among the names of the columns.

    Raises:
        ValueError: for names that are missing, unknown or repeated.

    Example:
        >>> places(("b", "a"), ("a", "b"))
        [1, 0]
    """
    ours, theirs = set(features), set(names)
    problems = {
        "without": [each for each in features if each not in theirs],
        "with": [each for each in names if each not in ours],
        "twice": repeated(names),
    }
    if any(problems.values()):
        got = " and ".join(
            f"{problem} {', '.join(map(repr, which[:5]))}{', …' if len(which) > 5 else ''}"
            for problem, which in problems.items()
            if which
        )
        raise ValueError(f"{name}: expected the {len(features)} columns used in training, got columns {got}")
    return [names.index(each) for each in features]


def check_same_order(name: str, given: Any, of: str, others: Any) -> None:
    """Raise an error if two pandas objects have the same row labels in different orders.

    Rows are matched by position, so one of the two must have been sorted or shuffled without the other. Any other
    difference may be intended, as for a frame whose index was reset.

    Args:
        name: the name of the argument, for error messages.
        given: anything, such as a pandas Series.
        of: the name of the other argument.
        others: anything, such as a pandas frame.

    Raises:
        ValueError: for the same labels in another order.
    """
    ours: Any = getattr(given, "index", None)
    theirs: Any = getattr(others, "index", None)
    if not (hasattr(ours, "equals") and hasattr(theirs, "equals") and len(ours) == len(theirs)):
        return
    if ours.equals(theirs) or not (ours.is_unique and theirs.is_unique) or not ours.isin(theirs).all():
        return
    row = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    raise ValueError(
        f"{name}: expected rows in the order of {of}, got the same index in another order, {ours[row]} for"
        f" {theirs[row]} (row {row}); sort one by the index of the other, or pass to_numpy() if the rows do match"
    )


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
