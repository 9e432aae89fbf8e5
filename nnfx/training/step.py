"""The stateless training step, and evaluation: the two things every loop here is made of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nnfx import checks
from nnfx.data import batching
from nnfx.types import Array, Batch, Mean, Metrics, Model, Params, PerExample, Step, TrainState, Variables

EVALUATION_ROWS = 2048
"""The most rows that evaluation puts through a model at once, which bounds its memory."""


class Keys(NamedTuple):
    """The three independent streams of randomness of a run: its weights, what its steps draw, its order."""

    init: Array
    step: Array
    order: Array


def split_key(key: Array) -> Keys:
    """Split a run's key into its streams."""
    return Keys(*jax.random.split(key, len(Keys._fields)))


def init_state(key: Array, model: Model, optimizer: optax.GradientTransformation, inputs: Any) -> TrainState:
    """Draw a model's variables and start its optimizer: the state from which a run with this key sets out.

    Args:
        key: a typed key; it draws the weights, and decides what the steps draw.
        model: the model.
        optimizer: an Optax optimizer.
        inputs: a batch of inputs; only their shape and dtype matter.

    Raises:
        TypeError: for a key that is not typed.

    Example:
        >>> from nnfx.models import perceptron
        >>> state = init_state(jax.random.key(0), perceptron(), optax.sgd(0.1), jnp.ones((1, 2)))
        >>> state.params["kernel"].shape
        (2, 1)
    """
    checks.key("key", key)
    keys = split_key(key)
    variables = dict(model.init(keys.init, inputs))
    params = variables.pop("params", {})
    return TrainState(jnp.asarray(0, jnp.int32), params, variables, optimizer.init(params), keys.step)


def make_step(
    model: Model,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    metrics: Mapping[str, PerExample] | None = None,
) -> Step:
    """Make the training step `(state, batch) -> (state, metrics)`, a pure function.

    It descends the gradient of the empirical loss `Σ wᵢ ℓᵢ / Σ wᵢ` of the batch: weights act within a batch.
    What step *t* draws comes from `fold_in(state.key, t)`. Compile it with `jax.jit`; donating the state is the
    caller's choice.

    Args:
        model: the model.
        loss: per example, `(outputs, targets) -> (batch,)`.
        optimizer: an Optax optimizer.
        metrics: further quantities per example, by name, taken on the outputs of the same forward pass.

    Returns:
        The step; its metrics are sums that merge, `"loss"` among them.

    Raises:
        ValueError: (by the step) for a loss that is not per example.

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
    """
    measures = {"loss": loss, **(metrics or {})}

    def objective(params: Params, state: TrainState, batch: Batch) -> tuple[Array, tuple[Any, Metrics]]:
        outputs, model_state = model.apply(
            {"params": params, **state.model_state},
            batch.inputs,
            key=jax.random.fold_in(state.key, state.step),
            weights=batch.weights,
            train=True,
        )
        measured = _measure(measures, outputs, batch)
        return measured["loss"].value, (model_state, measured)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (value, (model_state, measured)), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.params, state, batch
        )
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            gradient,
            state.opt_state,
            state.params,
            # for those that look at the loss, such as line searches and reduction on plateaus
            value=value,
            grad=gradient,
            value_fn=lambda params: objective(params, state, batch)[0],
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, model_state, opt_state, state.key), measured

    return step


def evaluate(model: Model, measures: Mapping[str, PerExample], variables: Variables, data: Batch) -> dict[str, Mean]:
    """Measure a model on data without training it, `EVALUATION_ROWS` rows at a time.

    Args:
        model: the model.
        measures: losses and metrics per example, by name.
        variables: the model's variables.
        data: any number of examples.

    Returns:
        Sums that merge, by name.

    Example:
        >>> from nnfx.losses import mean_square_error
        >>> from nnfx.models import perceptron
        >>> variables = {"params": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}
        >>> data = Batch(jnp.ones((4, 2)), jnp.zeros(4), jnp.ones(4))
        >>> evaluate(perceptron(), {"error": mean_square_error}, variables, data)["error"].value
        Array(4., dtype=float32)
    """

    def measure(batch: Batch) -> dict[str, Mean]:
        return _measure(measures, model.apply(variables, batch.inputs), batch)

    rows = data.weights.shape[0]
    if rows <= EVALUATION_ROWS:
        return measure(data)
    parts = jax.lax.map(lambda chosen: measure(batching.take(data, chosen)), batching.in_order(rows, EVALUATION_ROWS))
    return jax.tree.map(lambda sums: sums.sum(0), parts)


def _measure(measures: Mapping[str, PerExample], outputs: Array, batch: Batch) -> dict[str, Mean]:
    return {name: Mean.of(f(outputs, batch.targets), batch.weights) for name, f in measures.items()}
