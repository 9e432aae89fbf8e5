import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx import models
from nnfx.models import from_linen
from nnfx.saving import exporting
from nnfx.types import Model
from tests.saving.runs import RAW, run_of
from tests.saving.test_saved import Tokens
from tests.test_contracts import MODELS, TOKENS, all_but, inputs_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")

CHEAP = {"perceptron", "lstm", "rnn", "cnn", "batch norm", "linear forecaster", "nnx"}


def called(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda raw: session.run(["outputs"], {"inputs": raw})[0]


@pytest.mark.parametrize("name", all_but(MODELS.keys() - CHEAP))
def test_every_model_gives_the_same_outputs_from_raw_inputs(tmp_path, name, caplog):
    raw = np.asarray(inputs_of(name)) if name in TOKENS else 20 + 3 * np.asarray(inputs_of(name))
    run = run_of(MODELS[name], raw, keep_integers=True if name in TOKENS else None)
    run.export(tmp_path / "model.onnx")
    predict = called(tmp_path / "model.onnx")
    for rows in (1, 2, 5):
        np.testing.assert_allclose(predict(raw[:rows]), run.predict(raw[:rows]), rtol=1e-5, atol=1e-5)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_missing_values_are_filled_and_indicated_inside(tmp_path):
    holes = np.where(np.arange(36).reshape(12, 3) % 7 == 0, np.nan, RAW)
    run = run_of(models.mlp(hidden=(4,)), holes, missing="median")
    run.export(tmp_path / "model.onnx")
    raw = np.array([[3.5, np.nan, 0.01], [np.nan, -100.0, 0.012], [2.0, -250.0, 0.0]], np.float32)
    np.testing.assert_allclose(called(tmp_path / "model.onnx")(raw), run.predict(raw), rtol=1e-5, atol=1e-6)


def test_tokens(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 5, (6, 4)).astype(np.int32)
    run = run_of(from_linen(Tokens()), tokens, keep_integers=True)
    run.export(tmp_path / "model.onnx")
    np.testing.assert_allclose(called(tmp_path / "model.onnx")(tokens), run.predict(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(3, 0), (0, 5)]])
def test_padding_beyond_and_within_the_kernel(tmp_path, padding):
    model = models.cnn([models.conv(2, 3, strides=2, padding=padding), models.max_pool(2, 1)], outputs=2)
    images = np.random.default_rng(0).normal(size=(4, 7, 7, 1)).astype(np.float32)
    run = run_of(model, images)
    run.export(tmp_path / "model.onnx")
    np.testing.assert_allclose(called(tmp_path / "model.onnx")(images), run.predict(images), rtol=1e-5, atol=1e-5)


def test_what_onnx_cannot_hold(tmp_path):
    preprocess = nnfx.data.prepare(RAW, np.zeros(12)).preprocess

    def of(apply):
        model = Model(lambda *_: {"params": {}}, lambda variables, inputs, **_: apply(inputs))
        exporting.export(tmp_path / "model.onnx", model, {"params": {}}, preprocess)

    with pytest.raises(ValueError, match="model: could not be converted by jax2onnx:"):
        of(lambda x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    with pytest.raises(ValueError, match="outputs: expected float32 or int32 for ONNX, got bfloat16"):
        of(lambda x: x.astype(jnp.bfloat16))
    with jax.enable_x64(True):
        wide = run_of(models.perceptron())
        with pytest.raises(ValueError, match="inputs: expected float32 or int32 for ONNX, got float64"):
            wide.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
