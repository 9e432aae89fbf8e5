"""The result of a sweep: a table of its members, a table of its points, and the members' weights."""

import csv
import dataclasses
import io
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, distributed, paths, tables
from nnfx.data.prepare import Preprocess
from nnfx.sweeps.ensemble import Ensemble
from nnfx.sweeps.halving import ranked
from nnfx.sweeps.programs import fold_data
from nnfx.sweeps.table import Table
from nnfx.training.epochs import RUNNING, Best, reason
from nnfx.training.fit import Fit
from nnfx.training.hyperparameters import as_arrays
from nnfx.training.run import Run
from nnfx.types import Fault, Hyper, TrainState, Variables

Row = dict[str, Any]
SHOWN = 20
"""The largest number of rows shown when a table is printed."""
NOT_FINITE = "not finite"
"""The reason given for members whose loss or weights are not finite."""
LAST = (NOT_FINITE, "dropped")
"""The reasons given for members that come last in a table sorted by a metric."""
TAKEN = {
    *("member", "point", "program", "seed", "fold", "epochs", "best_epoch", "reason"),
    *("rank", "runs", "failed", "standard_error", "worst", "train_loss", "valid_loss"),
}
"""Reserved column names; a hyper-parameter with one of these names has a column with a prefix."""


def column_of(name: str) -> str:
    """Return the name of the column that holds the values of a hyper-parameter or a static choice.

    >>> column_of("learning_rate"), column_of("seed")
    ('learning_rate', 'searched_seed')
    """
    return f"searched_{name}" if name in TAKEN else name


