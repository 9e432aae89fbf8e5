"""Streamed runs compared with the same runs in memory, and which examples they have seen after a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sessions import signals
from tests.sessions import streamed

ROOT = Path(__file__).parent.parent.parent
KEY = jax.random.key(3)


def problem(rows=90):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(rows, 5)).astype(np.float32)
    return inputs, (inputs.sum(1) > generator.normal(size=rows)) * 1


def train(**changed):
    options = {
        "epochs": 20,
        "batch_size": 16,
        "stop": nnfx.stopping.patience,
        "metrics": {"accuracy": nnfx.metrics.binary_accuracy},
        **changed,
    }
    model = nnfx.models.mlp((8,), dropout=0.2, batch_norm=True)
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.adam, **options)


HYPER = {"learning_rate": 0.05, "patience": 2}


@pytest.fixture(scope="module")
def data():
    inputs, targets = problem()
    return nnfx.data.prepare(inputs, targets, key=jax.random.key(1), valid_fraction=0.3, standardize=False)


@pytest.fixture(scope="module")
def examples(data, tmp_path_factory):
    inputs, targets, weights = map(np.asarray, data.train)
    parts = [(inputs[i : i + 25], targets[i : i + 25], weights[i : i + 25]) for i in range(0, len(inputs), 25)]
    return nnfx.data.store(tmp_path_factory.mktemp("data") / "examples", parts)


@pytest.fixture(scope="module")
def fit():
    return train()


@pytest.fixture(scope="module")
def whole(fit, data, examples, tmp_path_factory):
    return nnfx.session(fit, tmp_path_factory.mktemp("whole"), progress=False)(KEY, examples, data.valid, **HYPER)


def same_bits(first, second):
    return all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(
            *(jax.tree.leaves((run.state.params, run.best, run.history)) for run in (first, second)), strict=True
        )
    )


def test_it_takes_the_steps_of_the_run_in_memory(fit, data, whole):
    wanted = fit(KEY, data, **HYPER)
    assert whole.reason == wanted.reason == "patience"
    assert int(whole.epochs) == int(wanted.epochs)
    assert whole.history.keys() == wanted.history.keys()
    for name, values in wanted.history.items():
        np.testing.assert_allclose(whole.history[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, theirs in zip(*(jax.tree.leaves(run.best.params) for run in (whole, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole.predict(data.valid.inputs), wanted.predict(data.valid.inputs), atol=1e-3)


class AskedLater(list):
    """The signals received: none for the first few queries."""

    def __init__(self, looks):
        super().__init__([signal.SIGTERM])
        self.looks = looks

    def __bool__(self):
        self.looks -= 1
        return self.looks < 0


@pytest.mark.slow
def test_asked_to_end_in_the_middle_of_epochs_it_goes_on_to_the_same_bits(
    fit, data, examples, whole, tmp_path, monkeypatch, capsys
):
    session = nnfx.session(fit, tmp_path, save_every_steps=3, keep_last=1, keep_best=0, progress=False)
    for looks in (1, 3, 2):
        asked = AskedLater(looks)
        monkeypatch.setattr(signals, "caught", lambda asked=asked: contextlib.nullcontext(asked))
        with pytest.raises(SystemExit) as ended:
            session(KEY, examples, data.valid, **HYPER)
        assert ended.value.code == 143
    monkeypatch.undo()
    assert "SIGTERM: stopped after epoch" in capsys.readouterr().err
    assert same_bits(session(KEY, examples, data.valid, **HYPER), whole)
    assert same_bits(session(KEY, examples, data.valid, **HYPER), whole)
    assert (tmp_path / "history.csv").read_text().count("\n") == int(whole.epochs) + 1


def test_another_run_is_refused(fit, data, examples, tmp_path):
    session = nnfx.session(fit, tmp_path, progress=False)
    session(KEY, examples, data.valid, **HYPER)
    with pytest.raises(ValueError, match=r"learning_rate: expected 0.05\d*, got 0.1"):
        session(KEY, examples, data.valid, **{**HYPER, "learning_rate": 0.1})
    with pytest.raises(ValueError, match="key: expected the key of the checkpoint, got a different one"):
        session(jax.random.key(4), examples, data.valid, **HYPER)
    part = nnfx.data.store(tmp_path / "part", [(examples.inputs[:40], examples.targets[:40])])
    with pytest.raises(ValueError, match=r"data.train.inputs: expected float32\[63,5\] .*, got float32\[40,5\] "):
        session(KEY, part, data.valid, **HYPER)


def test_bytes_are_trained_on_as_floats(tmp_path):
    inputs = np.arange(32, dtype=np.uint8)[:, None]
    bytes_ = nnfx.data.store(tmp_path / "bytes", [(inputs, inputs[:, 0] / 8)])
    floats = nnfx.data.store(tmp_path / "floats", [(inputs.astype(np.float32), inputs[:, 0] / 8)])
    fit = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=2, batch_size=8)
    first, second = (
        nnfx.session(fit, tmp_path / f"run {i}", progress=i == 0)(KEY, each, learning_rate=1e-3)
        for i, each in enumerate((bytes_, floats))
    )
    assert same_bits(first, second)
    assert first.state.params["kernel"].dtype == jnp.float32


def test_tokens_stay_integers(tmp_path):
    class Embedded(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, tokens):
            return flax.linen.Dense(1)(flax.linen.Embed(7, 4)(tokens).mean(1))[:, 0]

    tokens = np.random.default_rng(0).integers(0, 7, (48, 5))
    targets = (tokens == 3).sum(1).astype(np.float32)
    fit = nnfx.fit(
        nnfx.models.from_linen(Embedded()), nnfx.losses.mean_square_error, optax.sgd, epochs=2, batch_size=16
    )
    examples = nnfx.data.store(tmp_path / "examples", [(tokens[:20], targets[:20]), (tokens[20:], targets[20:])])
    run = nnfx.session(fit, tmp_path / "run", progress=False)(KEY, examples, learning_rate=0.1)
    wanted = fit(KEY, nnfx.data.prepare(tokens, targets, standardize=False), learning_rate=0.1)
    np.testing.assert_allclose(run.history["train_loss"], wanted.history["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(run.predict(tokens), wanted.predict(tokens), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_meant_is_refused(fit, data, examples, tmp_path):
    with pytest.raises(TypeError, match="fit: expected the result of nnfx.fit"):
        nnfx.session(fit.factories["loss"], tmp_path)
    with pytest.raises(ValueError, match="fit: expected a batch_size, since batches are read as needed"):
        nnfx.session(train(batch_size=None), tmp_path / "run")(KEY, examples, data.valid, **HYPER)
    with pytest.raises(TypeError, match="out: expected a path, got 3"):
        nnfx.session(fit, 3)
    with pytest.raises(ValueError, match="save_every_steps: expected a positive integer, got 0"):
        nnfx.session(fit, tmp_path, save_every_steps=0)
    session = nnfx.session(fit, tmp_path / "run", progress=False)
    with pytest.raises(TypeError, match="valid: expected None, since data in memory .* got a Batch"):
        session(KEY, data, data.valid, **HYPER)
    with pytest.raises(ValueError, match="save_every_steps: expected None, since .* in memory .* got 3"):
        nnfx.session(fit, tmp_path / "run", save_every_steps=3)(KEY, data, **HYPER)
    with pytest.raises(TypeError, match="valid: expected a Batch, such as .*, got Stored"):
        session(KEY, examples, examples, **HYPER)
    with pytest.raises(ValueError, match="data.valid: expected held-out data for patience, got none"):
        session(KEY, examples, **HYPER)
    few = nnfx.data.store(tmp_path / "few", [(examples.inputs[:9], examples.targets[:9])])
    with pytest.raises(ValueError, match="batch_size: expected at most the 9 rows of data.train, got 16"):
        session(KEY, few, data.valid, **HYPER)
    targets = np.append(np.zeros(62), 2)
    wrong = nnfx.data.store(tmp_path / "wrong", [(examples.inputs, targets)])
    with pytest.raises(ValueError, match="targets: expected binary labels, 0 or 1, got 2"):
        session(KEY, wrong, data.valid, **HYPER)
    assert not (tmp_path / "run").exists()


def test_what_is_altered_between_two_calls_is_not_trained_on(tmp_path, monkeypatch):
    inputs, targets = problem(64)
    examples = nnfx.data.store(tmp_path / "examples", [(inputs, targets)])
    fit = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=3, batch_size=8)
    session = nnfx.session(fit, tmp_path / "run", save_every_steps=4, progress=False)
    monkeypatch.setattr(signals, "caught", lambda: contextlib.nullcontext(AskedLater(2)))
    with pytest.raises(SystemExit):
        session(KEY, examples, learning_rate=0.1)
    monkeypatch.undo()
    saved = {path: path.read_bytes() for path in tmp_path.rglob("run/**/*") if path.is_file()}
    altered = np.load(examples.folder / "inputs.npy", mmap_mode="r+")
    altered *= 100
    altered.flush()
    opened = nnfx.data.stored(examples.folder)
    with pytest.raises(ValueError, match=r"inputs.npy: expected examples as they were written, got other bytes in row"):
        session(KEY, opened, learning_rate=0.1)
    assert {path for path in saved if "step-" in str(path)} <= {*tmp_path.rglob("run/**/*")}
    altered[...] = inputs
    altered.flush()
    run = session(KEY, opened, learning_rate=0.1)
    whole = nnfx.session(fit, tmp_path / "whole", progress=False)(KEY, examples, learning_rate=0.1)
    assert same_bits(run, whole)
    for name, value in (("targets", 1 - targets[-1]), ("weights", 0)):
        path = tmp_path / "examples" / f"{name}.npy"
        content = path.read_bytes()
        np.load(path, mmap_mode="r+")[-1] = value
        with pytest.raises(ValueError, match=f"{name}.npy: expected examples as they were written, .* in row 63 "):
            nnfx.session(fit, tmp_path / "another", progress=False)(KEY, examples, learning_rate=0.1)
        assert not (tmp_path / "another").exists()
        path.write_bytes(content)


def test_a_label_out_of_range_anywhere_is_refused_before_anything_is_written(tmp_path):
    inputs, _ = problem(60)
    fit = nnfx.fit(
        nnfx.models.mlp((4,), outputs=3), nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=2, batch_size=8
    )
    for wrong in (3, 7, -1):
        targets = np.arange(60) % 3
        targets[41] = wrong
        examples = nnfx.data.store(
            tmp_path / f"examples {wrong}", [(inputs[:30], targets[:30]), (inputs[30:], targets[30:])]
        )
        with pytest.raises(ValueError, match="targets: expected labels from 0 to 2, got labels from"):
            nnfx.session(fit, tmp_path / "run", progress=False)(KEY, examples, learning_rate=0.1)
    assert not (tmp_path / "run").exists()


def test_the_first_batch_may_be_without_weight(tmp_path):
    inputs, targets = problem(32)
    weights = np.repeat([0.0, 1.0], 16)
    examples = nnfx.data.store(tmp_path / "examples", [(inputs, targets, weights)])
    fit = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, batch_size=16)
    run = nnfx.session(fit, tmp_path / "run", progress=False)(KEY, examples, learning_rate=0.1)
    assert np.isfinite(run.history["train_loss"]).all()


def start(folder, cache, *arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-m", "tests.sessions.streamed", str(folder), *map(str, arguments)]
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **environment,
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def wait_for(process, folder, step):
    def newest():
        return max((int(path.name[5:]) for path in folder.glob("run/checkpoints/step-*")), default=0)

    while process.poll() is None and newest() < step:
        time.sleep(0.01)


@pytest.mark.parametrize("steps", [(16,), pytest.param((4, 22), marks=pytest.mark.slow)], ids=str)
def test_killed_in_the_middle_of_epochs_it_sees_every_example_once_an_epoch(tmp_path, steps):
    nnfx.data.store(tmp_path / "examples", [(np.eye(streamed.ROWS), np.zeros(streamed.ROWS))])
    for step in steps:  # an epoch has twelve steps
        process = start(tmp_path, tmp_path / "programs", 0.05)
        wait_for(process, tmp_path, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(tmp_path, tmp_path / "programs", 0.05)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == [streamed.EPOCHS] * streamed.ROWS


@pytest.mark.slow
def test_two_processes_read_every_example_once_and_one_goes_on(tmp_path):
    nnfx.data.store(tmp_path / "examples", [(np.eye(streamed.ROWS), np.zeros(streamed.ROWS))])
    names = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2"}
    both = [
        start(
            tmp_path,
            tmp_path / "programs",
            0.1,
            **{f"SLURM_{name}": value for name, value in names.items()},
            SLURM_PROCID=str(i),
            SLURM_LOCALID=str(i),
            JAX_NUM_CPU_DEVICES="2",
        )
        for i in range(2)
    ]
    wait_for(both[0], tmp_path, 8)
    both[1].kill()
    for process in both:
        process.communicate(timeout=120)
    assert both[0].returncode != 0
    assert list(tmp_path.glob("run/checkpoints/step-*"))
    process = start(tmp_path, tmp_path / "programs", 0.1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == [streamed.EPOCHS] * streamed.ROWS
