"""The types shared by every part of the library: models, batches, training states, losses."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks, optimizers

Array = jax.Array
Params = Any
"""A tree of trainable arrays."""
ModelState = Mapping[str, Any]
"""A model's variables other than its parameters, by collection, such as batch statistics; often empty."""
Variables = Mapping[str, Any]
"""Everything that a model needs to be applied: `{"params": params, **model_state}`, as in Flax."""
Hyper = Mapping[str, ArrayLike]
"""Hyper-parameters by name; every value is a traced number, so that changing it causes no recompilation."""


class Init(Protocol):
    """Draws the variables of a model."""

    def __call__(self, key: Array, inputs: Any) -> Variables:
        """Return initial variables for inputs of the given shape, `(batch, ...)`; their values are not used."""


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
        """Return the outputs, `(batch, ...)`, and in training also the new model state."""


class Stream(NamedTuple):
    """A recurrent model applied one step at a time, for data that arrive step by step.

    The outputs equal those of the model on the whole sequence.

    Attributes:
        start: `(batch_size, dtype=None) -> state`, the state before the first step: zeros.
        step: `(variables, state, x) -> (state, outputs)`, from `(batch, features)` to `(batch, outputs)`.
    """

    start: Callable[..., Any]
    step: Callable[[Variables, Any, Array], tuple[Any, Array]]


class Model(NamedTuple):
    """A pair of pure functions; training knows nothing else about a network.

    - `init(key, inputs) -> variables` draws `{"params": ..., **model_state}`.
    - `apply(variables, inputs) -> outputs` predicts.
    - `apply(variables, inputs, key=key, train=True) -> (outputs, model_state)` trains: `key` is for dropout and other
      noise, `weights` (one per example; zero marks padding) is for layers that mix the examples of a batch, and the
      new model state is returned along with the outputs.

    Recurrent models also have a `stream`, which applies them one step at a time.

    There is no hidden state, so `jax.grad`, `jit`, `vmap`, `eval_shape` and `jax.export` work as usual.
    """

    init: Init
    apply: Apply
    stream: Stream | None = None


class Batch(NamedTuple):
    """Examples with their targets and weights; a dataset is one large batch.

    Attributes:
        inputs: `(batch, ...)`, an array or a tree of them, such as `Sequences`.
        targets: `(batch, ...)`.
        weights: the weight of each example in the loss, `(batch,)`; zero marks padding. For a model with outputs
            `(batch, time, ...)`, they may be the weights of each step, `(batch, time)`; losses and metrics are then
            computed per step. They may also have the shape of the outputs and targets, with a weight for each output;
            losses and metrics are then computed per output, and averaged over the batch.
    """

    inputs: Any
    targets: Array
    weights: Array


class _Sequences(NamedTuple):
    values: Array
    lengths: Array | None = None
    state: tuple[tuple[Array, ...], ...] | None = None


class Sequences(_Sequences):
    """Sequences of unequal length, or with an initial state, as the inputs of a recurrent model.

    If a model has outputs at every step, `(batch, time, ...)`, losses and metrics are computed on the real steps only.

    Args:
        values: `(batch, time, features)`, or tokens `(batch, time)`; an array, or a list or tensor that becomes one.
        lengths: integers `(batch,)`, the number of real steps in each sequence; the rest are padding. None means no
            padding.
        state: the model's initial state: a tuple with the state of each layer in turn, itself a tuple of arrays
            `(batch, hidden)`, such as `(h,)` for a GRU and `(h, c)` for an LSTM. A model's `stream` uses the same form.
            In a bidirectional network, each layer has two states: the one for reading forwards, followed by the one for
            reading backwards. None means zeros, or the kept state of a stateful model.

    Raises:
        TypeError: for values that are not real numbers, or lengths that are not integers.
        ValueError: for rows of different lengths, which must be padded first; if there is not one length per sequence;
            and for concrete lengths below 0 or above the number of steps.

    Example:
        >>> from nnfx.models import gru
        >>> model = gru(outputs=2, hidden=(4,))
        >>> inputs = Sequences(jnp.ones((3, 5, 1)), lengths=jnp.array([5, 2, 0]))
        >>> model.apply(model.init(jax.random.key(0), inputs), inputs).shape
        (3, 2)
    """

    __slots__ = ()

    def __new__(cls, values: Any, lengths: Any = None, state: Any = None) -> "Sequences":
        """Convert and check arguments passed by users; JAX transformations use `_make` instead."""
        values, lengths = _as_array("values", values), _as_array("lengths", lengths)
        if hasattr(values, "shape") and hasattr(lengths, "shape") and lengths.shape:
            _check_lengths(values, lengths)
        return super().__new__(cls, values, lengths, state)


jax.tree_util.register_pytree_with_keys(
    Sequences,
    lambda sequences: (
        [(jax.tree_util.GetAttrKey(name), getattr(sequences, name)) for name in _Sequences._fields],
        None,
    ),
    lambda _, children: Sequences._make(children),
)


