import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.decomposition

import nnfx
from nnfx import losses, mapping, models
from nnfx.insight import landscape, objective
from nnfx.types import Batch

KEY = jax.random.key(2)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(13, 3)), RNG.normal(size=13)
BATCH = Batch(jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32), jnp.asarray(RNG.uniform(size=13), jnp.float32))
MSE = losses.mean_square_error
LINEAR, DEEP = models.perceptron(), models.mlp((5, 4), activation="tanh")
IMAGES = Batch(jnp.asarray(RNG.normal(size=(6, 6, 6, 1)), jnp.float32), jnp.arange(6, dtype=jnp.int32) % 3, jnp.ones(6))
CNN = models.cnn([models.conv(4), models.max_pool()], 3, batch_norm=True)


def solutions(model, batch, count, first=0):
    return [model.init(jax.random.key(first + i), batch.inputs)["params"] for i in range(count)]


def flat(params):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def moved(cut, point):
    return jax.tree.map(lambda w, d: w + sum(a * d[i] for i, a in enumerate(point)), cut.origin, cut.directions)


# measure


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_grid_is_a_loop_over_its_points(devices):
    params = DEEP.init(KEY, X)["params"]
    cut = landscape.random_cut(KEY, params)
    x, y = jnp.linspace(-1, 1, 4), jnp.linspace(-2, 1, 5)
    options = {"devices": jax.devices()[:devices]}
    found = landscape.measure(DEEP, MSE, {"params": params}, BATCH, cut, x, y, **options)
    assert found.losses.shape == (4, 5)
    outputs_at = jax.jit(lambda point: DEEP.apply({"params": moved(cut, point)}, BATCH.inputs))
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            outputs = outputs_at((a, b))
            expected = np.average((np.asarray(outputs)[:, 0] - Y) ** 2, weights=BATCH.weights)
            np.testing.assert_allclose(found.losses[i, j], expected, rtol=2e-5)


@pytest.mark.slow
def test_many_examples_are_unrolled_and_a_loop_all_the_same():
    data = nnfx.data.titanic("fare", "age")
    loss, model = losses.binary_cross_entropy, nnfx.models.mlp((3,), activation="tanh")
    variables = model.init(KEY, data.train.inputs[:1])
    assert objective.at_once(variables["params"], data.train) == 1 < objective.unroll(variables["params"], data.train)
    cut = landscape.random_cut(KEY, variables["params"], axes=1)
    x = np.linspace(-1, 1, 5)
    found = landscape.measure(model, loss, variables, data.train, cut, x, devices=jax.devices()[:2])
    for a, each in zip(x, found.losses, strict=True):
        logits = model.apply({"params": moved(cut, (a,))}, data.train.inputs)
        np.testing.assert_allclose(each, loss(logits, data.train.targets).mean(), rtol=1e-5)


def test_the_landscape_of_a_linear_model_is_the_closed_form_s_parabola():
    variables = LINEAR.init(KEY, X)
    cut = landscape.through(*solutions(LINEAR, BATCH, 3))
    x, y = np.linspace(-2, 2, 7), np.linspace(-3, 1, 6)
    found = landscape.measure(LINEAR, MSE, variables, BATCH, cut, x, y)
    inputs = np.concatenate([np.ones((13, 1)), X], axis=1)  # the bias comes first
    weights = np.asarray(BATCH.weights, np.float64) / np.asarray(BATCH.weights, np.float64).sum()
    directions = np.stack([flat(jax.tree.map(lambda d, i=i: d[i], cut.directions)) for i in range(2)])
    w0 = flat(cut.origin)
    hessian, slope = 2 * (inputs.T * weights) @ inputs, 2 * (inputs.T * weights) @ (inputs @ w0 - Y)
    least = weights @ (inputs @ w0 - Y) ** 2
    moves = np.stack(np.meshgrid(x, y, indexing="ij"), -1) @ directions
    expected = least + moves @ slope + np.einsum("xyi,ij,xyj->xy", moves, hessian, moves) / 2
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_line_leads_from_one_solution_to_the_other():
    ends = solutions(CNN, IMAGES, 2)
    variables = {**CNN.init(KEY, IMAGES.inputs), "params": ends[0]}
    cut = landscape.through(*ends)
    found = landscape.measure(CNN, losses.categorical_cross_entropy, variables, IMAGES, cut, [0, 1, 2])
    assert found.y is None
    for i, end in enumerate(ends):
        logits = CNN.apply({**variables, "params": end}, IMAGES.inputs)
        expected = losses.categorical_cross_entropy(logits, IMAGES.targets).mean()
        np.testing.assert_allclose(found.losses[i], expected, rtol=1e-5)


