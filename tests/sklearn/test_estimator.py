import copy
import functools
import gc
import importlib
import os
import pickle
import subprocess
import sys
import unittest
import weakref

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import nnfx
from nnfx.data.splits import at_random
from nnfx.sklearn import Classifier, Regressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = np.where(X[:, 0] + X[:, 1] > 0, "right", "left")
SMALL = {"epochs": 3, "random_state": 0}
PERCEPTRON = {**SMALL, "learning_rate": 0.1, "epochs": 10}


@pytest.fixture(scope="module")
def model():
    """Return a classifier, which the tests of this module clone, so that they share its programs."""
    return Classifier("perceptron", **PERCEPTRON)


def strip(n_features, outputs):
    """Return a convolutional network of rows of features, which it sees as images one pixel high."""
    layers = [nnfx.models.conv(8, (1, 3))]
    return nnfx.models.reshaped(nnfx.models.cnn(layers, outputs, hidden=(16,), axes=2), (1, n_features, 1))


# Equality to seven digits of runs with weights and with repeated rows needs float64. With Adam, the bias of a
# perceptron whose targets are standardised would follow rounding errors, since nothing else moves it.
CHECKED = {
    "classifier, perceptron": Classifier("perceptron", epochs=30, learning_rate=0.1, dtype="float64"),
    "regressor, perceptron": Regressor("perceptron", epochs=30, learning_rate=0.1, optimizer="sgd", dtype="float64"),
    "classifier, mlp": Classifier(hidden=(16,), epochs=20, learning_rate=0.02, dtype="float64"),
    "regressor, mlp": Regressor(hidden=(16,), epochs=20, learning_rate=0.02, dtype="float64"),
    "classifier, cnn": Classifier(strip, epochs=20, learning_rate=0.05, dtype="float64"),
    "regressor, cnn": Regressor(strip, epochs=20, learning_rate=0.05, dtype="float64"),
}
BY_DEFAULT = {
    "check_estimator_cloneable",
    "check_estimators_unfitted",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_sample_weight_equivalence_on_dense_data",
    "check_estimators_pickle",
    "check_n_features_in",
    "check_fit2d_1sample",
}


ARRAY_API = "check_array_api_input"  # skipped unless a variable is set before SciPy is imported


def checks():
    """Return every check of scikit-learn, those of one estimator that cost little as a part of the default suite."""
    listed = []
    for name, estimator in CHECKED.items():
        for number, (checked, check) in enumerate(estimator_checks_generator(estimator)):
            title = getattr(check, "func", check).__name__
            quick = title in BY_DEFAULT and name == "classifier, perceptron"
            marks = () if quick else pytest.mark.slow
            if title != ARRAY_API:
                listed.append(pytest.param(checked, check, marks=marks, id=f"{name}: {title} {number}"))
    return listed


@pytest.mark.filterwarnings("default")  # scikit-learn's checks warn on purpose
@pytest.mark.parametrize(("estimator", "check"), checks())
def test_every_check_of_scikit_learn_passes_and_none_is_skipped(estimator, check):
    try:
        check(estimator)
    except unittest.SkipTest as error:
        pytest.fail(f"skipped: {error}")


@pytest.mark.slow
def test_scikit_learn_may_dispatch_to_other_arrays():
    code = f"""
from sklearn.utils.estimator_checks import estimator_checks_generator
from nnfx.sklearn import Classifier, Regressor
for estimator in {[CHECKED[name] for name in list(CHECKED)[:2]]}:
    [check] = [each for _, each in estimator_checks_generator(estimator) if "{ARRAY_API}" in str(each)]
    check(estimator)
    print("passed")
"""
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["passed"] * 2


