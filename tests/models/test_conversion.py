import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models
from nnfx.models import conversion

KINDS = {"rnn": models.rnn, "lstm": models.lstm, "gru": models.gru}
INPUTS = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)


@pytest.fixture(params=KINDS, name="kind")
def make_kind(request):
    return request.param


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), INPUTS)


def made(kind, **options):
    """Return a model of hidden states, with nonzero weights and biases."""
    model, rng = KINDS[kind](outputs=None, hidden=(5, 4), returns="all", **options), np.random.default_rng(1)
    drawn = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes_of(model))
    return model, drawn


@pytest.mark.parametrize("bidirectional", [False, True])
def test_pytorch_computes_the_same_from_the_same_weights(kind, bidirectional):
    torch = pytest.importorskip("torch", reason="PyTorch is in the benchmark extra alone")
    size = {"input_size": 3, "hidden_size": 5, "num_layers": 2, "batch_first": True, "bidirectional": bidirectional}
    theirs = getattr(torch.nn, kind.upper())(**size)
    layers = conversion.from_torch({name: value.detach() for name, value in theirs.state_dict().items()})["params"]
    model = KINDS[kind](outputs=None, hidden=(5, 5), returns="all", bidirectional=bidirectional)
    assert jax.tree.map(np.shape, shapes_of(model)["params"]) == jax.tree.map(np.shape, layers)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(INPUTS)))[0].numpy()
        ours = jax.jit(model.apply)({"params": layers}, INPUTS)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
        back = {name: torch.from_numpy(value) for name, value in conversion.to_torch({"params": layers}).items()}
        theirs.load_state_dict(back)  # rejects other names and shapes
        np.testing.assert_allclose(theirs(torch.tensor(np.asarray(INPUTS)))[0].numpy(), expected, rtol=1e-5, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_the_formulas(kind, weights, layer, x, h, c):
    """Return a step as documented by PyTorch, computed with NumPy alone."""
    of_x = x @ weights[f"weight_ih_l{layer}"].T + weights[f"bias_ih_l{layer}"]
    of_h = h @ weights[f"weight_hh_l{layer}"].T + weights[f"bias_hh_l{layer}"]
    if kind == "rnn":
        return np.tanh(of_x + of_h), c
    if kind == "lstm":
        i, f, g, o = np.split(of_x + of_h, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3, axis=1), np.split(of_h, 3, axis=1)
    z = sigmoid(xz + hz)
    return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h, c


def test_the_formulas_that_pytorch_documents_hold_for_its_layout(kind):
    model, variables = made(kind)
    weights = conversion.to_torch(variables)
    x = np.asarray(INPUTS)
    for layer, width in enumerate((5, 4)):
        h = c = np.zeros((4, width))
        outputs = []
        for t in range(6):
            h, c = by_the_formulas(kind, weights, layer, x[:, t], h, c)
            outputs.append(h)
        x = np.stack(outputs, axis=1)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, INPUTS), x, rtol=1e-4, atol=1e-5)


def test_there_and_back_nothing_changes(kind):
    _, variables = made(kind, bidirectional=True)
    params = variables["params"] | {"output": {"kernel": jnp.ones((4, 1))}}
    of_torch = conversion.from_torch(conversion.to_torch(variables))["params"]
    of_keras = conversion.from_keras(conversion.to_keras(variables), bidirectional=True)["params"]
    for back in (of_torch, of_keras, conversion.from_flax(conversion.to_flax(params))):
        assert jax.tree.structure(back) == jax.tree.structure(variables["params"])
        jax.tree.map(np.testing.assert_array_equal, back, variables["params"])


def linear(name, inputs, outputs):
    return {f"{name}.weight": np.ones((outputs, inputs)), f"{name}.bias": np.ones(outputs)}


def convolution(name):
    return {f"{name}.weight": np.ones((3, 1, 2, 2)), f"{name}.bias": np.ones(3)}


def norm(name):
    return {f"{name}.{part}": np.ones(3) for part in ("weight", "bias", "running_mean", "running_var")}


IMAGES = np.random.default_rng(2).normal(size=(3, 7, 6, 2)).astype(np.float32)
CONVOLUTIONAL = models.cnn(
    [models.conv(4, padding="VALID"), models.conv(3, 2, padding="VALID")], outputs=2, hidden=(5,), batch_norm=True
)