@pytest.mark.slow
def test_in_training_each_point_is_normalised_by_its_own_batch():
    variables = CNN.init(KEY, IMAGES.inputs)
    cut = landscape.through(variables["params"], *solutions(CNN, IMAGES, 1, first=7))
    loss = losses.categorical_cross_entropy
    found = landscape.measure(CNN, loss, variables, IMAGES, cut, [0.5], train=True, devices=jax.devices()[:1])
    there = {**variables, "params": moved(cut, (0.5,))}
    logits, _ = CNN.apply(there, IMAGES.inputs, train=True)
    np.testing.assert_allclose(found.losses[0], loss(logits, IMAGES.targets).mean(), rtol=1e-5)
    np.testing.assert_raises(
        AssertionError,
        np.testing.assert_allclose,
        found.losses,
        loss(CNN.apply(there, IMAGES.inputs), IMAGES.targets).mean(),
        1e-3,
    )


def test_one_trace_serves_all_points_and_other_cuts():
    traces = []

    def apply(variables, x, **_):
        traces.append(1)
        return LINEAR.apply(variables, x)

    model = nnfx.Model(LINEAR.init, apply)
    variables = LINEAR.init(KEY, X)
    for seed in range(3):
        cut = landscape.random_cut(jax.random.key(seed), variables["params"], axes=1)
        landscape.measure(model, MSE, variables, BATCH, cut, jnp.linspace(-seed, 1, 9), devices=jax.devices()[:2])
    assert len(traces) == 2, "one to check the shapes, and one to compile"


def test_devices_have_nothing_to_say_to_each_other():
    params = DEEP.init(KEY, X)["params"]
    devices = tuple(jax.devices()[:4])
    shared = mapping.on_devices(({"params": params}, BATCH, None, landscape.random_cut(KEY, params)), devices)
    coordinates = jnp.ones(5), jnp.ones(3)
    program = landscape._losses.lower(DEEP, MSE, False, 2, 1, devices, shared, coordinates).compile()
    assert not re.findall(r"all-\w+|collective-\w+|reduce-scatter", program.as_text())
    assert "partition" in program.as_text(), "it is one program for several devices"


# random_cut


def test_random_filters_are_as_long_as_the_network_s_own():
    params = CNN.init(KEY, IMAGES.inputs)["params"]
    cut = landscape.random_cut(KEY, params)
    kernel, directions = params["conv_0"]["kernel"], cut.directions["conv_0"]["kernel"]
    assert directions.shape == (2, *kernel.shape)
    for direction in directions:
        for unit in range(4):
            np.testing.assert_allclose(
                np.linalg.norm(direction[..., unit]), np.linalg.norm(kernel[..., unit]), rtol=1e-5
            )
    assert not np.allclose(directions[0], directions[1])
    for leaf in jax.tree.leaves(cut.directions):
        assert (leaf == 0).all() == (leaf.ndim == 2), "biases and the numbers of batch norm stay"
    jax.tree.map(np.testing.assert_array_equal, cut.origin, params)


def test_random_directions_are_gaussian():
    params = {"kernel": jnp.ones((50, 400))}
    direction = np.asarray(landscape.random_cut(KEY, params, axes=1).directions["kernel"])
    assert abs(direction.mean()) < 4 / np.sqrt(direction.size)
    assert abs((direction**2).mean() - 1) < 0.01
    kurtosis = (direction**4).mean()
    assert abs(kurtosis - 3 * 50 / 52) < 0.15, "that of a coordinate on a sphere of 50 dimensions"


# principal_cut


