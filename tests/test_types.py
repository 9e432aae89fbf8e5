import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx import Mean


def test_a_training_state_gives_what_apply_takes():
    state = nnfx.TrainState(jnp.int32(0), {"w": 1}, {"batch_stats": 2}, (), None, None)
    assert state.variables == {"params": {"w": 1}, "batch_stats": 2}


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, jnp.bfloat16])
def test_a_mean_is_counted_in_float32_at_least(dtype):
    found = Mean.of(jnp.ones(3000, dtype))
    assert found.total.dtype == found.weight.dtype == jnp.float32
    assert float(found.value) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_of_weight_zero_does_not_count(value):
    values, weights = jnp.array([1.0, value, 4.0]), jnp.array([2.0, 0.0, 1.0])
    assert float(Mean.of(values, weights).value) == 2.0
    slope = jax.grad(lambda values: Mean.of(values, weights).value)(values)
    np.testing.assert_allclose(slope, [2 / 3, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [3.0, -1.0], [np.nan, 1.0]])
def test_the_mean_of_nothing_and_of_senseless_weights_is_nan(weights):
    assert np.isnan(Mean.of(jnp.ones(2), jnp.array(weights)).value)
