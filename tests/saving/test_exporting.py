import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest

import nnfx
from nnfx import models
from nnfx.saving import exporting
from nnfx.types import Model
from tests.saving.runs import RAW, run_of
from tests.test_contracts import MODELS, TOKENS, all_but, inputs_of

CHEAP = {"perceptron", "lstm"}


@pytest.fixture(scope="module")
def run():
    holes = np.where(np.arange(36).reshape(12, 3) % 7 == 0, np.nan, RAW)
    return run_of(models.mlp(hidden=(4,)), holes, missing="median", features=("length", "height", "width"))


def called(path):
    return jax.export.deserialize(bytearray(path.read_bytes())).call


@pytest.mark.parametrize("name", all_but(MODELS.keys() - CHEAP))
def test_every_model_gives_the_same_outputs_from_raw_inputs(tmp_path, name):
    raw = np.asarray(inputs_of(name)) if name in TOKENS else 20 + 3 * np.asarray(inputs_of(name))
    run = run_of(MODELS[name], raw, keep_integers=True if name in TOKENS else None)
    run.export(tmp_path / "model.stablehlo")
    predict = called(tmp_path / "model.stablehlo")
    for rows in (1, 5):
        np.testing.assert_allclose(predict(raw[:rows]), run.predict(raw[:rows]), rtol=1e-5, atol=1e-5)


def test_missing_values_are_filled_and_indicated_inside(run, tmp_path):
    run.export(tmp_path / "model.stablehlo")
    raw = np.array([[3.5, np.nan, 0.01], [np.nan, -100.0, 0.012], [2.0, -250.0, 0.0]], np.float32)
    np.testing.assert_allclose(called(tmp_path / "model.stablehlo")(raw), run.predict(raw), rtol=1e-5, atol=1e-6)


def test_preprocessing_beyond_float32_is_refused(tmp_path):
    seconds = 1e7 + 60 * np.arange(12.0)
    run = run_of(models.perceptron(), np.stack([seconds, np.arange(12.0)], 1), features=("time", "load"))
    with pytest.raises(
        ValueError,
        match=r"features: expected numbers that float32 inputs can tell apart, got 1.00003e\+07 ± 207.\d* for time",
    ):
        run.export(tmp_path / "model.stablehlo")
    assert not list(tmp_path.iterdir())


def test_outputs_that_differ_are_refused_before_the_file_has_its_name(run, tmp_path, monkeypatch):
    for change, message in (
        (lambda outputs: outputs + 1e-3, "expected the model's outputs within 1e-05, got a difference of 0.00"),
        (lambda outputs: outputs * jnp.nan, "expected the model's outputs within 1e-05, got a difference of nan"),
        (lambda outputs: outputs[:1], r"expected outputs float32\[3,1\], like the model's, got float32\[1,1\]"),
        (
            lambda outputs: np.asarray(outputs, np.float64),
            r"expected outputs float32\[3,1\], like the model's, got float64",
        ),
    ):
        monkeypatch.setattr(exporting.Program, "__call__", lambda self, x, c=change: c(self.exported.call(x)))
        with pytest.raises(ValueError, match=f"model.stablehlo: {message}"):
            run.export(tmp_path / "model.stablehlo")
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_finite_may_be_the_same(run, tmp_path):
    def odd(variables, inputs, **_):
        return jnp.stack([inputs[:, 0], inputs[:, 0] * jnp.nan, inputs[:, 0] - jnp.inf], axis=1)

    exporting.export(tmp_path / "model.stablehlo", Model(lambda *_: {}, odd), {"params": {}}, run.preprocess)
    assert (tmp_path / "model.stablehlo").exists()


def test_paths_that_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="path: expected a file name ending in .onnx or .stablehlo, got model.pb"):
        run.export(tmp_path / "model.pb")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(FileExistsError, match="model.onnx: expected a path that does not exist yet"):
        run.export(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="none: expected a folder to write to, got no folder"):
        run.export(tmp_path / "none" / "model.stablehlo")
    with pytest.raises(TypeError, match="path: expected a path, got None"):
        run.export(None)


def test_categories_are_columns_of_0_and_1(tmp_path):
    frame = pandas.DataFrame({"port": list("abcabc"), "fare": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]})
    data = nnfx.data.prepare(frame, frame["fare"] * 2)
    train = nnfx.fit(models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2)
    run = train(jax.random.key(0), data, learning_rate=0.1)
    run.export(tmp_path / "model.stablehlo")
    columns = pandas.get_dummies(frame, columns=["port"], prefix_sep="=", dtype=float)[list(data.features)]
    predicted = called(tmp_path / "model.stablehlo")(columns.to_numpy(np.float32))
    np.testing.assert_allclose(predicted, run.predict(frame), rtol=1e-5)


def test_models_that_cannot_be_exported(run, tmp_path):
    def of_lengths(variables, inputs, **_):
        return inputs.lengths

    def called_back(variables, inputs, **_):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), inputs)

    for apply, message in (
        (of_lengths, "model: could not be applied to preprocessed features as one array: AttributeError"),
        (called_back, "model: could not be exported as a portable program"),
    ):
        model = Model(lambda *_: {"params": {}}, apply)
        with pytest.raises(ValueError, match=message):
            exporting.export(tmp_path / "model.stablehlo", model, {"params": {}}, run.preprocess)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_packages_that_are_missing_are_named(run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=r"export: expected jax2onnx and onnxruntime for ONNX, got jax .*'nnfx\[onnx\]'"
    ):
        run.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
