import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import losses, models
from nnfx.insight.lags import gradient_by_lag
from nnfx.models import Sequences
from nnfx.types import Batch

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(3, 7, 2)), jnp.float32)
BATCH = Batch(INPUTS, jnp.asarray(RNG.normal(size=3), jnp.float32), jnp.ones(3))
SQUARE = losses.mean_square_error
MODEL = models.gru(hidden=(4,))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), INPUTS)


def linear(recurrent, width=4):
    """Return a linear recurrent network with these recurrent weights, and its variables."""
    model = models.rnn(hidden=(width,), activation="identity")
    variables = jax.jit(model.init)(jax.random.key(1), INPUTS)
    layer = {**variables["params"]["layer_0"], "recurrent_kernel": jnp.asarray(recurrent, jnp.float32)}
    return model, {"params": {**variables["params"], "layer_0": layer}}


def test_in_a_linear_network_powers_of_the_recurrent_weights_arrive():
    recurrent = RNG.normal(size=(4, 4)) / 2
    model, variables = linear(recurrent)
    kernel = np.asarray(variables["params"]["output"]["kernel"], np.float64)[:, 0]
    errors = np.asarray(model.apply(variables, INPUTS))[:, 0] - np.asarray(BATCH.targets)
    expected = [
        np.abs(2 * errors).mean() * np.linalg.norm(np.linalg.matrix_power(recurrent, k) @ kernel) for k in range(1, 8)
    ]
    np.testing.assert_allclose(gradient_by_lag(model, SQUARE, variables, BATCH), expected, rtol=1e-5)


def test_weights_are_those_of_the_mean():
    model, variables = linear(np.eye(4))
    kernel = np.linalg.norm(variables["params"]["output"]["kernel"])
    errors = np.abs(2 * (np.asarray(model.apply(variables, INPUTS))[:, 0] - np.asarray(BATCH.targets)))
    found = gradient_by_lag(model, SQUARE, variables, BATCH._replace(weights=jnp.array([1.0, 0.0, 3.0])))
    np.testing.assert_allclose(found, np.full(7, (errors[0] + 3 * errors[2]) / 4 * kernel), rtol=1e-5)
    anything = BATCH._replace(
        inputs=INPUTS.at[1].set(jnp.nan), targets=BATCH.targets.at[1].set(jnp.inf), weights=jnp.array([1.0, 0.0, 3.0])
    )
    np.testing.assert_allclose(gradient_by_lag(model, SQUARE, variables, anything), found, rtol=1e-6)


@pytest.mark.slow
def test_what_is_too_small_to_be_squared_is_measured():
    model, variables = linear(1e-5 * np.eye(4))
    found = gradient_by_lag(model, SQUARE, variables, BATCH)
    np.testing.assert_allclose(found[1:] / found[:-1], 1e-5, rtol=1e-4)
    assert found[-1] < 1e-30
    model, variables = linear(np.zeros((4, 4)))
    np.testing.assert_array_equal(gradient_by_lag(model, SQUARE, variables, BATCH), np.zeros(7))


