"""Models of tokens, and their losses at every step, with steps that have no target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses, models
from nnfx.models import Sequences

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, size=(4, 9)).astype(np.int32)
LENGTHS = np.array([9, 4, 6, 9])
BEHIND = {
    "lstm": models.lstm(7, hidden=(5, 4), returns="all"),
    "gru": models.gru(7, hidden=(5, 4), returns="all"),
    "transformer": models.transformer(7, width=8, layers=2, heads=2, context=4, returns="all"),
}
MODELS = {name: models.embedding(7, 3, model) for name, model in BEHIND.items()}
EVERY = pytest.mark.parametrize("name", ["lstm", pytest.param("gru", marks=pytest.mark.slow), "transformer"])
ONE = "transformer"


@functools.cache
def drawn(name):
    """Return variables of a model, drawn with NumPy, so that nothing is compiled."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), TOKENS)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@EVERY
def test_a_stream_gives_the_outputs_of_the_whole_sequence(name):
    model, variables = MODELS[name], drawn(name)
    step, state, outputs = jax.jit(model.stream.step), model.stream.start(4), []
    for token in TOKENS.T:
        state, output = step(variables, state, token)
        outputs.append(output)
    np.testing.assert_allclose(np.stack(outputs, 1), jax.jit(model.apply)(variables, TOKENS), rtol=1e-5, atol=1e-5)


@EVERY
def test_no_output_depends_on_later_tokens(name):
    apply = jax.jit(MODELS[name].apply)
    before = np.asarray(apply(drawn(name), TOKENS))
    for t in (0, 4, 8):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % 7
        after = np.asarray(apply(drawn(name), changed))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


def test_a_token_is_a_row_of_the_table_whose_gradient_adds_up():
    identity = nnfx.Model(lambda *_: {"params": {}}, lambda _, x, **__: x)
    model = models.embedding(7, 3, identity)
    table, cotangent = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=(4, 9, 3)).astype(np.float32)
    outputs, pull = jax.vjp(lambda table: model.apply({"params": {"embedding": table}}, TOKENS), table)
    np.testing.assert_array_equal(outputs, table[TOKENS])
    expected = np.zeros((7, 3))
    np.add.at(expected, TOKENS, cotangent)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], expected, rtol=1e-5, atol=1e-6)


def test_what_padding_holds_changes_no_bit_of_a_step(key):
    """Tokens and labels beyond the lengths, and labels without weight, may be anything."""
    model, optimizer = MODELS[ONE], optax.sgd(0.1)
    step = jax.jit(
        nnfx.make_step(model, losses.categorical_cross_entropy, optimizer, {"accuracy": nnfx.metrics.accuracy})
    )
    start = nnfx.init_state(key, model, optimizer, TOKENS)
    is_real = np.arange(9) < LENGTHS[:, None]
    has_label = is_real & (RNG.uniform(size=is_real.shape) < 0.8)
    results = []
    for fill in (0, 6, -1, 99):
        tokens, labels = np.where(is_real, TOKENS, fill), np.where(has_label, TOKENS[:, ::-1], fill)
        batch = nnfx.Batch(Sequences(tokens, LENGTHS), labels, has_label.astype(np.float32))
        results.append(step(start, jax.tree.map(jnp.asarray, batch)))
    for state, measured in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, (state.params, measured), (results[0][0].params, results[0][1]))
    assert float(results[0][1]["loss"].weight) == has_label.sum()


