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