def test_principal_directions_are_those_of_scikit_learn():
    shapes = DEEP.init(KEY, X)["params"]
    _, restore = jax.flatten_util.ravel_pytree(shapes)
    steps = RNG.normal(size=(20, flat(shapes).size)).cumsum(0) * np.linspace(2, 0.1, flat(shapes).size)
    path = jax.vmap(restore)(jnp.asarray(steps, jnp.float32))
    cut = landscape.principal_cut(path)
    pca = sklearn.decomposition.PCA(2).fit(steps)
    found = np.stack([flat(jax.tree.map(lambda d, i=i: d[i], cut.directions)) for i in range(2)])
    np.testing.assert_allclose(np.abs((found * pca.components_).sum(1)), 1, rtol=1e-4)
    np.testing.assert_allclose(cut.captured, pca.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(cut.places, (steps - steps[-1:]) @ found.T, rtol=1e-3, atol=1e-3)
    assert (cut.places[0] <= 0).all()
    np.testing.assert_allclose(flat(cut.origin), steps[-1], rtol=1e-5)


def test_a_path_in_a_plane_is_met_by_its_landscape():
    start = LINEAR.init(KEY, X)["params"]
    path = [start]
    for i in range(6):
        path.append(jax.tree.map(lambda w, i=i: w + jnp.cos(i + w), path[-1]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *path[:3])
    cut = landscape.principal_cut(stacked)  # three points lie in a plane
    np.testing.assert_allclose(cut.captured.sum(), 1, rtol=1e-5)
    for place, params in zip(cut.places, path, strict=False):
        np.testing.assert_allclose(flat(moved(cut, place)), flat(params), atol=1e-5)


# through


def test_a_plane_keeps_lengths_and_angles():
    three = solutions(DEEP, BATCH, 3)
    cut = landscape.through(*three)
    for i in range(3):
        np.testing.assert_allclose(flat(moved(cut, cut.places[i])), flat(three[i]), atol=1e-5)
        for j in range(3):
            apart = np.linalg.norm(flat(three[i]) - flat(three[j]))
            np.testing.assert_allclose(np.linalg.norm(cut.places[i] - cut.places[j]), apart, rtol=1e-4)
    assert cut.places[1, 1] == pytest.approx(0, abs=1e-5)
    assert cut.places[2, 1] > 0


# errors

PARAMS = LINEAR.init(KEY, X)["params"]
LINE = landscape.random_cut(KEY, PARAMS, axes=1)
PLANE = landscape.random_cut(KEY, PARAMS)
STACK = {"kernel": jnp.ones((4, 3, 1))}


def measure(cut=LINE, x=(0.0, 1.0), y=None, **changes):
    arguments = {"model": LINEAR, "loss": MSE, "variables": {"params": PARAMS}, "batch": BATCH} | changes
    return landscape.measure(**arguments, cut=cut, x=x, y=y)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: measure(cut=PARAMS), TypeError, "cut: expected a Cut"),
        (lambda: measure(cut=PLANE), ValueError, "y: expected coordinates in a plane"),
        (lambda: measure(y=[0.0]), ValueError, "y: expected None on a line"),
        (lambda: measure(x=0.5), ValueError, r"x: expected at least one coordinate, \(x,\)"),
        (lambda: measure(x=[]), ValueError, r"x: .*at least one coordinate, .* got float32\[0\]"),
        (lambda: measure(x=[0, jnp.inf]), ValueError, "x: expected finite"),
        (lambda: measure(cut=PLANE, y=[jnp.nan]), ValueError, "y: expected finite"),
        (
            lambda: measure(model=DEEP, variables=DEEP.init(KEY, X)),
            ValueError,
            "cut: expected a cut through",
        ),
        (lambda: measure(batch=BATCH._replace(weights=jnp.zeros(13))), ValueError, "batch.weights: .*positive"),
        (lambda: measure(variables={"params": {**PARAMS, "bias": jnp.array([jnp.nan])}}), ValueError, "bias: expected"),
        (lambda: landscape.random_cut(0, PARAMS), TypeError, "key: expected a typed key"),
        (lambda: landscape.random_cut(KEY, PARAMS, axes=3), ValueError, "axes: expected 1 or 2, got 3"),
        (lambda: landscape.random_cut(KEY, {"bias": jnp.ones(3)}), ValueError, "params: expected an array of filters"),
        (lambda: landscape.principal_cut(STACK), ValueError, "path: expected at least two different points"),
        (lambda: landscape.principal_cut({"w": jnp.eye(2)}), ValueError, "path: expected .* more than 2 places"),
        (lambda: landscape.principal_cut(STACK | {"b": jnp.ones(3)}), ValueError, r"path: .*\[\(3,\), \(4,\)\]"),
        (lambda: landscape.through(PARAMS), TypeError, "solutions: expected two or three, got 1"),
        (lambda: landscape.through(PARAMS, PARAMS), ValueError, "solutions: expected two different solutions"),
        (lambda: landscape.through(PARAMS, STACK), ValueError, r"solutions\[1\]: expected the shapes of the first"),
        (
            lambda: landscape.through(*(jax.tree.map(lambda w, a=a: a + w, PARAMS) for a in (0, 1, 2))),
            ValueError,
            "solutions: expected three that do not lie on a line",
        ),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
