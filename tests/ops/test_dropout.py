import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropped_part_and_the_expectation(key, rate):
    n = 100_000
    dropped = np.asarray(ops.dropout(key, jnp.ones(n), rate))
    standard_error = np.sqrt(rate * (1 - rate) / n)
    assert abs((dropped == 0).mean() - rate) < 4 * standard_error
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() - 1) < 4 * standard_error / (1 - rate)


def test_a_rate_of_zero_changes_nothing(key):
    x = jnp.arange(5.0)
    assert ops.dropout(key, x, 0.0).tolist() == x.tolist()


def test_the_rate_may_be_traced_and_mapped(key):
    x = jnp.ones(1000)
    rates = jnp.array([0.2, 0.8])
    mapped = jax.jit(jax.vmap(lambda rate: ops.dropout(key, x, rate)))(rates)
    for rate, row in zip(rates, mapped, strict=True):
        np.testing.assert_array_equal(row, ops.dropout(key, x, rate))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_traced_rate_out_of_range_gives_nan(key, rate):
    assert np.isnan(jax.jit(lambda rate: ops.dropout(key, jnp.ones(20), rate))(rate)).all()


def test_the_gradient_is_the_mask(key):
    x = jnp.arange(1.0, 9.0)
    gradient = jax.grad(lambda x: ops.dropout(key, x, 0.5).sum())(x)
    np.testing.assert_array_equal(gradient * x, ops.dropout(key, x, 0.5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_dtype_is_kept(key, dtype):
    assert ops.dropout(key, jnp.ones(3, dtype), jnp.float32(0.5)).dtype == dtype
