"""Published numbers next to ours, and their differences in standard errors of the difference."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import print_table
from nnfx import paths


@dataclasses.dataclass(frozen=True)
class Sample:
    """Several measurements of one number.

    Attributes:
        mean: their mean.
        deviation: their standard deviation; None if only one number was published.
        count: the number of measurements.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Sample":
        """Return the mean and the standard deviation of values, with a divisor of n − 1.

        >>> Sample.of([1.0, 3.0])
        Sample(mean=2.0, deviation=1.4142135623730951, count=2)
        """
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))

    @property
    def error(self) -> float | None:
        """The standard error of the mean, `s/√n`; None without a deviation."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A published number next to ours.

    Attributes:
        result: what was measured, and its unit.
        ours: our measurements.
        published: the published measurements.
        unit: the unit of the last digit published; a number rounded to it has an error of at most half of it.
        paired: the standard error of the difference if each of our measurements is paired with a published one, for
            example by the split of the data; None if they are independent.
    """

    result: str
    ours: Sample
    published: Sample
    unit: float = 0.0
    paired: float | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """The standard errors `s/√n` of both means.

        If one side has no deviation, such as a single run, the deviation of the other side is used. Rounding to a unit
        u adds the variance of a uniform distribution, u²/12.
        """
        ours, theirs = (
            each if each.deviation is not None else dataclasses.replace(each, deviation=other.deviation)
            for each, other in ((self.ours, self.published), (self.published, self.ours))
        )
        return ours.error or 0.0, math.hypot(theirs.error or 0.0, self.unit / math.sqrt(12))

    @property
    def standard_errors(self) -> float:
        """The difference of the means, in its standard errors: `(x̄ − ȳ) / √(SE(x̄)² + SE(ȳ)²)` unless paired.

        NaN if neither mean has an error.

        >>> Comparison("accuracy", Sample(5.0, 3.0, 9), Sample(2.0, 0.0, 1)).standard_errors
        3.0
        """
        error = math.hypot(*self.errors) if self.paired is None else self.paired
        return (self.ours.mean - self.published.mean) / error if error else math.nan

    @property
    def agrees(self) -> bool:
        """Whether the two means lie within two standard errors of each other."""
        return abs(self.standard_errors) <= 2

    def as_row(self) -> dict[str, Any]:
        """Return the comparison as written to a record."""
        return dataclasses.asdict(self) | {"standard_errors": self.standard_errors}


def print_comparisons(comparisons: Iterable[Comparison]) -> None:
    """Print a line for each published number."""
    print_table(
        ["", "ours", "±", "runs", "published", "±", "difference / standard error"],
        [
            [
                each.result,
                each.ours.mean,
                each.errors[0],
                each.ours.count,
                each.published.mean,
                each.errors[1],
                each.standard_errors,
            ]
            for each in comparisons
        ],
    )


def finished(path: Path, settings: Mapping[str, Any], run: Callable[[], Any]) -> Any:
    """Return the result that a run with these settings wrote to a file; if there is none, run it and write the file."""
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] == settings:
            return kept["run"]
    result = run()
    with paths.replace(path) as aside:
        aside.write_text(json.dumps({"settings": settings, "run": result}) + "\n")
    return result
