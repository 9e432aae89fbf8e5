import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import threefry

KEY = jax.random.key(2**31 + 7)


def bits(array):
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.split(key, (2, 3)),
        lambda key: jax.random.fold_in(key, np.uint32(2**32 - 1)),
        lambda key: jax.random.bits(key, (), jnp.uint8),
        lambda key: jax.random.bits(key, (0,), jnp.uint16),
        lambda key: jax.random.bits(key, (3, 5)),
        lambda key: jax.random.truncated_normal(key, -2, 2, (4, 3)),
        lambda key: jax.random.gamma(key, 2.0, (3,)),
        lambda key: jax.vmap(lambda key: jax.random.normal(key, (2,)))(jax.random.split(key, 4)),
    ],
)
def test_draws_are_those_of_jax(draw):
    np.testing.assert_array_equal(bits(draw(threefry.quick(KEY))), bits(draw(KEY)))


@pytest.mark.slow
def test_draws_of_64_bits_are_those_of_jax():
    with jax.enable_x64(True):
        ours, theirs = (jax.random.bits(key, (9,), jnp.uint64) for key in (threefry.quick(KEY), KEY))
    np.testing.assert_array_equal(ours, theirs)


def test_it_draws_quickly_and_can_be_undone():
    other = jax.random.key(0, impl="rbg")
    assert threefry.quick(other) is other
    quick = threefry.quick(KEY)
    assert quick.dtype != KEY.dtype
    restored = threefry.plain({"keys": [quick, other], "numbers": np.ones(2), "none": None})
    assert [key.dtype for key in restored["keys"]] == [KEY.dtype, other.dtype]
    np.testing.assert_array_equal(bits(restored["keys"][0]), bits(KEY))

    program = jax.jit(lambda key: jax.random.uniform(key, (3,))).lower
    assert "while" in program(KEY).as_text()
    assert "while" not in program(quick).as_text()


@pytest.mark.parametrize("rows", [0, 1, 2, 714, 1626, 5000])
def test_orders_drawn_on_the_host_are_those_of_jax(rows):
    np.testing.assert_array_equal(threefry.order(KEY, rows), jax.random.permutation(KEY, rows))


@pytest.mark.parametrize("change", [lambda key: jax.random.key(3, impl="rbg"), lambda key: key])
def test_other_orders_are_left_to_jax(change):
    key = change(KEY)
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(threefry.order(key, 50), jax.random.permutation(key, 50))
        assert threefry.quick(key) is key


def test_states_hold_keys_of_jax_even_those_that_a_model_keeps():
    plain = nnfx.models.perceptron()
    model = nnfx.Model(lambda key, x: {**plain.init(key, x), "random": {"key": key}}, plain.apply)
    state = nnfx.init_state(KEY, model, optax.sgd(0.1), jnp.ones((1, 2)))
    assert state.key.dtype == state.model_state["random"]["key"].dtype == KEY.dtype
    init, step, _ = jax.random.split(KEY, 3)
    np.testing.assert_array_equal(bits(state.model_state["random"]["key"]), bits(init))
    np.testing.assert_array_equal(bits(state.key), bits(step))
