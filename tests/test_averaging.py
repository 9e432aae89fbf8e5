import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import averaging


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999, 1.0])
def test_the_shares_make_the_weighted_mean(decay):
    values = np.random.default_rng(0).normal(size=40)
    average = 0.0
    for t, value in enumerate(values, 1):
        average += float(averaging.exponential(t, decay)) * (value - average)
        powers = decay ** np.arange(t - 1, -1, -1.0)
        np.testing.assert_allclose(average, (powers @ values[:t]) / powers.sum(), rtol=1e-4, atol=1e-5)


def test_a_decay_of_one_is_the_uniform_average():
    for t in (1, 2, 7):
        assert averaging.exponential(t, 1.0) == averaging.uniform(t)


def test_the_slope_in_the_decay_is_finite_to_its_ends():
    for decay in (0.0, 0.5, 1.0):
        assert np.isfinite(jax.grad(lambda d: averaging.exponential(3, d))(decay))


def trajectory(share, data, **options):
    """Return the weights after every step of a loop, and the last state."""
    model, optimizer = nnfx.models.mlp((3,), batch_norm=True), optax.sgd(0.1)
    step = jax.jit(
        nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer, average=share, **options),
    )
    state = nnfx.init_state(jax.random.key(0), model, optimizer, data.inputs, average=True)
    seen = []
    for _ in range(5):
        state, _ = step(state, data)
        seen.append(state.variables)
    return seen, state


@pytest.mark.slow
def test_a_step_averages_the_variables_it_makes(data):
    seen, state = trajectory(averaging.uniform, data.train)
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *seen)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dict(state.evaluated), dict(expected)
    )
    assert state.average.steps == 5


@pytest.mark.usefixtures("nan_is_meant")
def test_skipped_steps_are_not_averaged(data):
    batch = data.train._replace(inputs=data.train.inputs.at[0, 0].set(jnp.nan))
    _, state = trajectory(averaging.uniform, batch, skip_non_finite=True)
    assert state.average.steps == 0
    assert state.fault.skipped == 5
    assert jnp.isfinite(state.evaluated["params"]["output"]["kernel"]).all()


def fit(**options):
    return nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=6, batch_size=50, **options
    )


@pytest.fixture(scope="module")
def averaged():
    return fit(average=averaging.exponential)


@pytest.fixture(scope="module")
def plain(data):
    return fit()(jax.random.key(0), data, learning_rate=0.5)


def test_a_run_is_evaluated_with_the_average_and_keeps_it_as_the_best(data, averaged, plain):
    run = averaged(jax.random.key(0), data, learning_rate=0.5, ema_decay=0.9)
    np.testing.assert_array_equal(run.state.params["kernel"], plain.state.params["kernel"])
    np.testing.assert_array_equal(run.history["train_loss"], plain.history["train_loss"])
    best = int(run.best.epoch)
    np.testing.assert_allclose(run.evaluate(data.valid)["loss"], run.history["valid_loss"][best - 1], rtol=1e-5)
    last = run.evaluate(data.valid, run.state.evaluated)["loss"]
    np.testing.assert_allclose(last, run.history["valid_loss"][-1], rtol=1e-5)
    assert abs(run.evaluate(data.valid, run.state.variables)["loss"] - last) > 1e-5


def test_a_decay_of_zero_is_no_average(data, averaged, plain):
    run = averaged(jax.random.key(0), data, learning_rate=0.5, ema_decay=0.0)
    np.testing.assert_array_equal(run.history["valid_loss"], plain.history["valid_loss"])


def test_without_held_out_data_the_average_is_what_predicts(data):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    run = fit(average=averaging.uniform)(jax.random.key(0), whole, learning_rate=0.5)
    np.testing.assert_array_equal(run.best.params["kernel"], run.state.evaluated["params"]["kernel"])
    assert (run.state.params["kernel"] != run.best.params["kernel"]).any()


@pytest.mark.slow
def test_decays_are_swept_in_one_program(data, averaged):
    given = {"key": jax.random.key(3), "learning_rate": 0.5, "devices": jax.devices()[:1]}
    result = nnfx.sweeps.sweep(averaged, data, **given, ema_decay=[0.0, 0.5, 0.9])
    for row in result.rows:
        run = averaged(jax.random.fold_in(jax.random.key(3), 0), data, learning_rate=0.5, ema_decay=row["ema_decay"])
        np.testing.assert_allclose(
            result.histories["valid_loss"][row["member"]], run.history["valid_loss"], rtol=1e-5, atol=1e-6
        )


def test_wrong_input(data, averaged):
    with pytest.raises(ValueError, match="ema_decay: expected a finite number at least 0 and at most 1, got 1.5"):
        averaging.exponential(1, 1.5)
    with pytest.raises(ValueError, match="ema_decay: .*at most 1, got 2"):
        averaged(jax.random.key(0), data, learning_rate=0.5, ema_decay=2.0)
    with pytest.raises(TypeError, match="average: expected a function such as nnfx.averaging.exponential, got 0.9"):
        fit(average=0.9)
    model, optimizer = nnfx.models.perceptron(), optax.sgd(0.1)
    make = functools.partial(nnfx.make_step, model, nnfx.losses.binary_cross_entropy, optimizer)
    state = nnfx.init_state(jax.random.key(0), model, optimizer, data.train.inputs)
    with pytest.raises(ValueError, match="state: expected a state with an average .*, got none"):
        make(average=averaging.uniform)(state, data.train)
    state = nnfx.init_state(jax.random.key(0), model, optimizer, data.train.inputs, average=True)
    with pytest.raises(ValueError, match="state: expected a state without an average .*, got one"):
        make()(state, data.train)
