import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from nnfx import models, ops
from nnfx.insight import summary
from nnfx.types import Model


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_deep_network_in_closed_form():
    rows, widths = 8, [5, 7, 6, 2]
    found = summary.summarize(models.mlp((7, 6), 2, activation="tanh"), floats(rows, 5))
    products = [2 * rows * a * b for a, b in itertools.pairwise(widths)]
    assert [layer.name for layer in found.layers] == ["hidden_0", "hidden_1", "output"]
    assert [layer.kind for layer in found.layers] == ["Perceptron"] * 3
    assert [layer.shape for layer in found.layers] == [(rows, width) for width in widths[1:]]
    assert [layer.parameters for layer in found.layers] == [6 * 7, 8 * 6, 7 * 2]
    assert [layer.flops for layer in found.layers] == products
    assert found.parameters == 42 + 48 + 14
    assert found.parameter_bytes == 4 * found.parameters
    assert found.forward.flops == sum(products)
    # backward: one product for the weights and one for the inputs, except in the first layer; the loss has weights too
    assert 0 <= found.step.flops - (3 * sum(products) - products[0]) <= 4 * rows


def test_a_convolutional_network_in_closed_form():
    model = models.cnn([models.conv(4, 3, padding="VALID"), models.max_pool(), models.conv(6, 2, padding="VALID")], 3)
    found = summary.summarize(model, floats(4, 8, 8, 2))
    first, second, dense = 2 * 4 * 36 * 9 * 2 * 4, 2 * 4 * 4 * 4 * 4 * 6, 2 * 4 * 24 * 3
    assert {layer.name: layer.flops for layer in found.layers} == {
        "conv_0": first,
        "conv_1": second,
        "dense/output": dense,
    }
    assert {layer.name: layer.parameters for layer in found.layers} == {"conv_0": 76, "conv_1": 102, "dense/output": 75}
    assert 0 <= found.step.flops - (2 * first + 3 * second + 3 * dense) <= 16


