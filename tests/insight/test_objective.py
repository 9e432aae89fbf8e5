import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import losses, models
from nnfx.insight import objective
from nnfx.types import Batch


def batch_of(examples, features=2, weights=None):
    weights = jnp.ones(examples) if weights is None else jnp.asarray(weights)
    return Batch(jnp.ones((examples, features)), jnp.ones((examples, 1)), weights)


@pytest.mark.parametrize(
    ("parameters", "batch", "expected"),
    [
        (100, batch_of(14), 256),  # 2^15 elements at once, 128 per network
        (65, batch_of(255), 56),
        (65, batch_of(256), 1),
        (100_000, batch_of(1), 1),
    ],
)
def test_many_small_networks_are_evaluated_together_but_large_ones_in_turn(parameters, batch, expected):
    assert objective.at_once({"kernel": jnp.ones(parameters)}, batch) == expected


def test_the_objective_is_the_weighted_mean_at_any_parameters(key):
    model, weights = models.perceptron(outputs=1), [1.0, 0.0, 3.0]
    batch = Batch(jnp.asarray([[1.0], [2.0], [5.0]]), jnp.asarray([[0.0], [0.0], [1.0]]), jnp.asarray(weights))
    variables = model.init(key, batch.inputs)
    of = objective.objective(model, losses.mean_square_error, variables, batch)
    params = {"kernel": jnp.asarray([[2.0]]), "bias": jnp.asarray([-1.0])}
    errors = np.square([1.0, 3.0, 8.0])
    np.testing.assert_allclose(of(params), np.average(errors, weights=weights), rtol=1e-6)


def test_rows_of_weight_zero_may_hold_anything(key):
    model = models.perceptron(outputs=1)
    batch = batch_of(3, weights=[1.0, 0.0, 1.0])
    variables = model.init(key, batch.inputs)
    objective.check(
        model,
        losses.mean_square_error,
        variables,
        batch._replace(inputs=batch.inputs.at[1].set(jnp.nan), targets=batch.targets.at[1].set(jnp.inf)),
    )
    with pytest.raises(ValueError, match="batch.inputs: expected finite"):
        objective.check(
            model, losses.mean_square_error, variables, batch._replace(inputs=batch.inputs.at[2].set(jnp.nan))
        )


def test_as_in_training_masked_targets_are_left_out_too(key):
    model = models.perceptron(outputs=2)
    targets = jnp.asarray([[1.0, jnp.nan], [2.0, 3.0]])
    batch = Batch(jnp.asarray([[1.0], [2.0]]), targets, jnp.asarray([[1.0, 0.0], [1.0, 2.0]]))
    variables = model.init(key, batch.inputs)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    errors = np.square(kernel[0] * np.asarray(batch.inputs) - np.nan_to_num(targets))
    expected = np.average(errors, weights=batch.weights)
    for train in (False, True):
        of = objective.objective(model, losses.mean_square_error, variables, batch, train=train)
        np.testing.assert_allclose(of(variables["params"]), expected, rtol=1e-5)


def test_noise_in_training_needs_a_key(key):
    model = models.mlp((4,), dropout=0.5)
    batch = batch_of(3)
    variables = model.init(key, batch.inputs)
    objective.check(model, losses.mean_square_error, variables, batch, key=key, train=True)
    with pytest.raises(ValueError, match="train: expected False for a model that draws random numbers .*got True"):
        objective.check(model, losses.mean_square_error, variables, batch, train=True)
