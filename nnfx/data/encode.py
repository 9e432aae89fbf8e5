"""One-hot encoding: a 0/1 column for each category that occurs in the training rows of a frame."""

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.arrays import as_numpy, column_names

__all__ = [
    "Column",
    "Encoding",
    "Unseen",
    "columns",
    "encoded",
    "encoding_of",
    "flags",
    "kinds_of",
    "labels",
    "names",
    "text",
]

Encoding = tuple[tuple[str | None, ...] | None, ...]
"""For each column of a frame: None for numbers, `()` for booleans, or a tuple of the categories, whose last item is
None if missing values are a category of their own."""
Unseen = Literal["error", "other"]
Kind = Literal["number", "boolean", "category"]

_POLARS: dict[str, Kind] = {
    "Boolean": "boolean",
    "String": "category",
    "Categorical": "category",
    "Enum": "category",
}


class Column(NamedTuple):
    """One column of a frame, on the host.

    Attributes:
        name: its name.
        kind: the kind of its values.
        values: `(rows,)`; float64 with NaN for missing numbers and booleans, or objects with None for missing
            categories.
    """

    name: str
    kind: Kind
    values: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Return which values are missing, `(rows,)`."""
        if self.kind != "category":
            return np.isnan(self.values)
        return np.fromiter((value is None for value in self.values), bool, len(self.values))

    def joined(self, other: "Column") -> "Column":
        """Return the column with the rows of another column of the same kind appended."""
        return self._replace(values=np.concatenate([self.values, other.values]))


def columns(
    name: str, frame: Any, names: Sequence[str] | None = None, kinds: Sequence[Kind] | None = None
) -> tuple[Column, ...] | None:
    """Read the columns of a frame that contains text, categories or booleans.

    Args:
        name: the name of the argument, for error messages.
        frame: a pandas or polars frame, or anything else.
        names: the names of the columns; by default, the column names of the frame.
        kinds: the kinds that the columns must have; by default, any.

    Returns:
        The columns; None if `frame` is not a frame, or if it is purely numeric and no kinds are given.

    Raises:
        TypeError: for columns that contain neither numbers nor booleans nor text, or whose kinds differ from `kinds`.
        ValueError: if the number of columns differs from the number of `kinds`, or a value does not match its kind.
    """
    own = column_names(frame)
    if own is None:
        return None
    dtypes = [_kind_of(dtype) for dtype in frame.dtypes]
    if kinds is None and all(kind == "number" for kind in dtypes):
        return None
    if kinds is not None and len(kinds) != len(own):
        raise ValueError(f"{name}: expected {len(kinds)} columns, as in training, got {len(own)}")
    series = [frame.iloc[:, i] for i in range(len(own))] if hasattr(frame, "iloc") else frame.get_columns()
    wanted: Sequence[Kind | None] = kinds or [None] * len(own)
    read = tuple(map(_column, [name] * len(own), names or own, series, dtypes, wanted))
    if kinds is not None:
        return tuple(_of_kind(name, column, kind) for column, kind in zip(read, kinds, strict=True))
    return read if any(column.kind != "number" for column in read) else None


def encoding_of(table: Sequence[Column], rows: np.ndarray) -> Encoding:
    """Return the categories of each column that occur in the given rows: first numbers, then text, both sorted.

    Raises:
        ValueError: for columns whose values are all missing in these rows.
    """

    def categories(column: Column) -> tuple[str | None, ...] | None:
        if column.kind != "category":
            return () if column.kind == "boolean" else None
        found = set(column.values[rows])
        if not found - {None}:
            raise ValueError(f"inputs: expected at least one known value of {column.name!r}, got only missing values")
        known = sorted(found - {None}, key=lambda value: (isinstance(value, str), value))
        return (*dict.fromkeys(map(text, known)), *([None] if None in found else []))

    return tuple(map(categories, table))


def kinds_of(encoding: Encoding) -> list[Kind]:
    """Return the kinds of the columns that an encoding applies to."""
    return ["number" if each is None else "category" if each else "boolean" for each in encoding]


def encoded(
    table: Sequence[Column],
    encoding: Encoding,
    *,
    name: str = "inputs",
    unseen: str = "error",
    fills: bool = False,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """Return the columns encoded as numbers, float64 `(rows, encoded columns)`.

    Args:
        table: the columns.
        encoding: the categories of each column.
        name: the name of the argument, for error messages.
        unseen: whether categories that are not in the encoding raise an error or become 0 in all columns.
        fills: whether categories may be missing; if the encoding has no column for them, they become 0 in all columns.
        used: booleans `(rows,)`, true for the rows to check; all rows by default.

    Raises:
        ValueError: for missing and unseen categories; the error names the column and the value.
    """
    parts = []
    for column, categories in zip(table, encoding, strict=True):
        if not categories:
            parts.append(column.values[:, None])
            continue
        place = {category: i for i, category in enumerate(categories)}
        values = [None if value is None else text(value) for value in column.values]
        codes = np.array([place.get(value, -1) for value in values], int)
        is_wrong = codes < 0 if used is None else (codes < 0) & used
        for value in dict.fromkeys(values[row] for row in np.flatnonzero(is_wrong)):
            if value is None and not fills:
                raise ValueError(f"{name}: expected no missing values, got some in column {column.name!r}")
            if value is not None and unseen == "error":
                raise ValueError(
                    f"{name}: expected categories of {column.name!r} that occur in the training rows, got {value!r};"
                    " prepare(..., unseen='other') encodes unseen categories as 0 in all columns"
                )
        parts.append((codes[:, None] == np.arange(len(categories))[None]).astype(np.float64))
    return np.concatenate(parts, axis=1)


def names(encoding: Encoding, features: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the encoded columns.

    >>> names((None, (), ("Cherbourg", "Southampton", None)), ("age", "alone", "port"))
    ('age', 'alone', 'port=Cherbourg', 'port=Southampton', 'port missing')
    """
    found: list[str] = []
    for name, categories in zip(features, encoding, strict=True):
        of_column = [f"{name} missing" if each is None else f"{name}={each}" for each in categories or ()]
        found += of_column or [name]
    return tuple(found)


