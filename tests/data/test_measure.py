import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from nnfx.data import measure

X = np.random.default_rng(0).normal(size=(20, 3)) * [1, 1e6, 0] + [0, 5, 0.1]


def test_moments_are_those_of_scikit_learn():
    mean, scale = measure.moments(X, np.arange(12))
    theirs = StandardScaler().fit(X[:12])
    np.testing.assert_allclose(mean[0], theirs.mean_)
    np.testing.assert_allclose(scale[0], theirs.scale_)


def test_medians_leave_out_what_is_missing():
    x = np.where(np.arange(60).reshape(20, 3) % 7 == 0, np.nan, X)
    rows = np.arange(1, 3)
    found, indicators = measure.medians(x, np.isnan(x), rows, ("a", "b", "c"))
    np.testing.assert_array_equal(found[0], np.nanmedian(x[rows], 0))
    assert indicators == tuple(np.flatnonzero(np.isnan(x[rows]).any(0)))
    with pytest.raises(ValueError, match="inputs: expected at least one known value of 'b', got NaN"):
        measure.medians(x * [1, np.nan, 1], np.isnan(x * [1, np.nan, 1]), rows, ("a", "b", "c"))


def test_the_device_has_a_dtype_for_every_kind_of_number():
    for dtype, at_least, expected in [
        (np.bool_, int, jnp.int32),
        (np.int64, int, jnp.int32),
        (np.float64, int, jnp.float32),
        (np.float16, int, jnp.float16),
        (np.int8, float, jnp.float32),
    ]:
        assert measure.device_dtype(np.dtype(dtype), at_least=at_least) == expected
    with jax.enable_x64(True):
        assert measure.device_dtype(np.dtype(bool), at_least=float) == jnp.float64


def test_what_the_device_cannot_hold_is_named():
    with pytest.raises(ValueError, match="float32 can hold, got 'b' with values up to 1e.39"):
        measure.check_range(np.array([[1.0, 1e39]]), ("a", "b"), np.float32)
    with pytest.raises(ValueError, match="float32 can tell apart, got 'b' with a mean of over 100,000"):
        measure.check_resolution(np.array([[0.0, 1e6]]), np.ones((1, 2)), ("a", "b"), np.float32)
    with pytest.raises(ValueError, match="weights: expected at least 1.17549e-38 .* divide them by their mean first"):
        measure.check_weights(np.array([1e-40, 1.0]))
    measure.check_range(X, ("a", "b", "c"), np.float32)
    measure.check_weights(np.array([0.0, 1.0]))
