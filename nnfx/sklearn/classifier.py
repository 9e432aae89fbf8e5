"""A neural-network classifier as a scikit-learn estimator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d

from nnfx import checks, losses
from nnfx.sklearn.estimator import Estimator
from nnfx.training.hyperparameters import innermost, name_of


class Classifier(ClassifierMixin, Estimator):
    """A neural-network classifier, with one logit if there are two classes, and otherwise one logit per class.

    For multilabel classification, the targets are an indicator matrix of 0 and 1, `(rows, labels)`. The network then
    has one logit per label, and probabilities are `(rows, labels)`, as in scikit-learn's `MLPClassifier`.

    The estimator is trained by `nnfx.fit`, with the key `jax.random.key(seed)`, where `random_state` determines the
    seed. Fitting it or a clone again with different numbers (`learning_rate`, `l2` above 0, and the numbers in `hyper`)
    needs no recompilation. To pickle an estimator with a custom network, pass the network as an importable function
    rather than as a `Model`.

    Args:
        model: `"mlp"`; `"perceptron"`; an `nnfx.Model` with the right number of outputs; or a function that returns a
            model, such as a `functools.partial` of `nnfx.models.mlp`. If the function takes `n_features` or
            `n_outputs` (or `outputs`), the sizes are passed to it; the numbers in `hyper` are passed by name.
        hidden: the widths of the hidden layers of `"mlp"`.
        activation: the activation function of the hidden layers, by name or as a function.
        loss: the per-example loss, `(outputs, targets) -> (rows,)`, where targets are the positions of the classes in
            `classes_`, or the indicator matrix; by default, cross-entropy.
        optimizer: `"adam"`, `"adamw"`, `"sgd"`, …; an Optax factory, such as `optax.adam`; or an optimizer.
        learning_rate: the learning rate; ignored if `optimizer` does not take one, since it already has its own.
        l2: the factor λ₂ of the penalty `λ₂/2 Σ w²`.
        hyper: further hyper-parameters by name, such as `{"dropout": 0.1}` or `{"patience": 20}`. In `set_params` and
            in grids, each has its own name, such as `hyper__dropout`.
        epochs: the maximum number of epochs.
        batch_size: the number of rows in a minibatch; all training rows if it is larger than their number, or None.
        stop: a stopping rule, or a factory of one, such as `nnfx.stopping.patience`; or a list of rules and factories.
        metrics: further metrics for the history, by name, such as `{"accuracy": nnfx.metrics.binary_accuracy}`.
        parts: further arguments of `nnfx.fit` by name, such as `{"average": nnfx.averaging.exponential}`.
        standardize: whether to standardise the features to weighted mean 0 and weighted standard deviation 1.
        validation_fraction: the fraction of rows to hold out. The weights of the epoch with the lowest held-out loss
            are kept; with 0, which holds out none, the weights of the last epoch.
        missing_targets: `"error"` to raise an error for NaN targets, or `"mask"` to leave them out of every loss and
            metric; see `nnfx.data.prepare`. scikit-learn's scores require targets without NaN.
        class_weight: a dictionary with the weight of each class; `"balanced"` for weights inversely proportional to the
            frequencies of the classes; None for a weight of 1 for every class.
        warm_start: whether `fit` continues from the weights of the previous call.
        random_state: the seed, an integer; or a `RandomState` from which to draw the seed; None for NumPy's global one.
        dtype: the dtype to compute in, `"float32"` or `"float64"`.
        verbose: whether to print a summary of the run.

    Attributes:
        classes_: the sorted classes; in multilabel classification, the positions of the labels, 0, 1, ….
        n_features_in_: the number of features.
        feature_names_in_: the names of the features, if they were passed as a data frame.
        history_: the value of each loss and metric in each epoch, `(epochs,)`, by name.
        n_iter_: the number of epochs trained, including those of earlier calls that were continued.
        run_: the last run, as returned by `nnfx.fit`.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> inputs = np.random.default_rng(0).normal(size=(60, 2))
        >>> model = Classifier(hidden=(8,), learning_rate=0.1, epochs=20, random_state=0)
        >>> scores = cross_val_score(model, inputs, np.where(inputs[:, 0] > 0, "right", "left"), cv=3)
        >>> bool((scores > 0.9).all())
        True
    """

    _checks: Mapping[str, Any] = {"multi_output": True}
    _is_multilabel = False

    def __init__(
        self,
        model: Any = "mlp",
        *,
        hidden: Sequence[int] = (100,),
        activation: Any = "relu",
        loss: Callable[..., Any] | None = None,
        optimizer: Any = "adam",
        learning_rate: float = 1e-3,
        l2: float = 0.0,
        hyper: Mapping[str, float] | None = None,
        epochs: int = 100,
        batch_size: int | None = 32,
        stop: Any = None,
        metrics: Mapping[str, Callable[..., Any]] | None = None,
        parts: Mapping[str, Any] | None = None,
        standardize: bool = True,
        validation_fraction: float = 0.0,
        missing_targets: str = "error",
        class_weight: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        dtype: str = "float32",
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.hidden = hidden
        self.activation = activation
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.l2 = l2
        self.hyper = hyper
        self.epochs = epochs
        self.batch_size = batch_size
        self.stop = stop
        self.metrics = metrics
        self.parts = parts
        self.standardize = standardize
        self.validation_fraction = validation_fraction
        self.missing_targets = missing_targets
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.random_state = random_state
        self.dtype = dtype
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags, which describe the estimator."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "Classifier":  # noqa: N803
        """Train for one epoch on the given examples; features are standardised as in the first call.

        Args:
            X: the features, `(rows, features)`.
            y: the class of each row, or an indicator matrix of labels.
            classes: all classes, required in the first call; in multilabel classification, the positions of labels.
            sample_weight: the weight of each row, `(rows,)`.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError: as `fit` does; for a first call without `classes`; and for balanced class weights,
                since class frequencies are not known.
        """
        is_new = not hasattr(self, "run_")
        if is_new and classes is None:
            raise ValueError("classes: expected all classes in the first call of partial_fit, got None")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight: expected a dictionary or None for partial_fit, got {self.class_weight!r};"
                " sklearn.utils.class_weight.compute_class_weight computes balanced weights from all labels"
            )
        if not is_new and classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"classes: expected {list(self.classes_)} as before, got {list(classes)}")
        self._train(X, y, sample_weight, 1, is_new, classes)
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the most likely class of each row, `(rows,)`, or whether each label applies, `(rows, labels)`.

        Args:
            X: the features, `(rows, features)`.
        """
        scores = self.decision_function(X)
        if self._is_multilabel:
            return (scores > 0).astype(int)
        return np.asarray(self.classes_)[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the probability of each class, or of each label, float64 `(rows, classes)`.

        Args:
            X: the features, `(rows, features)`.
        """
        scores = self.decision_function(X).astype(np.float64)
        if self._is_multilabel:
            return np.asarray(special.expit(scores))
        if scores.ndim == 1:
            return np.stack([special.expit(-scores), special.expit(scores)], axis=1)
        return np.asarray(special.softmax(scores, axis=1))

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the log-probability of each class, or of each label, float64 `(rows, classes)`.

        Args:
            X: the features, `(rows, features)`.
        """
        scores = self.decision_function(X).astype(np.float64)
        if self._is_multilabel:
            return np.asarray(special.log_expit(scores))
        if scores.ndim == 1:
            return np.stack([special.log_expit(-scores), special.log_expit(scores)], axis=1)
        return np.asarray(special.log_softmax(scores, axis=1))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the logits: that of the second of two classes, `(rows,)`; else `(rows, classes)` or `(rows, labels)`.

        Args:
            X: the features, `(rows, features)`.
        """
        check_is_fitted(self)
        outputs = self._outputs(X)
        return outputs[:, 0] if len(self.classes_) == 2 and not self._is_multilabel else outputs

    def _targets(
        self, y: np.ndarray, weights: np.ndarray | None, is_new: bool, classes: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the index of each row's class, and the weight of each row."""
        check_classification_targets(y)
        is_multilabel = type_of_target(y) == "multilabel-indicator"
        if not is_new and (is_multilabel != self._is_multilabel or (is_multilabel and y.shape[1] != self._n_outputs())):
            raise ValueError(f"y: expected targets as in the first call, got {checks.describe(y)}")
        self._is_multilabel = is_multilabel
        if is_multilabel:
            if self.class_weight is not None:
                raise ValueError(f"class_weight: expected None for multilabel targets, got {self.class_weight!r}")
            self.classes_ = np.arange(y.shape[1])
            return y.astype(int), weights
        y = column_or_1d(y, warn=True)
        seen = np.unique(y)
        if is_new:
            counted = seen if weights is None else np.unique(y[weights > 0])
            found = counted if classes is None else unique_labels(classes)
            if len(found) < 2:
                raise ValueError(f"y: expected at least two classes with positive weight, got {len(found)} class")
            self.classes_ = seen if classes is None else found
        if not np.isin(seen, self.classes_).all():
            raise ValueError(
                f"y: expected the classes {list(self.classes_)}, got {list(seen[~np.isin(seen, self.classes_)])}"
            )
        if self.class_weight is not None:
            of_class = compute_sample_weight(self.class_weight, y)
            weights = of_class if weights is None else of_class * weights
        return np.searchsorted(self.classes_, y), weights

    def _scaled(self, targets: np.ndarray, train: np.ndarray, counts: np.ndarray, is_new: bool) -> np.ndarray:
        del train, counts, is_new
        return targets

    def _n_outputs(self) -> int:
        return 1 if len(self.classes_) == 2 and not self._is_multilabel else len(self.classes_)

    def _loss(self) -> Callable[..., Any]:
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"loss: expected a function of outputs and targets, got {checks.describe(self.loss)}")
        if self.loss is not None and (
            losses.is_of_numbers(self.loss) or innermost(self.loss) is losses.binary_cross_entropy_from_probabilities
        ):
            raise ValueError(
                f"loss: expected a loss of logits, such as nnfx.losses.binary_cross_entropy, got {name_of(self.loss)};"
                " classes and probabilities are computed from logits"
            )
        is_binary = len(self.classes_) == 2 or self._is_multilabel
        return self.loss or (losses.binary_cross_entropy if is_binary else losses.categorical_cross_entropy)
