import numpy as np
import pytest
from scipy import special
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from nnfx.sklearn import Classifier

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
    with pytest.raises(ValueError, match="y: expected two classes or more, got 1 class"):
        clone(two).fit(X, np.ones(150))
    with pytest.raises(ValueError, match="classes: expected all classes in the first call"):
        clone(two).partial_fit(X, NAMES)
    with pytest.raises(ValueError, match="classes: expected .* as before"):
        clone(two).partial_fit(X[50:], NAMES[50:], classes=NAMES[50:]).partial_fit(X, NAMES, classes=NAMES)
    with pytest.raises(ValueError, match=r"y: expected the classes .*, got .*setosa"):
        clone(two).partial_fit(X[50:], NAMES[50:], classes=NAMES[50:]).partial_fit(X, NAMES)
    with pytest.raises(ValueError, match="class_weight: expected a dictionary or None"):
        clone(two).set_params(class_weight="balanced").partial_fit(X, NAMES, classes=NAMES)
