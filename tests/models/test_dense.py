import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import activations, models

pytestmark = pytest.mark.usefixtures("strict_dtypes")

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def test_the_perceptron_by_hand(key):
    model = models.perceptron(outputs=2, activation="tanh")
    variables = model.init(key, X)
    w, b = np.asarray(variables["params"]["kernel"]), np.array([0.5, -1.0], np.float32)
    params = {"kernel": jnp.asarray(w), "bias": jnp.asarray(b)}
    np.testing.assert_allclose(model.apply({"params": params}, X), np.tanh(X @ w + b), rtol=1e-5)


def test_the_course_s_example():
    model = models.perceptron(activation="sigmoid")
    params = {"kernel": jnp.array([[3.0], [-2.0]]), "bias": jnp.array([1.0])}
    output = model.apply({"params": params}, jnp.array([[-1.0, 2.0]]))
    np.testing.assert_allclose(output, [[1 / (1 + np.exp(6.0))]], rtol=1e-5)


def test_a_deep_network_by_hand(key):
    model = models.mlp(hidden=(5, 4), outputs=2, activation="tanh", bias_initializer="normal")
    variables = model.init(key, X)
    p = jax.tree.map(np.asarray, variables["params"])
    h = X
    for name in ("hidden_0", "hidden_1"):
        h = np.tanh(h @ p[name]["kernel"] + p[name]["bias"])
    expected = h @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(model.apply(variables, X), expected, rtol=1e-4)


def test_a_network_of_linear_activations_is_one_linear_map(key):
    model = models.mlp(hidden=(5, 4), activation="identity")
    variables = model.init(key, X)
    middle = model.apply(variables, (X[:1] + X[1:2]) / 2)
    ends = model.apply(variables, X[:2])
    np.testing.assert_allclose(middle, ends.mean(0, keepdims=True), rtol=1e-5)


def test_maxout_has_k_affine_pieces_a_unit(key):
    model = models.mlp(hidden=(5,), activation=functools.partial(activations.maxout, pieces=3))
    params = model.init(key, X)["params"]
    assert params["hidden_0"]["kernel"].shape == (3, 15)
    assert params["output"]["kernel"].shape == (5, 1)
    by_hand = (X @ params["hidden_0"]["kernel"]).reshape(6, 5, 3).max(-1) @ params["output"]["kernel"]
    np.testing.assert_allclose(model.apply({"params": params}, X), by_hand, rtol=1e-4)


def test_images_are_flattened(key):
    model = models.mlp(hidden=(5,), outputs=2)
    images = jnp.ones((4, 8, 8, 3))
    variables = model.init(key, images)
    assert variables["params"]["hidden_0"]["kernel"].shape == (192, 5)
    assert model.apply(variables, images).shape == (4, 2)


def test_dropout_acts_in_training_alone(key):
    model = models.mlp(hidden=(50,), dropout=0.5)
    variables = model.init(key, X)
    plain = models.mlp(hidden=(50,)).apply(variables, X)
    np.testing.assert_array_equal(model.apply(variables, X), plain)
    trained, state = model.apply(variables, X, key=key, train=True)
    assert not np.allclose(trained, plain)
    assert state == {}
    again, _ = model.apply(variables, X, key=jax.random.key(1), train=True)
    assert not np.allclose(trained, again)


def test_the_dropout_rate_may_be_traced(key):
    def output(rate):
        model = models.mlp(hidden=(50,), dropout=rate)
        return model.apply(model.init(key, X), X, key=key, train=True)[0]

    mapped = jax.jit(jax.vmap(output))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(mapped[0], output(0.0), rtol=1e-5)
    np.testing.assert_allclose(mapped[1], output(0.5), rtol=1e-5)


SPREADS = {
    "normal": 1.0,
    "lecun_normal": np.sqrt(1 / 400),
    "lecun_uniform": np.sqrt(1 / 400),
    "he_normal": np.sqrt(2 / 400),
    "he_uniform": np.sqrt(2 / 400),
    "glorot_normal": np.sqrt(2 / 700),
    "glorot_uniform": np.sqrt(2 / 700),
    "orthogonal": np.sqrt(1 / 400),
    "torch_uniform": np.sqrt(1 / 400 / 3),  # of U(±1/√400)
    "zeros": 0.0,
}


@pytest.mark.parametrize("name", SPREADS)
def test_the_spread_of_the_initial_weights_is_the_published_one(key, name):
    kernel = models.perceptron(outputs=300, initializer=name).init(key, jnp.ones((1, 400)))["params"]["kernel"]
    assert abs(np.asarray(kernel).std() - SPREADS[name]) <= 0.02 * SPREADS[name]
    if name == "orthogonal":
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(300), atol=1e-4)


def test_a_chosen_scale(key):
    initializer = jax.nn.initializers.normal(0.2)
    kernel = models.perceptron(outputs=300, initializer=initializer).init(key, jnp.ones((1, 400)))["params"]["kernel"]
    assert abs(np.asarray(kernel).std() - 0.2) < 0.004
