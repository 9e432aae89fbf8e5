"""Measures of the conventions of all other layers, and of Adam; each takes the package that it is about."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models, ops
from tests.conventions.common import (
    KEY,
    PLAIN,
    default,
    first,
    haiku,
    is_spread,
    law,
    linen,
    number,
)

DENSE = 300, 100
BATCH = np.zeros((1, DENSE[0]), np.float32)


def dense(weights):
    """Return how the kernel and the bias of a dense layer are drawn."""
    kernel, bias = map(np.asarray, weights)
    bias = f"`{PLAIN.format('inputs')}`" if is_spread(bias, DENSE[0]) else f"{np.abs(bias).max():g}"
    return law(kernel, *DENSE), bias


def dense_torch(torch):
    torch.manual_seed(0)
    kernel, bias = dense([each.detach().numpy() for each in torch.nn.Linear(*DENSE).parameters()])
    of_convolution = torch.nn.Conv1d(DENSE[0] // 5, DENSE[1], 5).weight.detach().numpy()
    assert kernel == law(of_convolution, *DENSE) == "uniform"
    ours = models.perceptron(DENSE[1], initializer="torch_uniform").init(KEY, BATCH)["params"]["kernel"]
    assert law(ours, *DENSE) == kernel
    return f"`torch_uniform`, `{PLAIN.format('inputs')}`", bias


def dense_keras(keras):
    layer = keras.layers.Dense(DENSE[1])
    layer.build(BATCH.shape)
    return dense(layer.get_weights())


def dense_nnfx(_):
    params = models.perceptron(DENSE[1]).init(KEY, BATCH)["params"]
    return dense([params["kernel"], params["bias"]])


DENSES = {
    "Flax": lambda _: dense([linen(nn.Dense(DENSE[1]), BATCH)["params"][part] for part in ("kernel", "bias")]),
    "Haiku": lambda hk: dense([haiku(hk, lambda: hk.Linear(DENSE[1]), BATCH)[0]["linear"][part] for part in "wb"]),
    "Keras": dense_keras,
    "PyTorch": dense_torch,
    "nnfx": dense_nnfx,
}
DENSES = {name: functools.cache(of) for name, of in DENSES.items()}


# normalisation: each library trains on batches of one channel


def norm_flax(_, batches, **options):
    layer = nn.BatchNorm(use_running_average=False, **options)
    variables = linen(layer, batches[0])
    for batch in batches:
        outputs, changed = layer.apply(variables, batch, mutable=["batch_stats"])
        variables = {**variables, **changed}
    return outputs, variables["batch_stats"]["mean"], variables["batch_stats"]["var"]


def norm_haiku(hk, batches, momentum=0.9):
    net = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, momentum)(x, is_training=True))
    params, state = net.init(None, batches[0])
    for batch in batches:
        outputs, state = net.apply(params, state, None, batch)
    return outputs, *(state[f"batch_norm/~/{part}_ema"]["average"] for part in ("mean", "var"))


def norm_keras(keras, batches, **options):
    layer = keras.layers.BatchNormalization(**options)
    for batch in batches:
        outputs = layer(batch, training=True)
    return outputs, layer.moving_mean, layer.moving_variance


def norm_torch(torch, batches, momentum=None):
    layer = torch.nn.BatchNorm1d(1, **({} if momentum is None else {"momentum": 1 - momentum}))
    for batch in batches:
        outputs = layer(torch.tensor(batch)).detach()
    return outputs, layer.running_mean, layer.running_var


def norm_nnfx(_, batches, **options):
    layer = models.BatchNorm(**options)
    variables = linen(layer, batches[0])
    for batch in batches:
        outputs, changed = layer.apply(variables, batch, train=True, mutable=["batch_stats"])
        variables = {**variables, **changed}
    return outputs, variables["batch_stats"]["mean"], variables["batch_stats"]["var"]


NORMS = {"Flax": norm_flax, "Haiku": norm_haiku, "Keras": norm_keras, "PyTorch": norm_torch, "nnfx": norm_nnfx}
SMALL = np.array([[-0.01], [0.01]], np.float32)


def batches(*means):
    return [np.array([[mean - 1], [mean + 1]], np.float32) for mean in means]


def share_kept(norm, library):
    once, twice = (first(norm(library, batches(*means))[1]) for means in ((1.0,), (1.0, 0.0)))
    return number(twice / once if once < 0.999 else twice / (1 - twice))  # the second where the beginning is forgotten


def share_kept_torch(torch):
    return f"{share_kept(norm_torch, torch)}, as `momentum={torch.nn.BatchNorm1d(1).momentum:g}`"


def beginning(norm, library):
    return "are forgotten" if first(norm(library, batches(1.0))[1]) == pytest.approx(1) else "count"


def variance(norm, library):
    options = {} if norm is norm_nnfx else {"momentum": 0.0}  # so that the batch is all that counts
    return {1.0: "biased", 2.0: "unbiased"}[round(first(norm(library, batches(1.0), **options)[2]), 4)]


def epsilon(outputs):
    """Return ε of `x / √(x² + ε)` for x of 0.01."""
    return number(1e-4 * (1 / first(outputs) ** 2 - 1))


# pooling, padding, and the rest

LINE = np.arange(7, dtype=np.float32).reshape(1, 7, 1)
ONES = np.ones((1, 3, 1), np.float32)
STRIDES = {5: "1", 2: "its size"}
RESTS = {2: "left out", 3: "a window of their own"}
MEANS = {True: "count", False: "do not count"}
PADDINGS = {7: "`SAME`", 5: "none"}


def lines(torch, array=LINE):
    return torch.tensor(array).swapaxes(1, 2)


def given_rate(kept):
    kept = np.asarray(kept)
    dropped = (kept == 0).mean()
    assert set(np.round(kept[kept != 0], 5).tolist()) == {1.25}
    return {0.2: "share dropped", 0.8: "share kept"}[round(float(dropped), 1)]


MANY = np.ones((100, 100), np.float32)


def gelu(function):
    """Tell the exact x Φ(x) from its approximation by tanh, at x = 1."""
    return {0.84134: "exact", 0.84119: "`tanh`"}[round(first(function(np.ones(1, np.float32))), 5)]


def slope(function):
    return number(-first(function(-np.ones(1, np.float32))))


LAYERS = {
    "kernel of a dense layer": {name: (lambda library, of=of: of(library)[0]) for name, of in DENSES.items()},
    "bias of a dense layer at first": {name: (lambda library, of=of: of(library)[1]) for name, of in DENSES.items()},
    "padding of a convolution": {
        "Flax": lambda _: PADDINGS[nn.Conv(1, (3,)).init_with_output(KEY, LINE)[0].shape[1]],
        "Haiku": lambda hk: PADDINGS[haiku(hk, lambda: hk.Conv1D(1, 3), LINE)[1].shape[1]],
        "Keras": lambda keras: PADDINGS[keras.layers.Conv1D(1, 3)(LINE).shape[1]],
        "PyTorch": lambda torch: PADDINGS[torch.nn.Conv1d(1, 1, 3)(lines(torch)).shape[2]],
        "nnfx": lambda _: PADDINGS[
            ops.convolution(LINE, np.ones((3, 1, 1), np.float32), padding=models.conv(1).padding).shape[1]
        ],
    },
    "stride of a pooling window": {
        "Flax": lambda _: STRIDES[nn.max_pool(LINE, (3,)).shape[1]],
        "Haiku": lambda hk: default(hk.MaxPool, "strides"),
        "Keras": lambda keras: STRIDES[keras.layers.MaxPooling1D(3)(LINE).shape[1]],
        "PyTorch": lambda torch: STRIDES[torch.nn.MaxPool1d(3)(lines(torch)).shape[2]],
        "nnfx": lambda _: STRIDES[ops.max_pool(LINE, 3).shape[1]],
    },
    "inputs that fill no whole pooling window": {
        "Flax": lambda _: RESTS[nn.max_pool(LINE, (3,), (3,)).shape[1]],
        "Haiku": lambda hk: default(hk.MaxPool, "padding"),
        "Keras": lambda keras: RESTS[keras.layers.MaxPooling1D(3)(LINE).shape[1]],
        "PyTorch": lambda torch: RESTS[torch.nn.MaxPool1d(3)(lines(torch)).shape[2]],
        "nnfx": lambda _: RESTS[ops.max_pool(LINE, 3).shape[1]],
    },
    "zeros of padding in a mean": {
        "Flax": lambda _: MEANS[first(nn.avg_pool(ONES, (3,), padding="SAME")) < 0.9],
        "Haiku": lambda hk: MEANS[first(haiku(hk, lambda: hk.AvgPool((3, 1), 1, "SAME"), ONES)[1]) < 0.9],
        "Keras": lambda keras: MEANS[first(keras.layers.AveragePooling1D(3, 1, "same")(ONES)) < 0.9],
        "PyTorch": lambda torch: MEANS[first(torch.nn.AvgPool1d(3, 1, 1)(lines(torch, ONES))) < 0.9],
        "nnfx": lambda _: MEANS[first(ops.avg_pool(ONES, 3, strides=1, padding="SAME")) < 0.9],
    },
    "share of the running statistics that batch norm keeps at each batch": {
        **{name: functools.partial(share_kept, norm) for name, norm in NORMS.items()},
        "Haiku": lambda hk: default(hk.BatchNorm, "decay_rate"),
        "PyTorch": share_kept_torch,
    },
    "the mean 0 and variance 1 that they begin with": {
        name: functools.partial(beginning, norm) for name, norm in NORMS.items()
    },
    "variance in them": {name: functools.partial(variance, norm) for name, norm in NORMS.items()},
    "epsilon of batch norm": {
        name: (lambda library, norm=norm: epsilon(norm(library, [SMALL])[0])) for name, norm in NORMS.items()
    },
    "epsilon of layer norm": {
        "Flax": lambda _: epsilon(nn.LayerNorm().init_with_output(KEY, SMALL.T)[0]),
        "Haiku": lambda hk: epsilon(haiku(hk, lambda: hk.LayerNorm(-1, True, True), SMALL.T)[1]),
        "Keras": lambda keras: epsilon(keras.layers.LayerNormalization()(SMALL.T)),
        "PyTorch": lambda torch: epsilon(torch.nn.LayerNorm(2)(torch.tensor(SMALL.T)).detach()),
        "nnfx": lambda _: epsilon(models.LayerNorm().init_with_output(KEY, jnp.asarray(SMALL.T))[0]),
    },
    "rate of dropout": {
        "Flax": lambda _: given_rate(nn.Dropout(0.2, deterministic=False).apply({}, MANY, rngs={"dropout": KEY})),
        "Haiku": lambda hk: given_rate(hk.dropout(KEY, 0.2, jnp.asarray(MANY))),
        "Keras": lambda keras: given_rate(keras.layers.Dropout(0.2)(MANY, training=True)),
        "PyTorch": lambda torch: given_rate(torch.nn.Dropout(0.2)(torch.tensor(MANY))),
        "nnfx": lambda _: given_rate(ops.dropout(KEY, jnp.asarray(MANY), 0.2)),
    },
    "rate of dropout by default": {
        "Flax": lambda _: default(nn.Dropout, "rate"),
        "Haiku": lambda hk: default(hk.dropout, "rate"),
        "Keras": lambda keras: default(keras.layers.Dropout.__init__, "rate"),
        "PyTorch": lambda torch: number(torch.nn.Dropout().p),
        "nnfx": lambda _: f"{default(models.mlp, 'dropout'):g}",
    },
    "GELU": {
        "Flax": lambda _: gelu(nn.gelu),
        "Keras": lambda keras: gelu(keras.activations.gelu),
        "PyTorch": lambda torch: gelu(lambda x: torch.nn.GELU()(torch.tensor(x))),
        "nnfx": lambda _: gelu(nnfx.activations.get("gelu")),
    },
    "slope of a leaky ReLU": {
        "Flax": lambda _: slope(nn.leaky_relu),
        "Keras": lambda keras: (
            f"{slope(keras.layers.LeakyReLU())} as a layer, {slope(keras.activations.leaky_relu)} as a function"
        ),
        "PyTorch": lambda torch: slope(lambda x: torch.nn.LeakyReLU()(torch.tensor(x))),
        "nnfx": lambda _: slope(nnfx.activations.get("leaky_relu")),
    },
}

OPTIMIZERS = {
    "learning rate of Adam": {
        "Optax": lambda _: default(optax.adam, "learning_rate"),
        "Keras": lambda keras: f"{float(keras.optimizers.Adam().learning_rate):g}",
        "PyTorch": lambda torch: f"{torch.optim.Adam([torch.zeros(1)]).defaults['lr']:g}",
    },
    "epsilon of Adam": {
        "Optax": lambda _: number(default(optax.adam, "eps")),
        "Keras": lambda keras: number(keras.optimizers.Adam().epsilon),
        "PyTorch": lambda torch: number(torch.optim.Adam([torch.zeros(1)]).defaults["eps"]),
    },
    "weight decay of AdamW": {
        "Optax": lambda _: f"{default(optax.adamw, 'weight_decay'):g}",
        "Keras": lambda keras: f"{keras.optimizers.AdamW().weight_decay:g}",
        "PyTorch": lambda torch: f"{torch.optim.AdamW([torch.zeros(1)]).defaults['weight_decay']:g}",
    },
}
