from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from nnfx import ops
from nnfx.models import conversion
from nnfx.ops import RecurrentWeights

pytestmark = pytest.mark.usefixtures("strict_dtypes")
CELLS = {
    "rnn": ops.rnn_cell(),
    "rnn of another kind": ops.rnn_cell(jax.nn.softplus),
    "lstm": ops.lstm_cell,
    "gru": ops.gru_cell,
}
BATCH, TIME, FEATURES, HIDDEN = 5, 7, 3, 4


def drawn(cell, key=0, dtype=np.float32):
    """Return nonzero inputs, weights and a state."""
    rng = np.random.default_rng(key)
    shapes = [(FEATURES, cell.gates * HIDDEN), (HIDDEN, cell.gates * HIDDEN), (cell.biases * HIDDEN,)]
    weights = RecurrentWeights(*(jnp.asarray(0.6 * rng.normal(size=shape), dtype) for shape in shapes))
    inputs = jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), dtype)
    state = tuple(jnp.asarray(rng.normal(size=(BATCH, HIDDEN)), dtype) for _ in range(cell.states))
    return inputs, weights, state


@pytest.fixture(params=CELLS, name="cell")
def make_cell(request):
    return CELLS[request.param]


def by_default(**ways):
    """Return cases of cells and directions: those named here run by default, all others are slow."""
    cases = [(name, reverse) for name in CELLS for reverse in (False, True)]
    marks = {case: () if ways.get(case[0].replace(" ", "_")) is case[1] else pytest.mark.slow for case in cases}
    given = [pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=marks[case]) for case in cases]
    return pytest.mark.parametrize(("cell", "reverse"), given, indirect=["cell"])


def only(*names):
    """Run only these cells by default, for tests that do not depend on the cell."""
    given = [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CELLS]
    return pytest.mark.parametrize("cell", given, indirect=True)


def wave(function):
    """Reduce a function's values to a scalar whose gradient distinguishes every output and its derivative."""
    return lambda *arguments: sum(
        jnp.sin(leaf + i).sum() for i, leaf in enumerate(jax.tree.leaves(function(*arguments)))
    )


def with_gradient(function):
    """Return a compiled function of its values and the gradient of their wave."""
    return jax.jit(lambda *arguments: (function(*arguments), jax.grad(wave(function), (0, 1, 2))(*arguments)))


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def by_flax(name, inputs, weights, state, lengths=None, reverse=False):
    """Return the same computed with Flax's cells, which put an LSTM's memory before its hidden state."""
    layer = {"input_kernel": weights.inputs, "recurrent_kernel": weights.recurrent, "bias": weights.bias}
    params = conversion.to_flax({"layer_0": layer})["layer_0"]
    cell = {"rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[name](HIDDEN)
    carry = state[::-1] if name == "lstm" else state[0]
    network = nn.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)
    carry, outputs = network.apply({"params": {"cell": params}}, inputs, initial_carry=carry, seq_lengths=lengths)
    return outputs, carry[::-1] if name == "lstm" else (carry,)


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        pytest.param("rnn", False, marks=pytest.mark.slow),
        pytest.param("rnn", True, marks=pytest.mark.slow),
        pytest.param("lstm", False, marks=pytest.mark.slow),
        ("lstm", True),
        ("gru", False),
        pytest.param("gru", True, marks=pytest.mark.slow),
    ],
)
def test_outputs_state_and_gradients_are_those_of_flax(name, reverse):
    arguments = drawn(CELLS[name])
    ours = with_gradient(lambda *a: ops.recurrence(CELLS[name], *a, reverse=reverse))
    theirs = with_gradient(partial(by_flax, name, reverse=reverse))
    assert_close(ours(*arguments), theirs(*arguments))


@by_default(gru=False)
def test_gradients_of_both_orders_against_differences_in_double(cell, reverse):
    with jax.enable_x64(True):
        inputs, weights, state = drawn(cell, dtype=np.float64)
        lengths = jnp.array([7, 3, 0, 5, 1], jnp.int32)

        def function(inputs, weights, state):
            return ops.recurrence(cell, inputs[:, :3], weights, state, lengths=lengths.clip(max=3), reverse=reverse)

        check_grads(jax.jit(function), (inputs, weights, state), order=2, modes=["rev"], rtol=1e-5, atol=1e-5)


