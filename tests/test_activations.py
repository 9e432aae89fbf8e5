import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import activations

CLOSED_FORMS = {
    "identity": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "softplus": lambda x: math.log(1 + math.exp(x)),
    # JAX's default is the tanh approximation of Hendrycks and Gimpel
    "gelu": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def test_every_name_has_a_closed_form_here():
    assert set(activations.names()) == {*CLOSED_FORMS, "maxout"}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_values_and_slopes_are_those_of_the_closed_form(name, strict_dtypes):
    points = np.array([-3.0, -0.7, 0.4, 2.5])
    with jax.enable_x64(True):
        x = jnp.asarray(points)
        values = activations.get(name)(x)
        slopes = jax.vmap(jax.grad(activations.get(name)))(x)
        assert values.dtype == jnp.float64
    formula, h = CLOSED_FORMS[name], 1e-6
    np.testing.assert_allclose(values, [formula(v) for v in points], rtol=1e-12)
    np.testing.assert_allclose(slopes, [(formula(v + h) - formula(v - h)) / (2 * h) for v in points], rtol=1e-7)


def test_maxout_is_the_largest_of_the_affine_pieces(strict_dtypes):
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 4, 2)), rng.normal(size=(4, 2))
    by_hand = np.maximum(x @ w[:, :, 0] + b[:, 0], x @ w[:, :, 1] + b[:, 1])
    pre_activations = (np.einsum("bi,iuk->buk", x, w) + b).reshape(5, 8)
    np.testing.assert_allclose(activations.maxout(jnp.asarray(pre_activations, jnp.float32)), by_hand, rtol=1e-5)


@pytest.mark.parametrize("rows", [16, 201])
def test_the_gradient_of_maxout_behind_a_product(rows):
    """The gradient of `jnp.max` is infinite here at LLVM's level 0, and loses rows in jaxlib 0.12.0.1 on some CPUs."""
    x = np.linspace(-1, 1, rows)[:, None].astype(np.float32)
    kernel, bias = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)

    def loss(kernel, bias):
        return ((activations.maxout(x @ kernel[None] + bias[None], 6) - x**2) ** 2).mean()

    pieces = x.astype(np.float64) * kernel + bias
    errors = pieces.max(1, keepdims=True) - x**2
    by_hand = (2 * errors / rows * (pieces == pieces.max(1, keepdims=True))).sum(0)
    np.testing.assert_allclose(jax.jit(jax.grad(loss, argnums=1))(kernel, bias), by_hand, rtol=1e-4, atol=1e-6)


def test_maxout_can_be_relu_and_the_absolute_value():
    x = jnp.array([[-2.0], [3.0]])
    assert activations.maxout(jnp.concatenate([x, 0 * x], 1)).tolist() == jax.nn.relu(x).tolist()
    assert activations.maxout(jnp.concatenate([x, -x], 1)).tolist() == jnp.abs(x).tolist()


def test_a_slope_is_chosen_with_partial():
    steep = activations.get(functools.partial(activations.leaky_relu, negative_slope=0.5))
    assert steep(jnp.array([-2.0])).tolist() == [-1.0]


def test_functions_pass_through():
    assert activations.get(jnp.sin) is jnp.sin
    assert activations.pieces(jnp.sin) == 1


@pytest.mark.parametrize(
    "dtype", [*(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (jnp.float16, jnp.bfloat16)), jnp.float32]
)
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_values_and_slopes_far_out_are_those_of_the_asymptotes(name, dtype):
    """Every activation is affine or constant there."""
    largest = float(jnp.finfo(dtype).max)
    x = jnp.array([-jnp.inf, -largest, -1e3, 1e3, largest, jnp.inf], dtype)
    left = {"identity": (1, 0), "tanh": (0, -1), "elu": (0, -1), "leaky_relu": (0.01, 0)}.get(name, (0, 0))
    right = {"sigmoid": (0, 1), "tanh": (0, 1)}.get(name, (1, 0))
    values, slopes = activations.get(name)(x), jax.vmap(jax.grad(activations.get(name)))(x)
    for side, (slope, height) in ((slice(3), left), (slice(3, None), right)):
        expected = np.asarray(x[side], np.float64) * slope + height if slope else np.full(3, height)
        np.testing.assert_allclose(np.asarray(values[side], np.float64), expected, rtol=1e-2)
        np.testing.assert_allclose(np.asarray(slopes[side], np.float64), slope, rtol=1e-2)


@pytest.mark.parametrize("name", ["gelu", pytest.param("silu", marks=pytest.mark.slow)])
def test_the_bits_are_those_of_jax_where_it_has_slopes(name):
    x = jnp.linspace(-200, 200, 4001)
    np.testing.assert_array_equal(activations.get(name)(x), getattr(jax.nn, name)(x))
    ours, theirs = (jax.vmap(jax.grad(f))(x) for f in (activations.get(name), getattr(jax.nn, name)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-37)
