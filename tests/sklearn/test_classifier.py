import functools

import numpy as np
import pytest
from scipy import special
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

import nnfx
from nnfx.sklearn import Classifier, SweepSearchCV

X, LABELS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]


@pytest.fixture(scope="module")
def several():
    options = {"epochs": 400, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": None, "l2": 0.1}
    return Classifier("perceptron", random_state=0, **options).fit(X, NAMES)


@pytest.fixture(scope="module")
def two():
    return Classifier("perceptron", epochs=30, learning_rate=0.1, random_state=0).fit(X[50:], NAMES[50:])


def test_a_perceptron_is_logistic_regression(several):
    """The penalty is that of scikit-learn, `‖w‖² / 2C` for the sum of the losses, so `C = 1 / (l2 · rows)`."""
    standardized = (X - X.mean(0)) / X.std(0)
    other = LogisticRegression(C=1 / (0.1 * len(X)), solver="newton-cg", tol=1e-6).fit(standardized, NAMES)
    np.testing.assert_allclose(several.predict_proba(X), other.predict_proba(standardized), atol=2e-3)
    np.testing.assert_array_equal(several.predict(X), other.predict(standardized))
    assert several.classes_.tolist() == other.classes_.tolist()


@pytest.mark.parametrize("which", ["two", "several"])
def test_probabilities_are_those_of_the_logits(which, request):
    model = request.getfixturevalue(which)
    logits = model.decision_function(X).astype(np.float64)
    assert logits.shape == ((150,) if which == "two" else (150, 3))
    scores = np.stack([np.zeros(150), logits], axis=1) if which == "two" else logits
    np.testing.assert_allclose(model.predict_proba(X), special.softmax(scores, axis=1), rtol=1e-12)
    np.testing.assert_allclose(model.predict_log_proba(X), special.log_softmax(scores, axis=1), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(model.predict(X), model.classes_[scores.argmax(1)])


def test_class_weights_are_weights_of_rows(several):
    options = {"epochs": 20, "class_weight": {"setosa": 1.0, "versicolor": 3.0, "virginica": 0.5}}
    by_class = clone(several).set_params(**options).fit(X, NAMES)
    weights = compute_sample_weight(options["class_weight"], NAMES)
    by_row = clone(several).set_params(epochs=20).fit(X, NAMES, sample_weight=weights)
    np.testing.assert_array_equal(by_class.decision_function(X), by_row.decision_function(X))
    rows = np.arange(20, 150)
    balanced = clone(by_class).set_params(class_weight="balanced").fit(X[rows], NAMES[rows])
    weights = compute_sample_weight("balanced", NAMES[rows])
    by_row = clone(by_row).fit(X[rows], NAMES[rows], sample_weight=weights)
    np.testing.assert_array_equal(balanced.decision_function(X), by_row.decision_function(X))


def test_rows_without_weight_are_absent(several):
    model = clone(several).set_params(epochs=20)
    weights = np.r_[np.zeros(5), np.ones(145)]
    wild = np.r_[np.full((5, 4), 1e6), X[5:]]
    weighted = clone(model).fit(wild, NAMES, sample_weight=weights).decision_function(X)
    without = clone(model).fit(X[5:], NAMES[5:]).decision_function(X)
    np.testing.assert_allclose(weighted, without, rtol=1e-4, atol=1e-5)


def test_wrong_classes_are_named(two):
    with pytest.raises(ValueError, match="y: expected at least two classes with positive weight, got 1"):
        clone(two).fit(X, np.ones(150))
    with pytest.raises(ValueError, match="classes: expected all classes in the first call"):
        clone(two).partial_fit(X, NAMES)
    with pytest.raises(ValueError, match="classes: expected .* as before"):
        clone(two).partial_fit(X[50:], NAMES[50:], classes=NAMES[50:]).partial_fit(X, NAMES, classes=NAMES)
    with pytest.raises(ValueError, match=r"y: expected the classes .*, got .*setosa"):
        clone(two).partial_fit(X[50:], NAMES[50:], classes=NAMES[50:]).partial_fit(X, NAMES)
    with pytest.raises(ValueError, match="class_weight: expected a dictionary or None"):
        clone(two).set_params(class_weight="balanced").partial_fit(X, NAMES, classes=NAMES)


INDICATORS = np.stack([X[:, 0] > 5.8, X[:, 3] > 1.3, X[:, 1] + X[:, 2] > 7], axis=1).astype(int)
FLAT = {"epochs": 1200, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": None, "l2": 0.1, "random_state": 0}


def test_a_perceptron_of_several_labels_is_one_logistic_regression_for_each():
    """The loss is a mean over labels, so `C = 1 / (l2 · labels · rows)` for the loss of one."""
    standardized = (X - X.mean(0)) / X.std(0)
    model = Classifier("perceptron", **FLAT).fit(X, INDICATORS)
    assert model.classes_.tolist() == [0, 1, 2]
    for label in range(3):
        other = LogisticRegression(C=1 / (0.1 * 3 * len(X)), solver="newton-cg", tol=1e-6)
        other.fit(standardized, INDICATORS[:, label])
        np.testing.assert_allclose(model.predict_proba(X)[:, label], other.predict_proba(standardized)[:, 1], atol=2e-3)
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-9)
    assert model.score(X, INDICATORS) == (model.predict(X) == INDICATORS).all(1).mean()


def test_missing_labels_are_left_out():
    """Each label's regression is that of the rows where it is known; its share of the loss is its share of labels."""
    is_known = np.random.default_rng(0).random(INDICATORS.shape) < 0.7
    labels = np.where(is_known, INDICATORS, np.nan)
    with pytest.raises(ValueError, match="NaN"):
        Classifier("perceptron", **FLAT).fit(X, labels)
    model = Classifier("perceptron", missing_targets="mask", **FLAT).fit(X, labels)
    rows = X[is_known.any(1)]  # others are absent
    standardized = (X - rows.mean(0)) / rows.std(0)
    for label, known in enumerate(is_known.T):
        other = LogisticRegression(C=1 / (0.1 * is_known.sum()), solver="newton-cg", tol=1e-6)
        other.fit(standardized[known], INDICATORS[known, label])
        expected = other.predict_proba(standardized)[:, 1]
        np.testing.assert_allclose(model.predict_proba(X)[:, label], expected, atol=2e-3)
    one = np.where(is_known[:, 0], LABELS, np.nan)
    options = {**FLAT, "epochs": 20}
    masked = Classifier("perceptron", missing_targets="mask", **options).fit(X, one)
    absent = Classifier("perceptron", **options).fit(X[is_known[:, 0]], LABELS[is_known[:, 0]])
    np.testing.assert_allclose(masked.predict_proba(X), absent.predict_proba(X), rtol=1e-5, atol=1e-6)


def test_images_go_to_a_network_that_takes_them():
    """Rows of pixels, reshaped by the network, and images are the same to a convolution."""
    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = pixels[:100], digits[:100]
    options = {"epochs": 2, "random_state": 0, "standardize": False}
    images = Classifier(cnn, **options).fit(pixels.reshape(-1, 8, 8, 1), digits)
    flat = Classifier(flat_cnn, **options).fit(pixels, digits)
    expected = images.predict_proba(pixels.reshape(-1, 8, 8, 1))
    np.testing.assert_allclose(flat.predict_proba(pixels), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="inputs: expected raw features"):
        images.predict(pixels.reshape(-1, 8, 4, 2))


def cnn(outputs):
    return nnfx.models.cnn([nnfx.models.conv(2, 3), nnfx.models.max_pool()], outputs)


def flat_cnn(outputs):
    return nnfx.models.reshaped(cnn(outputs), (8, 8, 1))


@pytest.mark.slow
def test_a_search_takes_several_labels():
    search = SweepSearchCV(Classifier("perceptron", **FLAT), {"learning_rate": [1e-4, 0.5]}, cv=3).fit(X, INDICATORS)
    assert search.best_params_ == {"learning_rate": 0.5}
    assert search.predict(X).shape == INDICATORS.shape


def test_wrong_labels_are_named():
    model = Classifier("perceptron", **{**FLAT, "epochs": 1})
    with pytest.raises(ValueError, match="class_weight: expected None for multilabel targets"):
        clone(model).set_params(class_weight="balanced").fit(X, INDICATORS)
    with pytest.raises(ValueError, match="y: expected targets as in the first call"):
        clone(model).set_params(warm_start=True).fit(X, INDICATORS).fit(X, LABELS)
    with pytest.raises(ValueError, match="y: expected some known values for each output"):
        clone(model).set_params(missing_targets="mask").fit(X, np.where([True, True, False], INDICATORS, np.nan))
    with pytest.raises(ValueError, match="missing_targets: expected one of 'error', 'mask'"):
        clone(model).set_params(missing_targets="drop").fit(X, INDICATORS)


@pytest.mark.parametrize(
    "loss",
    [
        nnfx.losses.mean_square_error,
        functools.partial(nnfx.losses.huber, delta=2.0),
        nnfx.losses.binary_cross_entropy_from_probabilities,
    ],
)
def test_losses_whose_outputs_are_not_logits_are_refused(loss):
    for labels in (NAMES, NAMES == "setosa", np.eye(3, dtype=int)[LABELS]):
        with pytest.raises(ValueError, match="loss: expected a loss of logits, such as .*, got"):
            Classifier(loss=loss, epochs=1).fit(X, labels)