@only("lstm")
def test_the_plain_formulation_has_the_same_numbers_and_forward_mode(cell):
    arguments, along = drawn(cell), drawn(cell, key=1)
    own, plain = (partial(ops.recurrence, cell, formulation=each) for each in ("own", "plain"))

    def numbers(function):
        """Return values, gradient and a Hessian-vector product, whose inner gradient is in reverse mode."""
        gradient = jax.grad(wave(function), (0, 1, 2))
        return jax.jit(lambda a, v: (function(*a), jax.jvp(gradient, a, v)))(arguments, along)

    values, (gradient, product) = numbers(own)
    expected, (of_plain, product_of_plain) = numbers(plain)
    assert_close(values, expected)
    assert_close(gradient, of_plain)
    assert_close(product, product_of_plain, 1e-4)

    _, slope = jax.jit(partial(jax.jvp, wave(plain)))(arguments, along)
    expected = sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(wave(own), arguments, along)


@by_default(gru=False)
def test_padding_changes_nothing_whatever_it_holds(cell, reverse):
    inputs, weights, state = drawn(cell)
    lengths = np.array([7, 3, 0, 3, 7])
    padded = np.where((np.arange(TIME) < lengths[:, None])[..., None], inputs, np.float32(np.nan))

    @jax.jit
    def both(inputs, weights, state, lengths):
        def function(*arguments):
            return ops.recurrence(cell, *arguments, lengths=lengths, reverse=reverse)

        return with_gradient(function)(inputs, weights, state)

    inputs, state = np.asarray(inputs), tuple(map(np.asarray, state))
    (outputs, last), (d_inputs, d_weights, d_state) = jax.device_get(both(padded, weights, state, lengths))
    total = jax.tree.map(np.zeros_like, weights)
    for length in (7, 3):
        rows = np.flatnonzero(lengths == length)
        own = tuple(part[rows] for part in state)
        found, gradient = both(inputs[rows, :length], weights, own, np.full(2, length))
        assert_close(found, (outputs[rows, :length], tuple(part[rows] for part in last)))
        assert_close(gradient[::2], (d_inputs[rows, :length], tuple(part[rows] for part in d_state)))
        assert (outputs[rows, length:] == 0).all()
        assert (d_inputs[rows, length:] == 0).all()
        total = jax.tree.map(np.add, total, gradient[1])
    assert_close(d_weights, total)
    assert_close(tuple(part[2] for part in last), tuple(part[2] for part in state), 0)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_lengths_of_eight_bits_are_for_long_sequences_too(dtype):
    inputs, weights, _ = drawn(ops.gru_cell)
    long, lengths = jnp.tile(inputs, (1, 40, 1)), np.array([7, 100, 0, 5, 1])
    run = jax.jit(lambda *each: [ops.recurrence(ops.gru_cell, long, weights, lengths=one) for one in each])
    narrow, wide = run(lengths.astype(dtype), lengths.astype(np.int32))
    assert_close(narrow, wide, 0)


def test_one_step_after_the_other_gives_the_whole_sequence(cell):
    inputs, weights, state = drawn(cell)
    zeros = tuple(map(jnp.zeros_like, state))
    starts = {"given": (state,), "none": (), "zeros": (zeros,)}
    run = jax.jit(lambda: {name: ops.recurrence(cell, inputs, weights, *start) for name, start in starts.items()})
    found, step = jax.device_get(run()), jax.jit(cell.step)
    outputs, last = found["given"]
    for t in range(TIME):
        state = step(weights, state, inputs[:, t])
        assert_close(outputs[:, t], state[0])
    assert_close(last, state)
    assert_close(found["none"], found["zeros"], 0)


@only("lstm")
def test_vmap_over_weights_equals_a_loop(cell):
    inputs, _, state = drawn(cell)
    several = [drawn(cell, key)[1] for key in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    function = jax.jit(jax.value_and_grad(wave(lambda weights: ops.recurrence(cell, inputs, weights, state))))
    values, gradients = jax.jit(jax.vmap(function))(stacked)
    for i, weights in enumerate(several):
        value, gradient = function(weights)
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        assert_close([np.asarray(leaf)[i] for leaf in jax.tree.leaves(gradients)], gradient)


@pytest.mark.slow
@only("lstm")
def test_over_a_mesh_the_gradient_is_that_of_the_whole_batch(cell):
    inputs, weights, _ = drawn(cell)
    inputs = jnp.concatenate([inputs, inputs[:3] + 1])  # eight sequences, two per device
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    share = partial(ops.recurrence, cell)

    @partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec("batch"), PartitionSpec()), out_specs=PartitionSpec())
    def spread(inputs, weights):
        return jax.lax.psum(wave(share)(inputs, weights), "batch")

    gradient = jax.jit(jax.grad(spread, 1))(inputs, weights)
    assert_close(gradient, jax.jit(jax.grad(wave(share), 1))(inputs, weights))


def test_the_dtype_is_kept(cell):
    arguments = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), drawn(cell))
    lengths = jnp.array([7, 3, 0, 5, 1])
    outputs, last = jax.eval_shape(partial(ops.recurrence, cell, lengths=lengths), *arguments)
    assert {leaf.dtype for leaf in (outputs, *last)} == {jnp.dtype(jnp.bfloat16)}


