"""Predictions with active dropout."""

from typing import Any

import jax

from nnfx import checks, memo
from nnfx.types import Array, Model, Variables
from nnfx.uncertainty.given import as_inputs, check_model

__all__ = ["mc_dropout"]

NOT_UPDATED = {"params", "constants", "masks"}
"""The collections of variables that training batches do not update."""


def mc_dropout(key: Array, model: Model, variables: Variables, inputs: Any, draws: int) -> Array:
    """Predict several times with active dropout (Monte Carlo dropout): draw s is `f(x; θ, maskₛ)`.

    The mean of the draws approximates the posterior predictive mean of a Bayesian network, and their spread estimates
    its uncertainty. All draws are computed by one program, compiled once per model.

    Args:
        key: a typed key; draw s uses `fold_in(key, s)`.
        model: a model with dropout, such as `run.model`; without dropout, all draws are the same.
        variables: the model's variables, such as `run.best.variables`.
        inputs: preprocessed inputs `(batch, ...)`, such as `data.valid.inputs`.
        draws: S, the number of predictions.

    Returns:
        Outputs `(draws, batch, ...)`; for classes, these are logits: average the probabilities, not the logits, by
        `spread(probabilities(outputs)).mean`.

    Raises:
        TypeError: for a key that is not typed, a number of draws that is not an integer, and anything other than a
            model, its variables and its inputs.
        ValueError: for fewer than one draw, and for variables with batch statistics, since in training mode a model
            would normalise by the statistics of the batch.

    Example:
        >>> import jax.numpy as jnp, nnfx
        >>> model = nnfx.models.mlp((64,), dropout=0.5)
        >>> inputs = jnp.ones((3, 2))
        >>> variables = model.init(jax.random.key(0), inputs)
        >>> outputs = mc_dropout(jax.random.key(1), model, variables, inputs, draws=10)
        >>> outputs.shape, bool(outputs.std(0).min() > 0)
        ((10, 3, 1), True)

    References:
        Gal and Ghahramani, *Dropout as a Bayesian approximation*, ICML 2016.
    """
    checks.key("key", key)
    checks.positive_integer("draws", draws)
    check_model(model, variables)
    inputs = as_inputs("inputs", inputs)
    if updated := sorted(set(variables) - NOT_UPDATED):
        raise ValueError(
            f"variables: expected only parameters, got also {', '.join(updated)}, which a model updates in training"
        )
    return _draws(model, draws, key, variables, inputs)


@memo.compiled(static=2)
def _draws(model: Model, draws: int, key: Array, variables: Variables, inputs: Any) -> Array:
    def draw(number: Array) -> Array:
        return model.apply(variables, inputs, key=jax.random.fold_in(key, number), train=True)[0]

    return jax.lax.map(draw, jax.numpy.arange(draws))