def test_the_loss_of_a_step_is_the_mean_over_steps_with_a_label():
    """Against NumPy in float64, and PyTorch's `ignore_index`, which marks labels that do not count."""
    logits = RNG.normal(size=(4, 9, 7))
    labels = np.where(RNG.uniform(size=(4, 9)) < 0.7, TOKENS, -1)

    def ours(logits):
        weights = jnp.asarray(labels >= 0, jnp.float32)
        batch = nnfx.Batch(jnp.zeros((4, 9, 1)), jnp.asarray(labels), weights)
        echo = nnfx.Model(lambda *_: {"params": {}}, lambda variables, _, **__: variables["params"])
        measures = {"loss": losses.categorical_cross_entropy}
        return nnfx.evaluate(echo, measures, {"params": logits}, batch)["loss"].value

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits, jnp.float32))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log_p[i][labels[i]] for i in np.ndindex(labels.shape) if labels[i] >= 0])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(logits, requires_grad=True)
    flat, targets = theirs.reshape(-1, 7), torch.tensor(labels.ravel().astype(np.int64))
    loss = torch.nn.functional.cross_entropy(flat, targets, ignore_index=-1)
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fill", [7, 99, -1, -7])
def test_traced_tokens_out_of_range_are_not_a_number(fill):
    changed = TOKENS.copy()
    changed[1, 4] = fill
    outputs = np.asarray(jax.jit(MODELS[ONE].apply)(drawn(ONE), changed))
    assert np.isnan(outputs[1, 4]).all()
    assert np.isfinite(outputs[[0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_tokens_of_any_integer_dtype(dtype):
    expected = MODELS[ONE].apply(drawn(ONE), TOKENS)
    np.testing.assert_array_equal(MODELS[ONE].apply(drawn(ONE), TOKENS.astype(dtype)), expected)


def test_entries_of_vectors_are_dropped_in_training(key):
    identity = nnfx.Model(lambda *_: {"params": {}}, lambda _, x, train=False, **__: (x, {}) if train else x)
    model = models.embedding(7, 500, identity, dropout=0.25)
    variables = model.init(key, TOKENS)
    vectors, _ = model.apply(variables, TOKENS, key=key, train=True)
    is_dropped = np.asarray(vectors) == 0
    assert abs(is_dropped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / is_dropped.size)
    whole = np.asarray(model.apply(variables, TOKENS))
    np.testing.assert_allclose(np.asarray(vectors)[~is_dropped], whole[~is_dropped] / 0.75, rtol=1e-6)
    with pytest.raises(ValueError, match="key: expected a key, since dropout needs one in training, got None"):
        model.apply(variables, TOKENS, train=True)


def test_the_collections_of_the_model_behind_are_kept(key):
    model = models.embedding(7, 3, models.gru(7, hidden=(4,), returns="all", stateful=True))
    variables = model.init(key, TOKENS)
    assert set(variables) == {"params", "carry"}
    _, state = model.apply(variables, TOKENS, key=key, train=True)
    assert set(state) == {"carry"}
    assert any(leaf.any() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_run_learns_to_count(key):
    train = nnfx.data.next_tokens(np.arange(300) % 7, length=20)
    pre = nnfx.data.Preprocess(None, jnp.zeros(()), jnp.ones(()), (), (20,))
    fit = nnfx.fit(MODELS[ONE], losses.categorical_cross_entropy, optax.adam, epochs=60, batch_size=5)
    run = fit(key, nnfx.data.Data(train, None, pre), learning_rate=0.01)
    assert float(run.final["train_loss"]) < 0.05


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.embedding(0, 3, BEHIND[ONE]), ValueError, "tokens: expected a positive integer, got 0"),
        (lambda: models.embedding(7, 0, BEHIND[ONE]), ValueError, "features: expected a positive integer, got 0"),
        (lambda: models.embedding(7, 3, models.gru), TypeError, "model: expected a Model, such as nnfx.models.gru"),
        (lambda: models.embedding(7, 3, BEHIND[ONE], dropout=1.0), ValueError, "dropout: expected .*below 1, got 1"),
        (lambda: models.embedding(7, 3, BEHIND[ONE], initializer="he"), ValueError, "initializer: expected one of"),
        (
            lambda: models.embedding(7, 3, MODELS[ONE]).init(jax.random.key(0), TOKENS),
            ValueError,
            r"inputs: expected tokens \(batch, time\), got float32\[4,9,3\]",
        ),
        (
            lambda: models.embedding(7, 3, nnfx.Model(lambda *_: {"params": {"embedding": 0}}, None)).init(
                jax.random.key(0), TOKENS
            ),
            ValueError,
            "model: expected no parameter called 'embedding', got one",
        ),
        (
            lambda: MODELS[ONE].init(jax.random.key(0), TOKENS[0]),
            ValueError,
            r"inputs: expected tokens \(batch, time\)",
        ),
        (
            lambda: MODELS[ONE].apply(drawn(ONE), TOKENS.astype(float)),
            TypeError,
            "inputs: expected tokens, which are integers, got .*; nnfx.data.prepare keeps them with keep_integers=True",
        ),
        (lambda: MODELS[ONE].apply(drawn(ONE), TOKENS + 1), ValueError, "inputs: expected tokens from 0 to 6, got"),
        (lambda: MODELS[ONE].init(0, TOKENS), TypeError, "key: expected a typed key"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "tokens", [TOKENS, Sequences(TOKENS, np.full(len(TOKENS), TOKENS.shape[1]))], ids=["array", "sequences"]
)
def test_tokens_beyond_the_table_are_refused_before_training(tokens):
    data = nnfx.data.prepare(tokens, np.zeros((len(TOKENS), 1)), keep_integers=True)
    model = nnfx.models.embedding(int(TOKENS.max()), 2, nnfx.models.gru(1, hidden=(2,)))
    train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    largest = int(TOKENS.max())
    with pytest.raises(
        ValueError, match=f"inputs: expected tokens from 0 to {largest - 1}, got tokens from 0 to {largest}"
    ):
        train(jax.random.key(0), data, learning_rate=0.1)
