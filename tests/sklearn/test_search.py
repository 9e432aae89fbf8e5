import functools

import jax
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.metrics import get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    ParameterSampler,
    RandomizedSearchCV,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
)

import nnfx
from nnfx.sklearn import Classifier, Regressor, SweepSearchCV, runs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(61, 3)) * [1.0, 10.0, 1.0]
LABELS = np.where(X[:, 0] + X[:, 1] / 10 + 0.5 * X[:, 2] > 0, "right", "left")
MODEL = Classifier("perceptron", epochs=5, batch_size=8, random_state=3)
GRID = {"learning_rate": [1e-3, 0.3, 0.1], "l2": [0.01, 0.3]}


def same(ours, theirs, **tolerance):
    """Compare everything in two tables of results but the times."""
    assert set(ours) == set(theirs)
    assert ours["params"] == theirs["params"]
    for name in theirs:
        if name.startswith("param_"):
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name].mask, theirs[name].mask)
            assert ours[name].tolist() == theirs[name].tolist()
        elif name != "params" and "time" not in name:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_allclose(ours[name], theirs[name], **{"rtol": 1e-6, "atol": 1e-9, **tolerance})
        elif name != "params":
            assert ours[name].shape == theirs[name].shape
            assert (ours[name] >= 0).all()


@pytest.fixture(scope="module")
def searched():
    return SweepSearchCV(MODEL, GRID).fit(X, LABELS)


def test_the_table_is_that_of_a_grid_search(searched):
    """61 rows make folds of two sizes, and the seed makes each run that of the estimator by itself."""
    theirs = GridSearchCV(MODEL, GRID, cv=5).fit(X, LABELS)
    same(searched.cv_results_, theirs.cv_results_)
    for name in ("best_params_", "best_index_", "best_score_", "n_splits_", "multimetric_"):
        assert getattr(searched, name) == getattr(theirs, name)
    np.testing.assert_array_equal(searched.classes_, theirs.classes_)
    assert searched.n_features_in_ == 3
    for name in ("predict", "predict_proba", "decision_function", "predict_log_proba"):
        ours, other = getattr(searched, name)(X), getattr(theirs, name)(X)
        np.testing.assert_array_equal(ours, other)
    assert searched.score(X, LABELS) == theirs.score(X, LABELS)
    assert searched.refit_time_ > 0


def test_a_candidates_score_is_that_of_cross_validation(searched):
    for number, params in list(enumerate(searched.cv_results_["params"]))[:2]:
        scores = cross_val_score(clone(MODEL).set_params(**params), X, LABELS, cv=5)
        ours = [searched.cv_results_[f"split{fold}_test_score"][number] for fold in range(5)]
        np.testing.assert_allclose(ours, scores, rtol=1e-6)


def test_another_search_over_as_many_numbers_compiles_nothing(searched, compilations, capsys):
    before = compilations()
    other = {"learning_rate": [0.2, 0.5], "l2": [1.0, 2.0, 3.0]}
    SweepSearchCV(searched.estimator, other, verbose=1).fit(X, LABELS)
    assert compilations() == before > 0
    assert capsys.readouterr().out == "6 candidates × 5 folds, 30 runs\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "cv",
    [
        KFold(3, shuffle=True, random_state=0),
        StratifiedKFold(2),
        ShuffleSplit(3, test_size=0.2, random_state=0),
        GroupKFold(3),
        [(np.arange(40), np.arange(40, 61)), (np.arange(30, 61), np.arange(5))],
    ],
    ids=["shuffled", "stratified", "drawn", "groups", "rows"],
)
def test_any_splitter_will_do(cv):
    groups = np.repeat(np.arange(7), [20, 5, 5, 5, 6, 10, 10])
    ours, theirs = (search(MODEL, {"learning_rate": [0.01, 0.3]}, cv=cv) for search in (SweepSearchCV, GridSearchCV))
    given = {"groups": groups} if isinstance(cv, GroupKFold) else {}
    same(ours.fit(X, LABELS, **given).cv_results_, theirs.fit(X, LABELS, **given).cv_results_)