def _as_array(name: str, value: Any) -> Any:
    """Return lists and tensors as arrays on the device; arrays, and their placeholders in a tree, unchanged."""
    is_array = isinstance(value, jax.Array | jax.ShapeDtypeStruct) or type(value) is np.ndarray
    if is_array or not (isinstance(value, list) or hasattr(value, "shape")):
        return value
    return arrays.to_device(name, arrays.as_numpy(name, value))


def _check_lengths(values: Any, lengths: Any) -> None:
    """Require one integer per sequence; concrete lengths must lie between 0 and the number of steps."""
    if not jnp.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths: expected integers, (batch,), got {checks.describe(lengths)}")
    batch = lengths.ndim
    if values.shape[:batch] != lengths.shape or len(values.shape) <= batch:
        raise ValueError(
            f"lengths: expected one per sequence for values {checks.describe(values)}, got {checks.describe(lengths)}"
        )
    if checks.is_concrete(lengths) and getattr(lengths, "is_fully_addressable", True) and lengths.size:
        low, high, time = int(np.min(lengths)), int(np.max(lengths)), values.shape[batch]
        if low < 0 or high > time:
            raise ValueError(f"lengths: expected numbers from 0 to {time}, the number of steps, got {low} to {high}")


class Fault(NamedTuple):
    """Steps that were skipped because the loss or a gradient was not finite.

    Attributes:
        skipped: the number of skipped steps, an int32 scalar.
        step: the first skipped step, −1 if there are none.
        where: what was not finite in that step: 0 for the loss, i + 1 for the gradient of the i-th parameter leaf.
    """

    skipped: Array
    step: Array
    where: Array


class Average(NamedTuple):
    """An average of a model's variables over a run.

    Attributes:
        steps: the number of steps averaged, an int32 scalar.
        variables: the averaged variables; before the first step, the initial ones.
    """

    steps: Array
    variables: Variables


class TrainState(NamedTuple):
    """Everything that determines the next training step.

    Attributes:
        step: the number of updates made, an int32 scalar.
        params: the trainable arrays.
        model_state: the model's other variables, such as batch statistics.
        opt_state: the optimizer's state.
        key: a typed random key; the random draws of step *t* depend on `(key, t)` alone.
        fault: the steps that were skipped, if the step function skips any.
        average: the average of the variables so far, if the step function keeps one; otherwise None.
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
        """The latest variables, as passed to `model.apply`."""
        return {"params": self.params, **self.model_state}

    @property
    def evaluated(self) -> Variables:
        """The variables to evaluate: their average if the run keeps one, otherwise the latest.

        Optimizers such as `optax.contrib.schedule_free` and `optax.lookahead` update weights other than those to
        evaluate a model with; with such an optimizer, the latest variables contain the weights for evaluation.
        """
        if self.average is not None:
            return self.average.variables
        return {"params": optimizers.evaluation_params(self.opt_state, self.params), **self.model_state}


def at_least_float32(dtype: Any) -> Any:
    """Return the floating-point dtype for counts and averages: half precision cannot count to 3,000.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64), at_least_float32(bool)
    (<class 'jax.numpy.float32'>, <class 'jax.numpy.float64'>, dtype('float32'))
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        return jax.dtypes.canonicalize_dtype(float)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


class Mean(NamedTuple):
    """A weighted mean kept as two sums, so that the means of several parts of the data can be merged exactly.

    Attributes:
        total: the sum of weight × value.
        weight: the sum of the weights.
    """

    total: Array
    weight: Array

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> "Mean":
        """Average one value per example, `(batch,)`, in at least float32; every weight is 1 if `weights` is None.

        Values of weight zero are ignored, even if they are not finite. Negative weights make the mean NaN.

        Raises:
            TypeError: for values that are not real numbers or booleans.
            ValueError: if there is not one value per example and one weight per value.

        Example:
            >>> Mean.of(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([1.0, 1.0, 0.0])).value
            Array(2., dtype=float32)
            >>> Mean.of(jnp.array([True, False])).value
            Array(0.5, dtype=float32)
        """
        if values.ndim != 1:
            raise ValueError(f"values: expected one per example, (batch,), got {checks.describe(values)}")
        checks.numeric("values", values)
        dtype = at_least_float32(values.dtype)
        values = values.astype(dtype)
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.shape[0], dtype))
        if weights.shape != values.shape:
            raise ValueError(f"weights: expected one per example, {values.shape}, got {checks.describe(weights)}")
        weights = weights.astype(dtype)
        weights = jnp.where(weights >= 0, weights, jnp.nan)
        return cls(jnp.vdot(weights, jnp.where(weights != 0, values, 0)), weights.sum())

    @property
    def value(self) -> Array:
        """`total / weight`, or NaN if the weights sum to zero."""
        is_some = self.weight > 0
        return jnp.where(is_some, self.total / jnp.where(is_some, self.weight, 1), jnp.nan)


PerExample = Callable[..., Array]
"""A loss or a metric: `(outputs, targets) -> (batch,)`, with hyper-parameters as keyword arguments."""
Metrics = dict[str, Mean]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