def test_the_gradient_of_the_weights_is_one_product_over_all_steps(cell):
    inputs, weights, _ = drawn(cell)
    program = jax.jit(jax.grad(wave(lambda weights: ops.recurrence(cell, inputs, weights)))).lower(weights)
    products = [line for line in program.as_text().splitlines() if "dot_general" in line]
    kernels = len(jax.tree.leaves(cell.pack(weights)))
    assert len([line for line in products if f"tensor<{TIME * BATCH}x" in line]) == kernels
    assert len(products) <= 3 * kernels  # those, and as many per step forward and backward


X, W, S = drawn(ops.lstm_cell)
LENGTHS = jnp.full(BATCH, TIME)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X[0], W), {}, ValueError, r"inputs: expected \(batch, time, features\).*float32\[7,3\]"),
        ((X[:, :0], W), {}, ValueError, r"inputs: .*at least one step and feature, got float32\[5,0,3\]"),
        ((X.astype(int), W), {}, TypeError, "inputs: expected an array of floats"),
        ((X, W._replace(bias=W.bias.astype(jnp.bfloat16))), {}, TypeError, "weights.bias: .*float32, got bfloat16"),
        ((X, W._replace(inputs=W.inputs[1:])), {}, ValueError, r"weights.inputs: expected \(3, 16\).*float32\[2,16\]"),
        ((X, W._replace(bias=W.bias[:-1])), {}, ValueError, r"weights.bias: expected \(16,\) for the cell 'lstm'"),
        ((X, drawn(ops.gru_cell)[1]), {}, ValueError, r"weights.recurrent: expected \(hidden, 4 × hidden\).*\[4,12\]"),
        ((X, W, S[:1]), {}, ValueError, "state: expected a tuple of 2"),
        ((X, W, S[0]), {}, ValueError, "state: expected a tuple of 2"),
        ((X, W, (S[0], S[1][1:])), {}, ValueError, r"state\[1\]: expected float32\[5,4\], got float32\[4,4\]"),
        ((X, W), {"lengths": LENGTHS[1:]}, ValueError, r"lengths: expected one per sequence, \(5,\), got int32\[4\]"),
        ((X, W), {"lengths": LENGTHS + 1}, ValueError, "lengths: expected numbers from 0 to 7.*got 8 to 8"),
        ((X, W), {"lengths": -LENGTHS}, ValueError, "lengths: expected numbers from 0 to 7.*got -7 to -7"),
        ((X, W), {"formulation": "plane"}, ValueError, "formulation: expected one of .*did you mean 'plain'"),
        (
            (X, W),
            {"formulation": "cudnn", "reverse": True},
            ValueError,
            "formulation: expected 'own' or 'plain' for the cell 'lstm' with reverse=True",
        ),
        ((X, W), {"lengths": LENGTHS / 2}, TypeError, "lengths: expected integers, got float32"),
    ],
)
def test_wrong_input(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        ops.recurrence(ops.lstm_cell, *arguments, **keywords)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((W, S, X[0, 0]), ValueError, r"x: expected one step, \(batch, features\), got float32\[3\]"),
        ((W, S, X), ValueError, r"x: expected one step, \(batch, features\), got float32\[5,7,3\]"),
        ((W, S, X[:, 0, :2]), ValueError, r"weights.inputs: expected \(2, 16\) .*got float32\[3,16\]"),
        ((W, S, X[:, 0].astype(jnp.bfloat16)), TypeError, "weights.inputs: expected .*bfloat16, got float32"),
        ((W, S, X[:1, 0]), ValueError, r"state\[0\]: expected float32\[1,4\], got float32\[5,4\]"),
        ((W, S[:1], X[:, 0]), ValueError, "state: expected a tuple of 2 arrays for the cell 'lstm'"),
    ],
)
def test_wrong_input_of_one_step(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.lstm_cell.step(*arguments)


def test_a_step_back_multiplies_by_the_weights_of_the_hidden_state_alone(cell):
    inputs, weights, state = drawn(cell)
    packed = cell.pack(weights)
    z, pull = jax.vjp(lambda hidden: cell.project(packed, hidden, inputs[:, 0]), state[0])
    products = [eqn for eqn in jax.make_jaxpr(pull)(z).eqns if eqn.primitive.name == "dot_general"]
    assert [product.outvars[0].aval.shape for product in products] == [(BATCH, HIDDEN)]
    expected = jnp.concatenate(jax.tree.leaves(z), axis=-1)[:, : cell.gates * HIDDEN] @ weights.recurrent.T
    np.testing.assert_allclose(pull(z)[0], expected, rtol=1e-5, atol=1e-5)
