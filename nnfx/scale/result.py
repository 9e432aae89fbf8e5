"""What a sweep returns: a table of its members, and their weights."""

import csv
import dataclasses
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from nnfx import checks, distributed, tables
from nnfx.data.prepare import Preprocess
from nnfx.scale.ensemble import Ensemble
from nnfx.scale.programs import fold_data
from nnfx.training.chunk import RUNNING
from nnfx.training.fit import Fit
from nnfx.training.hyper import as_arrays
from nnfx.types import Hyper, Variables

if TYPE_CHECKING:
    from nnfx.scale.table import Table

Row = dict[str, Any]


class Member(NamedTuple):
    """One member of a sweep.

    Attributes:
        row: its row of the table.
        variables: its best weights.
        history: each metric by epoch, `(epochs,)`, NaN where not run.
    """

    row: Row
    variables: Variables
    history: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The members of a sweep, best first.

    Attributes:
        rows: one dictionary a member: its number, seed, fold (where there are folds), hyper-parameters, epochs run,
            epoch of its best weights, the metrics measured then, and why it stopped.
        fit: the function that made the runs.
        variables: the best weights of all members, `(members, ...)`, by member's number.
        histories: each metric by member and epoch, `(members, epochs)`, NaN where not run.
        hyper: the hyper-parameters, `(members,)` each, by member's number.
        preprocess: the maps from raw features, `(members, ...)`, by member's number.
    """

    rows: list[Row]
    fit: Fit
    variables: Variables
    histories: dict[str, np.ndarray]
    hyper: Hyper
    preprocess: Preprocess

    @property
    def best(self) -> Member:
        """The member in the first row: of the lowest loss, unless sorted otherwise."""
        row = self.rows[0]
        number = row["member"]
        return Member(
            row,
            jax.tree.map(lambda stack: stack[number], self.variables),
            {name: values[number] for name, values in self.histories.items()},
        )

    def sort(self, column: str, largest_first: bool = False) -> "Sweep":
        """Return the same members in the order of a column; what is not a number comes last."""
        checks.choice("column", column, self.rows[0])

        def place(row: Row) -> Any:
            value = row[column]
            if isinstance(value, str):
                return (0, value)
            is_nan = bool(np.isnan(value))
            return (is_nan, 0 if is_nan else (-value if largest_first else value))

        return dataclasses.replace(self, rows=sorted(self.rows, key=place))

    def ensemble(self, count: int) -> Ensemble:
        """Return the members of the first `count` rows, stacked."""
        checks.positive_integer("count", count)
        if count > len(self.rows):
            raise ValueError(f"count: expected at most the {len(self.rows)} members, got {count}")
        numbers = np.array([row["member"] for row in self.rows[:count]])

        def stack(tree: Any) -> Any:
            return jax.tree.map(lambda values: values[numbers], tree)

        return Ensemble(self.fit, stack(self.hyper), stack(self.variables), stack(self.preprocess))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV, aside first and then in place; of several processes the first does."""
        if not distributed.is_first():
            return
        path = Path(path)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(text.getvalue())
        os.replace(aside, path)

    def __str__(self) -> str:
        """Draw the table, its first twenty rows."""
        shown = self.rows[:20]
        drawn = tables.table(list(self.rows[0]), [list(row.values()) for row in shown], words=0)
        return drawn if len(self.rows) == len(shown) else f"{drawn}\n… and {len(self.rows) - len(shown)} more"


def collect(fit: Fit, table: "Table", dropped: int) -> Sweep:
    """Make the result of a finished sweep."""
    kept = table.harvested
    width = len(next(iter(table.points.values())))
    members = len(kept["epochs"])
    hyper = as_arrays({name: np.tile(column, members // width) for name, column in table.points.items()})

    rows = []
    for number in range(members):
        group, point = divmod(number, width)
        best_epoch = int(kept["best_epoch"][number])
        row: Row = {"member": number, "seed": int(table.all_seeds[group])}
        if table.fixed.folds is not None:
            row["fold"] = int(table.all_folds[group])
        row |= {name: float(column[point]) for name, column in table.points.items()}
        row |= {"epochs": int(kept["epochs"][number]), "best_epoch": best_epoch}
        row |= {name: float(values[number, best_epoch - 1]) for name, values in table.history.items()}
        row["reason"] = _reason(fit, int(kept["stopped_by"][number]), dropped)
        rows.append(row)

    def of_fold(fold: int) -> Preprocess:
        return fold_data(table.fixed, jax.numpy.asarray(fold))[2]

    by_fold = [jax.tree.map(np.asarray, of_fold(fold)) for fold in range(int(table.all_folds.max()) + 1)]
    folds = np.repeat(table.all_folds, width)
    preprocess = jax.tree.map(lambda *stack: np.stack(stack)[folds], *by_fold)
    result = Sweep(rows, fit, kept["variables"], table.history, hyper, preprocess)
    return result.sort("valid_loss" if "valid_loss" in table.history else "train_loss")


def _reason(fit: Fit, stopped_by: int, dropped: int) -> str:
    if stopped_by == dropped:
        return "dropped"
    return "last epoch" if stopped_by == RUNNING else fit.rules[stopped_by].name
