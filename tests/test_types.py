import jax.numpy as jnp

import nnfx


def test_a_training_state_gives_what_apply_takes():
    state = nnfx.TrainState(jnp.int32(0), {"w": 1}, {"batch_stats": 2}, (), None, None)
    assert state.variables == {"params": {"w": 1}, "batch_stats": 2}
