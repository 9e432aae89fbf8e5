import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models
from nnfx.models import Sequences

KINDS = {"rnn": models.rnn, "lstm": models.lstm, "gru": models.gru}
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9, 3)), jnp.float32)
LENGTHS = jnp.array([9, 4, 4, 9])


@pytest.fixture(params=KINDS, name="kind")
def make_kind(request):
    return KINDS[request.param]


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def test_a_stream_gives_the_outputs_of_the_whole_sequence(kind, key):
    model = kind(outputs=2, hidden=(5, 4), returns="all", dropout=0.3)
    variables = model.init(key, INPUTS)
    step = jax.jit(model.stream.step)
    state = model.stream.start(4)
    outputs = []
    for t in range(9):
        state, output = step(variables, state, INPUTS[:, t])
        outputs.append(output)
    assert_close(jnp.stack(outputs, 1), model.apply(variables, INPUTS))
    last = kind(outputs=2, hidden=(5, 4))
    assert_close(outputs[-1], last.apply(variables, INPUTS))


def test_an_initial_state_goes_on_where_another_sequence_ended(kind, key):
    model = kind(outputs=2, hidden=(5, 4))
    variables = model.init(key, INPUTS)
    state = model.stream.start(4)
    for t in range(3):
        state, _ = model.stream.step(variables, state, INPUTS[:, t])
    assert_close(model.apply(variables, Sequences(INPUTS[:, 3:], state=state)), model.apply(variables, INPUTS))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_no_output(kind, key, bidirectional):
    values = INPUTS.at[jnp.arange(9)[None] >= LENGTHS[:, None]].set(jnp.nan)
    for returns in ("last", "all"):
        model = kind(outputs=2, hidden=(5, 4), bidirectional=bidirectional, returns=returns)
        variables = model.init(key, INPUTS)
        outputs = jax.jit(model.apply)(variables, Sequences(values, LENGTHS))
        for rows, length in (([0, 3], 9), ([1, 2], 4)):
            rows = jnp.array(rows)
            alone = jax.jit(model.apply)(variables, INPUTS[rows, :length])
            assert_close(outputs[rows] if returns == "last" else outputs[rows, :length], alone)


def test_both_directions_are_two_networks_side_by_side(kind, key):
    both = kind(outputs=None, hidden=(5,), bidirectional=True, returns="all")
    variables = both.init(key, INPUTS)
    one = kind(outputs=None, hidden=(5,), returns="all")
    layers = variables["params"]
    forward = one.apply({"params": {"layer_0": layers["layer_0"]}}, INPUTS)
    backward = one.apply({"params": {"layer_0": layers["layer_0_reverse"]}}, INPUTS[:, ::-1])[:, ::-1]
    assert_close(both.apply(variables, INPUTS), jnp.concatenate([forward, backward], -1))
    last = kind(outputs=None, hidden=(5,), bidirectional=True).apply(variables, INPUTS)
    assert_close(last, jnp.concatenate([forward[:, -1], backward[:, 0]], -1))


def test_dropout_is_between_layers_alone(kind, key):
    single = kind(hidden=(6,), dropout=0.5)
    variables = single.init(key, INPUTS)
    assert_close(single.apply(variables, INPUTS, key=key, train=True)[0], single.apply(variables, INPUTS), 0)
    stacked = kind(outputs=None, hidden=(6, 400), dropout=0.5, returns="all")
    variables = stacked.init(key, INPUTS)
    dropped, _ = stacked.apply(variables, INPUTS, key=key, train=True)
    assert (dropped != stacked.apply(variables, INPUTS)).any()
    assert (dropped != 0).all()


def test_initial_weights(key):
    params = models.lstm(hidden=(8,), forget_bias=2.0).init(key, INPUTS)["params"]["layer_0"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 2, 0, 0], 8))
    for gate in np.split(np.asarray(params["recurrent_kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (3 + 8))  # of Glorot's uniform distribution, for each gate by itself
    assert 0.8 * limit < np.abs(params["input_kernel"]).max() <= limit
    gates = np.split(np.asarray(params["input_kernel"]), 4, axis=1)
    assert not np.allclose(gates[0], gates[1])
    other = models.lstm(hidden=(8,), initializer="zeros", recurrent_initializer="lecun_normal").init(key, INPUTS)
    assert not other["params"]["layer_0"]["input_kernel"].any()


def test_the_forget_bias_is_a_hyper_parameter(key):
    def bias(value):
        return models.lstm(hidden=(2,), forget_bias=value).init(key, INPUTS)["params"]["layer_0"]["bias"]

    np.testing.assert_array_equal(jax.jit(bias)(3.0), [0, 0, 3, 3, 0, 0, 0, 0])


def test_batches_that_go_on_are_truncated_backpropagation_through_time(kind, key):
    """Updates by hand: three parts of a sequence, the gradient of each ending where the part began."""
    model = kind(outputs=1, hidden=(5,), returns="all", stateful=True)
    targets = INPUTS.sum(-1, keepdims=True)
    optimizer = optax.sgd(0.1)
    state = nnfx.init_state(key, model, optimizer, INPUTS[:, :3])
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.model_state["carry"]))
    step = jax.jit(nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer))

    plain = kind(outputs=1, hidden=(5,), returns="all")
    params, carried = state.params, plain.stream.start(4)

    def loss(params, carried, part):
        outputs = plain.apply({"params": params}, Sequences(INPUTS[:, part], state=carried))
        return jnp.square(outputs - targets[:, part]).mean()

    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        state, _ = step(state, nnfx.Batch(INPUTS[:, part], targets[:, part], jnp.ones(4)))
        before = params
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, carried, part))
        for t in range(part.start, part.stop):
            carried, _ = plain.stream.step({"params": before}, carried, INPUTS[:, t])
        assert_close(state.params, params)
        assert_close(state.model_state["carry"]["state"], carried)


