import csv
from importlib import resources

import numpy as np
import pytest

import nnfx

COLUMNS = ("class", "sex", "age", "siblings_spouses", "parents_children", "fare", "port")


def rows():
    text = resources.files("nnfx.data").joinpath("titanic.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_the_table_holds_the_known_facts():
    passengers = rows()
    assert len(passengers) == 891
    assert sum(row["survived"] == "1" for row in passengers) == 342
    assert sum(row["age"] != "" for row in passengers) == 714
    assert sum(row["port"] == "" for row in passengers) == 2
    counts = {name: sum(row["sex"] == name for row in passengers) for name in ("female", "male")}
    assert counts == {"female": 314, "male": 577}
    assert [sum(row["class"] == c for row in passengers) for c in "123"] == [216, 184, 491]
    assert max(float(row["fare"]) for row in passengers) == 512.3292
    assert tuple(passengers[0]) == ("survived", *COLUMNS)


def test_fare_and_age():
    data = nnfx.data.titanic("fare", "age", standardize=False)
    known = [row for row in rows() if row["age"]]
    expected = [[float(row["fare"]), float(row["age"])] for row in known]
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(data.train.targets, [int(row["survived"]) for row in known])
    assert data.features == ("fare", "age")


def test_categories_become_indicators_of_all_but_their_first_value():
    data = nnfx.data.titanic("sex", "port", standardize=False)
    assert data.features == ("sex=male", "port=Queenstown", "port=Southampton")
    assert data.report.dropped == 2
    assert data.train.inputs.sum(0).tolist() == [577, 77, 644]


def test_every_column_with_missing_values_filled():
    data = nnfx.data.titanic(*COLUMNS, missing="median", standardize=False)
    assert data.train.inputs.shape == (891, 8 + 3)
    assert data.features[-3:] == ("age missing", "port=Queenstown missing", "port=Southampton missing")
    assert data.train.inputs[:, -3:].sum(0).tolist() == [177, 2, 2]
    assert data.report.filled == {"age": 177, "port=Queenstown": 2, "port=Southampton": 2}


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_alone(column):
    data = nnfx.data.titanic(column)
    assert np.isfinite(np.asarray(data.train.inputs)).all()
