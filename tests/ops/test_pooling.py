from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nnfx import ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GEOMETRIES = {
    "tiles": ((2, 8, 6, 3), 2, {}),
    "tiles that leave some out": ((2, 7, 8, 3), (2, 3), {}),
    "same, odd": ((2, 7, 7, 3), 2, {"padding": "SAME"}),
    "overlapping": ((2, 9, 8, 2), 3, {"strides": 2, "padding": "SAME"}),
    "every place": ((2, 5, 6, 2), 3, {"strides": 1, "padding": "SAME"}),
    "one axis at a time": ((2, 9, 8, 2), (5, 3), {"strides": (2, 1), "padding": "SAME"}),
    "all": ((2, 6, 5, 2), (6, 5), {}),
    "gaps": ((2, 8, 8, 2), 2, {"strides": 3}),
    "pairs": ((2, 6, 6, 2), 3, {"padding": [(1, 2), (0, 1)], "strides": 2}),
    "series": ((3, 9, 2), 2, {}),
    "series, overlapping": ((3, 9, 2), 4, {"strides": 2, "padding": "SAME"}),
}
POOLS = {
    "max": (ops.max_pool, nn.max_pool, {}),
    "mean": (ops.avg_pool, nn.avg_pool, {}),
    "mean of what is there": (ops.avg_pool, nn.avg_pool, {"count_include_pad": False}),
}

A_FEW = [
    ("max", "same, odd"),
    ("max", "one axis at a time"),
    ("mean of what is there", "same, odd"),
    pytest.param(("mean of what is there", "one axis at a time"), marks=pytest.mark.slow),
]


# Strides, paddings and gaps of every kind; the other shapes, of the same kinds, are slow tests.
SHAPES = {"tiles that leave some out", "same, odd", "one axis at a time", "gaps", "pairs", "series, overlapping"}


def case_of(pool, shape):
    """Return a case, marked slow if it repeats another: without padding, the mean is over whole windows."""
    repeats = pool == "mean of what is there" and "padding" not in GEOMETRIES[shape][2]
    is_slow = repeats or shape not in SHAPES
    return pytest.param((pool, shape), id=f"{pool}-{shape}", marks=pytest.mark.slow if is_slow else ())


@pytest.fixture(params=[case_of(p, g) for p in POOLS for g in GEOMETRIES], name="case")
def make_case(request):
    """Return inputs with many ties, our pooling, and that of Flax."""
    pool, shape = request.param
    ours, theirs, options = POOLS[pool]
    inputs_shape, window, keywords = GEOMETRIES[shape]
    axes = len(inputs_shape) - 2
    pair = [(x,) * axes if isinstance(x, int) else x for x in (window, keywords.get("strides", window))]
    padding = keywords.get("padding", "VALID")
    inputs = np.random.default_rng(0).normal(size=inputs_shape).round().astype(np.float32)
    return (
        inputs,
        lambda x: ours(x, window, **keywords, **options),
        lambda x: theirs(x, pair[0], strides=pair[1], padding=padding, **options),
    )


def wave(pool):
    """Reduce the pool's values to a scalar whose gradient distinguishes all of them."""

    def value(x):
        y = pool(x)
        return (jnp.sin(y) * jnp.arange(1.0, 1 + y.size, dtype=y.dtype).reshape(y.shape)).sum()

    return value


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_numbers_and_gradients_are_those_of_flax(case):
    inputs, ours, theirs = case

    def numbers(pool):
        return jax.jit(lambda x: (pool(x), jax.grad(wave(pool))(x)))(inputs)

    with jax.numpy_dtype_promotion("standard"):  # Flax's mean divides by a NumPy integer
        value, gradient = numbers(theirs)
    found, slope = numbers(ours)
    assert_close(found, value)
    assert_close(slope, gradient)


@pytest.mark.parametrize(
    "case", [A_FEW[1], *(pytest.param(case, marks=pytest.mark.slow) for case in (A_FEW[0], A_FEW[2]))], indirect=True
)
def test_derivatives_of_both_orders_and_modes(case):
    inputs, ours, _ = case
    with jax.enable_x64(True):
        distinct = jnp.asarray(np.random.default_rng(0).permutation(inputs.size), jnp.float64).reshape(inputs.shape)
        check_grads(jax.jit(wave(ours)), (distinct / 10,), order=2)


@pytest.mark.parametrize("case", [A_FEW[0], pytest.param(A_FEW[1], marks=pytest.mark.slow), *A_FEW[2:]], indirect=True)
def test_mapped_and_in_a_loop_as_one_by_one(case):
    inputs, ours, _ = case
    gradient = jax.jit(jax.value_and_grad(wave(ours)))
    stack = np.stack([inputs, -inputs, inputs + 1], 1)
    mapped = jax.device_get(jax.jit(jax.vmap(gradient, 1))(stack))
    looped = jax.device_get(jax.jit(lambda xs: lax.map(gradient, xs))(np.moveaxis(stack, 1, 0)))
    for i, single in enumerate(map(gradient, (inputs, -inputs, inputs + 1))):
        for many in (mapped, looped):
            for actual, expected in zip(many, single, strict=True):
                assert_close(actual[i], expected)