@pytest.mark.slow
def test_static_parameters_make_groups():
    grid = [
        {"learning_rate": [0.01, 0.3], "epochs": [2, 5], "batch_size": [8, None]},
        {"model": ["mlp"], "hidden": [(4,), (2, 2)], "activation": ["tanh"], "hyper__dropout": [0.0, 0.3]},
        {"standardize": [False], "class_weight": ["balanced"], "validation_fraction": [0.25], "random_state": [1]},
    ]
    ours, theirs = (search(MODEL, grid, cv=3).fit(X, LABELS) for search in (SweepSearchCV, GridSearchCV))
    same(ours.cv_results_, theirs.cv_results_)


@pytest.mark.slow
def test_candidates_without_any_number():
    model = clone(MODEL).set_params(optimizer=optax.adam(0.1))
    ours, theirs = (search(model, {"epochs": [1, 5]}, cv=3).fit(X, LABELS) for search in (SweepSearchCV, GridSearchCV))
    same(ours.cv_results_, theirs.cv_results_)


@pytest.mark.slow
def test_one_device_trains_the_same(searched, monkeypatch):
    assert len(jax.local_devices()) == 8
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    same(SweepSearchCV(clone(MODEL), GRID).fit(X, LABELS).cv_results_, searched.cv_results_)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_runs_that_train_a_few_at_a_time_are_the_same(searched, monkeypatch, at_once):
    monkeypatch.setattr(runs, "best_at_once", lambda *_: at_once)
    same(SweepSearchCV(clone(MODEL), GRID).fit(X, LABELS).cv_results_, searched.cv_results_)


@pytest.mark.slow
def test_stopping_rules_and_weights_enter_as_in_the_estimator():
    model = clone(MODEL).set_params(
        stop=nnfx.stopping.patience, validation_fraction=0.2, hyper={"patience": 2}, epochs=20
    )
    weights = np.arange(61) % 3 + 0.5
    grid = {"learning_rate": [0.01, 0.1, 1.0], "hyper__patience": [1, 3]}
    ours, theirs = (search(model, grid, cv=3) for search in (SweepSearchCV, GridSearchCV))
    ours.fit(X, LABELS, sample_weight=weights)
    theirs.fit(X, LABELS, sample_weight=weights)
    same(ours.cv_results_, theirs.cv_results_)


@pytest.mark.slow
def test_several_scorers_and_the_one_that_decides():
    options = {"scoring": {"area": "roc_auc", "loss": "neg_log_loss", "right": "accuracy"}, "refit": "loss", "cv": 3}
    ours, theirs = (search(MODEL, GRID, **options).fit(X, LABELS) for search in (SweepSearchCV, GridSearchCV))
    same(ours.cv_results_, theirs.cv_results_, rtol=1e-4)
    assert ours.best_params_ == theirs.best_params_
    assert ours.score(X, LABELS) == pytest.approx(theirs.score(X, LABELS))
    left_out = SweepSearchCV(MODEL, GRID, cv=3, refit=False, scoring=get_scorer("roc_auc")).fit(X, LABELS)
    assert not hasattr(left_out, "best_estimator_")


@pytest.mark.slow
def test_regression_with_several_outputs():
    targets = np.stack([X[:, 0] * 100 + 1000, X[:, 1]], axis=1)
    model = Regressor("perceptron", epochs=20, random_state=0)
    options = {"cv": 3, "scoring": "neg_mean_absolute_error"}
    ours, theirs = (
        search(model, {"learning_rate": [0.01, 0.1]}, **options).fit(X, targets)
        for search in (SweepSearchCV, GridSearchCV)
    )
    same(ours.cv_results_, theirs.cv_results_, rtol=1e-4)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.slow
