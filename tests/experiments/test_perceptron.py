import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from experiments import perceptron


def test_the_three_steps_by_hand():
    steps = perceptron.follow((1.0, 1.0))
    assert list(steps.values()) == pytest.approx([1, 2, 1 / (1 + np.exp(-2))])
    assert list(perceptron.follow((-1.0, 2.0)).values()) == pytest.approx([-7, -6, 1 / (1 + np.exp(6))])


@pytest.mark.parametrize("hidden", [(), (4,), (4, 5)])
def test_layers_without_a_non_linearity_are_one_perceptron(key, hidden):
    model = nnfx.models.mlp(hidden, outputs=2, activation="identity", bias_initializer="normal")
    inputs = jax.random.normal(key, (7, 3))
    variables = model.init(key, inputs)
    kernel, bias = perceptron.collapse_layers(variables["params"])
    np.testing.assert_allclose(inputs @ kernel + bias[None], model.apply(variables, inputs), rtol=1e-4, atol=1e-5)


def test_points_are_arranged_as_their_names_say():
    points = perceptron.draw_points(0, 4000)
    exclusive_or, labels = points["exclusive or"]
    is_across = (exclusive_or[:, 0] * exclusive_or[:, 1] > 0) == (labels == 1)
    assert is_across.mean() > 0.995, "the product of the two tells"
    ring, labels = points["a ring"]
    assert ((np.linalg.norm(ring, axis=1) < 1) == (labels == 1)).mean() > 0.99, "the distance tells"
    clouds, labels = points["two clouds"]
    assert ((clouds.sum(1) > 0) == (labels == 1)).mean() > 0.97, "a line tells"
    assert np.bincount(points["three spirals"][1]).tolist() == [1334, 1333, 1333]


def test_the_grid_covers_its_square():
    x1, x2, places = perceptron.plane(2.0)
    np.testing.assert_allclose(places.reshape(*x1.shape, 2), np.stack([x1, x2], axis=-1), atol=1e-6)
    assert jnp.abs(places).max() == 2
