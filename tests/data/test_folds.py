"""Folds use only their own rows: compared with scikit-learn pipelines fitted to the training rows of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import nnfx
from nnfx.data.folds import Folds

RNG = np.random.default_rng(0)
ROWS, COUNT = 60, 3
OF_ROW = np.arange(ROWS) % COUNT
KINDS = {
    "plain": RNG.normal(size=(ROWS, 3)) * [1, 10, 1e-3] + [0, 50, -3e-3],
    "skewed": np.exp(3 * RNG.normal(size=(ROWS, 2))),
    "parts that differ": RNG.normal(size=(ROWS, 2)) + 100.0 * (OF_ROW == 1)[:, None],
    "whole numbers": RNG.integers(2_000_000_000, 4_000_000_000, (ROWS, 2)),
    "constant in one": np.stack([(OF_ROW == 2) * 3.0, RNG.normal(size=ROWS)], axis=1),
}


def with_gaps(x):
    return np.where(RNG.random(x.shape) < 0.2, np.nan, x)


def fold_of(data, fold, of_row=OF_ROW):
    folds = Folds.of(data.train, data.preprocess, jnp.asarray(of_row), COUNT)
    inputs = jax.jit(folds.inputs)(data.train.inputs, data.preprocess, fold)
    return np.asarray(inputs), jax.tree.map(lambda stack: stack[fold], folds.preprocess)


@pytest.mark.parametrize("fold", range(COUNT))
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "skewed" else ()) for n in KINDS])
@pytest.mark.parametrize("missing", ["error", "median"])
def test_folds_are_the_pipelines_of_scikit_learn(name, missing, fold):
    x = KINDS[name] if missing == "error" else with_gaps(KINDS[name])
    mine = fold != OF_ROW
    imputer = [SimpleImputer(strategy="median", add_indicator=True)] if missing == "median" else []
    theirs = make_pipeline(*imputer, StandardScaler()).fit(x[mine]).transform(x)
    data = nnfx.data.prepare(x, np.zeros(ROWS), missing=missing)
    inputs, preprocess = fold_of(data, fold)
    np.testing.assert_allclose(inputs, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(preprocess(x), theirs, rtol=1e-5, atol=1e-5)


def test_medians_without_scales():
    x = with_gaps(KINDS["parts that differ"])
    data = nnfx.data.prepare(x, np.zeros(ROWS), missing="median", standardize=False)
    for fold in range(COUNT):
        imputer = SimpleImputer(strategy="median", add_indicator=True).fit(x[fold != OF_ROW])
        inputs, preprocess = fold_of(data, fold)
        np.testing.assert_allclose(inputs, imputer.transform(x), rtol=1e-6)
        np.testing.assert_allclose(preprocess(x), imputer.transform(x), rtol=1e-6)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_feature_that_misses_values_in_held_out_rows_alone_has_no_indicator_there(standardize):
    x = RNG.normal(size=(ROWS, 2)) + 5
    x[[1, 4], 0] = np.nan  # both in the second fold
    data = nnfx.data.prepare(x, np.zeros(ROWS), missing="median", standardize=standardize)
    inputs, preprocess = fold_of(data, 1)
    mine = x[OF_ROW != 1]
    assert not np.isnan(mine).any()
    filled = np.where(np.isnan(x), np.median(mine, axis=0), x)
    expected = (filled - mine.mean(0)) / mine.std(0) if standardize else filled
    for found in (inputs, preprocess(x), jax.jit(preprocess)(x)):
        np.testing.assert_allclose(found[:, :2], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[:, 2], 0, atol=1e-30)
    others, _ = fold_of(data, 0)
    assert others[1, 2] != others[0, 2]


@pytest.mark.parametrize("standardize", [True, False])
def test_a_feature_whose_known_values_are_all_held_out_takes_no_part(standardize):
    x = RNG.normal(size=(ROWS, 2)) + 5
    x[OF_ROW != 1, 0] = np.nan
    data = nnfx.data.prepare(x, np.zeros(ROWS), missing="median", standardize=standardize)
    inputs, preprocess = fold_of(data, 1)
    for found in (inputs, preprocess(x)):
        np.testing.assert_allclose(found[:, 0], 0, atol=1e-30)
        assert np.isfinite(found).all()
    # like scikit-learn, whose imputer drops the column
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    with pytest.warns(UserWarning, match="without any observed values"):
        theirs = imputer.fit(x[OF_ROW != 1]).transform(x)
    theirs = StandardScaler().fit(theirs[OF_ROW != 1]).transform(theirs) if standardize else theirs
    np.testing.assert_allclose(inputs[:, 1:], theirs, rtol=1e-5, atol=1e-5)


def test_rows_without_weight_are_in_no_statistic():
    x, weights = with_gaps(KINDS["plain"]), (np.arange(ROWS) % 5 > 0).astype(float)
    x[weights == 0] = 1e4
    data = nnfx.data.prepare(x, np.zeros(ROWS), missing="median", weights=weights)
    used = weights > 0
    for inputs, mine in [(data.train.inputs, used), *((fold_of(data, f)[0], used & (f != OF_ROW)) for f in range(3))]:
        pipeline = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()).fit(x[mine])
        np.testing.assert_allclose(inputs[used], pipeline.transform(x)[used], rtol=1e-4, atol=1e-4)


def test_pixels_are_measured_together(key):
    images = nnfx.data.images("digits")
    data = images.prepare(standardize=True)
    of_row = np.arange(len(images.train.targets)) % COUNT
    folds = Folds.of(data.train, data.preprocess, jnp.asarray(of_row), COUNT)
    raw = images.train.inputs.astype(float)
    expected = (raw - raw[of_row != 2].mean()) / raw[of_row != 2].std()
    np.testing.assert_allclose(folds.inputs(data.train.inputs, data.preprocess, 2), expected, rtol=1e-4, atol=1e-5)


def test_what_was_not_standardised_stays():
    for x in (KINDS["plain"], RNG.integers(0, 9, (ROWS, 2))):
        data = nnfx.data.prepare(x, np.zeros(ROWS), standardize=False)
        inputs, preprocess = fold_of(data, 1)
        np.testing.assert_array_equal(inputs, data.train.inputs)
        assert inputs.dtype == data.train.inputs.dtype
        np.testing.assert_array_equal(preprocess(x), data.train.inputs)


def test_a_spread_that_one_row_hides_is_refused():
    x = np.concatenate([[1e8], RNG.normal(size=ROWS - 1)])[:, None]
    data = nnfx.data.prepare(x, np.zeros(ROWS), features=["income"])
    with pytest.raises(ValueError, match="folds: expected features that float32 can tell apart .* got 'income'"):
        fold_of(data, 0)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("missing", ["error", "median"])
def test_categories_are_those_of_the_rows_of_a_fold(missing, standardize):
    pandas = pytest.importorskip("pandas")
    port = RNG.choice(["a", "b", "c"], ROWS).astype(object)
    port[[1, 4]] = "rare"  # both in the second fold
    age, alone = RNG.normal(40, 9, ROWS), RNG.random(ROWS) < 0.5
    if missing == "median":
        age[::7], port[::5] = np.nan, None
    frame = pandas.DataFrame({"port": port, "age": age, "alone": alone})
    data = nnfx.data.prepare(frame, np.zeros(ROWS), missing=missing, standardize=standardize)
    categories = 4 + (missing == "median")
    for fold in range(COUNT):
        mine = frame[fold != OF_ROW]
        impute = [SimpleImputer(strategy="median", add_indicator=True)] if missing == "median" else []
        scale = [StandardScaler()] if standardize else []
        theirs = ColumnTransformer(
            [
                ("port", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["port"]),
                ("alone", "passthrough", ["alone"]),
                ("age", make_pipeline(*impute, *scale) if impute + scale else "passthrough", ["age"]),
            ]
        ).fit(mine)
        expected = theirs.transform(frame).astype(float)
        if fold == 1:  # where the category has no column, ours is empty
            expected = np.insert(expected, 3, 0, axis=1)
        order = [*range(categories), categories + 1, categories, *range(categories + 2, expected.shape[1])]
        inputs, preprocess = fold_of(data, fold)
        for found in (inputs, preprocess(frame)):
            np.testing.assert_allclose(found, expected[:, order], rtol=1e-5, atol=1e-5)


def test_targets_are_standardised_by_the_rows_of_a_fold():
    y = RNG.normal(size=(ROWS, 2)) * [3, 1e4] + [100, 1e6]
    y[:, 1] = np.where(OF_ROW == 2, y[:, 1], 7e5)  # constant in one fold
    data = nnfx.data.prepare(KINDS["plain"], y, standardize_targets=True)
    for standardize in (True, False):
        data = nnfx.data.prepare(KINDS["plain"], y, standardize_targets=True, standardize=standardize)
        folds = Folds.of(data.train, data.preprocess, jnp.asarray(OF_ROW), COUNT)
        for fold in range(COUNT):
            theirs = StandardScaler().fit(y[fold != OF_ROW])
            found = jax.jit(folds.targets)(data.train.targets, fold)
            np.testing.assert_allclose(found, theirs.transform(y), rtol=1e-3, atol=1e-4)
            own = jax.tree.map(lambda stack, fold=fold: stack[fold], folds.preprocess)
            np.testing.assert_allclose(own.raw_outputs(found), y, rtol=1e-5)
