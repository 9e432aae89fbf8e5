"""The folder of a session opens like a saved model, whatever became of the session."""

import importlib.util
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.checkpoint import DamagedError
from nnfx.models import Sequences
from nnfx.saving import saved
from nnfx.sessions import best_model
from nnfx.types import Batch, Model
from tests.sessions.sessions import FOUR_EPOCHS, HYPER, TRAIN, TWO_EPOCHS, CutError, at_epoch, cut, fit, quiet

RATE = {"learning_rate": 0.1}
RAW = np.array([[7.0, 30.0], [80.0, 4.0], [26.0, 50.0]])


def models(out):
    return sorted(path.name for path in (out / "predictor").glob("*epoch-*"))


def test_a_session_that_has_ended_opens_as_its_run(data, key, tmp_path):
    run = quiet(TRAIN, tmp_path)(key, data, **HYPER)
    model = nnfx.load(tmp_path)
    np.testing.assert_array_equal(model.predict(RAW), run.predict(RAW))
    assert model.features == ("fare", "age")
    assert model.hyper == {name: pytest.approx(value) for name, value in HYPER.items()}
    assert model.epoch == int(run.best.epoch) < int(run.epochs)
    assert model.metrics == {name: float(value) for name, value in run.best_metrics.items()}
    assert models(tmp_path) == [f"epoch-{model.epoch:08d}"]


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(cut, id="killed"),
        pytest.param(lambda: signal.raise_signal(signal.SIGTERM), id="asked to end", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_session_opens_with_the_best_weights_so_far(data, key, tmp_path, act):
    with pytest.raises((CutError, SystemExit)):
        quiet(TRAIN, tmp_path, save_every_epochs=1, evaluate=at_epoch(5, act))(key, data, **HYPER)
    shorter = fit(epochs=5)(key, data, **HYPER)
    model = nnfx.load(tmp_path)
    assert model.epoch == int(shorter.best.epoch)
    np.testing.assert_array_equal(model.predict(RAW), shorter.predict(RAW))
    run = quiet(TRAIN, tmp_path, evaluate=at_epoch(-1, cut))(key, data, **HYPER)
    np.testing.assert_array_equal(nnfx.load(tmp_path).predict(RAW), run.predict(RAW))
    assert len(models(tmp_path)) == 1


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, [1, 4]), (0.0, [1, 2, 3, 4])])
def test_models_are_replaced_at_most_once_a_minute_and_at_the_end(data, key, tmp_path, monkeypatch, seconds, expected):
    class Recorded(best_model.Checkpoints):
        def save(self, number, *args, **kwargs):
            saved_epochs.append(number)
            super().save(number, *args, **kwargs)

    saved_epochs = []
    monkeypatch.setattr(best_model, "Checkpoints", Recorded)
    monkeypatch.setattr(best_model, "SAVE_EVERY_SECONDS", seconds)
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    quiet(FOUR_EPOCHS, tmp_path, save_every_epochs=1)(key, whole, **RATE)
    assert saved_epochs == expected
    assert nnfx.load(tmp_path).epoch == 4


def test_without_held_out_data_the_latest_weights_are_saved(data, key, tmp_path):
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    for train, epochs in ((TWO_EPOCHS, 2), (FOUR_EPOCHS, 4)):
        run = quiet(train, tmp_path)(key, whole, **RATE)
        assert models(tmp_path) == [f"epoch-{epochs:08d}"]
        np.testing.assert_array_equal(nnfx.load(tmp_path).predict(RAW), run.predict(RAW))


def test_weights_that_are_evaluated_otherwise_than_they_are_stepped_are_saved_as_evaluated(data, key, tmp_path):
    def averaged(learning_rate):
        return optax.contrib.schedule_free_sgd(learning_rate)

    whole = nnfx.data.Data(data.train, None, data.preprocess)
    run = quiet(fit(nnfx.models.perceptron(), 3, averaged, stop=()), tmp_path)(key, whole, **RATE)
    weights = nnfx.load(tmp_path).variables["params"]["kernel"]
    np.testing.assert_array_equal(weights, run.best.params["kernel"])
    assert not np.allclose(weights, run.state.params["kernel"], rtol=1e-4)


