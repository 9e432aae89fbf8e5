"""The static settings of an estimator's runs, and the run function made from them."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import optax

from nnfx import checks, models, regularizers
from nnfx.training.fit import Fit, fit
from nnfx.types import Model

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad", "lamb", "lion", "nadam", "radam")
"""The optimizers known by name, all from Optax."""
MODELS = ("mlp", "perceptron")
"""The models known by name."""


class Spec(NamedTuple):
    """Everything on which the compiled programs of an estimator depend, except shapes.

    Attributes:
        model: a name, a model, or a function that returns one.
        hidden: the widths of the hidden layers of `"mlp"`.
        activation: the activation function of the hidden layers.
        loss: the per-example loss.
        optimizer: a name, an Optax factory or an optimizer.
        has_l2: whether the weights are penalised.
        epochs: the maximum number of epochs.
        batch_size: rows per minibatch; None for the full batch.
        stop: stopping rules, or None.
        metrics: further metrics by name, or None.
        parts: further arguments of `nnfx.fit` by name, or None.
        features: the number of features that the model sees.
        outputs: the number of outputs of the model.
        dtype: the name of the dtype in which everything is computed.
    """

    model: Any
    hidden: Any
    activation: Any
    loss: Any
    optimizer: Any
    has_l2: bool
    epochs: int
    batch_size: int | None
    stop: Any
    metrics: Any
    parts: Any
    features: int
    outputs: int
    dtype: str

    @property
    def key(self) -> Any:
        """A hashable key, the same for equal settings."""
        return frozen(tuple(self))

    @property
    def state_key(self) -> Any:
        """A hashable key of the settings that affect a run's state; runs with the same key can continue each other.

        >>> def key(**changes: Any) -> Any:
        ...     first = Spec("mlp", (4,), "relu", None, "adam", False, 1, 8, None, None, None, 3, 1, "float32")
        ...     return first._replace(**changes).state_key
        >>> key(epochs=5, batch_size=None) == key(), key(hidden=(5,)) == key()
        (True, False)
        """
        average = (self.parts or {}).get("average")
        network = (self.model, self.hidden, self.activation) if self.model == "mlp" else (self.model,)
        return frozen((*network, self.optimizer, average, self.features, self.outputs, self.dtype))

    def make(self) -> Fit:
        """Make the run function."""
        parts = dict(self.parts or {})
        if self.has_l2:
            if "penalty" in parts:
                raise ValueError("l2: expected 0 if `parts` has its own penalty, got both")
            parts["penalty"] = regularizers.l2
        return fit(
            self._model(),
            self.loss,
            getattr(optax, self.optimizer) if isinstance(self.optimizer, str) else self.optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            stop=self.stop,
            metrics=self.metrics,
            **parts,
        )

    def _model(self) -> Model | Callable[..., Model]:
        if self.model == "perceptron":
            return models.perceptron(self.outputs)
        if self.model == "mlp":
            if not isinstance(self.hidden, Iterable):
                raise TypeError(f"hidden: expected widths of layers, such as (16,), got {checks.describe(self.hidden)}")
            return functools.partial(models.mlp, tuple(self.hidden), self.outputs, self.activation)
        if isinstance(self.model, Model) or not callable(self.model):
            return cast(Model, self.model)  # checked by `nnfx.fit`
        sizes = {"n_features": self.features, "n_outputs": self.outputs, "outputs": self.outputs}
        given = self.model.keywords if isinstance(self.model, functools.partial) else {}
        taken = inspect.signature(self.model).parameters
        chosen = {name: size for name, size in sizes.items() if name in taken and name not in given}
        return functools.partial(self.model, **chosen) if chosen else self.model


def frozen(value: Any) -> Any:
    """Return a hashable stand-in for a value, equal for equal values where equality can be determined.

    >>> frozen({"a": [1, 2]}) == frozen({"a": [1, 2]}), frozen(functools.partial(max, 1)) == frozen([1])
    (True, False)
    """
    if isinstance(value, functools.partial):
        return functools.partial, frozen(value.func), frozen(value.args), frozen(value.keywords)
    if isinstance(value, Mapping):
        return Mapping, tuple(sorted((name, frozen(each)) for name, each in value.items()))
    if isinstance(value, list | tuple):
        return tuple(frozen(each) for each in value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


class _Same:
    """A hashable wrapper for an unhashable object, equal only for the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def check(parameters: Mapping[str, Any]) -> None:
    """Check the estimator parameters that `nnfx.fit` does not check under the same name.

    Raises:
        TypeError, ValueError: for parameters of the wrong type or out of range.
    """
    if isinstance(parameters["model"], str):
        checks.choice("model", parameters["model"], MODELS)
    if isinstance(parameters["optimizer"], str):
        checks.choice("optimizer", parameters["optimizer"], OPTIMIZERS)
    checks.choice("dtype", parameters["dtype"], ("float32", "float64"))
    checks.choice("missing_targets", parameters["missing_targets"], ("error", "mask"))
    checks.number("l2", parameters["l2"], minimum=0)
    checks.number("validation_fraction", parameters["validation_fraction"], minimum=0, below=1)
    if parameters["batch_size"] is not None:
        checks.positive_integer("batch_size", parameters["batch_size"])
    for name in ("hyper", "parts"):
        given = parameters[name]
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{name}: expected a dictionary, got {checks.describe(given)}")
    for name in ("standardize", "warm_start"):
        if not isinstance(parameters[name], bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {checks.describe(parameters[name])}")
