"""The common base class of the classifier and the regressor."""

import contextlib
import inspect
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nnfx import memo
from nnfx.data.prepare import Data
from nnfx.sklearn import runs, spec
from nnfx.sklearn.spec import Spec
from nnfx.training.fit import Fit
from nnfx.training.run import Run
from nnfx.types import Array


class Plan(NamedTuple):
    """A planned run.

    Attributes:
        spec: the static settings of the run.
        fit: the run function.
        key: the key of the run.
        data: the training data.
    """

    spec: Spec
    fit: Fit
    key: Array
    data: Data


class Family:
    """The owner of an estimator's run functions and their compiled programs, shared with its clones."""


class Estimator(BaseEstimator):
    """A network trained by `nnfx.fit`, as a scikit-learn estimator.

    Subclasses turn targets into numbers with `_targets`, and outputs back into predictions.
    """

    hyper: Mapping[str, float] | None
    missing_targets: str

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags, which describe the estimator."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Estimator":  # noqa: N803
        """Train on the given examples; with `warm_start`, continue from the weights of the previous call.

        Args:
            X: numeric features, `(rows, features)`, as an array, a list or a data frame; or an array `(rows, ...)` for
                a network that takes further axes, such as images.
            y: the targets, `(rows,)` or `(rows, outputs)`.
            sample_weight: the weight of each row, `(rows,)`; a row of weight 0 is treated as absent.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError: for invalid parameters, features or targets.
        """
        is_new = not (self.warm_start and hasattr(self, "run_"))
        return self._train(X, y, sample_weight, self.epochs, is_new)

    def _train(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        epochs: int,
        is_new: bool,
        classes: Any = None,
    ) -> "Estimator":
        before = dict(self.__dict__)
        try:
            with self._dtype():
                plan = self._plan(X, y, sample_weight, epochs, is_new, classes)
                numbers = self._numbers()
                if is_new:
                    self._keep(plan.fit(plan.key, plan.data, **numbers))
                else:
                    self._keep(runs.resume(plan.fit, self.run_, self.n_iter_, plan.key, plan.data, numbers), self)
        except BaseException:  # keep the previous fit usable
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        self._spec = plan.spec
        if self.verbose:
            print(self.run_)
        return self

    def _plan(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        epochs: int,
        is_new: bool,
        classes: Any = None,
    ) -> Plan:
        """Check all arguments, set the attributes that depend on the data alone, and return the planned run."""
        spec.check(self.get_params(deep=False))
        X, y, is_known = self._read(X, y, is_new)  # noqa: N806
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
            if weights.min() < 0:
                raise ValueError(f"sample_weight: expected non-negative numbers, got {weights.min():g}")
        if is_known is not None:
            rows = is_known.reshape(len(y), -1).any(1)
            X, y, is_known = X[rows], y[rows], is_known[rows]  # noqa: N806
            weights = None if weights is None else weights[rows]
        targets, weights = self._targets(y, weights, is_new, classes)
        if is_new:
            self._seed = seed_of(self.random_state)
        key = jax.random.key(self._seed)
        fraction = float(self.validation_fraction)
        train = runs.training_rows(key, len(X), fraction)
        counts = np.ones(len(train)) if weights is None else weights[train]
        if is_new:
            self._scale = runs.Scale.of(X[train], counts) if self.standardize else None
        if is_known is not None and is_known.ndim > 1:
            targets, counts = np.ma.masked_array(targets, ~is_known), counts[:, None] * is_known[train]
        targets = self._scaled(targets, train, counts, is_new)
        names = tuple(getattr(self, "feature_names_in_", ()))
        data = runs.prepared(key, X, targets, weights, self._scale, fraction, names)
        made = self._spec_of(data, epochs)
        if not is_new and made.state_key != self._spec.state_key:
            raise ValueError(
                "warm_start: expected the same model, optimizer, average and dtype as before, got a change"
            )
        return Plan(made, self._fit_of(made), key, data)

    def _read(self, X: Any, y: Any, is_new: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:  # noqa: N803
        """Return features and targets as arrays, and the mask of known targets; None means that all are known.

        Unknown targets are filled with the first known value of the same output.
        """
        options = {"reset": is_new, "dtype": np.float64, "allow_nd": True}
        shape = None if is_new else self.run_.preprocess.shape
        if shape is not None and np.ndim(X) > 1 and len(shape) != 1 and np.shape(X)[1:] != shape:
            raise ValueError(f"X: expected rows of shape {shape} as before, got {np.shape(X)[1:]}")
        if self.missing_targets == "error":
            X, y = validate_data(self, X, y, **options, **self._checks)  # noqa: N806
            return X, y.toarray() if sparse.issparse(y) else y, None
        X = validate_data(self, X, **options)  # noqa: N806
        refuse_times(y)
        y = check_array(y, ensure_2d=False, ensure_all_finite="allow-nan", dtype=np.float64, input_name="y")
        check_consistent_length(X, y)
        is_known = ~np.isnan(y)
        if not is_known.any(0).all():
            raise ValueError("y: expected some known values for each output, got an output with only NaN")
        return X, np.where(is_known, y, np.take_along_axis(y, is_known.argmax(0)[None], 0)), is_known

    def _spec_of(self, data: Data, epochs: int) -> Spec:
        rows = len(data.train.weights)
        return Spec(
            model=self.model,
            hidden=self.hidden,
            activation=self.activation,
            loss=self._loss(),
            optimizer=self.optimizer,
            has_l2=bool(self.l2),
            epochs=epochs,
            batch_size=None if self.batch_size is None else min(self.batch_size, rows),
            stop=self.stop,
            metrics=self.metrics,
            parts=self.parts,
            features=self.n_features_in_,
            outputs=self._n_outputs(),
            dtype=self.dtype,
        )

    def _fit_of(self, made: Spec) -> Fit:
        """Return the run function, made only once for an estimator and its clones."""
        return memo.held(self._shared(), made.key, made.make)

    def _shared(self) -> Family:
        family: Family = self.__dict__.setdefault("_family", Family())
        return family

    def __sklearn_clone__(self) -> "Estimator":
        """Return a clone, which shares compiled programs with this estimator."""
        family = self._shared()
        copy: Estimator = super().__sklearn_clone__()
        copy._family = family
        return copy

    def _numbers(self) -> dict[str, float]:
        """Return the hyper-parameters of the run by name."""
        rate = {"learning_rate": self.learning_rate} if _takes_rate(self.optimizer) else {}
        return {**rate, **({"l2": self.l2} if self.l2 else {}), **(self.hyper or {})}

    def _keep(self, run: Run, before: "Estimator | None" = None) -> None:
        """Set the fitted attributes from a run; with `before`, append to its history."""
        epochs = int(run.epochs)
        history = {name: np.asarray(values)[:epochs] for name, values in run.history.items()}
        if before is None:
            self.history_, self.n_iter_ = history, epochs
        else:
            self.history_ = {name: np.concatenate([before.history_[name], each]) for name, each in history.items()}
            self.n_iter_ = before.n_iter_ + epochs
        self.run_ = run

    def _outputs(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the network's outputs, `(rows, outputs)`."""
        known = self.__dict__.get("_known")
        if known is not None:  # a candidate of a search, whose predictions for its held-out rows are known
            if X is not known[0]:
                raise ValueError(
                    "scoring: expected a scorer that predicts for the held-out rows themselves, got a scorer that"
                    " predicts for other rows; use GridSearchCV for such scorers"
                )
            return np.asarray(known[1])
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64, allow_nd=True)  # noqa: N806
        with jax.enable_x64(self._spec.dtype == "float64"):
            outputs = np.asarray(self.run_.predict(X))
        return outputs.reshape(len(X), -1)

    def _inputs(self, X: Any, data: Data) -> Array:  # noqa: N803
        """Preprocess inputs like the training data."""
        X = validate_data(self, X, reset=False, dtype=np.float64, allow_nd=True)  # noqa: N806
        return data.preprocess(X)

    def _dtype(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which JAX computes in the estimator's dtype."""
        context: contextlib.AbstractContextManager[Any] = jax.enable_x64(self.dtype == "float64")
        return context

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; the numbers in `hyper` also as `hyper__NAME`.

        Args:
            deep: whether to include the numbers in `hyper`.
        """
        found: dict[str, Any] = super().get_params(deep=deep)
        if deep and isinstance(self.hyper, Mapping):
            found |= {f"hyper__{name}": value for name, value in self.hyper.items()}
        return found

    def set_params(self, **params: Any) -> "Estimator":
        """Set parameters by name; set the numbers in `hyper` as `hyper__NAME`.

        Args:
            **params: the new values.

        Returns:
            The estimator itself.
        """
        inner = {name.removeprefix("hyper__"): value for name, value in params.items() if name.startswith("hyper__")}
        super().set_params(**{name: value for name, value in params.items() if not name.startswith("hyper__")})
        if inner:
            self.hyper = {**(self.hyper or {}), **inner}
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without compiled programs."""
        state = dict(super().__getstate__())
        for name in ("_family", "_known"):
            state.pop(name, None)
        if "run_" in state:
            state["run_"] = runs.saved(state["run_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the pickled state."""
        super().__setstate__(state)
        if "run_" in state:
            with jax.enable_x64(self._spec.dtype == "float64"):
                self.run_ = runs.restored(state["run_"], self._fit_of(self._spec))


def seed_of(random_state: Any) -> int:
    """Return the seed for a scikit-learn random state: an integer itself, or a seed drawn from the random state."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def refuse_times(y: Any) -> None:
    """Raise an error for targets that are dates or durations, which NumPy would convert to numbers of its own unit."""
    dtype = np.asarray(y).dtype
    if dtype.kind in "mM":
        raise TypeError(
            f"y: expected numbers, got {dtype}; convert times to numbers, for example to days since the first time"
        )


def _takes_rate(optimizer: Any) -> bool:
    """Return whether an optimizer is a factory that takes a learning rate."""
    if not callable(optimizer):
        return isinstance(optimizer, str)
    fixed: Mapping[str, Any] = getattr(optimizer, "keywords", {})
    return "learning_rate" in inspect.signature(optimizer).parameters and "learning_rate" not in fixed
