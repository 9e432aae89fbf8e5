"""The networks for the tests of insight, and one of them written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nnfx import models

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 2)), jnp.float32)
MODEL = models.cnn([models.conv(4), models.max_pool(), models.conv(5, padding="VALID")], outputs=3, hidden=(7,))
VARIABLES = MODEL.init(jax.random.key(3), IMAGES)
LINEAR = models.perceptron(outputs=3)


def linear(shape=(5,), key=1):
    return LINEAR.init(jax.random.key(key), jnp.ones((1, *shape)))


def close(got, expected, **tolerance):
    np.testing.assert_allclose(got, expected, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


def by_hand(params, images):
    """Return the layers of MODEL, computed with lax and NumPy alone."""

    def convolved(x, layer, padding):
        axes = ("NHWC", "HWIO", "NHWC")
        maps = lax.conv_general_dilated(x, layer["kernel"], (1, 1), padding, dimension_numbers=axes)
        return np.maximum(np.asarray(maps) + np.asarray(layer["bias"]), 0)

    first = convolved(images, params["conv_0"], "SAME")
    pooled = first.reshape(len(first), 4, 2, 4, 2, 4).max((2, 4))
    second = convolved(pooled, params["conv_1"], "VALID")
    flat = second.reshape(len(second), -1)
    dense = {name: (np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for name, layer in params["dense"].items()}
    hidden = np.maximum(flat @ dense["hidden_0"][0] + dense["hidden_0"][1], 0)
    return {
        "conv_0": first,
        "conv_1": second,
        "dense/hidden_0": hidden,
        "dense/output": hidden @ dense["output"][0] + dense["output"][1],
    }
