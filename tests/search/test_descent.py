"""Hyper-gradient descent: gradients against finite differences, descents against a loop, and what cannot descend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice, HyperGradient, Integer, LogUniform, Uniform, search
from nnfx.search.descent import Descent, Scale, scales_of
from nnfx.search.programs import Maker
from nnfx.sweeps.given import mesh_of, table_of
from tests.search.searches import cut_at, same
from tests.sessions.sessions import CutError

KEY = jax.random.key(0)
FAST = {"key": KEY, "devices": jax.devices()[:1]}
SPACE = {
    "width": Choice(2),
    "learning_rate": LogUniform(0.01, 1.0),
    "l2": LogUniform(1e-4, 0.1),
    "noise": Uniform(0.0, 1.0),
}


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@functools.cache
def make(width=2, stop=None, model=None):
    return nnfx.fit(
        model or nnfx.models.mlp(hidden=(width,), activation="tanh"),
        nnfx.losses.binary_cross_entropy,
        optax.sgd,
        epochs=2,
        batch_size=200,
        penalty=nnfx.regularizers.l2,
        augment=nnfx.augment.gaussian_noise,
        stop=stop,
    )


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


def quadratic(x):
    """Return a model whose squared output is `(x − 1)² + 0.1`, whatever its weight."""

    def apply(variables, inputs, train=False, **_):
        outputs = jnp.sqrt((x - 1) ** 2 + 0.1) * jnp.ones(len(inputs)) + 0 * variables["params"]["w"]
        return (outputs, {}) if train else outputs

    return nnfx.Model(lambda key, inputs: {"params": {"w": jnp.zeros(())}}, apply)


@functools.cache
def of_quadratic():
    return nnfx.fit(quadratic, nnfx.losses.mean_square_error, functools.partial(optax.sgd, 0.1), epochs=1)


@pytest.fixture(scope="module")
def zeros():
    row = np.zeros((1, 1)), np.zeros(1)
    return nnfx.data.prepare(*row, valid=row, standardize=False)


@pytest.mark.parametrize("bounds", [Uniform(-1.0, 4.0), LogUniform(0.1, 20.0)])
def test_a_descent_follows_adam_on_the_scale_of_the_range(zeros, bounds):
    """The reference is Adam of Optax on the closed form."""
    points, low, high = [0.3, 3.0], *np.float64(bounds)
    is_log = isinstance(bounds, LogUniform)
    ends = np.log([low, high]) if is_log else np.array([low, high])
    descent = descent_of(of_quadratic(), zeros, [{"x": x} for x in points], {"x": bounds}, steps=8, rate=0.1)
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


def test_the_best_point_of_each_descent_is_trained(zeros):
    given = {"key": KEY, "devices": jax.devices()[:1], "method": HyperGradient(steps=30, rate=0.05)}
    found = search(of_quadratic(), zeros, {"x": Uniform(-1.0, 4.0)}, points=3, **given)
    assert len(found.points) == 3
    np.testing.assert_allclose([point["x"] for point in found.points], 1.0, atol=0.05)
    np.testing.assert_allclose([row["valid_loss"] for row in found.rows], 0.1, atol=0.003)


def test_numbers_stay_within_their_ranges(zeros):
    descent = descent_of(of_quadratic(), zeros, [{"x": 2.5}], {"x": Uniform(2.0, 3.0)}, steps=20, rate=0.3)
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


def test_a_search_that_was_killed_ends_with_the_same_bits(data, tmp_path):
    given = {"points": 3, "method": HyperGradient(steps=3), **FAST}
    found = search(make, data, SPACE, **given)
    starts = search(make, data, SPACE, points=3, **FAST)
    assert [point["width"] for point in found.points] == [point["width"] for point in starts.points]
    losses = [{row["point"]: row["valid_loss"] for row in each.rows} for each in (found, starts)]
    assert all(losses[0][number] <= losses[1][number] + 1e-6 for number in range(3))
    assert any(losses[0][number] < losses[1][number] - 1e-4 for number in range(3))
    kept = {**given, "out": tmp_path, "progress": False, "save_every_seconds": 0}
    for _ in range(2):  # during the descent, and then during the training of the best points
        with pytest.raises(CutError):
            search(make, data, SPACE, **kept, on_chunk=cut_at(2))
    same(search(make, data, SPACE, **kept), found)
    assert {path.name for path in tmp_path.iterdir()} >= {"descent", "members.csv"}
    with pytest.raises(ValueError, match="expected the search that is saved there, got another"):
        search(make, data, SPACE, **{**kept, "method": HyperGradient(steps=3, rate=0.1)})


def test_a_scale_maps_its_range_onto_0_to_1():
    for bounds in (Uniform(-2.0, 6.0), LogUniform(1e-3, 10.0)):
        scale, shares = Scale(bounds), np.linspace(0, 1, 5)
        values = scale.value(shares)
        np.testing.assert_allclose(values[[0, -1]], bounds)
        np.testing.assert_allclose(scale.share(values), shares, atol=1e-12)
        h = 1e-6
        central = (scale.value(shares[1:-1] + h) - scale.value(shares[1:-1] - h)) / (2 * h)
        np.testing.assert_allclose(scale.slope(values[1:-1], np.ones(3)), central, rtol=1e-6)


def looping():
    """Return a model with a loop that cannot be differentiated."""
    inner = nnfx.models.mlp((2,))

    def apply(variables, inputs, **options):
        inputs = jax.lax.while_loop(lambda x: (x < 0).all(), lambda x: x + variables["params"]["shift"], inputs)
        return inner.apply({"params": variables["params"]["inner"]}, inputs, **options)

    def init(key, inputs):
        return {"params": {"inner": inner.init(key, inputs)["params"], "shift": jnp.ones(())}}

    return nnfx.Model(init, apply)


RATE = {"learning_rate": LogUniform(0.01, 1.0), "l2": Choice(0.1), "noise": Choice(0.1)}
WRONG = [
    ({"method": HyperGradient(0)}, ValueError, "steps: expected a positive integer, got 0"),
    ({"method": HyperGradient(2, 0.0)}, ValueError, "rate: expected a finite number above 0, got 0"),
    ({"devices_per_member": 2}, ValueError, "devices_per_member: expected 1 with HyperGradient, got 2"),
    ({"points": None}, TypeError, "points: expected how many to draw, Grid.*, got none"),
    ({"points": 2, "budget": 100}, TypeError, "points: expected none, since the budget decides how many"),
    ({"points": None, "budget": 13}, ValueError, "budget: expected at least 14 member-epochs, .*2 steps .*, got 13"),
    ({"space": None}, TypeError, "space: expected ranges by name"),
    (
        {"space": {**RATE, "learning_rate": Choice(0.1, 0.2), "width": Integer(1, 2)}},
        TypeError,
        "space: expected Uniform or LogUniform for at least one hyper-parameter .*, got learning_rate, l2, noise with",
    ),
    (
        {"space": {**RATE, "noise": Uniform(-1.0, 5.0)}, "points": [{}]},
        TypeError,
        r"learning_rate: expected Choice\(value\), since the points",
    ),
    ({"space": {**RATE, "noise": Uniform(-1.0, 1e9)}}, ValueError, "noise: expected .* at least 0, got -"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_what_is_wrong_is_said_before_anything_is_trained(data, changed, error, message, monkeypatch):
    monkeypatch.setattr(nnfx.search.training.Trainer, "descend", None)
    given = {"space": RATE, "points": 2, "method": HyperGradient(2), **FAST, **changed}
    with pytest.raises(error, match=message):
        search(make, data, given.pop("space"), **given)


def test_runs_that_cannot_be_differentiated_are_errors(data, monkeypatch):
    monkeypatch.setattr(nnfx.search.training.Trainer, "descend", None)
    given = {"points": 2, "method": HyperGradient(2), **FAST}
    with pytest.raises(ValueError, match="make: expected runs without stopping rules, since .*, got patience"):
        search(make(stop=functools.partial(nnfx.stopping.patience, patience=3)), data, RATE, **given)
    with pytest.raises(ValueError, match="make: expected runs that can be differentiated, got one with jax.lax.while"):
        search(make(model=looping()), data, RATE, **given)
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    with pytest.raises(ValueError, match="data.valid: expected held-out data to rank points by, got none"):
        search(make, whole, RATE, **given)