def test_a_carried_state_is_used_but_not_moved_by_evaluation(key):
    model = models.gru(hidden=(5,), stateful=True)
    variables = model.init(key, INPUTS)
    _, state = model.apply(variables, INPUTS, train=True)
    moved = variables | state
    assert_close(model.apply(moved, INPUTS), model.apply(moved, INPUTS), 0)
    assert not np.allclose(model.apply(moved, INPUTS), model.apply(variables, INPUTS))
    with pytest.raises(ValueError, match="inputs: expected 4 sequences, whose state is carried on, got 3"):
        model.apply(moved, INPUTS[:3])


def test_lengths_and_a_carried_state_keep_their_dtypes_in_mixed_precision(kind, key):
    model, optimizer = kind(outputs=1, hidden=(5,), stateful=True), optax.sgd(0.1)
    batch = nnfx.Batch(Sequences(INPUTS, LENGTHS), INPUTS[:, 0, 0], jnp.ones(4))
    start = nnfx.init_state(key, model, optimizer, batch.inputs)
    low, full = (
        jax.jit(nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer, compute_dtype=dtype))(start, batch)[0]
        for dtype in (jnp.bfloat16, None)
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(low)] == [leaf.dtype for leaf in jax.tree.leaves(start)]
    assert_close(low.model_state, full.model_state, 0.02)


def test_a_run_learns_what_came_first(key):
    """The sign of the first of ten numbers, which a network without memory cannot know."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 10, 1)).astype(np.float32)
    data = nnfx.data.prepare(x, (x[:, 0, 0] > 0).astype(np.float32), standardize=False)
    train = nnfx.fit(models.gru(hidden=(16,)), nnfx.losses.binary_cross_entropy, optax.adam, epochs=40, batch_size=50)
    run = train(key, data, learning_rate=0.02)
    assert float(run.final["train_loss"]) < 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.lstm(hidden=()), ValueError, r"hidden: expected the widths of one layer or more.*got \(\)"),
        (lambda: models.lstm(hidden=64), ValueError, "hidden: expected the widths.*got 64"),
        (lambda: models.gru(hidden=(8, 0)), ValueError, r"hidden\[1\]: expected a positive integer, got 0"),
        (lambda: models.gru(outputs=0), ValueError, "outputs: expected a positive integer"),
        (lambda: models.rnn(activation="tan"), ValueError, "activation: .*did you mean 'tanh'"),
        (lambda: models.gru(dropout=1.0), ValueError, "dropout: expected .*below 1, got 1"),
        (lambda: models.lstm(forget_bias=np.nan), ValueError, "forget_bias: expected a finite number"),
        (lambda: models.lstm(returns="first"), ValueError, "returns: expected one of 'last', 'all', got 'first'"),
        (lambda: models.lstm(recurrent_initializer="ortho"), ValueError, "recurrent_initializer: expected one of"),
        (lambda: models.gru(stateful=True, bidirectional=True), ValueError, "stateful: expected False"),
        (lambda: models.gru().init(jax.random.key(0), INPUTS[0]), ValueError, r"inputs: expected \(batch, time"),
        (
            lambda: models.gru().init(jax.random.key(0), Sequences(INPUTS, state=((), ()))),
            ValueError,
            "inputs.state: expected that of 1 recurrent layers, got 2",
        ),
        (lambda: models.gru().stream.start(0), ValueError, "batch_size: expected a positive integer, got 0"),
        (lambda: models.lstm(formulation="plane"), ValueError, "formulation: expected .*did you mean 'plain'"),
        (
            lambda: models.gru(hidden=(4, 4)).stream.step({}, models.gru(hidden=(4,)).stream.start(1), INPUTS[:1, 0]),
            ValueError,
            "state: expected that of 2 recurrent layers, got 1",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_network_of_both_directions_has_no_stream():
    assert models.lstm(bidirectional=True).stream is None
