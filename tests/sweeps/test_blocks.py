import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.sweeps import last_axis
from nnfx.sweeps.blocks import Groups, update_table


def in_group(group, shared):
    def member(of):
        state, value = of
        return {"weights": state["weights"] * value + group.seeds, "bias": state["bias"] - shared}, group.folds + value

    return member


@pytest.mark.parametrize("side_by_side", [jax.vmap, last_axis.vmap])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 12), (1, 11), (12, 1), (11, 1), (3, 5), (7, 2), (2, 8)])
@pytest.mark.parametrize("at_once", [1, 4, 5, 100])
def test_a_table_in_blocks_is_a_loop(at_once, height, width, side_by_side):
    rng = np.random.default_rng(height * 100 + width)
    weights, bias, values = (
        rng.normal(size=(height, width, 3)),
        rng.normal(size=(height, width)),
        rng.normal(size=(height, width)),
    )
    seeds, folds = np.arange(height) * 1.0, np.arange(height) * 10.0
    as_float32 = jax.tree.map(jnp.float32, (({"weights": weights, "bias": bias}, values), Groups(seeds, folds)))

    @jax.jit
    def program(members, groups):
        return update_table(in_group, members, groups, 0.5, at_once, side_by_side)[0]

    states, others = program(*as_float32)
    expected = weights * values[..., None] + seeds[:, None, None]
    np.testing.assert_allclose(states["weights"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states["bias"], bias - 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others, folds[:, None] + values, rtol=1e-5, atol=1e-6)


def memory_of(train, count, at_once):
    """Return the temporary memory of a program of `count` members, and how much of its arguments it overwrites."""

    def program(states, values):
        groups = Groups(jnp.zeros(1), jnp.zeros(1))
        (states, _), room = update_table(lambda *_: train, (states, values), groups, None, at_once)
        return states, room

    arguments = jnp.zeros((1, count, 10_000)), jnp.arange(float(count)).reshape(1, count)
    compiled = jax.jit(program, donate_argnums=0).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes, analysis.alias_size_in_bytes


def train_long(of):
    state, value = of
    return jax.lax.fori_loop(0, 5, lambda _, weights: jnp.sin(weights) + value, state), value


def test_states_are_overwritten_in_place_however_many_there_are():
    state = 10_000 * 4
    for count in (20, 40):
        temporary, overwritten = memory_of(train_long, count, at_once=4)
        assert temporary < 8 * state
        assert overwritten == count * state


def test_a_long_loop_keeps_its_state_in_the_room_that_its_program_returns():
    temporary, _ = memory_of(train_long, 3, at_once=1)
    alone = jax.jit(lambda over: jax.lax.map(train_long, over)).lower((jnp.zeros((3, 10_000)), jnp.zeros(3))).compile()
    assert temporary < 10_000 * 4 <= alone.memory_analysis().temp_size_in_bytes
