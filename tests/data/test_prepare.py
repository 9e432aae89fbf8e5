import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

import nnfx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)) * [1, 10, 0.1] + [0, 5, -3]
Y = RNG.integers(0, 2, size=40)


def with_gaps():
    x = X.copy()
    x[::5, 1] = np.nan
    x[::7, 2] = np.nan
    return x


def test_standardising_equals_scikit_learn_s():
    data = nnfx.data.prepare(X, Y)
    np.testing.assert_allclose(data.train.inputs, StandardScaler().fit_transform(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(data.train.targets, Y)
    assert data.valid is None


def test_the_split_keeps_every_row_once_and_is_drawn_by_the_key(key):
    rows = np.arange(40.0)[:, None]
    data = nnfx.data.prepare(rows, rows[:, 0], key=key, valid_fraction=0.25, standardize=False)
    train, valid = np.asarray(data.train.targets), np.asarray(data.valid.targets)
    assert (len(train), len(valid)) == (30, 10)
    assert sorted([*train, *valid]) == list(range(40))
    np.testing.assert_array_equal(data.train.inputs[:, 0], train)
    again = nnfx.data.prepare(rows, rows[:, 0], key=key, valid_fraction=0.25)
    other = nnfx.data.prepare(rows, rows[:, 0], key=jax.random.key(1), valid_fraction=0.25)
    np.testing.assert_array_equal(again.valid.targets, valid)
    assert set(np.asarray(other.valid.targets)) != set(valid)


def test_statistics_are_those_of_the_training_part_alone(key):
    data = nnfx.data.prepare(X, np.arange(40), key=key, valid_fraction=0.25)
    np.testing.assert_allclose(data.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.inputs.std(0), 1, rtol=1e-5)
    wild = X.copy()
    wild[np.asarray(data.valid.targets)] *= 1000
    changed = nnfx.data.prepare(wild, np.arange(40), key=key, valid_fraction=0.25)
    np.testing.assert_array_equal(changed.train.inputs, data.train.inputs)
    assert not np.allclose(changed.valid.inputs, data.valid.inputs)


@pytest.mark.parametrize("missing", ["error", "median"])
def test_the_kept_map_takes_raw_features_to_the_prepared_ones(missing):
    x = X if missing == "error" else with_gaps()
    data = nnfx.data.prepare(x, Y, missing=missing)
    np.testing.assert_allclose(jax.jit(data.preprocess)(x), data.train.inputs, rtol=1e-4, atol=1e-5)


def test_medians_and_indicators_equal_scikit_learn_s(key):
    x = with_gaps()
    data = nnfx.data.prepare(x, Y, missing="median", standardize=False, features=("a", "b", "c"))
    expected = SimpleImputer(strategy="median", add_indicator=True).fit_transform(x)
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6)
    assert data.features == ("a", "b", "c", "b missing", "c missing")
    assert data.report.filled == {"b": 8, "c": 6}
    assert "8 of b, 6 of c" in str(data.report)


def test_medians_are_those_of_the_training_part(key):
    rows = np.arange(40.0)[:, None]
    rows[3] = np.nan
    data = nnfx.data.prepare(rows, np.arange(40), key=key, valid_fraction=0.5, missing="median", standardize=False)
    known = [row for row in np.asarray(data.train.targets) if row != 3]
    assert float(data.preprocess.median[0, 0]) == np.median(known)


def test_values_missing_in_the_held_out_part_alone_get_no_indicator(key):
    held_out = np.asarray(nnfx.data.prepare(X, np.arange(40), key=key, valid_fraction=0.25).valid.targets)
    x = X.copy()
    x[held_out[0], 0] = np.nan
    data = nnfx.data.prepare(x, Y, key=key, valid_fraction=0.25, missing="median")
    assert data.features == ("x0", "x1", "x2")
    assert data.report.filled == {"x0": 1}
    assert np.isfinite(np.asarray(data.valid.inputs)).all()


def test_rows_with_missing_values_can_be_dropped():
    data = nnfx.data.prepare(with_gaps(), Y, missing="drop")
    lost = np.isnan(with_gaps()).any(1)
    np.testing.assert_array_equal(data.train.targets, Y[~lost])
    assert data.report.dropped == lost.sum()


def test_a_constant_feature_becomes_zero_and_not_infinite():
    data = nnfx.data.prepare(np.full((5, 1), 0.1), np.zeros(5))
    np.testing.assert_allclose(data.train.inputs, 0, atol=1e-6)


def test_dtypes():
    assert nnfx.data.prepare(np.ones((2, 1), int), [True, False]).train.inputs.dtype == jnp.float32
    assert nnfx.data.prepare(np.ones((2, 1), int), [True, False]).train.targets.dtype == jnp.int32
    for half in (np.float16, jnp.bfloat16):  # models with float32 weights need not accept these
        data = nnfx.data.prepare(jnp.ones((2, 1), half), [0.5, 1])
        assert data.train.inputs.dtype == data.preprocess(jnp.ones((2, 1), half)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert nnfx.data.prepare(X, Y).train.inputs.dtype == jnp.float64


def test_images_keep_their_shape():
    data = nnfx.data.prepare(np.ones((4, 8, 8, 1)), np.arange(4), standardize=False)
    assert data.train.inputs.shape == (4, 8, 8, 1)
    assert data.preprocess(np.ones((2, 8, 8, 1))).shape == (2, 8, 8, 1)


def test_weights_in_raw_units_give_the_same_map():
    data = nnfx.data.prepare(X, Y)
    kernel, bias = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), jnp.array([0.5, -1.0])
    raw_kernel, raw_bias = data.preprocess.raw_units(kernel, bias)
    expected = data.train.inputs @ kernel + bias[None]
    np.testing.assert_allclose(X @ raw_kernel + raw_bias[None], expected, rtol=1e-3, atol=1e-4)


def test_data_are_a_tree_of_arrays():
    data = nnfx.data.prepare(X, Y)
    twice = jax.tree.map(lambda a: jnp.stack([a, a]), data)
    means = jax.vmap(lambda data: data.train.inputs.mean())(twice)
    assert means.shape == (2,)


# The range of the device


NOTHING = np.zeros((200, 1))
MINUTES = 60 * np.arange(200)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (1.7e9 + MINUTES, "targets: .* float32 can tell apart, got 1.7.* ± 3464.06; subtract"),
        (1_700_000_000 + MINUTES, "targets: .* float32 can tell apart"),
        (np.stack([MINUTES, 1e9 + MINUTES], axis=1), "targets: .* float32 can tell apart, got 1.0"),
        (1e39 * np.ones(200), r"targets: expected numbers that float32 can hold, got 1e\+39; divide"),
        (1e-42 * np.arange(200), "targets: expected numbers that float32 can hold, got 1.99e-40; divide"),
        (np.where(MINUTES == 60, 2**40, 0), "targets: expected integers that int32 can hold, got 1099511627776"),
        (np.where(MINUTES == 60, np.inf, 0), "targets: expected finite"),
        (np.ma.array(MINUTES, mask=MINUTES == 60), "targets: expected no masked or missing values, got 1"),
    ],
)
def test_targets_that_float32_cannot_hold_or_tell_apart_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        nnfx.data.prepare(NOTHING, targets)


