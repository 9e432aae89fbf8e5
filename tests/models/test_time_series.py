import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models

SERIES = np.random.default_rng(0).normal(size=(3, 20, 2)).astype(np.float32)


def count(model, channels=1):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 60, channels)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def of_layer(kernel, before, after):
    """Weights of a convolution, and scale and bias of its batch norm."""
    return kernel * before * after + 2 * after


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 5)])
def test_the_parameters_are_those_of_the_definition(channels, classes):
    plain = of_layer(8, channels, 128) + of_layer(5, 128, 256) + of_layer(3, 256, 128)
    assert count(models.time_series_fcn(classes), channels) == plain + 129 * classes
    residual, before = 0, channels
    for width in (64, 128, 128):
        residual += of_layer(8, before, width) + of_layer(5, width, width) + of_layer(3, width, width)
        residual += of_layer(1, before, width) if before != width else 2 * width
        before = width
    assert count(models.time_series_resnet(classes), channels) == residual + 129 * classes


def reference(params, stats, x, is_residual):
    """The network in float64, with the running statistics of batch norm."""
    params, stats = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (params, stats))

    def norm(x, of, with_stats):
        return (x - with_stats["mean"]) / np.sqrt(with_stats["var"] + 1e-5) * of["scale"] + of["bias"]

    def layer(name, x):
        kernel = params[name]["kernel"]
        before = (len(kernel) - 1) // 2
        padded = np.pad(x, ((0, 0), (before, len(kernel) - 1 - before), (0, 0)))
        out = sum(padded[:, i : i + x.shape[1]] @ each for i, each in enumerate(kernel))
        return norm(out, params[name]["batch_norm"], stats[name]["batch_norm"])

    if is_residual:
        for block in range(3):
            name, inner = f"block_{block}", x
            for i in range(3):
                inner = layer(f"{name}_conv_{i}", inner)
                inner = np.maximum(inner, 0) if i < 2 else inner
            shortcut = f"{name}_shortcut"
            is_norm = "scale" in params[shortcut]
            x = np.maximum(inner + (norm(x, params[shortcut], stats[shortcut]) if is_norm else layer(shortcut, x)), 0)
        dense = params["output"]
    else:
        for i in range(3):
            x = np.maximum(layer(f"conv_{i}", x), 0)
        dense = params["dense"]["output"]
    return x.mean(1) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize(
    "model",
    [models.time_series_fcn(3, (4, 5, 4)), models.time_series_resnet(3, (3, 4, 4))],
    ids=["plain", "residual"],
)
def test_the_network_against_numpy(model):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SERIES)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(leaf.dtype), shapes)
    variables["params"] = jax.tree.map(lambda leaf: leaf - np.float32(0.6), variables["params"])
    is_residual = "block_0_conv_0" in variables["params"]
    expected = reference(variables["params"], variables["batch_stats"], SERIES.astype(np.float64), is_residual)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, SERIES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.time_series_fcn(0), ValueError, "outputs: expected a positive integer, got 0"),
        (lambda: models.time_series_fcn(2, (4, 4)), ValueError, r"features: expected three numbers.*got \(4, 4\)"),
        (lambda: models.time_series_resnet(2, 64), ValueError, "features: expected three numbers.*got 64"),
        (lambda: models.time_series_resnet(2, (4, 0, 4)), ValueError, r"features\[1\]: expected a positive integer"),
        (
            lambda: models.time_series_resnet().init(jax.random.key(0), SERIES[0]),
            ValueError,
            r"inputs: expected \(batch, time, channels\), got float32\[20,2\]",
        ),
        (
            lambda: models.time_series_fcn().init(jax.random.key(0), SERIES[0]),
            ValueError,
            r"inputs: expected \(batch, width, channels\), got float32\[20,2\]",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