@dataclasses.dataclass(frozen=True, repr=False)
class Rows:
    """A table that can be printed and saved.

    Attributes:
        rows: one dictionary per row, by column.
    """

    rows: list[Row]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV, atomically; with several processes, only the first one writes.

        Args:
            path: the path of the file; an existing file is replaced.

        Raises:
            TypeError: for anything other than a path.
        """
        path = paths.absolute("path", path)
        if not distributed.is_first():
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        with paths.replace(path) as aside:
            aside.write_text(text.getvalue(), encoding="utf-8", newline="")

    def __str__(self) -> str:
        """Format the first twenty rows of the table."""
        shown = self.rows[:SHOWN]
        drawn = tables.table(list(self.rows[0]), [list(row.values()) for row in shown], words=0)
        return drawn if len(self.rows) == len(shown) else f"{drawn}\n… and {len(self.rows) - len(shown)} more"

    def __repr__(self) -> str:
        """Return the same text as `str`."""
        return str(self)


@dataclasses.dataclass(frozen=True, repr=False)
class ByPoint(Rows):
    """The points of a sweep, best first, with their mean scores over seeds and folds, and standard errors.

    Attributes:
        rows: one dictionary per point: its hyper-parameters, the number of runs, the number of failed runs (those
            without a finite value), and the mean of the other runs, its standard error (NaN for one run) and the worst
            value.
        numbers: the position of each row's point among the points of the sweep.
    """

    numbers: tuple[int, ...]

    __str__ = Rows.__str__


class Ends(NamedTuple):
    """The outcome of each member's run, `(members,)` each.

    Attributes:
        epochs: the number of epochs run.
        best_epoch: the number of epochs up to the best weights.
        stopped_by: why the run stopped, as `Run.stopped_by`.
        step: the number of updates made.
        fault: the updates that were skipped.
    """

    epochs: Any
    best_epoch: Any
    stopped_by: Any
    step: Any
    fault: Fault


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Member(Run):
    """One member of a sweep: a run that predicts, evaluates and has a history like any other.

    Of the training state, the sweep keeps only the best weights, and neither the optimizer's state nor the key.

    Attributes:
        row: the member's row in the table.
    """

    row: Row

    @property
    def variables(self) -> Variables:
        """The member's best weights."""
        return self.best.variables


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep(Rows):
    """The members of a sweep, ordered by loss, lowest first.

    When sorted by any metric, members whose loss or weights are not finite come last, just after dropped members.

    Attributes:
        rows: one dictionary per member: its number, seed, fold (if there are folds), hyper-parameters, number of
            epochs run, the epoch of its best weights, the metrics at that epoch, and why it stopped. A hyper-parameter
            with the name of another column, such as `seed`, is in the column `searched_seed`.
        fit: the run function that trained the members.
        variables: the best weights of all members, `(members, ...)`, by member number.
        histories: each metric by member and epoch, `(members, epochs)`, NaN for epochs that were not run.
        hyper: the hyper-parameters, `(members,)` each, by member number.
        preprocess: the preprocessing of raw features, `(members, ...)`, by member number.
        ends: the outcomes of the members' runs, by member number.
        judged_by: the metric by which members and points are ranked, and whether larger values are better.
    """

    fit: Fit
    variables: Variables
    histories: dict[str, np.ndarray]
    hyper: Hyper
    preprocess: Preprocess
    ends: Ends
    judged_by: tuple[str, bool]

    @property
    def best(self) -> Member:
        """The best member of the best point, as ranked by `by_point`; another point may have a better member.

        Raises:
            ValueError: if no member ended with a finite loss and finite weights.
        """
        points = self.by_point()
        for point in points.numbers:
            of_point = [row for row in self._by_metric() if self._point(row) == point]
            if of_point[0]["reason"] not in LAST:
                return self.member(of_point[0]["member"])
        raise ValueError(
            f"best: expected a member that ended with finite numbers, got none: all {len(self.rows)} diverged or"
            f" were dropped; see `rows` and `histories`"
        )

    def member(self, number: int) -> Member:
        """Return a member by its number.

        Raises:
            TypeError, ValueError: for anything other than the number of a member.
        """
        checks.position("number", number, len(self.rows))
        row = next(row for row in self.rows if row["member"] == number)
        variables, columns, hyper, preprocess, ends = jax.tree.map(
            # histories end in NaN, which must not trigger `jax_debug_nans`
            lambda stack: jax.device_put(stack[number]) if isinstance(stack, np.ndarray) else stack[number],
            (self.variables, self.histories, self.hyper, self.preprocess, self.ends),
        )
        others = dict(variables)
        params = others.pop("params")
        loss = columns["valid_loss"][jnp.maximum(ends.best_epoch, 1) - 1] if "valid_loss" in columns else None
        state = TrainState(ends.step, params, others, (), None, ends.fault)  # type: ignore[arg-type]
        best = Best(ends.best_epoch, loss, params, others)
        return Member(state, best, columns, ends.epochs, ends.stopped_by, hyper, preprocess, self.fit, row)

    def by_point(self) -> ByPoint:
        """Return the points, ranked by their mean score over seeds and folds.

        The score is the loss, or the metric by which the members were last sorted. Points with dropped members come
        after all other points. Within both groups, points with more failed runs come later.

        Example:
            >>> import nnfx, optax
            >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
            >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
            >>> result = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), seeds=3, learning_rate=[0.01, 1.0])
            >>> [(row["learning_rate"], row["runs"], row["failed"]) for row in result.by_point().rows]
            [(1.0, 3, 0), (0.01, 3, 0)]
        """
        name, largest_first = self.judged_by
        values, dropped = self.by_group(name)
        numbers, of_member = ranking(values, dropped, largest_first), {row["member"]: row for row in self.rows}
        rows = [
            {column: float(of_member[point][column]) for column in map(column_of, self.hyper)}
            | spread(values[:, point], name, largest_first)
            for point in numbers
        ]
        return ByPoint(rows, numbers)

    def by_group(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric, `(groups, points)`, NaN for failed runs, and the mask of points that were dropped."""
        by_number = sorted(self.rows, key=lambda row: int(row["member"]))
        values = [np.nan if row["reason"] == NOT_FINITE else row.get(name, np.nan) for row in by_number]
        dropped: Any = np.array([row["reason"] == "dropped" for row in by_number]).reshape(-1, self._width)
        return np.array(values, np.float64).reshape(-1, self._width), dropped.any(0)

    def sort(self, column: str, largest_first: bool = False) -> "Sweep":
        """Return the same members sorted by a column; NaN comes last.

        If the column is a metric, points are ranked by it too.
        """
        checks.choice("column", column, self.rows[0])
        is_measured = column in self.histories
        judged_by = (column, largest_first) if is_measured else self.judged_by
        rows = in_order(self.rows, column, largest_first, is_measured)
        return dataclasses.replace(self, rows=rows, judged_by=judged_by)

    def ensemble(self, count: int) -> Ensemble:
        """Return an ensemble of the members in the first `count` rows.

        Raises:
            ValueError: for more members than there are, or if the loss or weights of one are not finite.
        """
        checks.positive_integer("count", count)
        if count > len(self.rows):
            raise ValueError(f"count: expected at most the {len(self.rows)} members, got {count}")
        failed = [row["member"] for row in self.rows[:count] if row["reason"] == NOT_FINITE]
        if failed:
            fine = sum(row["reason"] != NOT_FINITE for row in self.rows)
            raise ValueError(
                f"count: expected members with finite losses and weights ({fine} in all), got {count} that include"
                f" members {', '.join(map(str, failed))}"
            )
        numbers = np.array([row["member"] for row in self.rows[:count]])

        def stack(tree: Any) -> Any:
            return jax.tree.map(lambda values: values[numbers], tree)

        return Ensemble(self.fit, stack(self.hyper), stack(self.variables), stack(self.preprocess))

    def __str__(self) -> str:
        """Format the first twenty members as a table; with several seeds or folds, also the table of points."""
        drawn = super().__str__()
        return drawn if self._width == len(self.rows) else f"{drawn}\n\n{self.by_point()}"

    @property
    def _width(self) -> int:
        return len(self.rows) // len({(row["seed"], row.get("fold")) for row in self.rows})

    def _point(self, row: Row) -> int:
        return int(row["member"]) % self._width

    def _by_metric(self) -> list[Row]:
        return in_order(self.rows, *self.judged_by, True)


def ranking(values: np.ndarray, dropped: np.ndarray, largest_first: bool) -> tuple[int, ...]:
    """Return the positions of the points, best first, given values `(groups, points)`; dropped points come last.

    >>> ranking(np.array([[3.0, 1.0, 2.0]]), np.array([False, True, False]), False)
    (2, 0, 1)
    """
    order = ranked(-values if largest_first else values)
    return tuple(int(point) for point in (*order[~dropped[order]], *order[dropped[order]]))


def spread(values: np.ndarray, name: str, largest_first: bool) -> Row:
    """Summarise a point's runs: their number, failures, and the mean, its standard error and the worst of the others.

    >>> spread(np.array([1.0, 3.0, np.nan]), "loss", False)
    {'runs': 3, 'failed': 1, 'loss': 2.0, 'standard_error': 1.0, 'worst': 3.0}
    """
    finite = values[np.isfinite(values)]
    worst = finite.min if largest_first else finite.max
    return {
        "runs": len(values),
        "failed": len(values) - len(finite),
        name: float(finite.mean()) if len(finite) else np.nan,
        "standard_error": float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else np.nan,
        "worst": float(worst()) if len(finite) else np.nan,
    }


def in_order(rows: list[Row], column: str, largest_first: bool, is_measured: bool) -> list[Row]:
    """Sort rows by a column; if the column is a metric, failed and dropped members come last."""

    def place(row: Row) -> Any:
        value = row[column]
        behind = LAST[::-1].index(row["reason"]) + 1 if is_measured and row["reason"] in LAST else 0
        if isinstance(value, str):
            return (behind, 2, value)
        is_nan = bool(np.isnan(value))
        return (behind, is_nan, 0 if is_nan else (-value if largest_first else value))

    return sorted(rows, key=place)


def collect(fit: Fit, table: Table) -> Sweep:
    """Return the result of a sweep that has finished, or the result so far."""
    kept = table.results()
    width = table.width
    members = len(kept["epochs"])
    hyper = as_arrays({name: np.tile(column, members // width) for name, column in table.points.items()})
    judged_by = "valid_loss" if "valid_loss" in table.history else "train_loss"
    at_best = np.maximum(np.asarray(kept["best_epoch"]), 1) - 1
    measured = {name: values[np.arange(members), at_best] for name, values in table.history.items()}
    is_finite = np.isfinite(measured[judged_by])
    for leaf in jax.tree.leaves(kept["variables"]):
        if np.issubdtype(leaf.dtype, np.inexact):
            is_finite &= np.isfinite(leaf.reshape(members, -1)).all(1)

    rows = []
    for number in range(members):
        group, point = divmod(number, width)
        row: Row = {"member": number, "seed": int(table.all_seeds[group])}
        if table.fixed.folds is not None:
            row["fold"] = int(table.all_folds[group])
        row |= {column_of(name): float(column[point]) for name, column in table.points.items()}
        row |= {"epochs": int(kept["epochs"][number]), "best_epoch": int(kept["best_epoch"][number])}
        row |= {name: float(values[number]) for name, values in measured.items()}
        row["reason"] = _reason(fit, int(kept["stopped_by"][number]), row["epochs"], bool(is_finite[number]))
        rows.append(row)

    def of_fold(fold: int) -> Preprocess:
        return fold_data(table.fixed, jax.numpy.asarray(fold))[2]

    by_fold = [jax.tree.map(np.asarray, of_fold(fold)) for fold in range(int(table.all_folds.max()) + 1)]
    folds = np.repeat(table.all_folds, width)
    preprocess = jax.tree.map(lambda *stack: np.stack(stack)[folds], *by_fold)
    ends = Ends(**{name: kept[name] for name in Ends._fields})
    result = Sweep(rows, fit, kept["variables"], table.history, hyper, preprocess, ends, (judged_by, False))
    return result.sort(judged_by)


def _reason(fit: Fit, stopped_by: int, epochs: int, is_finite: bool) -> str:
    if not is_finite:
        return NOT_FINITE
    return "running" if stopped_by == RUNNING and epochs < fit.epochs else reason(stopped_by, fit.rule_names)