def flags(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Return which encoded columns are 0/1 columns, and which of those represent categories, `(encoded columns,)` each.

    >>> flags((None, (), ("Cherbourg", None)))
    (array([False,  True,  True,  True]), array([False, False,  True,  True]))
    """
    widths = [max(len(categories or ()), 1) for categories in encoding]
    are_flags, are_categories = [each is not None for each in encoding], [bool(each) for each in encoding]
    return np.repeat(are_flags, widths).astype(bool), np.repeat(are_categories, widths).astype(bool)


def labels(name: str, values: Any, *, mask: bool = False) -> np.ndarray | None:
    """Return text or categorical labels as objects `(rows,)`, and None for anything else, such as numbers.

    Args:
        name: the name of the argument, for error messages.
        values: a Series, a frame of one column, a list or an array.
        mask: whether numbers may be missing, for the error raised if text is missing.

    Raises:
        TypeError: for labels mixed with other values.
        ValueError: for missing labels, more than one column of labels, and text that represents non-integer numbers.
    """
    if hasattr(getattr(values, "dtype", None), "categories") and not hasattr(values, "to_frame"):
        values = sys.modules["pandas"].Series(values)  # a pandas Categorical
    is_one = hasattr(values, "to_frame")  # a Series, whose column has no name that users know
    values = values.to_frame() if is_one else values
    found = columns(name, values, [""] if is_one else None)
    if found is not None:
        if all(column.kind != "category" for column in found):
            return None
        if len(found) != 1:
            raise ValueError(f"{name}: expected one column of labels, got {len(found)} columns, some of them text")
        objects = found[0].values
    else:
        flat = values
        kind = getattr(getattr(values, "dtype", None), "kind", None)
        if kind in ("U", "O") and not isinstance(values, np.ma.MaskedArray):
            flat = np.asarray(values, object).ravel().tolist()  # from NumPy, or a pandas extension array
        if not isinstance(flat, list | tuple) or not any(isinstance(value, str) for value in flat):
            return None
        if len(flat) != len(values):
            raise TypeError(f"{name}: expected one column of labels, got {checks.describe(values)}")
        objects = _plain(name, None, list(flat))
    missing = sum(value is None for value in objects)
    if missing:
        hint = "; only numbers can be masked, not text: leave such rows out" * mask
        raise ValueError(f"{name}: expected no masked or missing values, got {missing}{hint}")
    read = [_as_number(value) for value in dict.fromkeys(objects)]
    if all(number is not None for number in read) and any(number % 1 for number in read if number is not None):
        raise ValueError(f"{name}: expected numbers or class names, got numbers as text, such as {objects[0]!r}")
    return objects


def text(value: Any) -> str:
    """Return a category as text, with the same text for equal numbers of any type.

    >>> text("first"), text(2), text(2.0), text(True)
    ('first', '2', '2', 'True')
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return str(int(value)) if float(value).is_integer() else str(float(value))


def _kind_of(dtype: Any) -> Kind | None:
    """Return the kind of values of a dtype; None if that depends on the values."""
    if hasattr(dtype, "is_numeric"):
        return "number" if dtype.is_numeric() else _POLARS.get(str(dtype).partition("(")[0])
    if hasattr(dtype, "categories"):
        return "category"
    kind = getattr(dtype, "kind", "O")
    return "boolean" if kind == "b" else "number" if kind in "iuf" else None


def _is_text(dtype: Any) -> bool:
    return str(dtype) == "String"  # in polars; in pandas, the kind of a text column is not known yet


def _column(name: str, of: str, series: Any, kind: Kind | None, wanted: Kind | None) -> Column:
    is_meant = kind == "category" and not _is_text(series.dtype)
    if kind == "number":
        return Column(of, "number", as_numpy(name, series, masked_as_nan=True).astype(np.float64))
    if hasattr(series, "isna"):
        pairs = zip(series.astype(object).tolist(), series.isna().tolist(), strict=True)
        values = [None if is_missing else value for value, is_missing in pairs]
    else:
        values = series.to_list()
    objects = _plain(name, of, values)
    if kind is None:
        found = {type(value) for value in objects if value is not None}
        has_text = not found or any(issubclass(each, str) for each in found)
        is_boolean = all(issubclass(each, bool | np.bool_) for each in found)
        kind = "category" if has_text else "boolean" if is_boolean else "number"
    if kind != "category":
        return Column(of, kind, np.array([np.nan if value is None else value for value in objects], np.float64))
    if not is_meant and wanted != "number":  # for numbers, another error rejects text
        _check_not_numbers(name, of, objects)
    return Column(of, kind, objects)


def _check_not_numbers(name: str, column: str, objects: np.ndarray) -> None:
    """Reject text columns that mostly contain numbers, such as one with `?` for missing values.

    Columns of integers only are accepted, since codes and ranks are written that way.
    """
    found = [value for value in dict.fromkeys(objects) if value is not None]
    read = [(value, number) for value in found if (number := _as_number(value)) is not None]
    others = [value for value in found if _as_number(value) is None]
    if 2 * len(read) < len(found) or not (others or any(number % 1 for _, number in read)):
        return
    besides = f" and {others[0]!r}" if others else ""
    first = next((value for value, number in read if number % 1), read[0][0])
    raise ValueError(
        f"{name}: expected numbers or categories in column {column!r}, got text that mostly reads as numbers, such as"
        f" {first!r}{besides}; convert it with pandas.to_numeric(..., errors='coerce') or to a categorical dtype"
    )


def _as_number(value: Any) -> float | None:
    """Return the finite number that a value, possibly text, represents; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(name: str, column: str | None, values: list[Any]) -> np.ndarray:
    """Return numbers, booleans and text as an array of objects, with None for missing values."""
    objects = np.empty(len(values), object)
    for i, value in enumerate(values):
        if value is not None and not isinstance(value, str | bool | np.bool_ | numbers.Real):
            where = f" in column {column!r}" if column else ""
            kind = type(value).__name__
            article = "an" if kind[0] in "AEIOUaeiou" else "a"
            raise TypeError(f"{name}: expected numbers, booleans or text, got {article} {kind}{where}")
        objects[i] = None if value is None or value != value else value  # NaN differs from itself
    return objects


def _of_kind(name: str, column: Column, kind: Kind) -> Column:
    """Return a column converted to the kind that it had in training."""
    if column.kind == kind:
        return column
    if kind == "category":
        to = bool if column.kind == "boolean" else float
        objects = np.array([None if np.isnan(value) else to(value) for value in column.values], object)
        return Column(column.name, kind, objects)
    wanted = "numbers" if kind == "number" else "booleans"
    if column.kind == "category":
        given = [value for value in column.values if value is not None]
        if not given:
            return column._replace(kind=kind, values=np.full(len(column.values), np.nan))
        first = next((value for value in given if isinstance(value, str)), given[0])
        raise TypeError(f"{name}: expected {wanted} in column {column.name!r}, as in training, got {first!r}")
    is_wrong = (column.values != 0) & (column.values != 1) & ~column.missing
    if kind == "boolean" and is_wrong.any():
        raise ValueError(
            f"{name}: expected {wanted} in column {column.name!r}, as in training, got {column.values[is_wrong][0]:g}"
        )
    return column._replace(kind=kind)
