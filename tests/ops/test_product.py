import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.ops import dot_product
from nnfx.ops.product import FEW


@pytest.mark.parametrize("features", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("before", [(), (5,), (3, 7)])
def test_products_of_few_and_of_many_inputs(features, before):
    generator = np.random.default_rng(features)
    inputs, kernel = generator.normal(size=(*before, features)), generator.normal(size=(features, 6))
    found = jax.jit(dot_product)(jnp.asarray(inputs, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, inputs @ kernel, rtol=1e-5, atol=1e-6)
    assert found.dtype == jnp.float32


def test_it_is_no_product_of_matrices_on_a_cpu_where_inputs_are_few():
    def program(features, dtype=jnp.float32):
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((32, features), (features, 16))]
        return jax.jit(dot_product).lower(*shapes).as_text()

    assert "dot_general" not in program(FEW)
    assert "dot_general" in program(FEW + 1)
    assert "dot_general" in program(FEW, jnp.bfloat16), "which adds up in float32"


def test_derivatives_of_both_orders_and_modes():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        inputs, kernel = jnp.asarray(generator.normal(size=(5, 2))), jnp.asarray(generator.normal(size=(2, 3)))
        direction = jnp.asarray(generator.normal(size=(2, 3)))

        def loss(inputs, kernel):
            return jnp.tanh(dot_product(inputs, kernel)).sum()

        def plain(inputs, kernel):
            return jnp.tanh(inputs @ kernel).sum()

        for argnum in (0, 1):
            np.testing.assert_allclose(
                jax.grad(loss, argnum)(inputs, kernel), jax.grad(plain, argnum)(inputs, kernel), rtol=1e-12
            )
        curved, expected = (
            jax.jvp(jax.grad(lambda kernel, of=of: of(inputs, kernel)), (kernel,), (direction,))[1]
            for of in (loss, plain)
        )
        np.testing.assert_allclose(curved, expected, rtol=1e-10)
        step = 1e-5
        slopes = [jax.grad(plain, 1)(inputs, kernel + sign * step * direction) for sign in (1, -1)]
        np.testing.assert_allclose(curved, (slopes[0] - slopes[1]) / (2 * step), rtol=1e-6, atol=1e-9)


def test_many_weights_under_vmap_are_a_loop():
    inputs = jax.random.normal(jax.random.key(0), (4, 8, 2))
    kernels = jax.random.normal(jax.random.key(1), (4, 2, 3))
    found = jax.vmap(dot_product)(inputs, kernels)
    np.testing.assert_allclose(found, np.asarray(inputs) @ np.asarray(kernels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("inputs", "kernel"), [((5, 2), (3, 4)), ((5, 2), (2,)), ((), (2, 2))])
def test_shapes_that_do_not_fit(inputs, kernel):
    with pytest.raises(ValueError, match="kernel: expected"):
        dot_product(jnp.zeros(inputs), jnp.zeros(kernel))
