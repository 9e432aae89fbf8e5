from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models
from nnfx.models import Sequences

KINDS = {"rnn": models.rnn, "lstm": models.lstm, "gru": models.gru}
# For tests that do not depend on the cell: the one with a state of two parts.
ONE_KIND = pytest.mark.parametrize(
    "kind", ["lstm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("rnn", "gru"))], indirect=True
)
INPUTS = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
LENGTHS = np.array([9, 4, 4, 9])


@pytest.fixture(params=KINDS, name="kind")
def make_kind(request):
    return KINDS[request.param]


def drawn(model):
    """Return nonzero variables of a model, drawn with NumPy, so that nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), INPUTS)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def test_a_stream_gives_the_outputs_of_the_whole_sequence(kind):
    model, last = kind(outputs=2, hidden=(5, 4), returns="all", dropout=0.3), kind(outputs=2, hidden=(5, 4))
    variables = drawn(model)
    step = jax.jit(model.stream.step)
    state = model.stream.start(4)
    outputs = []
    for t in range(9):
        state, output = step(variables, state, INPUTS[:, t])
        outputs.append(output)
    whole, end = jax.jit(lambda v: (model.apply(v, INPUTS), last.apply(v, INPUTS)))(variables)
    assert_close(np.stack(outputs, 1), whole)
    assert_close(outputs[-1], end)


@ONE_KIND
def test_an_initial_state_goes_on_where_another_sequence_ended(kind):
    model = kind(outputs=2, hidden=(5, 4))

    @jax.jit
    def in_parts_and_whole(variables):
        state = model.stream.start(4)
        for t in range(3):
            state, _ = model.stream.step(variables, state, INPUTS[:, t])
        return model.apply(variables, Sequences(INPUTS[:, 3:], state=state)), model.apply(variables, INPUTS)

    assert_close(*in_parts_and_whole(drawn(model)))


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
@ONE_KIND
def test_padding_changes_no_output(kind, bidirectional):
    values = np.where((np.arange(9) < LENGTHS[:, None])[..., None], INPUTS, np.nan)
    last, every = (
        kind(outputs=2, hidden=(5, 4), bidirectional=bidirectional, returns=returns) for returns in ("last", "all")
    )
    variables = drawn(last)
    both = jax.jit(lambda inputs: (last.apply(variables, inputs), every.apply(variables, inputs)))
    end, outputs = both(Sequences(values, LENGTHS))
    for rows, length in (([0, 3], 9), ([1, 2], 4)):
        assert_close((end[np.array(rows)], outputs[np.array(rows), :length]), both(INPUTS[np.array(rows), :length]))


def test_both_directions_are_two_networks_side_by_side(kind):
    both, last = (kind(outputs=None, hidden=(5,), bidirectional=True, returns=returns) for returns in ("all", "last"))
    one = kind(outputs=None, hidden=(5,), returns="all")

    @jax.jit
    def each(variables):
        layers = variables["params"]
        forward = one.apply({"params": {"layer_0": layers["layer_0"]}}, INPUTS)
        backward = one.apply({"params": {"layer_0": layers["layer_0_reverse"]}}, INPUTS[:, ::-1])
        return forward, backward, both.apply(variables, INPUTS), last.apply(variables, INPUTS)

    forward, backward, outputs, end = each(drawn(both))
    backward = backward[:, ::-1]
    assert_close(outputs, np.concatenate([forward, backward], -1))
    assert_close(end, np.concatenate([forward[:, -1], backward[:, 0]], -1))


@ONE_KIND
def test_dropout_is_between_layers_alone(kind, key):
    def trained_and_not(model):
        def outputs(variables):
            return model.apply(variables, INPUTS, key=key, train=True)[0], model.apply(variables, INPUTS)

        return map(np.asarray, jax.jit(outputs)(drawn(model)))

    assert_close(*trained_and_not(kind(hidden=(6,), dropout=0.5)), 0)
    dropped, whole = trained_and_not(kind(outputs=None, hidden=(6, 400), dropout=0.5, returns="all"))
    assert (dropped != whole).any()
    assert (dropped != 0).all()


def test_initial_weights(key):
    params = models.lstm(hidden=(8,), forget_bias=2.0).init(key, INPUTS)["params"]["layer_0"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 2, 0, 0], 8))
    for gate in np.split(np.asarray(params["recurrent_kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (3 + 8))  # of Glorot's uniform distribution, for each gate separately
    assert 0.8 * limit < np.abs(params["input_kernel"]).max() <= limit
    gates = np.split(np.asarray(params["input_kernel"]), 4, axis=1)
    assert not np.allclose(gates[0], gates[1])
    other = models.lstm(hidden=(8,), initializer="zeros", recurrent_initializer="lecun_normal").init(key, INPUTS)
    assert not other["params"]["layer_0"]["input_kernel"].any()


def test_the_forget_bias_is_a_hyper_parameter(key):
    def bias(value):
        return models.lstm(hidden=(2,), forget_bias=value).init(key, INPUTS)["params"]["layer_0"]["bias"]

    np.testing.assert_array_equal(jax.jit(bias)(3.0), [0, 0, 3, 3, 0, 0, 0, 0])


@pytest.mark.slow
@ONE_KIND
def test_batches_that_go_on_are_truncated_backpropagation_through_time(kind, key):
    """Updates by hand: three parts of a sequence, with the gradient truncated at the start of each."""
    model = kind(outputs=1, hidden=(5,), returns="all", stateful=True)
    targets = INPUTS.sum(-1, keepdims=True)
    optimizer = optax.sgd(0.1)
    state = jax.jit(lambda key: nnfx.init_state(key, model, optimizer, INPUTS[:, :3]))(key)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.model_state["carry"]))
    step = jax.jit(nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer))

    plain = kind(outputs=1, hidden=(5,), returns="all")

    @jax.jit
    def by_hand(params, carried, x, y):
        def loss(params):
            return jnp.square(plain.apply({"params": params}, Sequences(x, state=carried)) - y).mean()

        after = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
        for t in range(3):
            carried, _ = plain.stream.step({"params": params}, carried, x[:, t])
        return after, carried

    params, carried = state.params, plain.stream.start(4)
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        state, _ = step(state, nnfx.Batch(INPUTS[:, part], targets[:, part], jnp.ones(4)))
        params, carried = by_hand(params, carried, INPUTS[:, part], targets[:, part])
        assert_close(state.params, params)
        assert_close(state.model_state["carry"]["state"], carried)


def test_a_carried_state_is_used_but_not_moved_by_evaluation():
    model = models.gru(hidden=(5,), stateful=True)
    variables = drawn(model)
    apply = jax.jit(model.apply)
    _, state = jax.jit(partial(model.apply, train=True))(variables, INPUTS)
    moved = variables | state
    assert_close(apply(moved, INPUTS), apply(moved, INPUTS), 0)
    assert not np.allclose(apply(moved, INPUTS), apply(variables, INPUTS))
    with pytest.raises(ValueError, match="inputs: expected 4 sequences, as many as the kept states, got 3"):
        model.apply(moved, INPUTS[:3])


@pytest.mark.parametrize("per_step", [False, True])
def test_a_row_of_weight_zero_keeps_its_state(per_step, key):
    """Its inputs may be anything, so a step replaces them by those of another row."""
    model, optimizer = models.lstm(outputs=1, hidden=(5,), returns="all", stateful=True), optax.sgd(0.0)
    step = nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer)
    ones = jnp.ones(INPUTS.shape[:2] if per_step else len(INPUTS))
    targets = jnp.zeros((*INPUTS.shape[:2], 1))
    before, _ = step(nnfx.init_state(key, model, optimizer, INPUTS), nnfx.Batch(INPUTS, targets, ones))
    after, _ = step(before, nnfx.Batch(jnp.asarray(INPUTS).at[1].set(jnp.nan), targets, ones.at[1].set(0)))
    whole, _ = step(before, nnfx.Batch(INPUTS, targets, ones))
    for found, kept, moved in zip(*(jax.tree.leaves(each.model_state) for each in (after, before, whole)), strict=True):
        np.testing.assert_array_equal(found[1], kept[1])
        np.testing.assert_allclose(found[jnp.array([0, 2, 3])], moved[jnp.array([0, 2, 3])], rtol=1e-5)
        assert not np.allclose(moved, kept)


@pytest.mark.slow
@ONE_KIND
def test_lengths_and_a_carried_state_keep_their_dtypes_in_mixed_precision(kind, key):
    model, optimizer = kind(outputs=1, hidden=(5,), stateful=True), optax.sgd(0.1)
    batch = nnfx.Batch(Sequences(INPUTS, LENGTHS), INPUTS[:, 0, 0], jnp.ones(4))

    @jax.jit
    def stepped(key, batch):
        start = nnfx.init_state(key, model, optimizer, batch.inputs)
        steps = (
            nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer, compute_dtype=dtype)
            for dtype in (jnp.bfloat16, None)
        )
        return start, *(step(start, batch)[0] for step in steps)

    start, low, full = stepped(key, batch)
    assert [leaf.dtype for leaf in jax.tree.leaves(low)] == [leaf.dtype for leaf in jax.tree.leaves(start)]
    assert_close(low.model_state, full.model_state, 0.02)


@pytest.mark.slow
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
        (lambda: models.lstm(hidden=()), ValueError, r"hidden: expected the widths of one or more layers.*got \(\)"),
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
            "inputs.state: expected the state of 1 recurrent layers, got 2",
        ),
        (lambda: models.gru().stream.start(0), ValueError, "batch_size: expected a positive integer, got 0"),
        (lambda: models.lstm(formulation="plane"), ValueError, "formulation: expected .*did you mean 'plain'"),
        (
            lambda: models.gru(hidden=(4, 4)).stream.step({}, models.gru(hidden=(4,)).stream.start(1), INPUTS[:1, 0]),
            ValueError,
            "state: expected the state of 2 recurrent layers, got 1",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_network_of_both_directions_has_no_stream():
    assert models.lstm(bidirectional=True).stream is None
