import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import erf

import nnfx
from nnfx.insight import tangent, trajectory
from nnfx.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)
MLP = nnfx.models.mlp((5,), 2, activation="tanh")
START = MLP.init(KEY, X)


def tanh_network(flat, x):
    """Return the network written out in NumPy, in float64, from its parameters in the order of `ravel_pytree`."""
    bias, kernel, last_bias, last = np.split(flat, np.cumsum([5, 15, 2]))
    return np.tanh(x @ kernel.reshape(3, 5) + bias) @ last.reshape(5, 2) + last_bias


def derivatives():
    """Return the derivative of each output, `(rows, outputs, parameters)`, by central differences in float64."""
    flat, x = np.asarray(ravel_pytree(START["params"])[0], float), np.asarray(X, float)
    h = 1e-5
    steps = np.eye(len(flat)) * h
    return np.stack([tanh_network(flat + s, x) - tanh_network(flat - s, x) for s in steps], axis=-1) / (2 * h)


def test_the_kernel_is_that_of_finite_differences():
    jacobian = derivatives()
    expected = np.einsum("rip,sjp->rsij", jacobian, jacobian)
    np.testing.assert_allclose(tangent.kernel(MLP, START, X), expected, rtol=1e-4, atol=1e-5)
    between = tangent.kernel(MLP, START, X[:2], X[3:])
    np.testing.assert_allclose(between, expected[:2, 3:], rtol=1e-4, atol=1e-5)


def test_the_linearisation_is_that_of_finite_differences():
    flat, restore = ravel_pytree(START["params"])
    change = RNG.normal(size=flat.size)
    linear = tangent.linearize(MLP, START)
    expected = tanh_network(np.asarray(flat, float), np.asarray(X, float)) + derivatives() @ change
    moved = {"params": restore(flat + jnp.asarray(change, jnp.float32))}
    np.testing.assert_allclose(linear.apply(moved, X), expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, linear.init(jax.random.key(5), X), START)
    outputs, state = linear.apply(moved, X, key=KEY, train=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    assert not state


def test_convolutions_that_lack_a_forward_mode_are_linearised():
    model = nnfx.models.cnn([nnfx.models.conv(2)], outputs=2)
    images = jnp.asarray(RNG.normal(size=(2, 4, 4, 1)), jnp.float32)
    start = model.init(KEY, images)
    flat, restore = ravel_pytree(start["params"])
    change = jax.random.normal(KEY, flat.shape)
    moved = {"params": restore(flat + change)}

    @jax.jit
    def outputs(flat):
        return model.apply({"params": restore(flat)}, images)

    linear = tangent.linearize(model, start)
    jacobian = jax.jit(jax.jacrev(outputs))(flat)
    np.testing.assert_allclose(linear.apply(moved, images), outputs(flat) + jacobian @ change, rtol=1e-4, atol=1e-4)


def test_descent_on_the_linearisation_is_that_of_its_kernel():
    rate, steps = 0.2, 30
    model = nnfx.models.mlp((5,), activation="tanh")
    optimizer = optax.sgd(rate)
    start = nnfx.init_state(KEY, model, optimizer, X)
    linear = tangent.linearize(model, start.variables)
    batch = Batch(X, jnp.asarray(RNG.normal(size=7), jnp.float32), jnp.ones(7))
    step = nnfx.make_step(linear, nnfx.losses.mean_square_error, optimizer)
    end, _ = trajectory.follow(step, start, batch, lambda state: state.step, steps=steps)
    theta = np.asarray(tangent.kernel(model, start.variables, X), float)[:, :, 0, 0]
    first, targets = np.asarray(model.apply(start.variables, X), float)[:, 0], np.asarray(batch.targets, float)
    decay = np.linalg.matrix_power(np.eye(7) - 2 * rate / 7 * theta, steps)
    np.testing.assert_allclose(
        linear.apply(end.variables, X)[:, 0], targets + decay @ (first - targets), rtol=1e-4, atol=1e-4
    )


def test_a_wide_network_has_the_kernel_of_an_infinite_one():
    """Williams 1997 gives the covariances of erf and of its derivative, for weights that are normal, in closed form."""
    width, x = 4000, np.asarray(X[:4], float)
    w, a = RNG.normal(size=(3, width)) / np.sqrt(3), RNG.normal(size=(width, 1)) / np.sqrt(width)
    model = nnfx.models.mlp((width,), activation=jax.lax.erf)
    params = {
        "hidden_0": {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.zeros(width)},
        "output": {"kernel": jnp.asarray(a, jnp.float32), "bias": jnp.zeros(1)},
    }
    found = tangent.kernel(model, {"params": params}, X[:4])[:, :, 0, 0]
    gram = x @ x.T / 3
    around = np.multiply.outer(*[1 + 2 * np.diag(gram)] * 2)
    last = 2 / np.pi * np.arcsin(2 * gram / np.sqrt(around))
    np.testing.assert_allclose(found / width, last, atol=0.04)
    hidden = erf(x @ w)
    first = 4 / np.pi / np.sqrt(around - 4 * gram**2) * (x @ x.T + 1)
    np.testing.assert_allclose(found - 1 - hidden @ hidden.T, first, atol=0.1 * np.abs(first).max())


@pytest.mark.parametrize("look", [tangent.linearize, lambda *args: tangent.kernel(*args, X)])
def test_wrong_arguments_are_named(look):
    with pytest.raises(TypeError, match=r"model: expected a Model\(init, apply\), got None"):
        look(None, START)
    with pytest.raises(ValueError, match="variables: expected variables of a model"):
        look(MLP, START["params"])
    with pytest.raises(ValueError, match="others: expected"):
        tangent.kernel(MLP, START, X, X.at[0, 0].set(jnp.nan))
