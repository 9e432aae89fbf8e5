import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models, ops
from nnfx.models import Sequences
from nnfx.models.attention import Block

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(3, 11, 2)).astype(np.float32)
LENGTHS = np.array([11, 4, 7])
SMALL = {"width": 8, "layers": 2, "heads": 2, "hidden": 6}
MODEL = models.transformer(outputs=3, context=4, returns="all", **SMALL)


def drawn(model, inputs=INPUTS):
    """Return nonzero variables of a model, drawn with NumPy, so that nothing is compiled."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


VARIABLES = drawn(MODEL)
APPLY = jax.jit(MODEL.apply)


def reference(params, x, heads, layers, context):
    """The network in float64: one query at a time, with rotations as complex numbers."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(of, x):
        return x @ of["kernel"] + of["bias"]

    def norm(of, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * of["scale"] + of["bias"]

    def gelu(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def turned(x):
        half = x.shape[-1] // 2
        speeds = 10_000.0 ** (-np.arange(half) / half)
        return (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.arange(len(x))[:, None, None] * speeds)

    def attended(block, x):
        q, k, v = (dense(block[name], x).reshape(len(x), heads, -1) for name in ("query", "key", "value"))
        q, k, found = turned(q), turned(k), np.zeros_like(v)
        for t, h in np.ndindex(len(x), heads):
            seen = slice(max(t - context + 1, 0), t + 1)
            shares = np.exp((k[seen, h] @ q[t, h].conj()).real / np.sqrt(v.shape[-1]))
            found[t, h] = shares / shares.sum() @ v[seen, h]
        return dense(block["attended"], found.reshape(x.shape))

    x = dense(params["input"], x)
    for i in range(layers):
        block = params[f"block_{i}"]
        x = x + attended(block, norm(block["attention_norm"], x))
        x = x + dense(block["output"], gelu(dense(block["hidden"], norm(block["hidden_norm"], x))))
    return dense(params["output"], norm(params["norm"], x))


def test_the_network_against_numpy():
    expected = [reference(VARIABLES["params"], x.astype(np.float64), 2, 2, 4) for x in INPUTS]
    np.testing.assert_allclose(APPLY(VARIABLES, INPUTS), expected, rtol=1e-4, atol=1e-5)


def test_a_block_against_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        8,
        2,
        6,
        dropout=0.0,
        activation=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    x = RNG.normal(size=(3, 5, 8)).astype(np.float32)
    mask = np.tril(np.ones((5, 5), bool))
    expected = theirs(torch.tensor(x), src_mask=torch.tensor(~mask)).detach().numpy()

    def of(weight, bias):
        return {"kernel": weight.detach().numpy().T, "bias": bias.detach().numpy()}

    attention = theirs.self_attn
    params = {
        name: of(weight, bias)
        for name, weight, bias in zip(
            ("query", "key", "value"), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    }
    for name, layer in (("attended", attention.out_proj), ("hidden", theirs.linear1), ("output", theirs.linear2)):
        params[name] = of(layer.weight, layer.bias)
    for name, layer in (("attention_norm", theirs.norm1), ("hidden_norm", theirs.norm2)):
        params[name] = {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    block = Block(2, 6, jax.nn.gelu, 0.0, jax.nn.initializers.zeros)

    def attend(*parts):  # without rotation, as in PyTorch
        return ops.attention(*parts, jnp.asarray(mask)), None

    ours, _ = block.apply({"params": params}, x, attend, False)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_stream_gives_the_outputs_of_the_whole_sequence_even_beyond_the_context():
    step, state, outputs = jax.jit(MODEL.stream.step), MODEL.stream.start(3), []
    for t in range(11):
        state, output = step(VARIABLES, state, INPUTS[:, t])
        outputs.append(output)
    np.testing.assert_allclose(np.stack(outputs, 1), APPLY(VARIABLES, INPUTS), rtol=1e-5, atol=1e-5)
    assert int(state.steps) == 11
    assert state.layers[0][0].shape == (3, 4, 2, 4)


def test_a_stream_does_not_drift_with_the_number_of_steps():
    """After ten million steps, outputs are those that the network has in float64 for what it sees."""
    before = np.repeat(INPUTS, 2, axis=1)  # more steps than two layers look back
    start = MODEL.stream.start(3)._replace(steps=jnp.asarray(10**7, jnp.int32))

    @jax.jit
    def streamed(inputs):
        return jax.lax.scan(lambda state, x: MODEL.stream.step(VARIABLES, state, x), start, inputs.swapaxes(0, 1))[1]

    expected = [reference(VARIABLES["params"], x.astype(np.float64), 2, 2, 4) for x in before]
    np.testing.assert_allclose(streamed(before)[7:].swapaxes(0, 1), np.array(expected)[:, 7:], rtol=1e-4, atol=1e-5)


def test_a_step_changes_what_lies_within_its_reach_and_nothing_else():
    before = np.asarray(APPLY(VARIABLES, INPUTS))
    for t in (0, 3, 10):
        changed = INPUTS.copy()
        changed[:, t] += 1
        after = np.asarray(APPLY(VARIABLES, changed))
        is_same = (after == before).all((0, 2))
        reach = 2 * (4 - 1)  # two layers, each of which looks three steps back
        assert is_same.tolist() == [not t <= other <= t + reach for other in range(11)]


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_padding_changes_no_bit_of_outputs_and_gradients(causal):
    model = models.transformer(outputs=2, context=4, returns="all", causal=causal, **SMALL)
    variables = drawn(model)
    is_real = np.arange(11) < LENGTHS[:, None]

    @jax.jit
    def outputs_and_gradient(values):
        def total(variables):
            outputs = model.apply(variables, Sequences(values, LENGTHS))
            return jnp.where(is_real[..., None], outputs, 0).sum(), outputs

        (_, outputs), gradient = jax.value_and_grad(total, has_aux=True)(variables)
        return outputs, gradient

    expected = outputs_and_gradient(INPUTS)
    for fill in (0.0, np.nan, 1e30):
        found = outputs_and_gradient(np.where(is_real[..., None], INPUTS, np.float32(fill)))
        np.testing.assert_array_equal(np.asarray(found[0])[is_real], np.asarray(expected[0])[is_real])
        jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    alone = jax.jit(model.apply)(variables, INPUTS[1:2, :4])
    np.testing.assert_allclose(alone[0], expected[0][1, :4], rtol=1e-4, atol=1e-5)


def test_the_last_output_is_that_of_the_last_real_step():
    last = models.transformer(outputs=3, context=4, returns="last", **SMALL)
    both = jax.jit(lambda inputs: (last.apply(VARIABLES, inputs), MODEL.apply(VARIABLES, inputs)))
    end, every = both(Sequences(INPUTS, LENGTHS))
    np.testing.assert_array_equal(end, np.asarray(every)[np.arange(3), LENGTHS - 1])
    end, every = both(INPUTS)
    np.testing.assert_array_equal(end, every[:, -1])


def test_without_causality_steps_see_as_many_ahead_as_back():
    model = models.transformer(outputs=None, context=3, causal=False, returns="all", width=8, layers=1, heads=2)
    apply = functools.partial(jax.jit(model.apply), drawn(model))
    before, changed = np.asarray(apply(INPUTS)), INPUTS.copy()
    changed[:, 5] += 1
    is_same = (np.asarray(apply(changed)) == before).all((0, 2))
    assert is_same.tolist() == [not 3 <= other <= 7 for other in range(11)]
    assert model.stream is None


def test_dropout_is_in_training_alone(key):
    model = models.transformer(outputs=3, context=4, returns="all", dropout=0.5, **SMALL)
    np.testing.assert_array_equal(jax.jit(model.apply)(VARIABLES, INPUTS), APPLY(VARIABLES, INPUTS))
    trained = jax.jit(functools.partial(model.apply, train=True))
    first, again, other = (np.asarray(trained(VARIABLES, INPUTS, key=k)[0]) for k in (key, key, jax.random.key(1)))
    assert (first == again).all()
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: models.transformer(width=12, heads=4),
            ValueError,
            "width: expected a multiple of 2 × heads, 8, got 12",
        ),
        (lambda: models.transformer(layers=0), ValueError, "layers: expected a positive integer, got 0"),
        (lambda: models.transformer(heads=2.0), TypeError, "heads: expected a positive integer, got 2.0"),
        (lambda: models.transformer(context=0), ValueError, "context: expected a positive integer, got 0"),
        (lambda: models.transformer(hidden=0), ValueError, "hidden: expected a positive integer, got 0"),
        (lambda: models.transformer(outputs=0), ValueError, "outputs: expected a positive integer, got 0"),
        (lambda: models.transformer(width="8"), TypeError, "width: expected a positive integer, got '8'"),
        (lambda: models.transformer(dropout=1.0), ValueError, "dropout: expected .*below 1, got 1"),
        (lambda: models.transformer(returns="first"), ValueError, "returns: expected one of 'last', 'all'"),
        (lambda: models.transformer(activation="gellu"), ValueError, "activation: .*did you mean 'gelu'"),
        (lambda: MODEL.init(jax.random.key(0), INPUTS[0]), ValueError, r"inputs: expected \(batch, time, features\)"),
        (
            lambda: MODEL.apply(VARIABLES, Sequences(INPUTS, state=())),
            ValueError,
            "inputs.state: expected None, since a transformer has no state",
        ),
        (lambda: MODEL.stream.start(0), ValueError, "batch_size: expected a positive integer, got 0"),
        (
            lambda: MODEL.stream.step(VARIABLES, models.transformer(layers=1).stream.start(3), INPUTS[:, 0]),
            ValueError,
            "state: expected the state of 2 layers, got 1",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_sequences_of_zeros_have_gradients_of_ordinary_size(key):
    """A norm multiplies tiny vectors by 1 / √ε, here four times in a row."""
    variables = jax.jit(MODEL.init)(key, INPUTS)
    gradient = jax.jit(jax.grad(lambda params: MODEL.apply({"params": params}, 0 * INPUTS).sum()))(variables["params"])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e4