@pytest.mark.parametrize(
    "targets",
    [
        1e9 * np.arange(200.0),
        1e30 + np.zeros(200),
        1.7e9 + MINUTES - 1.7e9,
        300 + RNG.normal(size=200),
        2**24 + np.arange(-200, 0),
        (1.7e9 + MINUTES).astype(np.float32),
        np.arange(200) * 2**23,
    ],
)
def test_targets_that_only_round_are_taken(targets):
    found = nnfx.data.prepare(NOTHING, targets).train.targets
    np.testing.assert_allclose(found, targets, rtol=1e-7)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (1.7e9 + 60 * np.arange(40), "'b' with a mean of over 100,000 standard deviations; subtract an offset first"),
        (1e-39 * RNG.normal(size=40), "float32 can hold, got 'b' with values up to .*e-39; divide it by its scale"),
        (1e-300 * RNG.normal(size=40), "float32 can hold, got 'b' with values up to .*e-300"),
        (1e39 * RNG.normal(size=40), r"float32 can hold, got 'b' with values up to .*e\+39"),
        (np.where(np.arange(40) == 3, 2e-38, 0), "float32 can hold, got 'b' with a standard deviation of 3.1.*e-39"),
    ],
)
def test_features_that_float32_cannot_hold_or_tell_apart_are_refused(column, message):
    x = np.stack([X[:, 0], column], axis=1)
    with pytest.raises(ValueError, match=f"inputs: expected features that .*{message}"):
        nnfx.data.prepare(x, Y, features=("a", "b"))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (1.7e9 + MINUTES, "inputs: expected numbers that float32 can tell apart"),
        (1e39 + MINUTES, "inputs: expected features that float32 can hold, got 'x0'"),
        (1_700_000_000 + MINUTES.reshape(-1, 1), "inputs: expected numbers that float32 can tell apart"),
    ],
)
def test_raw_features_are_looked_at_as_well(x, message):
    with pytest.raises(ValueError, match=message):
        nnfx.data.prepare(x.reshape(200, 1), NOTHING[:, 0], standardize=False, keep_integers=False)


