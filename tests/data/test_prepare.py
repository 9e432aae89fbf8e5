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
    for half in (np.float16, jnp.bfloat16):  # which models, whose weights are float32, need not take
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
