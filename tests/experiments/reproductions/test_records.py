"""The tables of the README agree with the records beside it, and those with the rules of the commands."""

import json

import numpy as np
import pytest

from experiments.reproductions import __main__ as table
from experiments.reproductions import ltsf
from experiments.reproductions.comparison import Comparison, Sample


def record_of(name):
    return json.loads((table.HERE / f"{name}.json").read_text())


def rows_of(name):
    """Return the cells of a table of the README, without its header."""
    text = table.README.read_text()
    lines = text.split(f"{table.BEGIN.format(name)}\n")[1].split(table.END.format(name))[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readme_is_what_the_command_writes():
    text = table.README.read_text(encoding="utf-8")
    assert table.filled(text) == text


def test_every_ratio_of_the_table_follows_from_its_row():
    """`(ours − published) / √(SE² + SE²)`, as far as the printed digits go, unless the differences are paired."""
    paired = {row.result for each in table.REPRODUCTIONS for row in each.read() if row.paired is not None}
    for _, result, ours, published, ratio, within in rows_of("numbers"):
        values = [cell.split(" ± ") for cell in (ours, published)]
        (mean, error), (their_mean, their_error) = ((float(m), float(rest.split(" (")[0])) for m, rest in values)
        assert within == ("yes" if abs(float(ratio)) <= 2 else "**no**")
        if result not in paired:
            last_digit = 10.0 ** -len(ours.split(" ± ")[0].partition(".")[2])
            combined = np.hypot(error, their_error)
            expected = (mean - their_mean) / combined
            margin = (2 * last_digit + abs(expected) * last_digit) / combined + 0.01
            assert float(ratio) == pytest.approx(expected, abs=margin), result


def test_the_summary_counts_the_rows_of_the_table():
    rows = rows_of("numbers")
    titles = [each.title for each in table.REPRODUCTIONS]
    agreeing = {title: [row[-1] == "yes" for row in rows if row[0] == title] for title in titles}
    agreeing["all"] = [row[-1] == "yes" for row in rows]
    expected = [[title, len(each), sum(each)] for title, each in agreeing.items()]
    assert [[title, int(total), int(within)] for title, total, within, _ in rows_of("summary")] == expected


@pytest.mark.parametrize("each", table.REPRODUCTIONS, ids=lambda each: each.record)
def test_the_rows_of_a_record_follow_from_its_runs(each):
    record = record_of(each.record)
    if each.record != "ltsf":
        assert [row.as_row() for row in each.comparisons(record)] == record["rows"]
    assert set(record["versions"]) == {"python", "nnfx", "jax", "jaxlib", "flax", "optax"}
    assert record["device"]


def test_ltsf():
    record = record_of("ltsf")
    assert record["config"] == {"seeds": 5, "epochs": 10, "hours": [8640, 2880, 2880], "batch_size": 32}
    recorded = [(row["method"], row["horizon"]) for row in record["rows"]]
    assert recorded == [(name, horizon) for name, method in ltsf.METHODS.items() for horizon in method.published]
    for row, cell in zip(record["rows"], recorded, strict=True):
        runs = [run for run in record["runs"] if (run["method"], run["horizon"]) == cell]
        assert len(runs) == (1 if row["method"] == "repeat" else 5)
        assert [row] == ltsf.compare([{"method": row["method"], "horizon": row["horizon"], "runs": runs}])
        assert row["as_expected"] is not False


def test_ratios_near_two_have_as_many_digits_as_tell_them_from_it():
    shown = [table.ratio(value) for value in (-0.316, 2.0, -2.0021, 1.99996, 2.006)]
    assert shown == ["-0.32", "+2.00", "-2.002", "+1.99996", "+2.01"]


def test_digits_are_those_of_the_smaller_error():
    shown = table.both(Comparison("accuracy", Sample(85.934, 0.9, 9), Sample(85.4512, 1.2, 9)))
    assert shown == ("85.93 ± 0.30 (9)", "85.45 ± 0.40 (9)")
    shown = table.both(Comparison("MSE", Sample(1.2946, None, 1), Sample(1.295, None, 1), unit=0.001))
    assert shown == ("1.29460 ± 0.00000 (1)", "1.29500 ± 0.00029 (1)")
