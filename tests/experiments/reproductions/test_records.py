"""The tables of records agree with the files beside them, and with the rules of the commands."""

import json
from pathlib import Path

from experiments import reproductions
from experiments.reproductions import deepobs, ltsf

FOLDER = Path(reproductions.__file__).parent


def rows_of(heading):
    """Return the cells of the table under a heading, without its header."""
    section = (FOLDER / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def mean_and_sd(mean, deviation, digits):
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def test_deepobs():
    record = json.loads((FOLDER / "deepobs.json").read_text())
    assert rows_of("DeepOBS, `fmnist_2c2d`") == [
        [
            row["optimizer"],
            str(row["epoch"]),
            mean_and_sd(row["ours"], row["ours_sd"], 2),
            mean_and_sd(row["published"], row["published_sd"], 2),
            f"{row['difference_in_sd']:+.2f}",
        ]
        for row in record["rows"]
    ]
    assert deepobs.compare(record["runs"]) == record["rows"]
    assert all(abs(row["difference_in_sd"]) <= 2 for row in record["rows"])


def test_ltsf():
    record = json.loads((FOLDER / "ltsf.json").read_text())
    assert rows_of("Long-horizon forecasts, ETTh1") == [
        [
            ltsf.METHODS[row["method"]].name,
            str(row["horizon"]),
            *(
                cell
                for measure in ("mse", "mae")
                for cell in (
                    mean_and_sd(row[measure], row[f"{measure}_sd"], 3),
                    f"{row[f'{measure}_published']:.3f}",
                )
            ),
            {True: "yes", False: "no", None: ""}[row["as_expected"]],
        ]
        for row in record["rows"]
    ]
    assert record["config"] == {"seeds": 5, "epochs": 10, "hours": [8640, 2880, 2880], "batch_size": 32}
    recorded = [(row["method"], row["horizon"]) for row in record["rows"]]
    assert recorded == [(name, horizon) for name, method in ltsf.METHODS.items() for horizon in method.published]
    for row, cell in zip(record["rows"], recorded, strict=True):
        runs = [run for run in record["runs"] if (run["method"], run["horizon"]) == cell]
        assert len(runs) == (1 if row["method"] == "repeat" else 5)
        assert [row] == ltsf.compare([{"method": row["method"], "horizon": row["horizon"], "runs": runs}])
        assert row["as_expected"] is not False
