"""The passengers of the Titanic, with the survivors as targets."""

import csv
import functools
from importlib import resources

import numpy as np

from nnfx import checks
from nnfx.data.prepare import Data, Missing, prepare
from nnfx.types import Array

_CATEGORIES = {"sex": ("female", "male"), "port": ("Cherbourg", "Queenstown", "Southampton")}


@functools.cache
def _table() -> dict[str, list[str]]:
    """Read the packaged table as a dictionary of columns."""
    text = resources.files("nnfx.data").joinpath("titanic.csv").read_text(encoding="utf-8")
    header, *rows = csv.reader(text.splitlines())
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def _encode(name: str, values: list[str]) -> dict[str, np.ndarray]:
    """Convert one column to numbers; a categorical column becomes an indicator for each category except the first."""
    if name not in _CATEGORIES:
        return {name: np.array([float(value) if value else np.nan for value in values])}
    missing = np.array([not value for value in values])
    return {
        f"{name}={category}": np.where(missing, np.nan, np.array([value == category for value in values]))
        for category in _CATEGORIES[name][1:]
    }


def titanic(
    *columns: str,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    missing: Missing = "drop",
    standardize: bool = True,
) -> Data:
    """The 891 passengers of the Titanic, with the target 1 for each of the 342 who survived.

    Columns are `class` (1 to 3), `sex`, `age` (years; 177 unknown), `siblings_spouses` and `parents_children`
    (the numbers aboard), `fare` (pounds) and `port` (of embarkation; 2 unknown). A categorical column becomes one 0/1
    feature for each category except the first: `sex=male`, `port=Queenstown`, `port=Southampton`.

    Args:
        columns: which columns to use as inputs, in this order.
        key: a typed key that determines which passengers are held out.
        valid_fraction: the fraction of passengers to hold out.
        missing: `"drop"` passengers with an unknown value, or fill in the training `"median"` and
            append an indicator; see `prepare`. `data.report` counts the values that were dropped or filled.
        standardize: whether to standardise every feature to mean 0 and standard deviation 1.

    Returns:
        Inputs `(rows, features)` and integer targets `(rows,)`.

    Raises:
        ValueError: if no columns are given, a column is unknown, or one is given twice.

    Example:
        >>> data = titanic("fare", "age")
        >>> data.train.inputs.shape
        (714, 2)
        >>> print(data.report)
        891 rows: 714 to train on, 0 held out, 177 dropped for missing values; values filled: none

    References:
        See `titanic.md`, next to the data file, for the source.
    """
    table = _table()
    known = [name for name in table if name != "survived"]
    if not columns:
        raise ValueError(f"columns: expected at least one of {', '.join(map(repr, known))}, got none")
    for column in columns:
        checks.choice("columns", column, known)
    if len(set(columns)) != len(columns):
        raise ValueError(f"columns: expected each column once, got {', '.join(map(repr, columns))}")
    features: dict[str, np.ndarray] = {}
    for column in columns:
        features |= _encode(column, table[column])
    return prepare(
        np.stack(list(features.values()), axis=1),
        np.array([int(value) for value in table["survived"]]),
        key=key,
        valid_fraction=valid_fraction,
        missing=missing,
        standardize=standardize,
        features=tuple(features),
    )
