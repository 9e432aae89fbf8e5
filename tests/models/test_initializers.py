import jax
import jax.numpy as jnp
import numpy as np

from nnfx.models import initializers


def test_functions_pass_through():
    function = jax.nn.initializers.normal(0.3)
    assert initializers.get(function) is function


def test_names_are_jax_s_own():
    assert initializers.get("zeros") is jax.nn.initializers.zeros


def test_orthogonal_weights_are_jax_s_own_and_factorised_one_at_a_time(key):
    """On CPUs, batched QR decompositions on two devices at once deadlock."""
    theirs, keys = jax.nn.initializers.orthogonal(), jax.random.split(key, 3)

    def draw(key):
        return initializers.get("orthogonal")(key, (6, 4), jnp.float32)

    drawn = jax.jit(jax.vmap(draw))
    for mine, key in zip(drawn(keys), keys, strict=True):
        np.testing.assert_allclose(mine.T @ mine, np.eye(4), atol=1e-6)
        np.testing.assert_allclose(mine, theirs(key, (6, 4), jnp.float32), atol=1e-6)
    factorised = [line for line in drawn.lower(keys).as_text().splitlines() if "geqrf" in line]
    assert factorised
    assert all("tensor<6x4xf32>" in line and "tensor<3x6x4xf32>" not in line for line in factorised)