def test_a_fit_is_the_run_of_the_library_on_the_same_data():
    model = Classifier(hidden=(4,), activation="tanh", l2=0.01, batch_size=16, **SMALL).fit(X, Y)
    data = nnfx.data.prepare(X, (Y == "right").astype(int))
    train = nnfx.fit(
        nnfx.models.mlp((4,), 1, "tanh"), nnfx.losses.binary_cross_entropy, optax.adam, epochs=3, batch_size=16,
        penalty=nnfx.regularizers.l2,
    )  # fmt: skip
    run = train(jax.random.key(0), data, learning_rate=1e-3, l2=0.01)
    np.testing.assert_allclose(model.history_["train_loss"], run.history["train_loss"], rtol=1e-6)
    np.testing.assert_allclose(model.decision_function(X), run.predict(X)[:, 0], rtol=1e-4, atol=1e-6)
    assert model.n_iter_ == 3
    assert model.run_.fit.batch_size == 16


def test_other_numbers_and_clones_compile_nothing(model, compilations):
    model.fit(X, Y).predict(X)
    before = compilations()
    model.set_params(learning_rate=0.2).fit(X, Y).predict(X)
    clone(model).set_params(learning_rate=0.3, random_state=7).fit(X, Y).predict(X)
    clone(make_pipeline(StandardScaler(), model)).fit(X, Y).predict(X)
    assert compilations() == before > 0
    model.set_params(learning_rate=0.1)


def test_programs_are_freed_with_the_last_of_an_estimator_and_its_clones():
    first = Classifier(functools.partial(nnfx.models.perceptron, activation=lambda x: x), **SMALL).fit(X, Y)
    fit = weakref.ref(first.run_.fit)
    second = clone(first)
    del first
    gc.collect()
    assert fit() is not None
    assert second.fit(X, Y).run_.fit is fit()
    del second
    gc.collect()
    assert fit() is None


