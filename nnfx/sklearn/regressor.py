"""A neural-network regressor as a scikit-learn estimator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from nnfx import checks, losses
from nnfx.sklearn import runs
from nnfx.sklearn.estimator import Estimator, refuse_times


class Regressor(MultiOutputMixin, RegressorMixin, Estimator):
    """A neural-network regressor, for one target or several.

    Arguments and attributes are as for `Classifier`, except where described here.

    Args:
        model: as for `Classifier`; its outputs are the predictions.
        hidden: as for `Classifier`.
        activation: as for `Classifier`.
        loss: the per-example loss, `(outputs, targets) -> (rows,)`; by default, the mean square error.
        optimizer: as for `Classifier`.
        learning_rate: as for `Classifier`.
        l2: as for `Classifier`.
        hyper: as for `Classifier`.
        epochs: as for `Classifier`.
        batch_size: as for `Classifier`.
        stop: as for `Classifier`.
        metrics: as for `Classifier`.
        parts: as for `Classifier`.
        standardize: as for `Classifier`.
        standardize_targets: whether the network is trained on targets standardised to mean 0 and standard deviation 1.
            Losses and metrics then use standardised units; predictions are in the targets' units. Use False for
            losses that need raw targets, such as losses for counts.
        validation_fraction: as for `Classifier`.
        missing_targets: as for `Classifier`.
        warm_start: as for `Classifier`.
        random_state: as for `Classifier`.
        dtype: as for `Classifier`.
        verbose: as for `Classifier`.

    Example:
        >>> inputs = np.linspace(-1, 1, 50)[:, None]
        >>> model = Regressor(hidden=(16,), learning_rate=0.1, epochs=50, random_state=0)
        >>> bool(model.fit(inputs, 1000 + 300 * inputs[:, 0] ** 2).score(inputs, 1000 + 300 * inputs[:, 0] ** 2) > 0.9)
        True
    """

    _checks: Mapping[str, Any] = {"multi_output": True, "y_numeric": True}
    _target_shape: tuple[int, ...]

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
        standardize_targets: bool = True,
        validation_fraction: float = 0.0,
        missing_targets: str = "error",
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
        self.standardize_targets = standardize_targets
        self.validation_fraction = validation_fraction
        self.missing_targets = missing_targets
        self.warm_start = warm_start
        self.random_state = random_state
        self.dtype = dtype
        self.verbose = verbose

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Regressor":  # noqa: N803
        """Train for one epoch on the given examples; features and targets are standardised as in the first call.

        Args:
            X: the features, `(rows, features)`.
            y: the targets, `(rows,)` or `(rows, outputs)`.
            sample_weight: the weight of each row, `(rows,)`.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError: as `fit` does.
        """
        self._train(X, y, sample_weight, 1, not hasattr(self, "run_"))
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the predictions, with the same trailing axes as the targets.

        Args:
            X: the features, `(rows, features)`.
        """
        check_is_fitted(self)
        outputs = self._outputs(X)
        if self._target_scale is not None:
            outputs = self._target_scale.undo(outputs)
        return outputs.reshape(len(outputs), *self._target_shape)

    def _targets(
        self, y: np.ndarray, weights: np.ndarray | None, is_new: bool, classes: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the targets as floats, and the weight of each row."""
        del classes
        if not is_new and y.shape[1:] != self._target_shape:
            raise ValueError(f"y: expected targets (rows, {self._target_shape}) as before, got {checks.describe(y)}")
        refuse_times(y)
        self._target_shape = y.shape[1:]
        return y.astype(np.float64), weights

    def _scaled(self, targets: np.ndarray, train: np.ndarray, counts: np.ndarray, is_new: bool) -> np.ndarray:
        """Return the targets in the units in which the network is trained."""
        columns = targets.reshape(len(targets), -1)
        if is_new:
            self._target_scale = runs.Scale.of(np.asarray(columns[train]), counts) if self.standardize_targets else None
        return targets if self._target_scale is None else self._target_scale.apply(columns).reshape(targets.shape)

    def _n_outputs(self) -> int:
        return int(np.prod(self._target_shape))

    def _loss(self) -> Callable[..., Any]:
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"loss: expected a function of outputs and targets, got {checks.describe(self.loss)}")
        return self.loss or losses.mean_square_error