def winners(inputs, window):
    return np.asarray(jax.jit(jax.grad(lambda x: ops.max_pool(x, window).sum()))(inputs))


def test_one_winner_in_each_window_the_first_in_row_major_order():
    for window in (2, 4):  # at once, and one axis at a time
        gradient = winners(jnp.ones((1, 8, 8, 1)), window)
        expected = np.zeros((8, 8))
        expected[::window, ::window] = 1
        np.testing.assert_array_equal(gradient[0, :, :, 0], expected)
    columns = jnp.array([[0.0, 1.0, 1.0, 0.0]]).repeat(4, 0).reshape(1, 4, 4, 1)
    assert np.argwhere(winners(columns, 4)[0, :, :, 0]).tolist() == [[0, 1]]


def test_infinities_and_what_is_not_a_number_come_through():
    x = jnp.array([-jnp.inf, -jnp.inf, 1.0, jnp.inf, jnp.nan, 2.0, 3.0, jnp.nan]).reshape(1, 8, 1)
    np.testing.assert_array_equal(ops.max_pool(x, 2)[0, :, 0], [-np.inf, np.inf, np.nan, np.nan])
    assert jnp.isnan(ops.max_pool(x, (3,), strides=1)[0, 2:, 0]).all()


@pytest.mark.parametrize("pool", [pytest.param(ops.max_pool, marks=pytest.mark.slow), ops.avg_pool])
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_the_dtype_is_kept(key, pool, dtype):
    x = jax.random.normal(key, (2, 16, 16, 3), dtype)
    for window in (2, 16):
        of_window = jax.jit(partial(pool, window=window))
        pooled = of_window(x)
        (pulled,) = jax.eval_shape(lambda x, y, pool=of_window: jax.vjp(pool, x)[1](y), x, pooled)
        assert pooled.dtype == pulled.dtype == dtype
        np.testing.assert_array_equal(pooled, of_window(x.astype(jnp.float32)).astype(dtype))


def test_global_pools():
    slope = jax.grad(lambda x: ops.global_avg_pool(x).sum())
    numbers = jax.jit(lambda x: (ops.global_max_pool(x), ops.global_avg_pool(x), slope(x)))
    for shape in ((2, 5, 3), (2, 5, 4, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        places = x.reshape(2, -1, 3)
        largest, mean, gradient = numbers(x)
        assert_close(largest, places.max(1))
        assert_close(mean, places.mean(1))
        assert_close(gradient, np.full(shape, 3 / places[0].size))
        assert jax.eval_shape(ops.global_avg_pool, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("rows", [50, 201])
def test_the_gradient_of_a_global_pool_behind_a_product(rows):
    """XLA may compute the inputs again for the gradient, with other rounding: none may be equal to the maximum then."""
    x = np.linspace(-1, 1, rows)[:, None].astype(np.float32)
    kernel, bias = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)

    def total(kernel, bias):
        products = (x @ kernel[None] + bias[None])[:, :, None]  # (rows, 6 positions, 1 channel)
        return (ops.global_max_pool(products)[:, 0] * x[:, 0]).sum()

    exact = x.astype(np.float64) * kernel + bias
    is_largest = exact == exact.max(1, keepdims=True)
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(kernel, bias)
    assert_close(slopes[0], (x.astype(np.float64) ** 2 * is_largest).sum(0))
    np.testing.assert_allclose(slopes[1], (x.astype(np.float64) * is_largest).sum(0), atol=1e-4)


IMAGE = jnp.ones((2, 4, 6, 3))


@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
@pytest.mark.parametrize(
    ("inputs", "window", "keywords", "error", "message"),
    [
        (IMAGE[0, 0], 2, {}, ValueError, r"inputs: .*\(batch, height, width, channels\), got float32\[6,3\]"),
        (IMAGE.astype(int), 2, {}, TypeError, r"inputs: expected an array of floats, got int32\[2,4,6,3\]"),
        (IMAGE, 0, {}, ValueError, "window: expected a positive integer, got 0"),
        (IMAGE, 2.0, {}, TypeError, "window: expected a positive integer, got 2.0"),
        (IMAGE, (2, 2, 2), {}, ValueError, "window: .*or 2 of them"),
        (IMAGE, 5, {}, ValueError, r"window: expected at most the size of the padded inputs, \(4, 6\), got \(5, 5\)"),
        (IMAGE, 2, {"strides": -1}, ValueError, "strides: expected a positive integer, got -1"),
        (IMAGE, 2, {"padding": "same"}, ValueError, "padding: expected one of 'SAME', 'VALID', got 'same'"),
        (IMAGE, 2, {"padding": [(2, 0), (0, 0)]}, ValueError, r"padding: expected less than the window, \(2, 2\)"),
    ],
)
def test_what_is_wrong_is_said(pool, inputs, window, keywords, error, message):
    with pytest.raises(error, match=message):
        pool(inputs, window, **keywords)


@pytest.mark.parametrize("pool", [ops.global_max_pool, ops.global_avg_pool])
def test_global_pools_say_what_is_wrong(pool):
    with pytest.raises(ValueError, match="inputs: expected"):
        pool(jnp.ones((2, 3)))