@pytest.mark.parametrize("kind", [Classifier, pytest.param(Regressor, marks=pytest.mark.slow)])
def test_pickles_and_copies_predict_the_same_and_go_on_the_same(kind):
    targets = Y if kind is Classifier else X[:, :2]
    model = kind("perceptron", **{**PERCEPTRON, "warm_start": True}).fit(X, targets)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        assert other.get_params() == model.get_params()
        assert other.run_.hyper.keys() == model.run_.hyper.keys()
        other.fit(X, targets)
    model.fit(X, targets)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_a_pickle_in_float64_keeps_every_digit():
    model = Regressor("perceptron", **{**PERCEPTRON, "dtype": "float64"}).fit(X, X[:, 0])
    again = pickle.loads(pickle.dumps(model))
    assert again.run_.state.params["kernel"].dtype == np.float64
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_going_on_is_one_longer_run(model):
    """Fitting 5 + 5 epochs with a warm start equals 10: order, optimizer's state and key go on."""
    whole = clone(model).fit(X, Y)
    parts = clone(model).set_params(epochs=5, warm_start=True).fit(X, Y).fit(X, Y)
    np.testing.assert_allclose(parts.history_["train_loss"], whole.history_["train_loss"], rtol=1e-6)
    np.testing.assert_allclose(parts.decision_function(X), whole.decision_function(X), rtol=1e-5, atol=1e-6)
    assert parts.n_iter_ == 10
    pieces = clone(model)
    for _ in range(10):
        pieces.partial_fit(X, Y, classes=["right", "left"])
    np.testing.assert_allclose(pieces.decision_function(X), whole.decision_function(X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="warm_start: expected the same model, optimizer"):
        parts.set_params(dtype="float64").fit(X, Y)
    np.testing.assert_allclose(parts.decision_function(X), whole.decision_function(X), rtol=1e-5, atol=1e-6)
    again = parts.set_params(warm_start=False, epochs=10, dtype="float32").fit(X, Y)
    np.testing.assert_array_equal(again.decision_function(X), whole.decision_function(X))


def test_held_out_rows_stop_a_run_and_are_not_measured():
    model = Classifier(
        "perceptron", stop=nnfx.stopping.patience, validation_fraction=0.25, hyper={"patience": 2}, epochs=50,
        learning_rate=1.0, random_state=0,
    ).fit(X, Y)  # fmt: skip
    assert model.n_iter_ < 50
    assert len(model.history_["valid_loss"]) == model.n_iter_
    assert model.run_.reason == "patience"
    held_in = at_random(jax.random.key(0), np.arange(60), 0.25)[0]
    scaler = StandardScaler().fit(X[held_in])
    np.testing.assert_allclose(model.run_.preprocess(X), scaler.transform(X), rtol=1e-5, atol=1e-6)


def test_numbers_of_any_part_are_parameters(model, compilations):
    deep = Classifier(hyper={"dropout": 0.2}, hidden=(4,), **SMALL)
    assert deep.get_params()["hyper__dropout"] == 0.2
    assert "hyper__dropout" not in deep.get_params(deep=False)
    deep.fit(X, Y)
    before = compilations()
    other = clone(deep).set_params(hyper__dropout=0.5).fit(X, Y)
    assert compilations() == before
    assert (deep.hyper, other.hyper) == ({"dropout": 0.2}, {"dropout": 0.5})
    assert not np.array_equal(deep.decision_function(X), other.decision_function(X))


@pytest.mark.slow
def test_optimizers_are_given_in_several_ways():
    ways = ["sgd", functools.partial(optax.sgd, learning_rate=0.5), optax.sgd(0.5)]
    outputs = [
        Classifier("perceptron", optimizer=way, learning_rate=0.5, **SMALL).fit(X, Y).decision_function(X)
        for way in ways
    ]
    for each in outputs:
        np.testing.assert_allclose(each, outputs[0], rtol=1e-5, atol=1e-6)


def test_the_seed_decides_and_none_draws_one(model):
    first, second, other = (clone(model).set_params(random_state=seed).fit(X, Y) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.decision_function(X), second.decision_function(X))
    assert not np.array_equal(first.decision_function(X), other.decision_function(X))
    drawn = [clone(model).set_params(random_state=None).fit(X, Y).decision_function(X) for _ in range(2)]
    assert not np.array_equal(*drawn)


def test_frames_are_matched_by_name(model):
    frame = pd.DataFrame(X, columns=["fare", "age", "class"])
    fitted = clone(model).fit(frame, Y)
    assert fitted.feature_names_in_.tolist() == ["fare", "age", "class"]
    np.testing.assert_array_equal(fitted.predict(frame), clone(model).fit(X, Y).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[["age", "fare", "class"]])
    np.testing.assert_allclose(
        fitted.run_.predict(frame[["age", "fare", "class"]])[:, 0], fitted.decision_function(frame), rtol=1e-6
    )


def test_pipelines_searches_and_other_tools_take_it(model):
    frame = pd.DataFrame(X, columns=["fare", "age", "noise"]).assign(port=np.where(X[:, 2] > 0, "S", "C"))
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["fare", "age"]), ("port", OneHotEncoder(sparse_output=False), ["port"])]
    )
    pipeline = make_pipeline(columns, clone(model)).set_output(transform="pandas")
    search = GridSearchCV(pipeline, {"classifier__learning_rate": [1e-4, 0.3]}, cv=2).fit(frame, Y)
    assert search.best_params_ == {"classifier__learning_rate": 0.3}
    assert search.best_estimator_[-1].feature_names_in_.tolist()[:2] == ["numbers__fare", "numbers__age"]
    scores = cross_val_score(clone(model), X, Y, cv=2)
    assert scores.shape == (2,)
    assert (scores > 0.7).all()
    calibrated = CalibratedClassifierCV(clone(model), cv=2).fit(X, Y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1)
    found = permutation_importance(clone(model).fit(X, Y), X, Y, n_repeats=2, random_state=0)
    assert found.importances_mean.argmin() == 2, "the classes do not depend on the last feature"


