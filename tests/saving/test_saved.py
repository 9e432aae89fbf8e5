import gc
import json
import os
import subprocess
import sys
import weakref
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest

import nnfx
from nnfx import Batch, checkpoint, models
from nnfx.checkpoint import DamagedError
from nnfx.data import Data
from nnfx.models import Sequences, from_linen
from nnfx.saving import saved
from nnfx.training.run import notes_of
from nnfx.types import Model
from tests.saving.runs import KEY, RAW, run_of

NAMES = ("length", "height", "width")


@pytest.fixture(scope="module")
def run():
    holes = np.where(np.arange(36).reshape(12, 3) % 7 == 0, np.nan, RAW)
    return run_of(models.mlp(hidden=(4,)), holes, missing="median", features=NAMES)


@pytest.fixture(scope="module")
def path(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    run.save(path)
    return path


@pytest.fixture(scope="module")
def model(path):
    return nnfx.load(path)


def by_hand(run, raw):
    """Compute a network with one hidden layer of ReLUs in float64."""
    mean, scale, median = run.preprocess.exact
    missing = np.isnan(raw)
    x = np.concatenate([np.where(missing, median, raw), missing[:, run.preprocess.indicators]], axis=1)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run.best.params)
    hidden = np.maximum(((x - mean) / scale) @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"], 0)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def test_predictions_are_those_of_the_network(run, model):
    raw = np.array([[3.5, np.nan, 0.01], [np.nan, -100.0, 0.012], [2.0, -250.0, 0.0]])
    np.testing.assert_allclose(model.predict(raw), by_hand(run, raw), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_predictions_are_those_of_the_run_bit_for_bit(run, model, rows):
    assert np.array_equal(model.predict(RAW[:rows]), run.predict(RAW[:rows]))
    prepared = run.preprocess(RAW[:rows])
    assert np.array_equal(model.apply(prepared), run.apply(prepared))


def test_columns_of_a_frame_are_found_by_name(run, model):
    frame = pandas.DataFrame(RAW, columns=NAMES)
    assert np.array_equal(model.predict(frame[["width", "length", "height"]]), run.predict(RAW))
    with pytest.raises(ValueError, match="expected the 3 columns used in training, got columns without 'width'"):
        model.predict(frame[["length", "height"]])


def test_other_weights_are_used_instead(run, model):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model.variables)
    ours = run.predict(RAW, jax.tree.map(lambda leaf: 2 * leaf, run.best.variables))
    assert np.array_equal(model.predict(RAW, doubled), ours)
    assert jax.tree.structure(model.variables) == jax.tree.structure(run.best.variables)
    with pytest.raises(ValueError, match="variables: expected the structure of model.variables"):
        model.predict(RAW, {"params": {}})


def test_what_is_known_about_the_run(run, model):
    assert model.features == NAMES
    assert model.classes == ()
    assert model.hyper == {"learning_rate": pytest.approx(0.01)}
    assert model.metrics == {"train_loss": float(run.history["train_loss"][0])}
    assert model.epoch == 1
    assert model.versions["jax"] == jax.__version__
    assert repr(model).startswith("Predictor: float32[batch,6] -> float32[batch,1] (length, height, width)\n")


def test_the_best_weights_are_saved_rather_than_the_last(tmp_path):
    x = np.linspace(-1, 1, 8)[:, None]
    data = nnfx.data.prepare(x, 3 * x, valid_fraction=0.5, key=KEY)
    fit = nnfx.fit(models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=4)
    run = fit(KEY, data, learning_rate=3.0)  # diverges
    assert int(run.best.epoch) < 4
    run.save(tmp_path / "best")
    model = nnfx.load(tmp_path / "best")
    assert np.array_equal(model.variables["params"]["kernel"], run.best.params["kernel"])
    assert model.metrics["valid_loss"] == float(run.best.loss)


def test_another_process_needs_neither_the_data_nor_the_code(run, path, tmp_path):
    np.save(tmp_path / "raw.npy", RAW)
    code = (
        "import sys, numpy, nnfx; model = nnfx.load(sys.argv[1]);"
        "numpy.save(sys.argv[2] + '/got.npy', model.predict(numpy.load(sys.argv[2] + '/raw.npy')));"
        "print([name for name in sys.modules if name.startswith('tests')])"
    )
    environment = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    command = [sys.executable, "-c", code, path, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    np.testing.assert_allclose(np.load(tmp_path / "got.npy"), by_hand(run, RAW), rtol=1e-5, atol=1e-6)


def test_it_is_json_and_numbers(path):
    about = json.loads((path / "checkpoint.json").read_text(), parse_constant=lambda name: pytest.fail(name))["about"]
    assert about["kind"] == "model"
    assert about["format"] == saved.FORMAT
    for file in path.rglob("*"):
        assert file.suffix not in (".py", ".pkl")
        assert file.is_dir() or b"\x80\x04\x95" not in file.read_bytes(), "the beginning of a pickle"


def flip(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("change", [flip, lambda content: content[:-1], lambda content: content + b"\n", None])
def test_files_that_were_changed_are_named(run, tmp_path, change):
    run.save(tmp_path / "model")
    for file in [file for file in (tmp_path / "model").rglob("*") if file.is_file() and file.stat().st_size]:
        content = file.read_bytes()
        file.unlink() if change is None else file.write_bytes(change(content))
        name = r"SHA256SUMS" if file.name.startswith("SHA256SUMS") else file.name
        with pytest.raises(DamagedError, match=name):
            nnfx.load(tmp_path / "model")
        file.write_bytes(content)
    nnfx.load(tmp_path / "model")


def test_an_existing_path_is_refused(run, path, tmp_path):
    with pytest.raises(FileExistsError, match="model: expected a path that does not exist yet"):
        run.save(path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="link: expected a path that does not exist yet"):
        run.save(tmp_path / "link")
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        run.save(3)


def test_what_is_no_saved_model_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none: expected a checkpoint folder"):
        nnfx.load(tmp_path / "none")
    checkpoint.save(tmp_path / "other", {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="other: expected a saved model, got a different kind of checkpoint"):
        nnfx.load(tmp_path / "other")
    monkeypatch.setattr(saved, "FORMAT", 7)
    run.save(tmp_path / "later")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"later: expected a saved model of format 1, got 7, written by nnfx \d"):
        nnfx.load(tmp_path / "later")


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (np.zeros((2, 5), np.float32), ValueError, r"inputs: expected float32\[batch,6\].*got float32\[2,5\]"),
        (np.zeros((0, 6), np.float32), ValueError, r"inputs: expected .* at least one row, got float32\[0,6\]"),
        (np.zeros(6, np.float32), ValueError, r"inputs: expected float32\[batch,6\].*got float32\[6\]"),
        ([["a"] * 6], TypeError, "inputs: expected an array of real numbers"),
        ((np.zeros((2, 6)), np.zeros(2)), ValueError, r"inputs: expected float32\[batch,6\], got 2 arrays"),
    ],
)
def test_inputs_that_do_not_fit(model, inputs, error, message):
    with pytest.raises(error, match=message):
        model.apply(inputs)


def test_several_runs_and_traced_ones_are_refused(tmp_path):
    data = nnfx.data.prepare(RAW, np.zeros(12))
    fit = nnfx.fit(models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    runs = jax.vmap(lambda rate: fit(KEY, data, learning_rate=rate))(jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="run: expected a single run"):
        runs.save(tmp_path / "one")
    with pytest.raises(ValueError, match="run: expected a finished run, got a traced run"):
        jax.eval_shape(lambda rate: fit(KEY, data, learning_rate=rate).save(tmp_path / "one"), 0.1)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported_is_an_error_before_anything_is_written(run, tmp_path):
    def host(variables, inputs, **_):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), inputs)

    model = Model(lambda *_: {"params": {}}, host)
    with pytest.raises(ValueError, match="model: could not be exported as a portable program:"):
        saved.save(tmp_path / "one", model, {"params": {"w": jnp.zeros(1)}}, run.preprocess, notes_of(run))
    assert not list(tmp_path.iterdir())


