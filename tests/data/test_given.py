"""A split that has already been made: the statistics are those of the training part, and both parts are read alike."""

import jax
import numpy as np
import pytest

import nnfx

RNG = np.random.default_rng(0)
X, VALID_X = RNG.normal(size=(30, 2)) * [1, 5] + 3, RNG.normal(size=(10, 2))
Y, VALID_Y = np.arange(30) % 3, np.arange(10) % 3
PORT = np.array(["a", "b", "c"], object)


def test_a_held_out_part_is_prepared_like_the_other():
    alone = nnfx.data.prepare(X, Y)
    data = nnfx.data.prepare(X, Y, valid=(VALID_X, VALID_Y))
    for found, expected in zip(jax.tree.leaves(data.train), jax.tree.leaves(alone.train), strict=True):
        np.testing.assert_array_equal(found, expected)
    mean, scale = X.mean(0), X.std(0)
    np.testing.assert_allclose(data.valid.inputs, (VALID_X - mean) / scale, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.valid.targets, VALID_Y)
    np.testing.assert_array_equal(data.valid.weights, np.ones(10))
    assert (data.report.rows, data.report.train, data.report.valid) == (40, 30, 10)


def test_weights_may_go_with_it():
    weights = np.arange(10.0)
    data = nnfx.data.prepare(X, Y, weights=np.full(30, 2.0), valid=(VALID_X.tolist(), VALID_Y.tolist(), weights))
    np.testing.assert_array_equal(data.valid.weights, weights)
    np.testing.assert_array_equal(data.train.weights, np.full(30, 2.0))
    batch = nnfx.Batch(VALID_X, VALID_Y, weights)
    np.testing.assert_array_equal(nnfx.data.prepare(X, Y, valid=batch).valid.weights, weights)


@pytest.mark.parametrize("missing", ["median", "drop"])
def test_missing_values_in_it(missing):
    gapped = VALID_X.copy()
    gapped[3, 1] = np.nan
    data = nnfx.data.prepare(X, Y, valid=(gapped, VALID_Y), missing=missing, standardize=False)
    expected = (
        np.where(np.isnan(gapped), np.median(X, axis=0), gapped) if missing == "median" else np.delete(gapped, 3, 0)
    )
    np.testing.assert_allclose(data.valid.inputs, expected, rtol=1e-6)
    assert data.report.dropped == (missing == "drop")