@pytest.mark.parametrize("factor", [1e39, 1e-45, 1e37])
def test_weights_that_vanish_or_sum_to_infinity_are_refused(factor):
    with pytest.raises(ValueError, match="weights: expected at least 1.17549e-38 and a sum of at most .*; divide them"):
        nnfx.data.prepare(X, Y, weights=factor * np.arange(1, 41))
    with pytest.raises(ValueError, match="weights: expected no masked or missing values, got 1"):
        nnfx.data.prepare(X, Y, weights=np.ma.array(np.ones(40), mask=np.arange(40) == 1))


@pytest.mark.parametrize(
    ("fraction", "rows", "count"), [(0.29, 100, 29), (0.3, 10, 3), (0.58, 50, 29), (0.07, 300, 21)]
)
def test_a_fraction_is_of_whole_rows(fraction, rows, count, key):
    for given in (fraction, np.float32(fraction), np.float64(fraction)):
        data = nnfx.data.prepare(np.ones((rows, 1)), np.zeros(rows), key=key, valid_fraction=given)
        assert (len(data.valid.targets), data.report.valid) == (count, count)


# Data as users have them


def test_masked_inputs_are_missing_ones():
    masked = np.ma.masked_values(np.array([[1.0, 2.0], [1e20, 3.0], [4.0, 5.0], [2.0, 1e20], [0.0, 1.0]]), 1e20)
    by_nan = np.where(masked.mask, np.nan, masked.data)
    for missing in ("drop", "median"):
        found, expected = (nnfx.data.prepare(x, np.arange(5), missing=missing) for x in (masked, by_nan))
        np.testing.assert_array_equal(found.train.inputs, expected.train.inputs)
        assert found.report == expected.report
    np.testing.assert_allclose(
        nnfx.data.prepare(masked, np.arange(5), missing="drop").preprocess.mean, [[5 / 3, 8 / 3]]
    )
    with pytest.raises(ValueError, match="inputs: expected finite numbers, got 2 not finite"):
        nnfx.data.prepare(masked, np.arange(5))


def test_lists_frames_and_tensors_are_the_arrays_that_they_hold():
    pandas, polars, torch = (pytest.importorskip(name) for name in ("pandas", "polars", "torch"))
    expected = nnfx.data.prepare(X, Y, weights=np.ones(40))
    for kind in (np.ndarray.tolist, pandas.DataFrame, polars.DataFrame, torch.tensor, jnp.asarray):
        series = {pandas.DataFrame: pandas.Series, polars.DataFrame: polars.Series}.get(kind, kind)
        data = nnfx.data.prepare(kind(X), series(Y), weights=series(np.ones(40)))
        tolerance = 1e-4 if kind is jnp.asarray else 0
        np.testing.assert_allclose(data.train.inputs, expected.train.inputs, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(data.train.targets, Y)
        assert data.preprocess(kind(X)).shape == X.shape


def test_what_holds_no_rows_of_numbers_is_named():
    sparse = pytest.importorskip("scipy.sparse")
    for inputs, error, message in [
        (sparse.csr_matrix(X), TypeError, r"inputs: expected a dense array, got a sparse csr_matrix .*toarray\(\)"),
        ([[1.0, 2.0], [3.0]], ValueError, "inputs: .* got rows of different lengths"),
        ([["a"], ["b"]], TypeError, "inputs: expected an array of real numbers"),
    ]:
        with pytest.raises(error, match=message):
            nnfx.data.prepare(inputs, [0, 1])
        with pytest.raises(error, match=message):
            nnfx.data.prepare(X, Y).preprocess(inputs)
    with pytest.raises(TypeError, match="inputs: expected concrete values, got traced ones"):
        jax.jit(lambda x: nnfx.data.prepare(x, Y))(X)
