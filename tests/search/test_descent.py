"""Hyper-gradient descent: gradients against finite differences, and descents against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice, HyperGradient, LogUniform, Uniform
from nnfx.search.descent import Descent, Scale, scales_of
from nnfx.search.programs import Maker
from nnfx.sweeps.given import mesh_of, table_of
from tests.search.descents import SPACE, make, of_quadratic
from tests.search.searches import KEY, one_row


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def descent_of(fit, data, points, space, seeds=1, steps=3, **options):
    (program,) = Maker(fit).programs(points)
    table = table_of(fit, data, KEY, seeds, None, program.columns, mesh_of(jax.devices()[:1], 1), None)
    return Descent(program, table, scales_of(space, program), HyperGradient(steps, **options), None, None)


def test_the_gradient_is_that_of_the_mean_over_seeds_in_float64():
    """With respect to a rate, the decay of the weights, and the strength of an augmentation."""
    with jax.enable_x64(True):
        passengers = nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)
        space = {name: each for name, each in SPACE.items() if name != "width"}
        points = [{"learning_rate": 0.3, "l2": 0.01, "noise": 0.5}, {"learning_rate": 0.05, "l2": 0.1, "noise": 0.1}]
        train = make()
        descent = descent_of(train, passengers, points, space, seeds=2)
        columns = {name: np.array([point[name] for point in points]) for name in space}
        losses, slopes = descent.slopes(columns)

        keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(2))

        @jax.jit
        @functools.partial(jax.vmap, in_axes=0)
        def mean_loss(numbers):
            return jax.vmap(lambda key: train(key, passengers, **numbers).best.loss)(keys).mean()

        np.testing.assert_allclose(losses, mean_loss(columns), rtol=1e-9)
        for name, column in columns.items():
            h = 1e-5 * column
            above, below = (mean_loss({**columns, name: column + side * h}) for side in (1, -1))
            np.testing.assert_allclose(slopes[name], (above - below) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("bounds", [Uniform(-1.0, 4.0), LogUniform(0.1, 20.0)])
def test_a_descent_follows_adam_on_the_scale_of_the_range(bounds):
    """The reference is Adam of Optax on the closed form."""
    points, low, high = [0.3, 3.0], *np.float64(bounds)
    is_log = isinstance(bounds, LogUniform)
    ends = np.log([low, high]) if is_log else np.array([low, high])
    descent = descent_of(of_quadratic(), one_row(), [{"x": x} for x in points], {"x": bounds}, steps=8, rate=0.1)
    visited = descent.advance(descent.start(), 8, None)

    def at(share):
        position = ends[0] + share * (ends[1] - ends[0])
        return jnp.exp(position) if is_log else position

    shares = (np.log(points) if is_log else np.array(points)) - ends[0]
    shares = jnp.asarray(shares / (ends[1] - ends[0]))
    optimizer = optax.adam(0.1)
    state = optimizer.init(shares)
    for step in range(8):
        np.testing.assert_allclose(visited.values["x"][step], at(shares), rtol=1e-4)
        np.testing.assert_allclose(visited.losses[step], (at(shares) - 1) ** 2 + 0.1, rtol=1e-4)
        gradient = jax.grad(lambda shares: ((at(shares) - 1) ** 2 + 0.1).sum())(shares)
        updates, state = optimizer.update(gradient, state)
        shares = jnp.clip(shares + updates, 0, 1)


def test_numbers_stay_within_their_ranges():
    descent = descent_of(of_quadratic(), one_row(), [{"x": 2.5}], {"x": Uniform(2.0, 3.0)}, steps=20, rate=0.3)
    visited = descent.advance(descent.start(), 20, None)
    assert visited.values["x"].min() == 2.0
    assert visited.best()[0]["x"] == 2.0


def test_points_without_a_finite_gradient_stay_where_they_are(data, nan_is_meant):
    space = {"learning_rate": LogUniform(0.01, 1e38)}
    points = [{"learning_rate": 1e37, "l2": 0.01, "noise": 0.1}, {"learning_rate": 0.02, "l2": 0.01, "noise": 0.1}]
    descent = descent_of(make(), data, points, {**space, "l2": Choice(0.01), "noise": Choice(0.1)}, steps=2, rate=0.01)
    visited = descent.advance(descent.start(), 2, None)
    first, second = visited.values["learning_rate"]
    np.testing.assert_allclose(first[0], second[0], rtol=1e-4)
    assert second[1] > 1.5 * first[1]
    assert np.isfinite(visited.losses[:, 1]).all()


def test_a_scale_maps_its_range_onto_0_to_1():
    for bounds in (Uniform(-2.0, 6.0), LogUniform(1e-3, 10.0)):
        scale, shares = Scale(bounds), np.linspace(0, 1, 5)
        values = scale.value(shares)
        np.testing.assert_allclose(values[[0, -1]], bounds)
        np.testing.assert_allclose(scale.share(values), shares, atol=1e-12)
        h = 1e-6
        central = (scale.value(shares[1:-1] + h) - scale.value(shares[1:-1] - h)) / (2 * h)
        np.testing.assert_allclose(scale.slope(values[1:-1], np.ones(3)), central, rtol=1e-6)