def test_candidates_are_drawn_as_by_a_random_search():
    drawn = {"learning_rate": stats.loguniform(1e-3, 1.0), "l2": stats.uniform(0.001, 0.1)}
    ours = SweepSearchCV(MODEL, param_distributions=drawn, n_iter=4, random_state=5, cv=3).fit(X, LABELS)
    theirs = RandomizedSearchCV(MODEL, drawn, n_iter=4, random_state=5, cv=3).fit(X, LABELS)
    same(ours.cv_results_, theirs.cv_results_)
    assert ours.cv_results_["params"] == list(ParameterSampler(drawn, 4, random_state=5))


@pytest.mark.slow
def test_a_fold_without_one_of_the_classes():
    """Its runs have fewer outputs, and a program of their own."""
    labels = np.r_[np.zeros(20), np.ones(20), np.full(21, 2)]
    cv = [(np.arange(40), np.arange(61)), (np.arange(0, 61, 2), np.arange(1, 61, 2))]
    ours, theirs = (
        search(MODEL, {"learning_rate": [0.01, 0.3]}, cv=cv).fit(X, labels) for search in (SweepSearchCV, GridSearchCV)
    )
    same(ours.cv_results_, theirs.cv_results_)


@pytest.mark.slow
def test_a_candidate_that_diverges_ranks_last_and_touches_no_other():
    model = Regressor("perceptron", epochs=5, optimizer="sgd", random_state=0)
    grid = {"learning_rate": [0.01, 1e30, 0.1]}
    with pytest.warns(UserWarning, match=r"Scoring failed|non-finite"):
        search = SweepSearchCV(model, grid, cv=3).fit(X, X[:, 0])
    assert np.isnan(search.cv_results_["mean_test_score"][1])
    assert search.cv_results_["rank_test_score"][1] == 3
    alone = SweepSearchCV(model, {"learning_rate": [0.01, 0.1]}, cv=3).fit(X, X[:, 0])
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"][[0, 2]], alone.cv_results_["mean_test_score"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="NaN"):
        SweepSearchCV(model, grid, cv=3, error_score="raise").fit(X, X[:, 0])


def predicts_for_others(estimator, x, y):
    return float((estimator.predict(x + 1) == y).mean())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "param_grid: expected either param_grid or param_distributions, got none"),
        ({"param_grid": GRID, "param_distributions": GRID}, ValueError, "param_grid: expected .*, got both"),
        ({"param_grid": GRID, "n_iter": 3}, ValueError, "n_iter: expected None for a grid, got 3"),
        ({"param_distributions": GRID, "n_iter": 0}, ValueError, "n_iter: expected a positive integer"),
        ({"param_grid": {"rate": [1.0]}}, ValueError, "Invalid parameter 'rate'"),
        ({"param_grid": {"l2": [0.1, -1.0]}}, ValueError, "l2: expected .*at least 0, got -1"),
        ({"param_grid": {"learning_rate": [0.1, "no"]}}, TypeError, "learning_rate: expected a number"),
        ({"param_grid": GRID, "cv": []}, ValueError, "cv: expected at least one fold"),
        (
            {"param_grid": GRID, "estimator": DummyClassifier()},
            TypeError,
            "estimator: expected nnfx.sklearn.Classifier",
        ),
        (
            {"param_grid": {"stop": [functools.partial(nnfx.stopping.time_budget, 9.0)]}},
            ValueError,
            "stop: expected rules without a clock",
        ),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        SweepSearchCV(options.pop("estimator", MODEL), **options).fit(X, LABELS)


def test_a_scorer_that_predicts_for_other_rows_is_named():
    search = SweepSearchCV(
        MODEL, {"learning_rate": [0.1]}, cv=2, scoring=predicts_for_others, error_score="raise", refit=False
    )
    with pytest.raises(ValueError, match="scoring: expected a scorer that predicts for the held-out rows"):
        search.fit(X, LABELS)
