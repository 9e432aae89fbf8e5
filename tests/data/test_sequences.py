import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.data.folds import Folds
from nnfx.models import Sequences

RNG = np.random.default_rng(0)
ROWS, TIME = 12, 6
LENGTHS = RNG.integers(1, TIME + 1, ROWS)
LENGTHS[:2] = TIME, 0
IS_REAL = np.arange(TIME) < LENGTHS[:, None]
VALUES = np.where(IS_REAL[..., None], RNG.normal(3, 5, (ROWS, TIME, 2)), np.nan)  # padding may hold anything
LABELS = RNG.integers(0, 2, ROWS)
GRU = nnfx.models.gru(1, (4,))


def prepared(**options):
    return nnfx.data.prepare(Sequences(VALUES, LENGTHS), LABELS, features=("speed", "slope"), **options)


def test_features_are_standardised_over_real_steps():
    data = prepared()
    values, lengths, state = data.train.inputs
    assert values.dtype == np.float32
    assert lengths.dtype == np.int32
    assert state is None
    steps = VALUES[IS_REAL]
    np.testing.assert_allclose(
        np.asarray(values)[IS_REAL], (steps - steps.mean(0)) / steps.std(0), rtol=1e-5, atol=1e-6
    )
    assert (np.asarray(values)[~IS_REAL] == 0).all()
    assert data.features == ("speed", "slope")
    assert "inputs: float32[12,6,2], int32[12] (speed, slope)" in repr(data)


def test_held_out_sequences_may_be_longer():
    longer = Sequences(np.ones((3, 9, 2)), np.array([9, 1, 4]))
    data = prepared(valid=(longer, [0, 1, 1]))
    assert data.train.inputs.values.shape == (ROWS, 9, 2)
    assert data.valid.inputs.lengths.tolist() == [9, 1, 4]
    steps = VALUES[IS_REAL]
    np.testing.assert_allclose(data.valid.inputs.values[0, 0], (1 - steps.mean(0)) / steps.std(0), rtol=1e-5)


def test_predictions_take_raw_sequences_of_any_length(tmp_path):
    data = prepared(key=jax.random.key(0), valid_fraction=0.25)
    train = nnfx.fit(GRU, nnfx.losses.binary_cross_entropy, optax.adam, epochs=2, batch_size=4)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    raw = run.predict(Sequences(VALUES, LENGTHS))
    whole = np.asarray(prepared().preprocess.exact[0])
    assert whole.shape == (1, 1, 2)
    np.testing.assert_allclose(raw, run.apply(data.preprocess(Sequences(VALUES, LENGTHS))), rtol=1e-6)
    row = 5
    alone = run.predict(VALUES[row : row + 1, : LENGTHS[row]])  # an array has real steps only
    np.testing.assert_allclose(raw[row : row + 1], alone, rtol=1e-4, atol=1e-6)
    run.save(tmp_path / "saved")
    np.testing.assert_allclose(nnfx.load(tmp_path / "saved").predict(Sequences(VALUES, LENGTHS)), raw, rtol=1e-5)


def test_folds_measure_the_real_steps_of_their_own_rows():
    data = prepared()
    of_row = np.arange(ROWS) % 3
    folds = Folds.of(data.train, data.preprocess, jnp.asarray(of_row), 3)
    for fold in range(3):
        steps = VALUES[of_row != fold][IS_REAL[of_row != fold]]
        np.testing.assert_allclose(folds.preprocess.mean[fold, 0, 0], steps.mean(0), rtol=1e-5)
        np.testing.assert_allclose(folds.preprocess.scale[fold, 0, 0], steps.std(0), rtol=1e-5)
        found = folds.inputs(data.train.inputs, data.preprocess, fold).values
        expected = (VALUES - steps.mean(0)) / steps.std(0)
        np.testing.assert_allclose(np.asarray(found)[IS_REAL], expected[IS_REAL], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sweeps_predict_for_raw_sequences():
    train = nnfx.fit(GRU, nnfx.losses.binary_cross_entropy, optax.adam, epochs=2)
    swept = nnfx.sweeps.sweep(train, prepared(), key=jax.random.key(0), folds=3, learning_rate=[0.01, 0.1])
    assert swept.best.predict(Sequences(VALUES, LENGTHS)).shape == (ROWS, 1)
    assert swept.ensemble(2).predict(Sequences(VALUES, LENGTHS)).shape == (2, ROWS, 1)


def test_tokens_stay_integers():
    tokens = np.where(IS_REAL, RNG.integers(1, 30_000, (ROWS, TIME)), 0)
    data = nnfx.data.prepare(Sequences(tokens, LENGTHS), np.where(IS_REAL, 1, 0), weights=IS_REAL)
    assert data.train.inputs.values.dtype == np.int32
    np.testing.assert_array_equal(data.train.inputs.values, tokens)
    np.testing.assert_array_equal(data.train.weights, IS_REAL)
    again = data.preprocess(Sequences(tokens[:, :4], np.minimum(LENGTHS, 4)))
    np.testing.assert_array_equal(again.values, tokens[:, :4])
    assert again.values.dtype == np.int32


def test_missing_values_of_real_steps_are_errors_or_drop_the_row():
    values = VALUES.copy()
    values[3, 0, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"inputs: expected finite numbers, got 1 not finite, the first at \(3, 0, 1\)"
    ):
        nnfx.data.prepare(Sequences(values, LENGTHS), LABELS)
    assert nnfx.data.prepare(Sequences(values, LENGTHS), LABELS, missing="drop").report.dropped == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepared(missing="median"), "missing: expected 'error' or 'drop' for sequences"),
        (
            lambda: nnfx.data.prepare(Sequences(VALUES[..., 0], LENGTHS), LABELS),
            r"inputs: expected values \(rows, time, features\), or integers",
        ),
        (
            lambda: nnfx.data.prepare(Sequences(VALUES, LENGTHS, ((np.zeros((ROWS, 4)),),)), LABELS),
            "inputs: expected sequences without an initial state",
        ),
        (
            lambda: nnfx.data.prepare(Sequences(VALUES, 0 * LENGTHS), LABELS),
            "inputs: expected at least one sequence with a step",
        ),
        (lambda: prepared(valid=(Sequences(VALUES[..., :1], LENGTHS), LABELS)), "inputs of valid: expected"),
        (
            lambda: prepared().preprocess(Sequences(VALUES[..., :1], LENGTHS)),
            r"inputs: expected sequences \(batch, time",
        ),
        (lambda: prepared().preprocess(VALUES[0]), "inputs: expected"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="inputs of valid: expected Sequences, like the training inputs"):
        prepared(valid=(np.ones((1, 2, 2)), [0]))


def test_a_program_of_sequences_is_not_exported_as_one_array(tmp_path):
    train = nnfx.fit(GRU, nnfx.losses.binary_cross_entropy, optax.adam, epochs=1)
    run = train(jax.random.key(0), prepared(), learning_rate=0.01)
    with pytest.raises(
        ValueError, match="model: expected a single array as input, got a model that takes sequences; use run.save"
    ):
        run.export(tmp_path / "model.stablehlo")
