import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge

from nnfx.sklearn import Regressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3)) * [1.0, 100.0, 0.01] + [0.0, 1e4, 5.0]
TARGETS = (X - X.mean(0)) / X.std(0) @ RNG.normal(size=(3, 2)) * [3.0, 1e5] + [0.0, 1e6]


@pytest.fixture(scope="module")
def model():
    return Regressor("perceptron", epochs=200, learning_rate=0.2, optimizer="sgd", batch_size=None, random_state=0)


@pytest.mark.parametrize("targets", [TARGETS[:, 1], TARGETS[:, :1], TARGETS], ids=["flat", "column", "several"])
def test_a_perceptron_is_linear_regression_in_the_unit_of_the_targets(model, targets):
    predicted = clone(model).fit(X, targets).predict(X)
    expected = LinearRegression().fit(X, targets).predict(X)
    assert predicted.shape == targets.shape
    np.testing.assert_allclose(predicted, expected, atol=1e-4 * np.ptp(targets))


def test_weights_of_rows_are_those_of_scikit_learn(model):
    weights = np.arange(80) % 4
    noisy = TARGETS[:, 0] + np.sin(np.arange(80.0))
    predicted = clone(model).fit(X, noisy, sample_weight=weights).predict(X)
    expected = LinearRegression().fit(X, noisy, sample_weight=weights).predict(X)
    np.testing.assert_allclose(predicted, expected, atol=1e-3)


def test_the_penalty_is_that_of_ridge_regression(model):
    """`mean square error + l2/2 ‖w‖²` on standardised data is ridge regression with `alpha = l2 · rows / 2`."""
    predicted = clone(model).set_params(l2=0.5, standardize_targets=False).fit(X, TARGETS[:, 0]).predict(X)
    standardized = (X - X.mean(0)) / X.std(0)
    expected = Ridge(alpha=0.5 * 80 / 2).fit(standardized, TARGETS[:, 0]).predict(standardized)
    np.testing.assert_allclose(predicted, expected, atol=1e-3)


def test_targets_of_another_shape_are_named(model):
    fitted = clone(model).partial_fit(X, TARGETS)
    with pytest.raises(ValueError, match="y: expected targets"):
        fitted.partial_fit(X, TARGETS[:, 0])


def test_missing_targets_are_left_out():
    """The outputs of a perceptron share nothing, so each is least squares on the rows where its target is known."""
    rng = np.random.default_rng(0)
    inputs, is_known = rng.normal(size=(60, 3)), rng.random((60, 2)) < 0.7
    targets = 100 + inputs @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2))
    model = Regressor(
        "perceptron",
        missing_targets="mask",
        optimizer="sgd",
        learning_rate=1.0,
        batch_size=None,
        epochs=200,
        random_state=0,
    ).fit(inputs, np.where(is_known, targets, np.nan))
    columns = np.c_[inputs, np.ones(60)]
    for output, known in enumerate(is_known.T):
        expected = columns @ np.linalg.lstsq(columns[known], targets[known, output])[0]
        np.testing.assert_allclose(model.predict(inputs)[:, output], expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["datetime64[D]", "datetime64[ns]", "timedelta64[s]"])
@pytest.mark.parametrize("missing_targets", ["error", "mask"])
def test_times_are_not_numbers(dtype, missing_targets):
    times = np.arange(6).astype(dtype)
    with pytest.raises(TypeError, match=rf"y: expected numbers, got {re.escape(dtype)}; convert times"):
        Regressor(epochs=1, missing_targets=missing_targets).fit(np.ones((6, 1)), times)
