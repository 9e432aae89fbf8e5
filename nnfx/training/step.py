"""The stateless training step, and evaluation: the two building blocks of every training loop."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nnfx import averaging, checks, shards
from nnfx.data import batching
from nnfx.memo import one_program
from nnfx.metrics.marks import is_overall
from nnfx.optimizers import as_optimizer, has_evaluation_params
from nnfx.training import batch_checks, integers, optimizer_updates, rows, run_checks
from nnfx.training.parts import OPTIONAL, Parts
from nnfx.types import (
    Array,
    Batch,
    Fault,
    Mean,
    Metrics,
    Model,
    ModelState,
    Params,
    PerExample,
    Step,
    TrainState,
    Variables,
)

EVALUATION_ROWS = 2048
"""The largest number of rows that evaluation passes through a model at once, which bounds memory."""


class Keys(NamedTuple):
    """The three independent random streams of a run: for its weights, its steps, and the order of rows."""

    init: Array
    step: Array
    order: Array


@one_program
def split_key(key: Array) -> Keys:
    """Split a run's key into its streams."""
    return Keys(*jax.random.split(key, len(Keys._fields)))


def init_state(
    key: Array, model: Model, optimizer: optax.GradientTransformation, inputs: Any, average: bool = False
) -> TrainState:
    """Initialise a model's variables and its optimizer, as at the start of a run with the same key.

    Args:
        key: a typed key; it determines the weights and the random draws of the steps.
        model: the model.
        optimizer: an Optax optimizer.
        inputs: a batch of inputs; only their shape and dtype matter.
        average: whether to keep an average of the variables, for a step that uses one.

    Raises:
        TypeError: for a key that is not typed.

    Example:
        >>> from nnfx.models import perceptron
        >>> state = init_state(jax.random.key(0), perceptron(), optax.sgd(0.1), jnp.ones((1, 2)))
        >>> state.params["kernel"].shape
        (2, 1)
    """
    checks.key("key", key)
    run_checks.check_model(model)
    keys = split_key(key)
    optimizer = as_optimizer("optimizer", optimizer)
    variables = dict(model.init(keys.init, inputs))
    params = variables.pop("params", {})
    step, *fault = (jnp.full((), value, jnp.int32) for value in (0, 0, -1, -1))
    state = TrainState(step, params, variables, optimizer.init(params), keys.step, Fault(*fault))
    if average and has_evaluation_params(state.opt_state):
        raise ValueError(
            "average: expected no average for an optimizer that provides its own evaluation weights, such as"
            " optax.contrib.schedule_free and optax.lookahead, got one"
        )
    return state._replace(average=averaging.start(state.variables)) if average else state


