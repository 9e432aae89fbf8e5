"""Rows held out class by class, by position, or by a splitter, are those that scikit-learn holds out."""

import sys

import jax
import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, StratifiedShuffleSplit, TimeSeriesSplit

import nnfx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
Y = np.repeat([0, 1, 2], [42, 12, 6])
GROUPS = np.arange(60) % 7
ROWS = np.arange(60.0)


def prepared(targets=ROWS, **options):
    return nnfx.data.prepare(X, targets, **options)


def rows_of(data):
    return np.asarray(data.train.targets).astype(int), np.asarray(data.valid.targets).astype(int)


@pytest.mark.parametrize(
    "splitter",
    [
        KFold(4),
        KFold(4, shuffle=True, random_state=1),
        TimeSeriesSplit(5),
        GroupKFold(3),
        StratifiedKFold(3, shuffle=True, random_state=0),
    ],
    ids=lambda splitter: type(splitter).__name__,
)
def test_splitters_of_scikit_learn_are_taken_as_they_are(splitter):
    groups = GROUPS if isinstance(splitter, GroupKFold) else None  # others warn that they ignore them
    train, valid = next(splitter.split(X, Y, groups))
    data = prepared(Y, split=splitter, groups=groups)
    np.testing.assert_array_equal(data.train.targets, Y[train])
    np.testing.assert_array_equal(data.valid.targets, Y[valid])
    mean, scale = X[train].mean(0), X[train].std(0)
    for batch, rows in ((data.train, train), (data.valid, valid)):
        np.testing.assert_allclose(batch.inputs, (X[rows] - mean) / scale, rtol=1e-4, atol=1e-5)
    assert (data.report.rows, data.report.train, data.report.valid) == (60, len(train), len(valid))


def test_positions_are_taken_in_their_order():
    data = prepared(split=([5, 3, 8], np.array([2, 0])))
    for found, expected in zip(rows_of(data), ([5, 3, 8], [2, 0]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_splitter_sees_the_inputs_and_the_classes_as_integers():
    class Splitter:
        def split(self, inputs, y, groups):
            assert inputs is frame
            np.testing.assert_array_equal(y, Y)
            assert groups is None
            yield frame.index[frame["a"] < 0], frame.index[frame["a"] >= 0]

    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b"])
    data = nnfx.data.prepare(frame, np.array(["p", "q", "r"])[Y], split=Splitter())
    assert data.report.train == (X[:, 0] < 0).sum()


def test_rows_with_missing_values_are_dropped_after_the_split():
    x = X.copy()
    x[[4, 50], 0] = np.nan
    data = nnfx.data.prepare(x, ROWS, split=KFold(4), missing="drop")
    train, valid = rows_of(data)
    np.testing.assert_array_equal(valid, [row for row in range(15) if row != 4])
    np.testing.assert_array_equal(train, [row for row in range(15, 60) if row != 50])
    with pytest.raises(
        ValueError, match="inputs: expected at least one row held out without a missing value, got none"
    ):
        nnfx.data.prepare(x, ROWS, split=(np.arange(5, 50), [4]), missing="drop")


def test_a_stratified_split_is_scikit_learn_s(key):
    data = prepared(Y, key=key, valid_fraction=1 / 3, stratify=True)
    np.testing.assert_array_equal(np.bincount(data.valid.targets), [14, 4, 2])
    seed = int(jax.random.bits(key))
    train, valid = next(StratifiedShuffleSplit(1, test_size=20, random_state=seed).split(X, Y))
    np.testing.assert_allclose(data.valid.inputs, data.preprocess(X[np.sort(valid)]), rtol=1e-6)
    np.testing.assert_allclose(data.train.inputs, data.preprocess(X[np.sort(train)]), rtol=1e-6)
    again = prepared(Y, key=key, valid_fraction=1 / 3, stratify=True)
    np.testing.assert_array_equal(again.valid.inputs, data.valid.inputs)
    other = prepared(Y, key=jax.random.key(1), valid_fraction=1 / 3, stratify=True)
    assert not np.array_equal(other.valid.inputs, data.valid.inputs)


def test_without_scikit_learn_the_error_says_what_to_install(key, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"scikit-learn: required for stratify=True, but not installed: pip install 'nnfx\[datasets\]'",
    ):
        prepared(Y, key=key, valid_fraction=0.5, stratify=True)


HALF = {"key": jax.random.key(0), "valid_fraction": 0.5}
WRONG = {
    "two ways": ({**HALF, "split": KFold(2)}, ValueError, "split: expected one way .* got split and valid_fraction"),
    "two others": ({"valid": (X, ROWS), "split": KFold(2)}, ValueError, "split: .* one way .* got split and valid"),
    "stratify alone": ({"stratify": True}, ValueError, "stratify: expected a valid_fraction above 0, got 0"),
    "stratify splitter": ({"stratify": True, "split": KFold(2)}, ValueError, "stratify: expected a valid_fraction"),
    "stratify text": ({**HALF, "stratify": "yes"}, TypeError, "stratify: expected True or False, got 'yes'"),
    "stratify numbers": ({**HALF, "stratify": True}, ValueError, "stratify: expected classes .* in proportion, got: "),
    "stratify no key": ({"valid_fraction": 0.5, "stratify": True}, TypeError, "key: expected a typed key"),
    "groups alone": ({"groups": GROUPS}, ValueError, "groups: expected a splitter"),
    "groups positions": ({"groups": GROUPS, "split": ([0], [1])}, ValueError, "groups: expected a splitter"),
    "groups too few": ({"groups": GROUPS[:5], "split": GroupKFold(2)}, ValueError, r"groups: .*, got shape \(5,\)"),
    "fractions": ({"valid_fraction": np.full(2, 0.5)}, ValueError, "valid_fraction: expected one number, got float64"),
    "text": ({"split": "half"}, TypeError, "split: expected a pair of arrays, .* got 'half'"),
    "three": ({"split": ([0], [1], [2])}, TypeError, "split: expected a pair of arrays"),
    "masks": ({"split": (ROWS < 30, ROWS >= 30)}, TypeError, "split: expected the positions of train_rows, .* bool"),
    "floats": ({"split": ([0], [1.5])}, TypeError, "split: expected the positions of valid_rows, .* got float64"),
    "beyond": ({"split": ([0], [60])}, ValueError, "split: .* of valid_rows from 0 to 59, got 60 to 60"),
    "negative": ({"split": ([-1], [1])}, ValueError, "split: .* of train_rows from 0 to 59, got -1 to -1"),
    "none": ({"split": ([0], np.zeros(0, int))}, ValueError, "split: expected positions of valid_rows .* got none"),
    "both": ({"split": ([0, 7], [7, 3])}, ValueError, "split: expected each row in one split only, got row 7 in both"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_splits_that_cannot_be_meant_are_refused(case):
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        prepared(**options)