@pytest.mark.parametrize("module", ["pandas", "polars"])
def test_frames_and_text(module):
    frame = pytest.importorskip(module).DataFrame
    train = frame({"port": PORT[Y].tolist(), "age": X[:, 0]})
    valid = frame({"age": VALID_X[:, 0], "port": PORT[VALID_Y].tolist()})  # in another order
    data = nnfx.data.prepare(train, PORT[Y], valid=(valid, [*PORT[VALID_Y][:9], "d"]))
    assert data.classes == ("a", "b", "c", "d")
    np.testing.assert_array_equal(data.valid.targets, [*VALID_Y[:9], 3])
    np.testing.assert_array_equal(data.valid.inputs[:, :3], np.eye(3)[VALID_Y])
    np.testing.assert_allclose(
        data.valid.inputs[:, 3], (VALID_X[:, 0] - X[:, 0].mean()) / X[:, 0].std(), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(
        ValueError, match="inputs of valid: expected the 2 columns .* without 'port' and with 'harbour'"
    ):
        nnfx.data.prepare(train, Y, valid=(frame({"age": [1.0], "harbour": ["a"]}), [1]))
    with pytest.raises(TypeError, match="inputs of valid: expected a frame, like the training inputs, got float64"):
        nnfx.data.prepare(train, Y, valid=(VALID_X, VALID_Y))
    with pytest.raises(TypeError, match="inputs of valid: expected numbers in column 'age', as in training, got 'x'"):
        nnfx.data.prepare(train, Y, valid=(frame({"age": ["x"], "port": ["a"]}), [1]))


def test_integers_stay_integers_in_both_parts():
    tokens = RNG.integers(0, 9, (30, 4))
    data = nnfx.data.prepare(tokens, Y, valid=(tokens[:4] + 1, Y[:4]), keep_integers=True)
    assert data.train.inputs.dtype == data.valid.inputs.dtype == np.int32
    np.testing.assert_array_equal(data.valid.inputs, tokens[:4] + 1)


WRONG = {
    "array": (VALID_X, TypeError, r"valid: expected \(inputs, targets\) or .* got float64\[10,2\]"),
    "inputs alone": ((VALID_X,), TypeError, r"valid: expected \(inputs, targets\)"),
    "features": ((VALID_X[:, :1], VALID_Y), ValueError, r"inputs of valid: .* \(rows, 2\), .* got float64\[10,1\]"),
    "no rows": ((VALID_X[:0], VALID_Y[:0]), ValueError, "inputs of valid: expected at least one row"),
    "lengths": ((VALID_X, VALID_Y[:9]), ValueError, "targets of valid: expected as many rows as inputs, 10, got 9"),
    "shape": ((VALID_X, VALID_Y[:, None]), ValueError, "targets of valid: expected the shape of the training targets"),
    "text": ((VALID_X, ["a"] * 10), TypeError, "targets of valid: expected numbers, like the training targets"),
    "weights": ((VALID_X, VALID_Y, [1, 2]), ValueError, r"weights of valid: .* one per row, \(10,\), got float64\[2\]"),
    "no weight": ((VALID_X, VALID_Y, np.zeros(10)), ValueError, "weights of valid: expected non-negative numbers"),
    "NaN": ((VALID_X * np.nan, VALID_Y), ValueError, r"inputs of valid: .* got 20 .* the first at \(0, 0\)"),
    "traced": ((jax.ShapeDtypeStruct((10, 2), float), VALID_Y), TypeError, "inputs of valid: expected concrete values"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_held_out_part_that_does_not_fit_is_refused(case):
    valid, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        nnfx.data.prepare(X, Y, valid=valid)


ROWS = [7, 3, 5]
SHUFFLED = {
    "targets": lambda x, y, w: nnfx.data.prepare(x, y.sort_index()),
    "targets in a frame": lambda x, y, w: nnfx.data.prepare(x, y.to_frame().sort_index()),
    "weights": lambda x, y, w: nnfx.data.prepare(x, y, weights=w.sort_index()),
    "targets of valid": lambda x, y, w: nnfx.data.prepare(x, y, valid=(x, y.sort_index())),
    "weights of valid": lambda x, y, w: nnfx.data.prepare(x, y, valid=(x, y, w.sort_index())),
}


@pytest.mark.parametrize("case", SHUFFLED)
def test_rows_sorted_apart_from_each_other_are_refused(case):
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame({"a": [1.0, 2.0, 4.0]}, index=ROWS)
    y, w = (pandas.Series([1.0, 2.0, 3.0], index=ROWS, name=name) for name in ("y", "w"))
    name = case.removesuffix(" in a frame")
    of = name.partition(" ")[2]
    with pytest.raises(
        ValueError, match=rf"^{name}: expected rows in the order of the inputs *{of}, got .* 3 for 7 \(row 0\)"
    ):
        SHUFFLED[case](x, y, w)


def test_other_indices_may_be_meant():
    pandas = pytest.importorskip("pandas")
    x, y = pandas.DataFrame({"a": [1.0, 2.0, 4.0]}, index=ROWS), pandas.Series([1.0, 2.0, 3.0], index=ROWS)
    for others in (
        y,
        y.reset_index(drop=True),
        y.set_axis([7, 7, 5]),
        y.set_axis(list("abc")),
        y.to_numpy(),
    ):
        assert nnfx.data.prepare(x, others).train.targets.tolist() == [1.0, 2.0, 3.0]