GEOMETRIES = [
    {"strides": 1, "padding": "SAME"},
    {"strides": (2, 3), "padding": "SAME"},
    {"strides": 2, "padding": "VALID", "dilation": 2},
    {"strides": (1, 2), "padding": [(2, 0), (1, 2)], "dilation": (1, 2)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_a_convolution_and_its_gradients_multiply_is_counted_by_convolving_ones(geometry):
    x, k = jnp.ones((2, 7, 8, 3)), jnp.ones((3, 2, 3, 5))

    def convolve(x, k):
        return ops.convolution(x, k, plain=True, **geometry)

    products = int(convolve(x, k).sum())
    assert summary.count_flops(jax.make_jaxpr(convolve)(x, k).jaxpr) == 2 * products
    cotangent = jnp.ones_like(convolve(x, k))
    for argument in (0, 1):

        def back(cotangent, argument=argument):
            return jax.linear_transpose(lambda a: convolve(*((a, k) if argument == 0 else (x, a))), (x, k)[argument])(
                cotangent
            )

        assert summary.count_flops(jax.make_jaxpr(back)(cotangent).jaxpr) == 2 * products


def test_the_compiler_counts_the_same():
    def network(x, k, w):
        maps = lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return maps.reshape(len(x), -1) @ w

    arguments = (floats(4, 9, 9, 2), floats(3, 3, 2, 6), floats(150, 5))
    traced = jax.jit(network).trace(*arguments)
    assert summary.count_flops(traced.jaxpr.jaxpr) == traced.lower().cost_analysis()["flops"]


def test_loops_count_as_often_as_they_go():
    def loop(x, w):
        return lax.scan(lambda x, _: (lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x, x), None), x, None, length=7)[
            0
        ]

    assert summary.count_flops(jax.make_jaxpr(loop)(jnp.ones((3, 4)), jnp.ones((4, 4))).jaxpr) == 7 * 2 * 3 * 4 * 4


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_with_the_optimizer():
    model = models.mlp((64, 64), 4)
    small, large = (summary.summarize(model, floats(rows, 32)) for rows in (16, 1024))
    least = {rows: 4 * (small.parameters + rows * (32 + 4)) for rows in (16, 1024)}
    assert least[16] <= small.forward.bytes < 2 * least[16] + 4 * 16 * 128
    assert large.forward.bytes >= least[1024]
    # Adam keeps two numbers per parameter, and gradient descent none
    plain = summary.summarize(model, floats(16, 32), optax.sgd(0.1))
    assert 2 * small.parameter_bytes <= small.step.bytes - plain.step.bytes <= 3.5 * small.parameter_bytes
    # the activations of two hidden layers are kept for the backward pass
    assert large.step.bytes - small.step.bytes >= 4 * 1008 * (32 + 64 + 64)


@pytest.mark.slow
def test_layers_within_layers_count_for_themselves():
    found = summary.summarize(models.resnet(8, 2, 3), floats(2, 8, 8, 1))
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["stem/batch_norm"].parameters == 4
    assert by_name["stem/batch_norm"].flops == 0
    assert by_name["stem"].parameters == 9 * 1 * 2
    assert (
        by_name["stem"].flops == 2 * 2 * (3 * 8 - 2) ** 2 * 1 * 2
    )  # SAME: 2 of 24 products along an axis are with padding
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    assert sum(layer.flops for layer in found.layers) == found.forward.flops


def test_what_is_not_seen_is_elsewhere():
    class Partly(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="seen")(nn.remat(nn.Dense)(3, name="hidden")(x))

    found = summary.summarize(models.from_linen(Partly()), floats(2, 4))
    assert [(layer.name, layer.parameters, layer.flops) for layer in found.layers] == [
        ("seen", 8, 24),
        ("elsewhere", 15, 48),
    ]
    other = summary.summarize(models.from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs)), floats(2, 4))
    assert [(layer.name, layer.parameters, layer.flops) for layer in other.layers] == [("elsewhere", 15, 48)]


def test_a_layer_used_twice_has_its_parameters_once():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="layer")
            return layer(nn.relu(layer(x)))

    found = summary.summarize(models.from_linen(Twice()), floats(2, 4))
    assert [(layer.name, layer.parameters, layer.flops) for layer in found.layers] == [
        ("layer", 20, 64),
        ("layer[1]", 0, 64),
    ]


def test_it_prints_a_table():
    found = summary.summarize(models.mlp((1000,), 10, batch_norm=True, dropout=0.2), jnp.ones((50, 300)))
    text = str(found)
    assert re.search(r"hidden_0/batch_norm +BatchNorm +50×1000 +2,000 +0\n", text)
    assert "30 M" in text
    assert "312,010 parameters, 1.19 MiB" in text
    assert text.count("\n") == 8


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: summary.summarize("mlp", floats(2, 3)), TypeError, "model: expected a Model.*'mlp'"),
        (lambda: summary.summarize(models.perceptron(), 3), ValueError, r"inputs: expected a batch.*got 3"),
        (lambda: summary.summarize(models.perceptron(), floats()), ValueError, "inputs: expected a batch"),
        (lambda: summary.summarize(models.perceptron(), floats(2, 3), optax.adam), TypeError, "optimizer: expected"),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_model_by_hand_has_no_layers_but_a_cost():
    model = Model(
        lambda key, x: {"params": jnp.ones((3, 2))},
        lambda v, x, **_: (x @ v["params"], {}) if _.get("train") else x @ v["params"],
    )
    found = summary.summarize(model, np.ones((5, 3), np.float32))
    assert found.parameters == 6
    assert found.forward.flops == 60


def test_a_plain_shape_is_one_of_floats():
    found = summary.summarize(models.mlp((3,)), (8, 2))
    assert found == summary.summarize(models.mlp((3,)), jax.ShapeDtypeStruct((8, 2), jnp.float32))
