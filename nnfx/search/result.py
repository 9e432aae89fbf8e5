"""The result of a search: a table of the members of all programs, a ranking of the points, and tests of the ranking."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnfx import checks
from nnfx.search.comparison import Comparison, compare, holm
from nnfx.search.programs import Program, word
from nnfx.search.space import Point
from nnfx.sweeps.result import LAST, ByPoint, Member, Row, Rows, Sweep, column_of, in_order, ranking, spread

SHOWN = 10
"""The maximum number of points shown when a search is printed."""


@dataclasses.dataclass(frozen=True, repr=False)
class Search(Rows):
    """All members of a search, ordered by loss, lowest first.

    Attributes:
        rows: one dictionary per member: the numbers of the member, its point and its program, the seed, the fold (if
            there are folds), the values of the searched names ("" where a name is absent, functions by name), the
            number of epochs run, the epoch of its best weights, the metrics at that epoch, and why it stopped.
        points: the points, in the order of their numbers.
        programs: the static choices and the points of each program.
        sweeps: the result of each program.
        judged_by: the metric by which members and points are ranked, and whether larger values are better.
    """

    points: tuple[Point, ...]
    programs: tuple[Program, ...]
    sweeps: tuple[Sweep, ...]
    judged_by: tuple[str, bool]

    @classmethod
    def of(cls, points: Sequence[Point], programs: Sequence[Program], sweeps: Sequence[Sweep]) -> "Search":
        """Build the result of a search from its points, its programs and their sweeps."""
        names = list(dict.fromkeys(name for point in points for name in point))
        rows: list[Row] = []
        for i, (program, sweep) in enumerate(zip(programs, sweeps, strict=True)):
            begin, width = len(rows), len(program.numbers)
            for row in sorted(sweep.rows, key=lambda row: int(row["member"])):
                number = program.numbers[row["member"] % width]
                traced = map(column_of, program.columns)
                measured = {name: each for name, each in row.items() if name not in (*traced, "member")}
                where: Row = {name: measured.pop(name) for name in ("seed", "fold") if name in measured}
                rows.append(
                    {"member": begin + row["member"], "point": number, "program": i}
                    | where
                    | _searched(points[number], names)
                    | measured
                )
        columns = dict.fromkeys(name for row in rows for name in row)
        rows = [{name: row.get(name, np.nan) for name in columns} for row in rows]
        judged_by = sweeps[0].judged_by
        return cls(in_order(rows, *judged_by, True), tuple(points), tuple(programs), tuple(sweeps), judged_by)

    @property
    def best(self) -> Member:
        """The best member of the best point, as ranked by `by_point`.

        Raises:
            ValueError: if no member ended with a finite loss and finite weights.
        """
        return self.member(self.best_row["member"])

    @property
    def best_row(self) -> Row:
        """The row of the best member of the best point.

        Raises:
            ValueError: as `best` does.
        """
        for point in self.by_point().numbers:
            first = next(row for row in in_order(self.rows, *self.judged_by, True) if row["point"] == point)
            if first["reason"] not in LAST:
                return first
        raise ValueError(
            f"best: expected a member that ended with finite numbers, got none: all {len(self.rows)} diverged or"
            " were dropped; see `rows` and `sweeps`"
        )

    def member(self, number: int) -> Member:
        """Return a member by its number.

        Raises:
            TypeError, ValueError: for anything other than the number of a member.
        """
        checks.position("number", number, len(self.rows))
        begin = 0
        for sweep in self.sweeps:
            if number - begin < len(sweep.rows):
                break
            begin += len(sweep.rows)
        return sweep.member(number - begin)

    def by_point(self) -> ByPoint:
        """Return the points, ranked by their mean score over seeds and folds.

        Points with dropped members come after all other points. Within both groups, points with more failed members
        come later.

        Returns:
            One row per point: its rank and number, the values of the searched names, the numbers of runs and of failed
            runs, and the mean score of the other runs, its standard error (NaN for one run) and the worst score.
        """
        name, largest_first = self.judged_by
        values, dropped = self.by_group(name)
        order, names = ranking(values, dropped, largest_first), self._names
        rows = [
            {"rank": rank + 1, "point": number}
            | _searched(self.points[number], names)
            | spread(values[:, number], name, largest_first)
            for rank, number in enumerate(order)
        ]
        return ByPoint(rows, order)

    def compare(self, first: int, second: int) -> Comparison:
        """Compare two points by their runs with the same seed and fold.

        Folds share most of their training rows, so differences between folds are not independent, and p-values of
        searches with folds are too small (Nadeau and Bengio, *Inference for the generalization error*, 2003).

        Args:
            first: the number of a point, as in the column `point`.
            second: the number of the other point.

        Returns:
            The mean paired difference, its standard error, the p-value of a sign-flip test, and the number of pairs.

        Raises:
            ValueError: for a number that no point has.
        """
        for name, number in {"first": first, "second": second}.items():
            checks.position(name, number, len(self.points))
        values, _ = self.by_group(self.judged_by[0])
        return compare(values[:, first], values[:, second])

    def indistinguishable(self, level: float = 0.05) -> ByPoint:
        """Return the best point and the points that cannot be distinguished from it, ranked, with their p-values.

        Points are left out if their difference from the best has a p-value of at most `level`, if members failed, or
        if they were dropped during training. With fewer than six pairs of seeds and folds, no difference has a p-value
        of 5 % or less, and no points can be distinguished. The p-values are not corrected for multiple testing: of
        many equally good points, about a fraction `level` is left out by chance.

        Args:
            level: the significance level, between 0 and 1.

        Returns:
            Rows of `by_point`, with the additional columns `difference`, from the best point, and `p_value`.
        """
        checks.number("level", level, above=0, below=1)
        values, dropped = self.by_group(self.judged_by[0])
        ranked, rows, numbers = self.by_point(), [], []
        best = ranked.numbers[0]
        for row in ranked.rows:
            number = row["point"]
            found = compare(values[:, number], values[:, best])
            if number == best or not (row["failed"] or dropped[number] or found.p_value <= level):
                rows.append({**row, "difference": found.difference, "p_value": found.p_value})
                numbers.append(number)
        return ByPoint(rows, tuple(numbers))

    def pairs(self, count: int = 10, level: float = 0.05) -> Rows:
        """Compare the best points pairwise, as `compare` does, with p-values adjusted for the number of pairs.

        Points that were dropped during training are left out. The probability of reporting any difference between
        points that are truly equal is at most `level`. If each comparison has n runs, no p-value is below 2 / 2ⁿ: ten
        points make 45 pairs, and a level of 5 % requires eleven seeds.

        Args:
            count: the number of best points to compare, at least 2; all points trained to the end if there are fewer.
            level: the significance level, between 0 and 1.

        Returns:
            One row per pair, pairs of better points first: the numbers of both points, the better one as `first`; the
            mean of the paired differences, its standard error, the p-value, the p-value adjusted by Holm's method,
            and whether the points `differ` at this level.

        Raises:
            ValueError: for a `count` or `level` out of range, or if fewer than two points were trained to the end.
        """
        checks.positive_integer("count", count)
        checks.number("level", level, above=0, below=1)
        values, dropped = self.by_group(self.judged_by[0])
        kept = [number for number in self.by_point().numbers if not dropped[number]]
        if min(count, len(kept)) < 2:
            raise ValueError(
                f"count: expected at least 2, and at least 2 points trained to the end, got {count} and {len(kept)}"
            )
        found = [
            (first, second, compare(values[:, first], values[:, second]))
            for first, second in itertools.combinations(kept[:count], 2)
        ]
        adjusted = holm(np.array([each.p_value for _, _, each in found]))
        return Rows(
            [
                {
                    "first": first,
                    "second": second,
                    "difference": each.difference,
                    "standard_error": each.standard_error,
                    "p_value": each.p_value,
                    "adjusted": float(p_value),
                    "differ": bool(p_value <= level),
                }
                for (first, second, each), p_value in zip(found, adjusted, strict=True)
            ]
        )

    def sort(self, column: str, largest_first: bool = False) -> "Search":
        """Return the same members sorted by a column; NaN comes last.

        If the column is a metric, points are ranked by it too.
        """
        checks.choice("column", column, self.rows[0])
        is_measured = any(column in sweep.histories for sweep in self.sweeps)
        judged_by = (column, largest_first) if is_measured else self.judged_by
        rows = in_order(self.rows, column, largest_first, is_measured)
        return dataclasses.replace(self, rows=rows, judged_by=judged_by)

    def __str__(self) -> str:
        """Format the best ten points as a table."""
        ranked = self.by_point()
        head = size_words(len(self.points), len(self.programs), len(self.rows))
        more = f"\n… and {len(ranked.rows) - SHOWN} more" if len(ranked.rows) > SHOWN else ""
        return f"{head}\n\n{Rows(ranked.rows[:SHOWN])}{more}"

    @property
    def searched(self) -> tuple[str, ...]:
        """The columns that contain the values of the searched names."""
        return tuple(_searched({}, self._names))

    @property
    def _names(self) -> list[str]:
        """The names of the searched hyper-parameters and static choices."""
        return list(dict.fromkeys(name for point in self.points for name in point))

    def by_group(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric, `(groups, points)`, NaN for failed runs, and the mask of dropped points."""
        values: Any = None
        is_dropped = np.zeros(len(self.points), bool)
        for program, sweep in zip(self.programs, self.sweeps, strict=True):
            some, dropped = sweep.by_group(name)
            if values is None:
                values = np.full((len(some), len(self.points)), np.nan)
            values[:, program.numbers], is_dropped[list(program.numbers)] = some, dropped
        return values, is_dropped


def size_words(points: int, programs: int, runs: int) -> str:
    """Describe the size of a search.

    >>> size_words(8, 1, 16)
    '8 points in 1 program, 16 runs'
    """
    sizes = {"point": points, "program": programs, "run": runs}
    some, compiled, all_runs = (f"{count} {name}{'s' if count != 1 else ''}" for name, count in sizes.items())
    return f"{some} in {compiled}, {all_runs}"


def _searched(point: Point, names: Sequence[str]) -> Row:
    """Return the columns of the searched names; names that clash with other columns get a prefix.

    >>> _searched({"epochs": 5, "activation": max}, ["activation", "epochs", "l2"])
    {'activation': 'max', 'searched_epochs': 5, 'l2': ''}
    """
    values = {name: point.get(name, "") for name in names}
    return {
        column_of(name): value if isinstance(value, int | float | str) else word(value)
        for name, value in values.items()
    }
