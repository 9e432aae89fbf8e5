import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import mapping


def line(shared, point):
    return {"y": shared["slope"] * point["x"] + shared["offset"]}


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize(("at_once", "unroll"), [(None, 1), (1, 1), (1, 3), (1, 100), (2, 1), (2, 3), (100, 1)])
def test_points_are_a_loop(devices, at_once, unroll):
    shared, x = {"slope": jnp.float32(2), "offset": jnp.float32(1)}, jnp.arange(7.0)
    options = {"at_once": at_once, "devices": tuple(jax.devices()[:devices]), "unroll": unroll}
    found = jax.jit(lambda shared, x: mapping.map_points(line, shared, {"x": x}, **options))(shared, x)["y"]
    np.testing.assert_array_equal(found[:7], 2 * np.arange(7) + 1)
    np.testing.assert_array_equal(found[7:], 13, err_msg="what is left over repeats the last")


def test_one_device_of_one_s_choice_computes():
    chosen = jax.devices()[2:3]
    found = jax.jit(lambda x: mapping.map_points(lambda _, x: -x, None, x, at_once=None, devices=chosen))(jnp.ones(4))
    assert found.devices() == set(chosen)


def test_a_gradient_goes_through_all_points():
    def total(slope):
        shared = {"slope": slope, "offset": jnp.float32(0)}
        return mapping.map_points(line, shared, {"x": jnp.arange(4.0)}, at_once=2, devices=jax.devices()[:2])["y"].sum()

    assert jax.grad(total)(jnp.float32(1)) == 6


@pytest.mark.parametrize(("at_once", "unroll"), [(None, 1), (1, 1), (1, 2), (1, 9), (2, 1), (3, 1), (9, 1)])
def test_side_by_side_is_a_loop(at_once, unroll):
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(mapping.side_by_side(lambda x: x**2, x, at_once, unroll), np.arange(5.0) ** 2)