@pytest.mark.parametrize(
    ("kind", "returns"),
    [
        ("rnn", "last"),
        pytest.param("lstm", "last", marks=pytest.mark.slow),
        pytest.param("lstm", "all", marks=pytest.mark.slow),
        pytest.param("gru", "all", marks=pytest.mark.slow),
    ],
)
def test_differences_of_the_loss_agree(kind, returns):
    """Finite differences: perturb the state at each lag in every coordinate, in float64, and run the recurrence on."""
    with jax.enable_x64(True):
        model = getattr(models, kind)(outputs=2, hidden=(3, 2), returns=returns)
        inputs = jnp.asarray(RNG.normal(size=(2, 4, 2)))
        targets = jnp.asarray(RNG.normal(size=(2, 4, 2) if returns == "all" else (2, 2)))
        variables = jax.tree.map(lambda leaf: leaf.astype(float), jax.jit(model.init)(jax.random.key(2), INPUTS))
        found = gradient_by_lag(model, SQUARE, variables, Batch(inputs, targets, jnp.ones(2)))

        @jax.jit
        def loss_from(state, inputs, targets):
            return SQUARE(model.apply(variables, Sequences(inputs, state=state)), targets)

        step = jax.jit(model.stream.step)
        expected, state = [], model.stream.start(2, float)
        for t in range(4):
            # only the outputs from step t on depend on the state before it
            rest = (inputs[:, t:], targets[:, t:] if returns == "all" else targets)
            parts, tree = jax.tree.flatten(state)
            squares = np.zeros(2)
            for i, part in enumerate(parts):
                for j in range(part.shape[1]):
                    up, down = (
                        loss_from(jax.tree.unflatten(tree, [*parts[:i], part.at[:, j].add(h), *parts[i + 1 :]]), *rest)
                        for h in (1e-5, -1e-5)
                    )
                    share = (4 - t) / 4 if returns == "all" else 1  # the loss is a mean over the remaining outputs
                    squares += np.square(share * np.asarray(up - down) / 2e-5)
            expected.append(np.sqrt(squares).mean())
            state, _ = step(variables, state, inputs[:, t])
        np.testing.assert_allclose(found, expected[::-1], rtol=1e-7)


def test_it_is_a_function_like_any_other():
    found = gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), VARIABLES)
    mapped = jax.jit(jax.vmap(lambda variables: gradient_by_lag(MODEL, SQUARE, variables, BATCH)))(several)
    assert mapped.shape == (2, 7)
    np.testing.assert_allclose(mapped[0], found, rtol=1e-5)


BOTH = models.lstm(bidirectional=True)
MEAN = lambda outputs, targets: SQUARE(outputs, targets).mean()  # noqa: E731


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: gradient_by_lag("gru", SQUARE, VARIABLES, BATCH), TypeError, "model: expected a Model.*'gru'"),
        (lambda: gradient_by_lag(models.perceptron(), SQUARE, VARIABLES, BATCH), ValueError, "model: .*with a stream"),
        (
            lambda: gradient_by_lag(BOTH, SQUARE, VARIABLES, BATCH),
            ValueError,
            "model: .*one direction, got a model without one",
        ),
        (
            lambda: gradient_by_lag(models.transformer(), SQUARE, VARIABLES, BATCH),
            ValueError,
            "model: expected a recurrent network, .* got one with integers in its state",
        ),
        (lambda: gradient_by_lag(MODEL, "square", VARIABLES, BATCH), TypeError, "loss: .*got 'square'"),
        (lambda: gradient_by_lag(MODEL, MEAN, VARIABLES, BATCH), ValueError, r"loss: .*\(3,\), got float32\[\]"),
        (lambda: gradient_by_lag(MODEL, SQUARE, {}, BATCH), ValueError, "variables: expected variables of a model"),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, jax.tree.map(lambda leaf: leaf / 0, VARIABLES), BATCH),
            ValueError,
            "variables: layer_0/bias: expected finite numbers",
        ),
        (lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, INPUTS), TypeError, "batch: expected a Batch"),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(inputs=Sequences(INPUTS))),
            TypeError,
            r"batch.inputs: expected floats \(batch, time, features\), got a Sequences",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(inputs=INPUTS[..., 0])),
            ValueError,
            r"batch.inputs: expected non-empty \(batch, time, features\).*float32\[3,7\]",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(inputs=INPUTS[:, :0])),
            ValueError,
            r"batch.inputs: expected non-empty .*, got float32\[3,0,2\]",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(inputs=INPUTS.at[1, 2, 0].set(jnp.nan))),
            ValueError,
            r"batch.inputs: expected finite numbers, got 1 not finite, the first at \(1, 2, 0\)",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(targets=jnp.ones(2))),
            ValueError,
            r"batch.targets: expected 3 rows, as many as inputs, got float32\[2\]",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(targets=jnp.ones((3, 2)))),
            ValueError,
            "targets: expected the shape of the outputs",
        ),
        (
            lambda: gradient_by_lag(MODEL, SQUARE, VARIABLES, BATCH._replace(weights=jnp.zeros(3))),
            ValueError,
            "batch.weights: expected non-negative numbers, at least one of them positive",
        ),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
