"""A hyper-parameter search whose candidates and folds are trained together, as one program."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _score
from sklearn.utils import indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from nnfx import checks
from nnfx.data.prepare import Data
from nnfx.sklearn import runs
from nnfx.sklearn.estimator import Estimator, seed_of
from nnfx.sklearn.spec import frozen
from nnfx.training import hyperparameters
from nnfx.training.fit import Fit
from nnfx.types import Array

DRAWN = 10
"""The default number of candidates drawn from distributions, as in scikit-learn."""


class SweepSearchCV(BaseSearchCV):
    """`GridSearchCV` and `RandomizedSearchCV` for the estimators of this module, as one program.

    Candidates that differ only in numbers (`learning_rate`, `l2` above 0, and the numbers in `hyper`) are trained side
    by side with all their folds, each as the estimator itself would be trained; every choice of other parameters, such
    as widths, epochs or batch sizes, needs its own program. Another search over the same number of values needs no
    recompilation. Scores and attributes are as in `GridSearchCV`; `mean_fit_time` is the time to prepare and run a
    program, divided by its number of runs.

    Args:
        estimator: a `Classifier` or a `Regressor`.
        param_grid: values for each parameter, every combination of which is a candidate; or a list of such grids.
        param_distributions: instead of a grid, a list of values or a SciPy distribution for each parameter, from which
            candidates are drawn.
        n_iter: the number of candidates to draw; 10 by default.
        scoring: as for `GridSearchCV`: a name, a scorer, several of these, or None for the estimator's own `score`.
            Scorers may only use predictions for the held-out rows, in their order.
        refit: whether to train the best candidate on all rows; with several scorers, the name of the scorer that
            decides.
        cv: the number of folds, a scikit-learn splitter, or an iterable of `(train, test)` rows.
        random_state: the seed for drawing candidates; the runs use the estimator's seed.
        error_score: the score if a scorer fails, for example for predictions that are not finite; or `"raise"`.
        verbose: whether to print the number of runs.

    Attributes:
        cv_results_: a column for each parameter, score, mean, standard deviation, rank and time, by candidate.
        best_estimator_: the best candidate, trained on all rows; the search predicts with it.
        best_params_: the parameters of the best candidate.
        best_score_: the mean score of the best candidate over the folds.
        best_index_: the position of the best candidate.
        n_splits_: the number of folds.
        refit_time_: the time taken to train the best candidate on all rows, in seconds.

    Example:
        >>> from nnfx.sklearn import Classifier
        >>> inputs = np.random.default_rng(0).normal(size=(60, 2))
        >>> model = Classifier(hidden=(8,), epochs=10, random_state=0)
        >>> search = SweepSearchCV(model, {"learning_rate": [1e-4, 1e-1]}, cv=3).fit(inputs, inputs[:, 0] > 0)
        >>> search.best_params_, search.cv_results_["rank_test_score"].tolist()
        ({'learning_rate': 0.1}, [2, 1])
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        param_distributions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        n_iter: int | None = None,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = 5,
        random_state: Any = None,
        error_score: Any = np.nan,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=False,
        )
        self.param_grid = param_grid
        self.param_distributions = param_distributions
        self.n_iter = n_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **params: Any) -> "SweepSearchCV":  # noqa: N803
        """Train and score every candidate on every fold, then train the best candidate on all rows.

        Args:
            X: the features, `(rows, features)`.
            y: the targets.
            **params: `sample_weight`, `groups` for the splitter, and any other parameters that scikit-learn routes.

        Returns:
            The search itself.

        Raises:
            TypeError: for an unsupported estimator, or parameters of the wrong type.
            ValueError: for parameters out of range, and stopping rules that use the clock.
        """
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                "estimator: expected nnfx.sklearn.Classifier or Regressor, got"
                f" {type(self.estimator).__name__}; GridSearchCV takes any estimator"
            )
        candidates = self._candidates()
        scorers, metric = self._get_scorers()
        X, y = indexable(X, y)  # noqa: N806
        routed = self._get_routed_params_for_fit(_check_method_params(X, params=params))
        splits = list(
            check_cv(self.cv, y, classifier=is_classifier(self.estimator)).split(X, y, **routed.splitter.split)
        )
        if not splits:
            raise ValueError("cv: expected at least one fold, got none")
        if self.verbose:
            print(f"{len(candidates)} candidates × {len(splits)} folds, {len(candidates) * len(splits)} runs")
        self.n_splits_ = len(splits)
        trained = _train(self.estimator, candidates, X, y, splits, routed.estimator.fit)
        held_out = [_check_method_params(X, params=routed.scorer.score, indices=test) for _, test in splits]
        scores = [
            _scored(cell, scorers, weights, self.error_score)
            for cells in trained
            for cell, weights in zip(cells, held_out, strict=True)
        ]
        self._conclude(candidates, scores, scorers, metric)
        if self.refit:
            began = time.perf_counter()
            best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
            self.best_estimator_ = best.fit(X, y, **routed.estimator.fit)
            self.refit_time_ = time.perf_counter() - began
            if hasattr(best, "feature_names_in_"):
                self.feature_names_in_ = best.feature_names_in_
        return self

    def _candidates(self) -> list[dict[str, Any]]:
        if (self.param_grid is None) == (self.param_distributions is None):
            given = "none" if self.param_grid is None else "both"
            raise ValueError(f"param_grid: expected either param_grid or param_distributions, got {given}")
        if self.param_grid is not None:
            if self.n_iter is not None:
                raise ValueError(f"n_iter: expected None for a grid, got {self.n_iter}; pass param_distributions")
            return list(ParameterGrid(self.param_grid))
        count = DRAWN if self.n_iter is None else self.n_iter
        checks.positive_integer("n_iter", count)
        return list(ParameterSampler(self.param_distributions, count, random_state=self.random_state))

    def _conclude(self, candidates: list[dict[str, Any]], scores: list[Any], scorers: Any, metric: Any) -> None:
        """Set the attributes for the results and the best candidate."""
        first = scores[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            metric = self.refit
        results = self._format_results(candidates, self.n_splits_, scores)
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        self.scorer_ = getattr(scorers, "_scorers", scorers)
        self.cv_results_ = results


class Cell(NamedTuple):
    """A candidate trained on one fold, with predictions for the held-out rows.

    Attributes:
        estimator: the fitted candidate.
        inputs: the held-out inputs, whose predictions are known.
        targets: the held-out targets.
        seconds: the training time of its program, divided by the number of runs.
    """

    estimator: Estimator
    inputs: Any
    targets: Any
    seconds: float


class Fold(NamedTuple):
    """A fold, for the candidates of a group.

    Attributes:
        estimator: an estimator with the attributes that depend on the fold's rows alone, such as the classes.
        fit: the run function.
        key: the key of the runs.
        data: the training data of the runs.
        inputs: the held-out inputs.
        targets: the held-out targets.
        prepared: the held-out inputs, preprocessed like the training data.
    """

    estimator: Estimator
    fit: Fit
    key: Array
    data: Data
    inputs: Any
    targets: Any
    prepared: Any


def _train(
    estimator: Estimator,
    candidates: Sequence[dict[str, Any]],
    X: Any,  # noqa: N803
    y: Any,
    splits: Sequence[Any],
    fit_params: Mapping[str, Any],
) -> list[list[Cell]]:
    """Train every candidate on every fold; candidates of a group are trained in one program."""
    base = clone(estimator)
    base.random_state = seed_of(base.random_state)
    made = [clone(base).set_params(**clone(each, safe=False)) for each in candidates]
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(made):
        groups.setdefault(_static(each), []).append(number)
    cells: list[list[Cell]] = [[] for _ in candidates]
    for members in groups.values():
        of_group = [made[number] for number in members]
        began = time.perf_counter()
        with of_group[0]._dtype():
            folds = [_fold(clone(of_group[0]), X, y, train, test, fit_params) for train, test in splits]
            outputs = _outputs(of_group, folds)
        seconds = (time.perf_counter() - began) / (len(folds) * len(members))
        for place, number in enumerate(members):
            for fold, predicted in zip(folds, outputs, strict=True):
                cells[number].append(_cell(made[number], fold, predicted[place], seconds))
    return cells


def _static(estimator: Estimator) -> Any:
    """Return a key of a candidate's static parameters: all except the values of traced numbers."""
    numbers = {"learning_rate": None, "l2": bool(estimator.l2), "hyper": tuple(sorted(estimator.hyper or ()))}
    return frozen({**estimator.get_params(deep=False), **numbers})


def _fold(
    estimator: Estimator,
    X: Any,  # noqa: N803
    y: Any,
    train: Any,
    test: Any,
    fit_params: Mapping[str, Any],
) -> Fold:
    inputs, targets = _safe_split(estimator, X, y, train)
    weights = _check_method_params(X, params=fit_params, indices=train).get("sample_weight")
    plan = estimator._plan(inputs, targets, weights, estimator.epochs, is_new=True)
    unseen, wanted = _safe_split(estimator, X, y, test, train)
    prepared = estimator._inputs(unseen, plan.data)
    return Fold(estimator, plan.fit, plan.key, plan.data, unseen, wanted, prepared)


def _outputs(candidates: Sequence[Estimator], folds: Sequence[Fold]) -> list[np.ndarray]:
    """Return the outputs of every candidate for the held-out rows of each fold, `(candidates, rows, outputs)`."""
    numbers = [each._numbers() for each in candidates]
    for fold in folds:
        fold.fit.check(fold.key, fold.data, numbers[0])
        if fold.fit.needs_clock(numbers[0]):
            raise ValueError("stop: expected rules without a clock for a search in one program, got a rule with one")
        for each in numbers[1:]:
            hyperparameters.check(each, fold.fit.all_factories)
    columns = {name: np.array([each[name] for each in numbers]) for name in numbers[0]}
    points = hyperparameters.as_arrays(columns or {"": np.zeros(len(candidates))})  # no part takes an unnamed one
    by_fit: dict[Any, dict[Any, list[int]]] = {}
    for number, fold in enumerate(folds):
        by_fit.setdefault(id(fold.fit), {}).setdefault(runs.shapes(fold.data), []).append(number)
    found: dict[int, np.ndarray] = {}
    for stacks in by_fit.values():
        numbered = list(stacks.values())
        first = folds[numbered[0][0]]
        stacked = [runs.Folds.of([folds[i].data for i in of], [folds[i].prepared for i in of]) for of in numbered]
        for of, outputs in zip(numbered, runs.outputs_together(first.fit, first.key, stacked, points), strict=True):
            found |= {i: each[:, : len(folds[i].prepared)] for i, each in zip(of, outputs, strict=True)}
    return [found[number] for number in range(len(folds))]


def _cell(candidate: Estimator, fold: Fold, outputs: np.ndarray, seconds: float) -> Cell:
    estimator = object.__new__(type(candidate))  # skips the checks of `clone`, which take longer than a run
    learned = {"_known": (fold.inputs, outputs.reshape(len(outputs), -1))}
    estimator.__dict__.update({**vars(fold.estimator), **vars(candidate), **learned})
    return Cell(estimator, fold.inputs, fold.targets, seconds)


def _scored(cell: Cell, scorers: Any, params: Mapping[str, Any], error_score: Any) -> dict[str, Any]:
    """Score a candidate on a fold, and return the scores and times in scikit-learn's format."""
    began = time.perf_counter()
    score = _score(cell.estimator, cell.inputs, cell.targets, scorers, params, error_score)
    return {"test_scores": score, "fit_time": cell.seconds, "score_time": time.perf_counter() - began}
