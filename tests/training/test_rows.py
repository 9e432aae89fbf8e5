"""Rows and steps without weight change nothing, whatever they contain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.models import Sequences
from nnfx.training import rows

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=8).astype(np.float32)
W = np.array([1, 2, 0, 1, 0, 1, 0, 0], np.float32)
MODEL, SGD = nnfx.models.perceptron(), optax.sgd(0.1)
MSE = nnfx.losses.mean_square_error
BAD = [np.nan, np.inf, np.finfo(np.float32).min]


def batch(fill=None, weights=W, in_inputs=True):
    x, y = X.copy(), Y.copy()
    if fill is not None:
        y[weights == 0] = fill
        if in_inputs:
            x[weights == 0] = fill
    return nnfx.Batch(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights))


def data_of(train, valid=None):
    pre = nnfx.data.Preprocess(jnp.zeros(()), jnp.zeros(()), jnp.ones(()), (), train.inputs.shape[1:])
    return nnfx.data.Data(train, valid, pre)


def close(first, second, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}), first, second
    )


def halves(key, batch):
    """Mix each example with the weighted mean of all."""
    mean = (batch.inputs * batch.weights[:, None]).sum(0, keepdims=True) / batch.weights.sum()
    return batch._replace(inputs=(batch.inputs + mean) / 2)


def no_weight(key, batch):
    return batch._replace(weights=jnp.zeros_like(batch.weights))


OPTIONS = {
    "plain": {},
    "micro-batches": {"micro_batches": 4},
    "rematerialised": {"rematerialize": True},
    "augmented": {"augment": halves},
    "averaged": {"average": nnfx.averaging.uniform},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_step_sees_no_row_without_weight(key, option):
    state = nnfx.init_state(key, MODEL, SGD, X, average=option == "averaged")
    step = jax.jit(nnfx.make_step(MODEL, MSE, SGD, **OPTIONS[option]))
    expected, measured = step(state, batch())
    x, y = X.astype(np.float64), Y.astype(np.float64)
    if option == "augmented":
        x = (x + np.average(x, axis=0, weights=W)) / 2
    error = x @ np.asarray(state.params["kernel"], np.float64)[:, 0] - y
    slope = 2 * (W * error) @ x / W.sum()
    close(expected.params["kernel"][:, 0], state.params["kernel"][:, 0] - 0.1 * slope)
    for fill in BAD:
        after, found = step(state, batch(fill))
        close((after._replace(key=None), found), (expected._replace(key=None), measured))


@pytest.mark.usefixtures("nan_is_meant")
@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_devices_without_any_weight_add_nothing(key, strategy):
    state = nnfx.init_state(key, MODEL, SGD, X)
    step = nnfx.make_step(MODEL, MSE, SGD)
    split = jax.jit(nnfx.data_parallel(step, strategy=strategy, devices=jax.devices()[:4]))
    (found, measured), (expected, of_one) = split(state, batch(np.nan)), jax.jit(step)(state, batch())
    close((found.params, measured), (expected.params, of_one))


@pytest.mark.usefixtures("nan_is_meant")
def test_a_batch_without_weight_moves_nothing(key):
    adam = optax.adam(0.1)
    step = jax.jit(nnfx.make_step(MODEL, MSE, adam, penalty=functools.partial(nnfx.regularizers.l2, l2=0.1)))
    state, _ = step(nnfx.init_state(key, MODEL, adam, X), batch())
    after, measured = step(state, batch(np.nan, np.zeros(8, np.float32)))
    close((after.params, after.opt_state), (state.params, state.opt_state), rtol=0, atol=0)
    assert int(after.step) == int(state.step) + 1
    assert np.isnan(measured["loss"].value)
    assert measured["loss"].weight == measured["loss"].total == 0


@pytest.mark.parametrize("batch_size", [None, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_run_sees_no_row_without_weight(key, batch_size):
    train = nnfx.fit(MODEL, MSE, optax.sgd, epochs=3, batch_size=batch_size)
    expected = train(key, data_of(batch(), batch()), learning_rate=0.1)
    found = train(key, data_of(batch(np.nan), batch(np.inf)), learning_rate=0.1)
    close((found.history, found.state.params), (expected.history, expected.state.params))
    slope = jax.grad(lambda rate: train(key, data_of(batch(np.nan), batch()), learning_rate=rate).final["valid_loss"])
    plain = jax.grad(lambda rate: train(key, data_of(batch(), batch()), learning_rate=rate).final["valid_loss"])
    if batch_size is None:
        close(slope(0.1), plain(0.1))


@pytest.mark.usefixtures("nan_is_meant")
def test_evaluation_sees_no_row_without_weight(key, monkeypatch):
    variables = MODEL.init(key, X)
    outputs = X.astype(np.float64) @ np.asarray(variables["params"]["kernel"], np.float64)
    expected = np.average((outputs[:, 0] - Y) ** 2, weights=W)
    for rows_at_once in (2048, 3):
        monkeypatch.setattr("nnfx.training.step.EVALUATION_ROWS", rows_at_once)
        found = nnfx.evaluate(MODEL, {"loss": MSE}, variables, batch(np.nan))
        np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-5)
    nothing = nnfx.evaluate(MODEL, {"loss": MSE}, variables, batch(np.nan, np.zeros(8, np.float32)))
    assert np.isnan(nothing["loss"].value)


def test_tokens_and_labels_without_weight_stay_valid():
    tokens = nnfx.Batch(jnp.array([-7, 3, 2]), jnp.array([99, 1, 0]), jnp.array([0.0, 1.0, 1.0]))
    filled = rows.filled(tokens)
    assert filled.inputs.tolist() == [3, 3, 2]
    assert filled.targets.tolist() == [1, 1, 0]
    assert filled.inputs.dtype == tokens.inputs.dtype


def test_a_batch_of_numpy_and_jax_that_is_closed_over_is_filled():
    mixed = nnfx.Batch(np.array([[np.nan], [2.0]]), np.array([7, 1]), jnp.array([0.0, 1.0]))
    assert jax.jit(lambda: rows.filled(mixed).inputs)().tolist() == [[2.0], [2.0]]


# --- steps of sequences

TIME, LENGTHS = 5, np.array([5, 2, 3, 1])
STEPS = np.arange(TIME) < LENGTHS[:, None]
SEQUENCES = RNG.normal(size=(4, TIME, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, (4, TIME))
GRU = nnfx.models.gru(3, (4,), returns="all")
CCE = nnfx.losses.categorical_cross_entropy


gru = jax.jit(GRU.apply)
evaluate_gru = jax.jit(lambda variables, data: nnfx.evaluate(GRU, {"loss": CCE}, variables, data))


def sequences(fill):
    values = np.where(STEPS[..., None], SEQUENCES, fill).astype(np.float32)
    return Sequences(jnp.asarray(values), jnp.asarray(LENGTHS, jnp.int32))


def by_hand(logits, labels, weights):
    logits = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    losses = log_sum - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return np.average(losses, weights=weights)


@pytest.mark.parametrize(
    ("told_by", "micro_batches"),
    [
        ("lengths", 1),
        pytest.param("weights", 1, marks=pytest.mark.slow),
        pytest.param("both", 1, marks=pytest.mark.slow),
        pytest.param("lengths", 2, marks=pytest.mark.slow),
        pytest.param("weights", 2, marks=pytest.mark.slow),
        ("both", 2),
    ],
)
def test_padding_of_sequences_never_counts(key, told_by, micro_batches):
    state = nnfx.init_state(key, GRU, SGD, sequences(0.0))
    step = jax.jit(nnfx.make_step(GRU, CCE, SGD, {"right": nnfx.metrics.accuracy}, micro_batches=micro_batches))
    of_rows = np.array([1.0, 2.0, 1.0, 0.5], np.float32)
    weights = of_rows if told_by == "lengths" else np.where(STEPS, of_rows[:, None], 0).astype(np.float32)
    expected = by_hand(gru(state.variables, sequences(0.0)), LABELS, np.where(STEPS, of_rows[:, None], 0))
    seen = []
    for fill, label in ((0.0, 0), (np.nan, 2)):
        inputs = sequences(fill) if told_by != "weights" else sequences(0.0)
        labels = jnp.asarray(np.where(STEPS, LABELS, label), jnp.int32)
        of = nnfx.Batch(inputs, labels, jnp.asarray(weights))
        after, measured = step(state, of)
        np.testing.assert_allclose(measured["loss"].value, expected, rtol=1e-6)
        found = evaluate_gru(state.variables, of)
        np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-6)
        seen.append((after.params, measured))
    close(*seen)


def test_weights_of_steps_equal_pytorch_s_ignore_index(key):
    torch = pytest.importorskip("torch")
    state = nnfx.init_state(key, GRU, SGD, jnp.asarray(SEQUENCES))
    is_known = RNG.random((4, TIME)) < 0.6
    of = nnfx.Batch(jnp.asarray(SEQUENCES), jnp.asarray(LABELS, jnp.int32), jnp.asarray(is_known, jnp.float32))
    _, measured = jax.jit(nnfx.make_step(GRU, CCE, SGD))(state, of)
    logits = torch.tensor(np.asarray(gru(state.variables, of.inputs)).reshape(-1, 3))
    labels = torch.tensor(np.where(is_known, LABELS, -100).ravel())
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
    np.testing.assert_allclose(measured["loss"].value, expected.item(), rtol=1e-6)


@pytest.mark.slow
def test_a_run_on_sequences_and_weights_of_steps(key):
    train = nnfx.fit(GRU, CCE, optax.sgd, epochs=2, batch_size=3)
    both = []
    for fill, label in ((0.0, 1), (np.nan, 2)):
        labels = jnp.asarray(np.where(STEPS, LABELS, label), jnp.int32)
        of = nnfx.Batch(sequences(fill), labels, jnp.asarray(STEPS, jnp.float32))
        pre = nnfx.data.Preprocess(jnp.zeros(()), jnp.zeros(()), jnp.ones(()), (), (TIME, 2))
        run = train(key, nnfx.data.Data(of, of, pre), learning_rate=0.1)
        expected = by_hand(gru(run.state.variables, sequences(0.0)), LABELS, STEPS)
        np.testing.assert_allclose(run.final["valid_loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(run.evaluate(of, run.state.variables)["loss"], expected, rtol=1e-5)
        both.append(run.history)
    close(*both)


def test_weights_of_steps_without_outputs_at_every_step(key):
    of = nnfx.Batch(jnp.asarray(SEQUENCES), jnp.asarray(LABELS, jnp.int32), jnp.ones((4, TIME)))
    last = nnfx.models.gru(3, (4,))
    state = nnfx.init_state(key, last, SGD, of.inputs)
    with pytest.raises(
        ValueError, match=r"model: expected outputs \(batch, time, \.\.\.\) for the weights of each step"
    ):
        jax.jit(nnfx.make_step(last, CCE, SGD))(state, of)


def test_one_row_leaves_the_running_statistics(key):
    norm = nnfx.models.from_linen(nnfx.models.BatchNorm())
    x = jnp.asarray(X)
    _, state = norm.apply(norm.init(key, x), x, train=True)
    variables = {**norm.init(key, x), **state}
    for weights in ([1.0] + [0.0] * 7, [0.0] * 8):
        outputs, after = norm.apply(variables, x, weights=jnp.array(weights), train=True)
        jax.tree.map(np.testing.assert_array_equal, dict(after), dict(state))
        np.testing.assert_allclose(outputs, norm.apply(variables, x), rtol=1e-6)


@pytest.fixture(scope="module")
def run():
    return nnfx.fit(MODEL, MSE, optax.sgd, epochs=1)(jax.random.key(0), data_of(batch()), learning_rate=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": -W}, "data.weights: expected non-negative numbers, got -2"),
        ({"weights": W + np.nan}, "data.weights: expected finite numbers"),
        ({"targets": Y + np.inf}, "targets: expected finite numbers"),
        ({"inputs": X + np.inf}, "data.inputs: expected finite numbers"),
        ({"inputs": np.full((8, 3), 2**40)}, "data.inputs: expected integers that int32 can hold"),
        ({"targets": Y[:7]}, "data: expected 8 rows"),
    ],
)
def test_evaluation_looks_at_values(run, changes, message):
    wrong = nnfx.Batch(X, Y, W)._replace(**changes)
    for evaluate in (run.evaluate, lambda data: nnfx.evaluate(MODEL, {"loss": MSE}, run.best.variables, data)):
        with pytest.raises(ValueError, match=message):
            evaluate(wrong)


def test_none_means_none_and_numbers_are_refused():
    nnfx.fit(MODEL, MSE, optax.sgd, epochs=1, stop=None, augment=None, metrics=None, penalty=None, average=None)
    for name in ("stop", "augment"):
        with pytest.raises(TypeError, match=f"{name}: expected a function or a sequence of functions, got 3"):
            nnfx.fit(MODEL, MSE, optax.sgd, epochs=1, **{name: 3})


def test_a_number_for_an_optimizer_already_made(key):
    train = nnfx.fit(MODEL, MSE, SGD, epochs=1)
    with pytest.raises(
        TypeError, match="learning_rate: expected one of the hyper-parameters .none.; the optimizer is an instance"
    ):
        train(key, data_of(batch()), learning_rate=0.1)
