"""The vocabulary that every part of the library shares: models, batches, training states, losses."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import checks

Array = jax.Array
Params = Any
"""A tree of trainable arrays."""
ModelState = Mapping[str, Any]
"""What a model carries besides its parameters, by collection, such as batch statistics; often empty."""
Variables = Mapping[str, Any]
"""All that a model needs to be applied: `{"params": params, **model_state}`, as in Flax."""
Hyper = Mapping[str, ArrayLike]
"""Hyper-parameters by name; every value is a number, traced, so that changing it compiles nothing."""


class Init(Protocol):
    """Draws the variables of a model."""

    def __call__(self, key: Array, inputs: Any) -> Variables:
        """Return fresh variables for inputs of this shape, `(batch, ...)`; their values are not used."""


class Apply(Protocol):
    """Applies a model to a batch."""

    @overload
    def __call__(
        self,
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = ...,
        weights: Array | None = ...,
        train: Literal[False] = ...,
    ) -> Array: ...

    @overload
    def __call__(
        self,
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = ...,
        weights: Array | None = ...,
        train: Literal[True],
    ) -> tuple[Array, ModelState]: ...

    def __call__(
        self,
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Array | tuple[Array, ModelState]:
        """Return the outputs, `(batch, ...)`; in training the new model state as well."""


class Stream(NamedTuple):
    """A recurrent model one step at a time, for data that come in one by one; the same numbers as the whole sequence.

    Attributes:
        start: `(batch_size, dtype=None) -> state`, what it remembers before the first step: zeros.
        step: `(variables, state, x) -> (state, outputs)`, from `(batch, features)` to `(batch, outputs)`.
    """

    start: Callable[..., Any]
    step: Callable[[Variables, Any, Array], tuple[Any, Array]]


class Model(NamedTuple):
    """A pair of pure functions, and the only thing that training knows of a network.

    - `init(key, inputs) -> variables` draws `{"params": ..., **model_state}`.
    - `apply(variables, inputs) -> outputs` predicts.
    - `apply(variables, inputs, key=key, train=True) -> (outputs, model_state)` trains: `key` feeds
      dropout and other noise, `weights` (one per example; zero marks padding) those layers that mix
      the examples of a batch, and the new model state comes back beside the outputs.

    Recurrent models have a `stream` as well, which applies them one step at a time.

    Nothing is hidden, so `jax.grad`, `jit`, `vmap`, `eval_shape` and `jax.export` apply as they are.
    """

    init: Init
    apply: Apply
    stream: Stream | None = None


class Batch(NamedTuple):
    """Examples with their targets and weights; a data set is one large batch.

    Attributes:
        inputs: `(batch, ...)`.
        targets: `(batch, ...)`.
        weights: `(batch,)`, the weight of each example in the loss; zero marks padding.
    """

    inputs: Any
    targets: Array
    weights: Array


class Fault(NamedTuple):
    """Steps that were not taken because something was not a finite number.

    Attributes:
        skipped: how many, an int32 scalar.
        step: the first of them, −1 for none.
        where: what was not finite there: 0 for the loss, i + 1 for the gradient of the i-th leaf of the parameters.
    """

    skipped: Array
    step: Array
    where: Array


class Average(NamedTuple):
    """An average of a model's variables along a run.

    Attributes:
        steps: how many were averaged, an int32 scalar.
        variables: their average; what the run started from while there were none.
    """

    steps: Array
    variables: Variables


class TrainState(NamedTuple):
    """Everything that decides the next training step.

    Attributes:
        step: the number of updates made, an int32 scalar.
        params: the trainable arrays.
        model_state: the model's other variables, such as batch statistics.
        opt_state: the optimizer's.
        key: a typed random key; what step *t* draws depends on `(key, t)` alone.
        fault: what was skipped, by steps that skip.
        average: of the variables so far, by steps that average; else None.
    """

    step: Array
    params: Params
    model_state: ModelState
    opt_state: Any
    key: Array
    fault: Fault
    average: Average | None = None

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes, as the latest step left it."""
        return {"params": self.params, **self.model_state}

    @property
    def evaluated(self) -> Variables:
        """What the run is judged by: the average of its variables where it keeps one, else the latest."""
        return self.variables if self.average is None else self.average.variables


def at_least_float32(dtype: Any) -> Any:
    """Return the floating dtype to count and average in: half precision cannot count to 3,000.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (<class 'jax.numpy.float32'>, <class 'jax.numpy.float64'>)
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


class Mean(NamedTuple):
    """A weighted mean kept as two sums, so that the means of parts merge into the mean of the whole.

    Attributes:
        total: the sum of weight × value.
        weight: the sum of the weights.
    """

    total: Array
    weight: Array

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> "Mean":
        """Weigh one value per example, `(batch,)`, in float32 at least; every weight is 1 where none are given.

        Raises:
            ValueError: for values that are not one per example, or other than one weight per value.

        Example:
            >>> Mean.of(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])).value
            Array(2., dtype=float32)
        """
        if values.ndim != 1:
            raise ValueError(f"values: expected one per example, (batch,), got {checks.describe(values)}")
        dtype = at_least_float32(values.dtype)
        values = values.astype(dtype)
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.shape[0], dtype))
        if weights.shape != values.shape:
            raise ValueError(f"weights: expected one per example, {values.shape}, got {checks.describe(weights)}")
        weights = weights.astype(dtype)
        return cls(jnp.vdot(weights, values), weights.sum())

    @property
    def value(self) -> Array:
        """`total / weight`, and zero where nothing was weighed."""
        some = self.weight > 0
        return jnp.where(some, self.total / jnp.where(some, self.weight, 1), 0)


PerExample = Callable[..., Array]
"""A loss or a metric: `(outputs, targets) -> (batch,)`, with further numbers by keyword."""
Metrics = dict[str, Mean]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
