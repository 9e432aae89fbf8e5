import jax

from nnfx.models import initializers


def test_functions_pass_through():
    function = jax.nn.initializers.normal(0.3)
    assert initializers.get(function) is function


def test_names_are_jax_s_own():
    assert initializers.get("zeros") is jax.nn.initializers.zeros
