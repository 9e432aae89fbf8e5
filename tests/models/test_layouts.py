import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models
from nnfx.models import layouts

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
    layers = layouts.from_torch({name: value.detach() for name, value in theirs.state_dict().items()})
    model = KINDS[kind](outputs=None, hidden=(5, 5), returns="all", bidirectional=bidirectional)
    assert jax.tree.map(np.shape, shapes_of(model)["params"]) == jax.tree.map(np.shape, layers)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(INPUTS)))[0].numpy()
        ours = jax.jit(model.apply)({"params": layers}, INPUTS)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
        back = {name: torch.tensor(value) for name, value in layouts.to_torch(layers).items()}
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
    weights = layouts.to_torch(variables["params"])
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
    for back in (layouts.from_torch(layouts.to_torch(params)), layouts.from_flax(layouts.to_flax(params))):
        assert jax.tree.structure(back) == jax.tree.structure(variables["params"])
        jax.tree.map(np.testing.assert_array_equal, back, variables["params"])


LSTM = made("lstm")[1]["params"]
TORCH = layouts.to_torch(LSTM)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layouts.to_torch({"hidden_0": {}}), r"params: expected recurrent layers.*\['hidden_0'\]"),
        (lambda: layouts.to_torch({"params": LSTM}), r"params: expected recurrent layers.*\['params'\]"),
        (lambda: layouts.to_torch({"layer_0": {"kernel": 1}}), r"layer_0: expected an input_kernel.*\['kernel'\]"),
        (
            lambda: layouts.to_flax({"layer_0": LSTM["layer_0"] | {"bias": np.zeros(3)}}),
            r"layer_0: expected kernels and a bias of 1, 3 or 4 gates.*float32\[3\]",
        ),
        (lambda: layouts.from_torch({}), "weights: expected weight_ih_l0"),
        (lambda: layouts.from_torch(TORCH | {"weight_hr_l0": 1}), "missing or unknown: weight_hr_l0"),
        (
            lambda: layouts.from_torch({name: value for name, value in TORCH.items() if "bias" not in name}),
            "missing or unknown: bias_hh_l0, bias_hh_l1",
        ),
        (lambda: layouts.from_flax({"layer_0": {"hf": {}}}), r"layer_0: expected the parameters of a SimpleCell"),
        (lambda: layouts.from_flax({}), "params: expected recurrent layers"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pytorch_s_parameters_in_half_precision_and_as_pairs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(3, 4)
    expected = layouts.from_torch(theirs.state_dict())
    for given in (theirs.named_parameters(), dict(theirs.named_parameters()), theirs.state_dict().items()):
        jax.tree.map(np.testing.assert_array_equal, layouts.from_torch(given), expected)
    half = layouts.from_torch(theirs.to(torch.bfloat16).state_dict())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), half, expected)
    back = layouts.to_torch(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half))
    assert all(torch.tensor(array).dtype == torch.float32 for array in back.values())


@pytest.mark.parametrize("given", [7, [1, 2], "weights", {3: [0.5]}])
def test_what_is_no_state_dict(given):
    with pytest.raises(TypeError, match=r"^weights"):
        layouts.from_torch(given)


@pytest.mark.parametrize("wrong", [[[1, 2]], "text", None])
def test_weights_that_are_no_floats_are_named(wrong):
    params = made("rnn")[1]["params"]
    with pytest.raises(TypeError, match=r"^weights\['bias_hh_l0'\]: expected"):
        layouts.from_torch({**layouts.to_torch(params), "bias_hh_l0": wrong})
