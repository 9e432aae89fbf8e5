import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from nnfx.sklearn.runs import Scale

X = np.random.default_rng(0).normal(size=(30, 3)) * [1.0, 1e3, 0.0] + [0.0, 1e6, 7.0]


@pytest.mark.parametrize("weights", [np.ones(30), np.arange(30.0) % 3], ids=["equal", "unequal"])
def test_the_scale_is_that_of_scikit_learn(weights):
    scale = Scale.of(X, weights)
    expected = StandardScaler().fit(X, sample_weight=weights)
    np.testing.assert_allclose(scale.apply(X), expected.transform(X), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scale.undo(scale.apply(X)), X, rtol=1e-12)


def test_rows_without_weight_do_not_count_whatever_they_hold():
    wild = np.r_[X, [[np.inf, 1e300, np.nan]]]
    np.testing.assert_array_equal(Scale.of(wild, np.r_[np.ones(30), 0]).mean, Scale.of(X, np.ones(30)).mean)