@pytest.mark.slow
def test_sequences_with_lengths(key, tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    inputs = Sequences(values, jnp.array([5, 2, 3, 1, 5, 4]))
    plain = nnfx.data.prepare(values, np.zeros(6), standardize=False)
    given = nnfx.data.Data(Batch(inputs, jnp.zeros((6, 1)), jnp.ones(6)), None, plain.preprocess)
    train = nnfx.fit(nnfx.models.gru(hidden=(3,)), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    run = quiet(train, tmp_path)(key, given, **RATE)
    np.testing.assert_allclose(nnfx.load(tmp_path).apply(inputs), run.apply(inputs), rtol=1e-5, atol=1e-6)


def test_stored_data(key, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    examples = nnfx.data.store(tmp_path / "data", [(x, x.sum(1, keepdims=True))])
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2, batch_size=8)
    run = quiet(train, tmp_path / "run", save_every_steps=3)(key, examples, **RATE)
    model = nnfx.load(tmp_path / "run")
    assert model.epoch == 2
    np.testing.assert_array_equal(model.predict(x), run.predict(x))


def test_before_the_first_checkpoint_there_is_nothing_to_open(data, key, tmp_path):
    with pytest.raises(CutError):
        quiet(TWO_EPOCHS, tmp_path, evaluate=at_epoch(1, cut))(key, data, **RATE)
    with pytest.raises(
        FileNotFoundError, match="expected the folder of a session that has saved its model, got no model y"
    ):
        nnfx.load(tmp_path)


def test_a_session_killed_between_a_checkpoint_and_its_model_saves_the_model_later(data, ended, key, tmp_path):
    out = shutil.copytree(ended, tmp_path / "ended")
    shutil.rmtree(out / "predictor")
    run = quiet(TWO_EPOCHS, out)(key, data, **RATE)
    np.testing.assert_array_equal(nnfx.load(out).predict(RAW), run.predict(RAW))


def test_what_a_kill_has_left_behind_is_not_opened_and_is_removed(data, ended, key, tmp_path):
    out = shutil.copytree(ended, tmp_path / "ended")
    (model,) = models(out)
    half = out / "predictor" / ".epoch-00000004.abcd"
    shutil.copytree(out / "predictor" / model, half)
    (half / "SHA256SUMS").unlink()
    assert nnfx.load(out).epoch == 2
    quiet(FOUR_EPOCHS, out)(key, data, **RATE)
    assert nnfx.load(out).epoch == 4
    assert models(out) == ["epoch-00000004"]


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(ended, tmp_path, monkeypatch):
    out = shutil.copytree(ended, tmp_path / "ended")
    old, new = (out / "predictor" / f"epoch-0000000{epoch}" for epoch in (2, 3))
    opened = saved._opened

    def replaced(path):
        if path == old:
            old.rename(new)
        return opened(path)

    monkeypatch.setattr(saved, "_opened", replaced)
    assert nnfx.load(out).epoch == 2  # as written in it


def test_a_damaged_model_is_told(ended, tmp_path):
    out = shutil.copytree(ended, tmp_path / "ended")
    (out / "predictor" / "epoch-00000002" / "checkpoint.json").write_text("{}")
    with pytest.raises(DamagedError, match="checkpoint.json is altered"):
        nnfx.load(out)


def test_without_flatbuffers_the_session_runs_and_loading_says_what_is_missing(data, key, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else found(name))
        run = quiet(TWO_EPOCHS, tmp_path)(key, data, **RATE)
        assert int(run.epochs) == 2
        with pytest.raises(
            FileNotFoundError, match=r"a session that could not save it: flatbuffers: .* pip install 'nnfx\[saving\]'"
        ):
            nnfx.load(tmp_path)
    quiet(TWO_EPOCHS, tmp_path)(key, data, **RATE)  # once it is installed, the same call saves the model
    np.testing.assert_array_equal(nnfx.load(tmp_path).predict(RAW), run.predict(RAW))
    assert not (tmp_path / "predictor" / "reason.txt").exists()


def test_a_model_that_cannot_be_exported_trains_and_loading_says_why(data, key, tmp_path):
    model = nnfx.models.perceptron()

    def apply(variables, inputs, **options):
        inputs = jax.pure_callback(lambda x: np.asarray(x), inputs, inputs)
        return model.apply(variables, jax.lax.stop_gradient(inputs), **options)

    train = fit(Model(model.init, apply), 3, optax.sgd, stop=())
    run = quiet(train, tmp_path, save_every_epochs=1)(key, data, **RATE)
    assert int(run.epochs) == 3
    with pytest.raises(FileNotFoundError, match="could not save it: model: could not be exported"):
        nnfx.load(tmp_path)


def test_a_run_saved_by_hand_opens_where_the_session_has_saved_no_model(data, ended, key, tmp_path):
    out = shutil.copytree(ended, tmp_path / "ended")
    shutil.rmtree(out / "predictor")
    run = TWO_EPOCHS(key, data, **RATE)
    run.save(out / "model")
    np.testing.assert_array_equal(nnfx.load(out).predict(RAW), run.predict(RAW))


def test_the_folder_of_a_sweep_is_refused(data, key, tmp_path):
    nnfx.sweeps.sweep(TWO_EPOCHS, data, key=key, learning_rate=[0.1, 0.2], out=tmp_path)
    with pytest.raises(
        FileNotFoundError, match="expected a saved model, or .* a session of one run, got the folder of a swe"
    ):
        nnfx.load(tmp_path)


def test_the_model_of_sequences_with_lengths_is_saved(key, tmp_path):
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(30, 5, 2)), rng.integers(1, 6, 30)
    data = nnfx.data.prepare(Sequences(x, lengths), x[:, 0, 0])
    train = nnfx.fit(nnfx.models.gru(hidden=(3,)), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
    run = nnfx.session(train, tmp_path, progress=False)(key, data, learning_rate=0.1)
    found = nnfx.load(tmp_path).predict(Sequences(x, lengths))
    np.testing.assert_allclose(found, run.predict(Sequences(x, lengths)), rtol=1e-5)
