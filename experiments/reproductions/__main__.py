"""Write the table of all reproductions: every published number next to ours, from the records in this folder.

    python -m experiments.reproductions

It trains nothing. The tables in the README next to this script are replaced by tables of the current records.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reproductions import (
    deep_ensembles,
    deepobs,
    deepobs_quadratic,
    deepobs_vae,
    keras_clothing,
    ltsf,
    pytorch_quickstart,
    uci_dropout,
)
from experiments.reproductions.comparison import Comparison
from nnfx import paths

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"
"""The lines of the README between which a table is written."""


class Reproduction(NamedTuple):
    """A reproduction of published numbers.

    Attributes:
        title: what was reproduced.
        record: the name of its record, the same as the name of its script.
        comparisons: the published numbers in a record, next to ours.
    """

    title: str
    record: str
    comparisons: Callable[[dict[str, Any]], list[Comparison]]

    def read(self) -> list[Comparison]:
        """Return the published numbers next to ours."""
        return self.comparisons(json.loads((HERE / f"{self.record}.json").read_text()))


REPRODUCTIONS = (
    Reproduction("MC dropout, UCI", "uci_dropout", lambda record: uci_dropout.compare(record["runs"])),
    Reproduction("Deep ensembles, UCI", "deep_ensembles", lambda record: deep_ensembles.compare(record["runs"])),
    Reproduction("DeepOBS, `fmnist_2c2d`", "deepobs", lambda record: deepobs.compare(record["runs"])),
    Reproduction(
        "DeepOBS, `quadratic_deep`", "deepobs_quadratic", lambda record: deepobs_quadratic.compare(record["runs"])
    ),
    Reproduction("DeepOBS, `fmnist_vae`", "deepobs_vae", lambda record: deepobs_vae.compare(record["runs"])),
    Reproduction(
        "PyTorch's Quickstart", "pytorch_quickstart", lambda record: pytorch_quickstart.compare(record["runs"])
    ),
    Reproduction("Keras' images of clothing", "keras_clothing", lambda record: keras_clothing.compare(record["runs"])),
    Reproduction("Forecasts of ETTh1", "ltsf", lambda record: ltsf.comparisons(record["rows"])),
)


def main() -> None:
    """Write the tables."""
    text = README.read_text(encoding="utf-8")
    with paths.replace(README) as aside:
        aside.write_text(filled(text), encoding="utf-8")
    print(f"wrote {README}")


def filled(text: str) -> str:
    """Return the text of the README with the tables of the records."""
    made = [(each.title, each.read()) for each in REPRODUCTIONS]
    for name, lines in (("summary", summary(made)), ("numbers", numbers(made)), ("LSTMs", lstms())):
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(f"{begin}\n")
        text = "\n".join([f"{before}{begin}", *lines, f"{end}{rest.split(end)[1]}"])
    return text


def summary(made: Sequence[tuple[str, list[Comparison]]]) -> list[str]:
    """Return a table of how many results of each reproduction lie within two standard errors of the published ones."""
    counts = [(title, len(rows), sum(row.agrees for row in rows)) for title, rows in made]
    total = ("all", sum(rows for _, rows, _ in counts), sum(agreeing for _, _, agreeing in counts))
    return markdown(
        ["reproduction", "published numbers", "within two standard errors", "fraction"],
        ([title, rows, agreeing, f"{agreeing / rows:.0%}"] for title, rows, agreeing in [*counts, total]),
    )


def numbers(made: Sequence[tuple[str, list[Comparison]]]) -> list[str]:
    """Return the table of all published numbers."""
    return markdown(
        ["reproduction", "result", "ours", "published", "difference / its standard error", "within two"],
        (
            [title, row.result, *both(row), ratio(row.standard_errors), "yes" if row.agrees else "**no**"]
            for title, rows in made
            for row in rows
        ),
    )


def ratio(standard_errors: float) -> str:
    """Return a difference in standard errors to two decimals, or to as many as distinguish it from two.

    >>> ratio(-0.316), ratio(2.0), ratio(-2.0021)
    ('-0.32', '+2.00', '-2.002')
    """
    digits = 2
    while round(abs(standard_errors), digits) == 2 != abs(standard_errors):
        digits += 1
    return f"{standard_errors:+.{digits}f}"


def both(row: Comparison) -> tuple[str, str]:
    """Return our mean and the published one with their standard errors, to two digits of the smaller error.

    >>> from experiments.reproductions.comparison import Sample
    >>> both(Comparison("accuracy", Sample(85.93, 0.9, 9), Sample(85.45, 1.2, 9)))
    ('85.93 ± 0.30 (9)', '85.45 ± 0.40 (9)')
    """
    error = min(error for error in row.errors if error)
    digits = max(0, 1 - math.floor(math.log10(error)))
    samples = zip((row.ours, row.published), row.errors, strict=True)
    ours, published = (f"{each.mean:.{digits}f} ± {error:.{digits}f} ({each.count})" for each, error in samples)
    return ours, published


def lstms() -> list[str]:
    """Return the table of our LSTMs for ETTh1, for which nothing was published, next to the published LSTMa."""
    rows = [row for row in json.loads((HERE / "ltsf.json").read_text())["rows"] if ltsf.METHODS[row["method"]].beside]
    return markdown(
        ["method", "hours", "MSE", "LSTMa", "MAE", "LSTMa"],
        (
            [
                ltsf.METHODS[row["method"]].name,
                row["horizon"],
                *(
                    cell
                    for measure in ltsf.MEASURES
                    for cell in (
                        f"{row[measure]:.3f} ± {row[f'{measure}_sd']:.3f}",
                        f"{row[f'{measure}_published']:.3f}",
                    )
                ),
            ]
            for row in rows
        ),
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table.

    >>> print(*markdown(["epoch", "loss"], [[1, 0.5]]), sep=chr(10))
    | epoch | loss |
    |---|---|
    | 1 | 0.5 |
    """
    lines = [header, *rows]
    cells = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return [cells[0], f"|{'---|' * len(header)}", *cells[1:]]


if __name__ == "__main__":
    main()