def drawn_for(model, inputs):
    """Return variables that are all positive and different, with a whole number as the weight of batch norm."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def draw(path, leaf):
        if path[-1].key == "weight":
            return np.float32(7)
        spread = 1.0 if leaf.ndim == 1 else 0.3
        return (spread * rng.uniform(0.5 if leaf.ndim == 1 else -1, 1.5, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


CNN = drawn_for(CONVOLUTIONAL, IMAGES)
LSTM = made("lstm")[1]["params"]
TORCH = conversion.to_torch({"params": LSTM})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conversion.to_torch(LSTM), r"variables: expected \{'params': ...\}, got \['layer_0', 'layer_1'\]"),
        (lambda: conversion.to_keras({"params": {"stem": {}}}), r"params: expected layers of an mlp.*got \['stem'\]"),
        (lambda: conversion.to_torch({"params": {}}), r"params: expected layers of an mlp.*got \[\]"),
        (
            lambda: conversion.to_torch({"params": {"layer_0": {"kernel": np.ones(1)}}}),
            r"layer_0: expected bias, input_kernel, recurrent_kernel, got \['kernel'\]",
        ),
        (
            lambda: conversion.to_torch({"params": LSTM}, ["a.weight"]),
            r"names: expected weight_ih_l0.*in 'a' for recurr",
        ),
        (
            lambda: conversion.to_torch(CNN, ["0.weight", "0.bias"]),
            "names: expected names of 7 layers, conv_0, conv_0.batch_norm, .*got names of 1: 0",
        ),
        (lambda: conversion.to_flax({"hidden_0": {}}), r"params: expected recurrent layers.*\['hidden_0'\]"),
        (lambda: conversion.to_flax({"layer_0": {"kernel": 1}}), r"layer_0: expected an input_kernel.*\['kernel'\]"),
        (
            lambda: conversion.to_flax({"layer_0": LSTM["layer_0"] | {"bias": np.zeros(3)}}),
            r"layer_0: expected kernels and a bias of 1, 3 or 4 gates.*float32\[3\]",
        ),
        (lambda: conversion.from_torch({}), "weights: expected convolutions or recurrent layers.*got none of these"),
        (
            lambda: conversion.from_torch({"a.weight": np.ones((2, 3))}),
            "weights: expected a bias for a, or a batch norm",
        ),
        (
            lambda: conversion.from_torch({"norm.weight": np.ones(2)}),
            "weights: .* weights of nn.Linear.*in 'norm'",
        ),
        (
            lambda: conversion.from_torch(linear("a", 2, 3) | linear("b", 5, 2)),
            "expected 3 inputs for b, which follows a, got 5",
        ),
        (lambda: conversion.from_torch(linear("a", 2, 3) | {"a.bias": np.ones(2)}), "the bias of a to be .3,., got"),
        (lambda: conversion.from_torch(norm("a")), "weights: expected a batch norm with scale and bias after a layer"),
        (lambda: conversion.from_torch(linear("a", 2, 3) | norm("b")), "expected no batch norm after the last layer"),
        (
            lambda: conversion.from_torch(linear("a", 2, 3) | convolution("b")),
            "weights: expected convolutions or.*dense, c",
        ),
        (
            lambda: conversion.from_torch(TORCH | linear("a", 4, 3) | linear("b", 3, 1)),
            "weights: expected one dense layer after recurrent layers, got 2",
        ),
        (lambda: conversion.from_torch(convolution("a") | linear("b", 7, 3)), "a multiple of 3 inputs for b, .*got 7"),
        (lambda: conversion.from_keras([]), "weights: expected convolutions.*got none of these"),
        (
            lambda: conversion.from_keras([np.ones((2, 3))]),
            r"weights\[0\]: expected a kernel followed by a bias, the four",
        ),
        (lambda: conversion.from_keras([np.ones(3)]), r"weights\[0\]: expected a kernel followed by a bias, the four"),
        (
            lambda: conversion.from_keras([np.ones((2, 9)), np.ones((3, 9)), np.ones(9)]),
            r"weights\[0\]: expected a GRU with reset_after=True, whose bias is \(2, 9\), got float64\[9\]",
        ),
        (lambda: conversion.to_keras(CNN, epsilon=0), "epsilon: expected a finite number above 0"),
        (lambda: conversion.from_keras([], epsilon=-1), "epsilon: expected a finite number above 0"),
        (lambda: conversion.from_torch(TORCH | {"weight_hr_l0": np.ones(1)}), "missing or unknown: weight_hr_l0"),
        (
            lambda: conversion.from_torch({name: value for name, value in TORCH.items() if "bias" not in name}),
            "missing or unknown: bias_hh_l0, bias_hh_l1",
        ),
        (lambda: conversion.from_flax({"layer_0": {"hf": {}}}), r"layer_0: expected the parameters of a SimpleCell"),
        (lambda: conversion.from_flax({}), "params: expected recurrent layers"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pytorch_s_parameters_in_half_precision_and_as_pairs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(3, 4)
    expected = conversion.from_torch(theirs.state_dict())
    for given in (theirs.named_parameters(), dict(theirs.named_parameters()), theirs.state_dict().items()):
        jax.tree.map(np.testing.assert_array_equal, conversion.from_torch(given), expected)
    half = conversion.from_torch(theirs.to(torch.bfloat16).state_dict())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), half, expected)
    back = conversion.to_torch(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half))
    assert all(torch.tensor(array).dtype == torch.float32 for array in back.values())


@pytest.mark.parametrize("given", [7, [1, 2], "weights", {3: [0.5]}])
def test_what_is_no_state_dict(given):
    with pytest.raises(TypeError, match=r"^weights"):
        conversion.from_torch(given)


@pytest.mark.parametrize("wrong", [[[1, 2]], "text", None])
def test_weights_that_are_no_floats_are_named(wrong):
    weights = conversion.to_torch(made("rnn")[1])
    with pytest.raises(TypeError, match=r"^weights\['bias_hh_l0'\]: expected"):
        conversion.from_torch({**weights, "bias_hh_l0": wrong})


@pytest.mark.parametrize("given", [7, "weights", {"a": np.ones(1)}, [["text"]], [np.ones((2, 1), int)]])
def test_what_are_no_weights_of_keras(given):
    with pytest.raises(TypeError, match=r"^weights"):
        conversion.from_keras(given)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


SEQUENTIAL = {
    "dense": (models.mlp((5, 4), outputs=2), IMAGES[:, 0, 0]),
    "dense with batch norm": (models.mlp((5, 4), outputs=2, batch_norm=True), IMAGES[:, 0, 0]),
    "dense of one layer": (models.mlp((), outputs=3), IMAGES[:, 0, 0]),
    "convolutional": (models.cnn([models.conv(4), models.max_pool(), models.conv(3, 2)], 2), IMAGES),
    "convolutional without outputs": (models.cnn([models.conv(4), models.conv(3)], None), IMAGES),
    "convolutional with batch norm": (CONVOLUTIONAL, IMAGES),
    "convolutional on sequences": (models.cnn([models.conv(4)], outputs=2, axes=1), IMAGES[:, 0]),
    "recurrent": (models.lstm(2, hidden=(5, 4)), IMAGES[:, 0]),
}


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_networks_come_back_from_pytorch_and_keras_with_every_bit(name):
    variables = drawn_for(*SEQUENTIAL[name])
    same(conversion.from_torch(conversion.to_torch(variables)), variables)
    back = conversion.from_keras(conversion.to_keras(variables, epsilon=1e-5), epsilon=1e-5)
    same(back["params"], variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(back.get("batch_stats", {})):
        expected = variables["batch_stats"]
        for each in path:
            expected = expected[each.key]
        np.testing.assert_array_equal(leaf, 0 if path[-1].key == "weight" else expected)


def torch_net(torch, bias):
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 3, 2, bias=bias), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(3 * 4 * 3, 5, bias=bias), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
    )


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolutional_network_of_pytorch_computes_the_same(bias):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_net(torch, bias).train()
    for _ in range(3):  # so that its statistics are not those of the start
        theirs(torch.randn(8, 2, 7, 6))
    theirs.eval()
    images = torch.from_numpy(np.moveaxis(IMAGES, -1, 1).copy())
    with torch.no_grad():
        expected = theirs(images).numpy()
        variables = conversion.from_torch(theirs.state_dict())
        same(jax.tree.map(np.shape, variables), jax.tree.map(np.shape, CNN))
        close(jax.jit(CONVOLUTIONAL.apply)(variables, IMAGES), expected)
        back = conversion.to_torch(variables, theirs.state_dict())
        other = torch_net(torch, bias)
        other.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()})
        close(other.eval()(images).numpy(), expected)
        if not bias:
            for name, array in theirs.state_dict().items():
                np.testing.assert_array_equal(back[name], array.numpy())
        theirs.load_state_dict(
            {n: torch.from_numpy(a) for n, a in conversion.to_torch(CNN, theirs.state_dict()).items()}
        )
        close(jax.jit(CONVOLUTIONAL.apply)(CNN, IMAGES), theirs.eval()(images).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_network_of_pytorch_with_a_dense_layer_computes_the_same(kind):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = getattr(torch.nn, kind.upper())(3, 5, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(10, 2)

        def forward(self, x):
            return self.head(self.cells(x)[0])

    theirs = Net()
    variables = conversion.from_torch(theirs.state_dict())
    model = KINDS[kind](outputs=2, hidden=(5,), returns="all", bidirectional=True)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(INPUTS)).numpy()
        close(jax.jit(model.apply)(variables, INPUTS), expected)
        back = conversion.to_torch(variables, theirs.state_dict())
        theirs.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()})
        close(theirs(torch.from_numpy(INPUTS)).numpy(), expected)


@pytest.fixture(name="keras")
def make_keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is in the benchmark extra alone")
    with jax.numpy_rank_promotion("allow"), jax.legacy_prng_key("allow"):
        yield keras


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolutional_network_of_keras_computes_the_same(bias, keras):
    of = keras.layers
    theirs = keras.Sequential(
        [
            *(keras.Input((7, 6, 2)), of.Conv2D(4, 3, use_bias=bias), of.BatchNormalization(), of.ReLU()),
            *(of.Conv2D(3, 2, use_bias=bias), of.BatchNormalization(), of.ReLU(), of.Flatten()),
            *(of.Dense(5, use_bias=bias), of.BatchNormalization(), of.ReLU(), of.Dense(2)),
        ]
    )
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.uniform(0.1, 1, array.shape) for array in theirs.get_weights()])
    variables = conversion.from_keras(theirs.get_weights())
    same(jax.tree.map(np.shape, variables), jax.tree.map(np.shape, CNN))
    close(jax.jit(CONVOLUTIONAL.apply)(variables, IMAGES), keras.ops.convert_to_numpy(theirs(IMAGES, training=False)))
    if not bias:
        theirs.set_weights(conversion.to_keras(CNN))
        expected = keras.ops.convert_to_numpy(theirs(IMAGES, training=False))
        close(jax.jit(CONVOLUTIONAL.apply)(CNN, IMAGES), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_network_of_keras_computes_the_same(kind, bidirectional, keras):
    cell = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
    wrapped = keras.layers.Bidirectional if bidirectional else lambda layer: layer
    layers = [wrapped(cell(width, return_sequences=True)) for width in (5, 4)]
    theirs = keras.Sequential([keras.Input((6, 3)), *layers, keras.layers.Dense(2)])
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.uniform(-0.5, 0.5, array.shape) for array in theirs.get_weights()])
    model = KINDS[kind](outputs=2, hidden=(5, 4), returns="all", bidirectional=bidirectional)
    variables = conversion.from_keras(theirs.get_weights(), bidirectional=bidirectional)
    expected = keras.ops.convert_to_numpy(theirs(INPUTS))
    close(jax.jit(model.apply)(variables, INPUTS), expected)
    theirs.set_weights(conversion.to_keras(variables))
    close(keras.ops.convert_to_numpy(theirs(INPUTS)), expected)


def test_weights_of_pytorch_with_another_head_are_fine_tuned(key):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    data = nnfx.data.prepare(IMAGES[:, :, 0, :].reshape(-1, 2), np.arange(21) % 3)
    model = models.pretrained(models.mlp((8,), outputs=3, activation="tanh"), conversion.from_torch(net.state_dict()))
    optimizer = nnfx.optimizers.freeze(optax.adam, "hidden_0")
    train = nnfx.fit(model, nnfx.losses.categorical_cross_entropy, optimizer, epochs=5)
    run = train(key, data, learning_rate=0.05)
    np.testing.assert_array_equal(run.state.params["hidden_0"]["kernel"].T, net[0].weight.detach().numpy())
    assert run.history["train_loss"][-1] < run.history["train_loss"][0]
