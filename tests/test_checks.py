import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import checks


def test_traced_values_pass(key):
    def inside(x):
        checks.number("x", x, above=0)
        checks.finite("x", x)
        return x

    assert jax.jit(inside)(-1.0) == -1.0
    assert jax.vmap(inside)(jnp.array([jnp.nan])).shape == (1,)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1), jnp.float32(0.5), np.array(0.5)])
def test_every_kind_of_number_is_a_number(value):
    checks.number("x", value, above=0, maximum=1)


def test_the_message_names_the_argument_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match=r"^rate: expected a finite number at least 0 and below 1, got 1.5$"):
        checks.number("rate", 1.5, minimum=0, below=1)
    with pytest.raises(ValueError, match=r"^x: expected finite numbers, got 2 not finite, the first at \(0, 1\)$"):
        checks.finite("x", jnp.array([[1.0, jnp.inf], [jnp.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"'tanh', 'relu', got 'tahn'; did you mean 'tanh'\?$"):
        checks.choice("activation", "tahn", ["tanh", "relu"])