def test_a_summary_is_printed_if_asked_for(model, capsys):
    clone(model).fit(X, Y)
    assert capsys.readouterr().out == ""
    clone(model).set_params(verbose=True).fit(X, Y)
    assert capsys.readouterr().out.startswith("Run: 10 of 10 epochs")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "mpl"}, ValueError, "model: expected one of .*'mlp'"),
        ({"model": 3}, TypeError, "model: expected a Model or a function"),
        ({"optimizer": "adan"}, ValueError, "optimizer: expected one of .*did you mean 'adam'"),
        ({"dtype": "float16"}, ValueError, "dtype: expected one of 'float32', 'float64'"),
        ({"l2": -1.0}, ValueError, "l2: expected .*at least 0"),
        ({"l2": "no"}, TypeError, "l2: expected a number"),
        ({"l2": 0.1, "parts": {"penalty": nnfx.regularizers.l1}}, ValueError, "l2: expected 0"),
        ({"parts": 3}, TypeError, "parts: expected a dictionary"),
        ({"hyper": [1]}, TypeError, "hyper: expected a dictionary"),
        ({"hyper": {"momentum": 0.9}}, TypeError, "momentum: expected one of the hyper-parameters"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction: expected .*below 1"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a positive integer"),
        ({"epochs": 0}, ValueError, "epochs: expected a positive integer"),
        ({"learning_rate": None}, TypeError, "learning_rate: expected a number"),
        ({"standardize": "no"}, TypeError, "standardize: expected True or False"),
        ({"loss": "log"}, TypeError, "loss: expected a function"),
        ({"stop": nnfx.stopping.patience}, ValueError, "data.valid: expected held-out data"),
        ({"activation": "tan"}, ValueError, "activation"),
        ({"hidden": 4}, TypeError, r"hidden: expected widths of layers, such as \(16,\), got 4"),
    ],
)
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_wrong_parameters_are_named(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options).fit(X, (Y == "right").astype(int))


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn: required by nnfx.sklearn.*'nnfx\[sklearn\]'"):
        importlib.reload(nnfx.sklearn)


def test_wrong_inputs_are_named(model):
    with pytest.raises(NotFittedError):
        clone(model).predict(X)
    fitted = clone(model).fit(X, Y)
    with pytest.raises(ValueError, match="X has 2 features, but Classifier is expecting 3"):
        fitted.predict(X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="sample_weight: expected non-negative numbers, got -1"):
        clone(model).fit(X, Y, sample_weight=-np.ones(60))


def test_a_fit_that_fails_changes_no_prediction():
    x = np.random.default_rng(0).normal(size=(30, 2))
    model = Regressor(hidden=(), epochs=3).fit(x, x[:, 0] + 10)
    before = model.predict(x)
    with pytest.raises(TypeError):
        model.set_params(stop="x").fit(x, 1e6 + 1e5 * x[:, 0])
    np.testing.assert_array_equal(model.predict(x), before)
    labels = np.where(x[:, 0] > 0, "yes", "no")
    model = Classifier(hidden=(), epochs=3).fit(x, labels)
    with pytest.raises(TypeError):
        model.set_params(stop="x").fit(x, np.where(x[:, 1] > 0, "cat", "dog"))
    assert set(model.predict(x)) <= {"yes", "no"}


@pytest.mark.parametrize("shape", [(24, 4, 1), (24, 4, 6), (24, 4)])
def test_later_rows_have_the_shape_of_the_first(shape):
    x, labels = np.random.default_rng(0).normal(size=(24, 4, 3)), np.arange(24) % 2
    model = Classifier(lambda: nnfx.models.reshaped(nnfx.models.mlp(()), (-1,)), epochs=1)
    model.partial_fit(x, labels, classes=[0, 1])
    with pytest.raises(ValueError, match=r"X: expected rows of shape \(4, 3\) as before, got \(4"):
        model.partial_fit(np.zeros(shape), labels)