def test_sequences_of_any_number_of_steps_with_lengths(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    lengths = np.array([5, 2, 1, 4, 3, 5], np.int32)
    inputs = Sequences(values, lengths)
    preprocess = nnfx.data.prepare(values, np.zeros(6), standardize=False).preprocess
    fit = nnfx.fit(models.gru(hidden=(3,)), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    run = fit(KEY, Data(Batch(inputs, jnp.zeros((6, 1)), jnp.ones(6)), None, preprocess), learning_rate=0.1)
    run.save(tmp_path / "sequences", inputs)
    model = nnfx.load(tmp_path / "sequences")
    for steps in (5, 4):
        given = Sequences(values[:, :steps], np.minimum(lengths, steps))
        np.testing.assert_allclose(model.apply(given), run.apply(given), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"inputs: expected float32\[batch,time,2\], int32\[batch\], got 1 arrays"):
        model.apply(values)


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Embed(5, 3)(x).mean(1))


def test_tokens_stay_integers(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 5, (6, 4))
    run = run_of(from_linen(Tokens()), tokens, keep_integers=True)
    run.save(tmp_path / "tokens")
    model = nnfx.load(tmp_path / "tokens")
    assert np.array_equal(model.predict(tokens), run.predict(tokens))
    assert model.apply(jnp.asarray(tokens[:, :3])).shape == (6, 2)
    with pytest.raises(TypeError, match=r"inputs: expected int32\[batch,time\], got float32"):
        model.apply(np.zeros((2, 4), np.float32))


class Weights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_weights_in_other_containers_come_back_in_dictionaries(run, tmp_path):
    def apply(variables, inputs, **_):
        (kernel, bias), scale = variables["params"]
        return (inputs @ kernel + bias[None]) * scale[0]

    kernel = np.arange(6.0, dtype=np.float32).reshape(6, 1)
    variables = {"params": [Weights(jnp.asarray(kernel), jnp.ones(1)), (jnp.full((), 2, jnp.bfloat16),)]}
    saved.save(tmp_path / "one", Model(lambda *_: variables, apply), variables, run.preprocess, notes_of(run))
    model = nnfx.load(tmp_path / "one")
    assert list(model.variables["params"][0]) == ["kernel", "bias"]
    assert model.variables["params"][1][0].dtype == jnp.bfloat16
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(model.apply(x), 2 * (x @ kernel + 1), rtol=1e-5)
    np.testing.assert_allclose(model.apply(x, model.variables), 2 * (x @ kernel + 1), rtol=1e-5)


def test_double_precision_needs_x64(tmp_path):
    with jax.enable_x64(True):
        run = run_of(models.perceptron())
        run.save(tmp_path / "wide")
        assert nnfx.load(tmp_path / "wide").predict(RAW).dtype == jnp.float64
    with pytest.raises(ValueError, match="wide: expected jax_enable_x64 to be set, since weights are float64"):
        nnfx.load(tmp_path / "wide")


def test_programs_are_freed_with_the_model(path):
    model = nnfx.load(path)
    model.predict(RAW)
    program = weakref.ref(model.program)
    del model
    gc.collect()
    assert program() is None


def test_frames_and_targets_in_raw_units(tmp_path):
    frame = pandas.DataFrame({"port": list("abca") * 3, "fare": RAW[:, 0], "paid": [True, False, True] * 4})
    targets = 100 + 7 * RAW[:, 0]
    data = nnfx.data.prepare(frame, targets, standardize_targets=True)
    train = nnfx.fit(models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
    run = train(KEY, data, learning_rate=0.1)
    run.save(tmp_path / "model")
    loaded = nnfx.load(tmp_path / "model")
    shuffled = frame[["paid", "port", "fare"]]
    np.testing.assert_array_equal(loaded.predict(shuffled), run.predict(frame))
    np.testing.assert_allclose(
        loaded.predict(frame), loaded.apply(data.train.inputs) * targets.std() + targets.mean(), rtol=1e-5
    )
    with pytest.raises(ValueError, match="port"):
        loaded.predict(frame.assign(port="z"))
    labels = np.where(targets > targets.mean(), "dear", "cheap")
    run = nnfx.fit(models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)(
        KEY, nnfx.data.prepare(frame, labels), learning_rate=0.1
    )
    run.save(tmp_path / "classes")
    assert nnfx.load(tmp_path / "classes").classes == ("cheap", "dear")


@pytest.mark.parametrize(
    "network",
    [
        models.embedding(5, 3, models.gru(1, hidden=(2,))),
        models.embedding(5, 4, models.transformer(5, width=4, heads=1, causal=True, returns="all")),
        from_linen(Tokens()),
    ],
)
def test_tokens_beyond_the_table_are_refused(tmp_path, network):
    tokens = np.random.default_rng(0).integers(0, 5, (6, 4))
    run_of(network, tokens, keep_integers=True).save(tmp_path / "tokens")
    model = nnfx.load(tmp_path / "tokens")
    tokens[3, 2] = 5
    message = "inputs: expected integers that the model knows, .*, got 2 to 5 in row 3, whose outputs are NaN"
    for predict in (model.predict, model.apply):
        with pytest.raises(ValueError, match=message):
            predict(tokens)
    assert jax.jit(model.apply)(jnp.asarray(tokens)).shape[:1] == (6,)