def make_step(
    model: Model,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    metrics: Mapping[str, PerExample] | None = None,
    *,
    micro_batches: int = 1,
    compute_dtype: Any = None,
    precision: str = "float32",
    rematerialize: bool = False,
    skip_non_finite: bool = False,
    **others: Any,
) -> Step:
    """Make the training step `(state, batch) -> (state, metrics)`, a pure function.

    The step follows the gradient of the weighted mean loss of the batch, `Σ wᵢ ℓᵢ / Σ wᵢ`, plus the penalty. Here ℓᵢ is
    the loss of example i and wᵢ its weight. If each time step or output j of an example has its own weight, the mean is
    `Σ wᵢⱼ ℓᵢⱼ / Σ wᵢⱼ`. The random draws of step *t* depend on `fold_in(state.key, t)` alone. Compile the step with
    `jax.jit`; the caller decides whether to donate the state.

    Args:
        model: the model.
        loss: the per-example loss, `(outputs, targets) -> (batch,)`.
        optimizer: an Optax optimizer.
        metrics: further per-example metrics by name, computed from the outputs of the same forward pass.
        micro_batches: the number of micro-batches into which a batch is split. They are processed one after the other,
            which gives the same gradient in less memory. Each micro-batch counts in proportion to the total weight of
            its rows. Layers that mix rows, such as batch norm, see one micro-batch at a time.
        compute_dtype: the dtype to compute in, such as `jnp.bfloat16`; parameters, gradients and the optimizer's state
            keep their dtypes. None to compute in the dtype of the parameters.
        precision: the precision of matrix products on GPUs and TPUs: "float32" for results that agree across backends,
            "tensorfloat32" or "bfloat16" for speed.
        rematerialize: whether to recompute activations for the gradient instead of storing them.
        skip_non_finite: whether to skip steps whose loss or gradient is not finite; `state.fault` records the number of
            skipped steps, and what was not finite in the first of them.
        **others: further parts, named as in `nnfx.fit`, with hyper-parameters bound: `penalty`, a scalar function of
            the parameters; `augment`, a function `(key, batch) -> batch`; and `average`, a function `count ->
            fraction`. For a step with `average`, make the state with `average=True`, and predict with
            `state.evaluated`.

    Returns:
        The step; its metrics, which include `"loss"`, are sums that can be merged.

    Raises:
        ValueError: when the step is called, for a loss that does not return one value per example; for a batch that
            cannot be split evenly into micro-batches; and for a state with an average if the step has none, or a state
            without one if the step has one.

    Example:
        >>> from nnfx.losses import mean_square_error
        >>> from nnfx.models import perceptron
        >>> model, optimizer = perceptron(), optax.sgd(0.1)
        >>> step = jax.jit(make_step(model, mean_square_error, optimizer))
        >>> batch = Batch(jnp.ones((4, 2)), jnp.ones(4), jnp.ones(4))
        >>> state = init_state(jax.random.key(0), model, optimizer, batch.inputs)
        >>> state, measured = step(state, batch)
        >>> int(state.step), list(measured)
        (1, ['loss'])

    References:
        Micikevicius et al., *Mixed precision training*, ICLR 2018; Chen et al., *Training deep nets with sublinear
        memory cost*, 2016.
    """
    checks.positive_integer("micro_batches", micro_batches)
    if compute_dtype is not None and not _is_float(compute_dtype):
        raise TypeError(
            f"compute_dtype: expected a float dtype, such as jnp.bfloat16, got {checks.describe(compute_dtype)}"
        )
    checks.choice("precision", precision, ("float32", "tensorfloat32", "bfloat16"))
    run_checks.check_model(model)
    run_checks.check_functions(loss, metrics)
    for name, part in others.items():
        if name not in OPTIONAL:
            raise TypeError(
                f"{name}: expected an option of make_step or one of {', '.join(OPTIONAL)}, got {part!r:.80}"
            )
        if part is not None and not callable(part):
            raise TypeError(f"{name}: expected a function or None, got {checks.describe(part)}")
    parts = Parts(model, loss, as_optimizer("optimizer", optimizer), metrics or {}, **others)

    def forward(params: Params, model_state: ModelState, batch: Batch, key: Array) -> tuple[Array, ModelState]:
        inputs, weights = batch.inputs, batch.weights
        if compute_dtype is not None:
            params, inputs = _cast(params, compute_dtype), _cast(inputs, compute_dtype)
        if weights.ndim > 1:
            shape = jax.eval_shape(parts.model.apply, {"params": params, **model_state}, inputs)
            weights = rows.model_weights(shape, batch)
        with jax.default_matmul_precision(precision):
            outputs, model_state = parts.model.apply(
                {"params": params, **model_state}, inputs, key=key, weights=weights, train=True
            )
        return outputs if compute_dtype is None else outputs.astype(batch.weights.dtype), model_state

    if rematerialize:
        forward = jax.checkpoint(forward)

    def share(
        params: Params, model_state: ModelState, batch: Batch, key: Array, weight: Array | None = None
    ) -> tuple[Array, tuple[ModelState, Metrics]]:
        """Return the contribution of some rows to the empirical loss of a batch with the given total weight."""
        outputs, model_state = forward(params, model_state, batch, key)
        measured = rows.measure(parts.measures, outputs, batch)
        if weight is None:
            weight = shards.total(measured["loss"].weight)
        return measured["loss"].total / jnp.where(weight > 0, weight, 1), (model_state, measured)

    def gradient_of_share(
        state: TrainState, batch: Batch, key: Array, weight: Array | None = None
    ) -> tuple[tuple[Array, tuple[ModelState, Metrics]], Params]:
        """Return the rows' contribution to the loss and its gradient, which is zero if all weights are zero."""
        found, gradient = jax.value_and_grad(share, has_aux=True)(state.params, state.model_state, batch, key, weight)
        if micro_batches > 1 or shards.is_split():
            has_weight = found[1][1]["loss"].weight != 0
            gradient = jax.tree.map(lambda leaf: jnp.where(has_weight, leaf, 0), gradient)
        return found, gradient

    def accumulated(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[tuple[Array, tuple[ModelState, Metrics]], Params]:
        """Sum the contributions of the micro-batches and their gradients."""
        size = batch.weights.shape[0]
        if size % micro_batches:
            raise ValueError(f"micro_batches: expected a divisor of the batch of {size}, got {micro_batches}")
        pieces = jax.tree.map(lambda a: a.reshape(micro_batches, -1, *a.shape[1:]), batch)
        weights = batch.weights
        if rows.has_lengths(batch):  # for sequences, the outputs determine whether steps have weights
            outputs, _ = jax.eval_shape(forward, state.params, state.model_state, batch, key)
            weights = rows.measured_weights(outputs, batch)
        weight = shards.total(weights.sum())

        def add(model_state: ModelState, piece: tuple[Batch, Array]) -> tuple[ModelState, Any]:
            part, i = piece
            before = state._replace(model_state=model_state)
            found, gradient = gradient_of_share(before, part, jax.random.fold_in(key, i), weight)
            value, (after, measured) = found
            has_weight = shards.total(measured["loss"].weight) != 0
            return optax.tree.where(has_weight, after, model_state), (value, measured, gradient)

        model_state, shares = jax.lax.scan(add, state.model_state, (pieces, jnp.arange(micro_batches)))
        value, measured, gradient = jax.tree.map(lambda each: each.sum(0), shares)
        return (value, (model_state, measured)), gradient

    def penalised(params: Params, state: TrainState, batch: Batch, key: Array) -> Array:
        value = shards.total(share(params, state.model_state, batch, key)[0])
        return value if parts.penalty is None else value + parts.penalty(params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if (parts.average is None) != (state.average is None):
            wanted, got = ("a state with", "none") if state.average is None else ("a state without", "one")
            raise ValueError(f"state: expected {wanted} an average of the variables for this step, got {got}")
        key = jax.random.fold_in(state.key, state.step)
        batch = rows.filled(batch)
        if parts.augment is not None:
            key, augment_key = jax.random.split(key)
            augmented = parts.augment(augment_key, Batch(*batch))
            is_weighted = isinstance(batch, rows.Weighted) and augmented.weights is batch.weights
            batch = rows.Weighted(*augmented) if is_weighted else rows.filled(augmented)
        found = (gradient_of_share if micro_batches == 1 else accumulated)(state, batch, key)
        (value, (model_state, measured)), gradient = found
        value, measured, gradient = shards.total((value, measured, gradient))
        if parts.penalty is not None:
            extra, slope = jax.value_and_grad(parts.penalty)(state.params)
            value, gradient = value + extra, optax.tree.add(gradient, slope)
        is_taken, fault = measured["loss"].weight != 0, state.fault
        if skip_non_finite:
            fault, is_finite = _looked_at(state, value, gradient)
            is_taken, measured = (
                is_taken & is_finite,
                optax.tree.where(is_finite, measured, optax.tree.zeros_like(measured)),
            )

        def take() -> TrainState:
            updates, opt_state = optimizer_updates.update(
                parts.optimizer,
                gradient,
                state.opt_state,
                state.params,
                # for optimizers that use the loss, such as line searches and reduce_on_plateau
                value=value,
                value_fn=lambda params: penalised(params, state, batch, key),
            )
            params = optax.apply_updates(state.params, updates)
            after = state._replace(params=params, model_state=model_state, opt_state=opt_state)
            if parts.average is None or state.average is None:
                return after
            return after._replace(average=averaging.follow(state.average, after.variables, parts.average))

        is_always_taken = isinstance(batch, rows.Weighted) and not skip_non_finite
        after = take() if is_always_taken else _if(is_taken, take, state)
        return after._replace(step=state.step + 1, fault=fault), measured

    return step


def _is_float(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:  # raised by NumPy for an invalid dtype
        return False


def _cast(tree: Any, dtype: Any) -> Any:
    """Cast floating-point arrays to a dtype; integers, such as lengths and tokens, stay unchanged."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _looked_at(state: TrainState, value: Array, gradient: Params) -> tuple[Fault, Array]:
    """Return the updated record of non-finite losses and gradients, and whether all are finite in this step."""
    is_bad = jnp.stack([~jnp.isfinite(leaf).all() for leaf in (value, *jax.tree.leaves(gradient))])
    skip, fault = is_bad.any(), state.fault
    first = skip & (fault.skipped == 0)
    fault = Fault(
        fault.skipped + skip,
        jnp.where(first, state.step, fault.step),
        jnp.where(first, is_bad.argmax().astype(jnp.int32), fault.where),
    )
    return fault, ~skip


def _if(is_taken: Array, take: Callable[[], TrainState], state: TrainState) -> TrainState:
    """Return the state after a step, or the state before it if the step is skipped.

    On CPUs, a branch costs nothing, whereas selecting between two states takes half as long as a small step. On other
    devices, a branch waits for the host, so the states are selected.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(is_taken, take, lambda: state)
    return optax.tree.where(is_taken, take(), state)


def evaluate(model: Model, measures: Mapping[str, PerExample], variables: Variables, data: Batch) -> dict[str, Mean]:
    """Measure a model on data without training it, `EVALUATION_ROWS` rows at a time.

    Args:
        model: the model.
        measures: losses and metrics, by name.
        variables: the model's variables.
        data: the examples, with any number of rows.

    Returns:
        A `Mean` for each name; its value is NaN if all weights are zero. The means of per-example losses and metrics
        can be merged. A metric over all rows at once, such as an area under a curve, is stored as the mean of a single
        value, and cannot be merged.

    Raises:
        TypeError: for arrays that do not contain real numbers.
        ValueError: for inputs that are not finite, negative weights, targets that do not suit a loss, and sizes that
            do not match.

    Example:
        >>> from nnfx.losses import mean_square_error
        >>> from nnfx.models import perceptron
        >>> variables = {"params": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}
        >>> data = Batch(jnp.ones((4, 2)), jnp.zeros(4), jnp.ones(4))
        >>> evaluate(perceptron(), {"error": mean_square_error}, variables, data)["error"].value
        Array(4., dtype=float32)
    """
    run_checks.check_model(model)
    run_checks.check_functions(None, measures, name="measures")
    if not isinstance(data, rows.Filled):
        data = batch_checks.as_arrays("data", data)
        if checks.is_concrete((variables, data)):
            outputs = jax.eval_shape(model.apply, variables, data.inputs)
            batch_checks.check_evaluation(data, measures, outputs)
            integers.check(model, data, variables)

    needs_all = any(is_overall(function) for function in measures.values())

    def measure(batch: Batch) -> tuple[dict[str, Mean], Array | None]:
        outputs = model.apply(variables, batch.inputs)
        return rows.measure(measures, outputs, batch), outputs if needs_all else None

    size = data.weights.shape[0]
    if size <= EVALUATION_ROWS:
        data = rows.filled(data)
        found, outputs = measure(data)
    else:
        data, order = rows.without_padding(data), batching.in_order(size, EVALUATION_ROWS)
        pieces = jax.lax.map(lambda chosen: measure(batching.take(data, chosen)), rows.weighted(order, data.weights))
        found, outputs = jax.tree.map(lambda sums: sums.sum(0), pieces[0]), pieces[1]
        if outputs is not None:
            outputs, data = outputs.reshape(-1, *outputs.shape[2:])[:size], rows.filled(data)
    return found if outputs is None else {**found, **rows.measure_overall(measures, outputs, data)}
