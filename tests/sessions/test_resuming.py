"""Which runs resume from a checkpoint, and which are rejected."""

import contextlib
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from tests.sessions.sessions import TWO_EPOCHS, bits, perceptron, quiet


def changed(data):
    return nnfx.data.Data(data.train._replace(targets=1 - data.train.targets), data.valid, data.preprocess)


@pytest.mark.parametrize(
    ("train", "hyper", "change", "message"),
    [
        (TWO_EPOCHS, {"learning_rate": 0.2}, None, "learning_rate: expected 0.1.*, got 0.2"),
        (TWO_EPOCHS, {"learning_rate": 0.1}, changed, r"data.train.targets: expected int32\[536\] \w+, got int32"),
        (perceptron(activation="tanh"), {"learning_rate": 0.1}, None,
         r"model.activation: expected \w+.identity, got \w+.tanh\n"),
        (perceptron(nnfx.losses.mean_square_error), {"learning_rate": 0.1}, None,
         "loss: expected nnfx.binary_cross_entropy, got nnfx.mean_square_error\n"),
        (perceptron(batch_size=50), {"learning_rate": 0.1}, None, "batch_size: expected 100, got 50\n"),
        (perceptron(outputs=2, loss=nnfx.losses.categorical_cross_entropy), {"learning_rate": 0.1}, None,
         r"model.outputs: expected 1, got 2\n"),
        (perceptron(optimizer=optax.adam), {"learning_rate": 0.1}, None,
         "optimizer: expected optax.sgd, got optax.adam\n"),
        (TWO_EPOCHS, {"learning_rate": 0.1, "label_smoothing": 0.1}, None,
         "label_smoothing: expected nothing, got 0.1\n"),
    ],
)  # fmt: skip
def test_another_run_is_refused_with_what_differs(data, key, ended, train, hyper, change, message):
    before = sorted((ended / "checkpoints").rglob("*"))
    with pytest.raises(ValueError, match=message):
        quiet(train, ended)(key, change(data) if change else data, **hyper)
    assert sorted((ended / "checkpoints").rglob("*")) == before


def test_another_key_is_refused(data, ended):
    with pytest.raises(
        ValueError, match=r"key: expected the key of the checkpoint, got a different one\nuse a different folder"
    ):
        quiet(TWO_EPOCHS, ended)(jax.random.key(1), data, learning_rate=0.1)


def test_the_same_run_built_anew_goes_on(data, key, ended):
    run = quiet(perceptron(), ended)(key, data, learning_rate=np.float64(0.1))
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))


def pretend(monkeypatch, **others):
    """Pretend that this release of some package is installed."""
    versions = {**nnfx.checkpoint.versions(), **others}
    monkeypatch.setattr(nnfx.checkpoint, "versions", lambda: versions)


def test_other_versions_are_warned_of(data, key, ended, monkeypatch):
    pretend(monkeypatch, jax="0.8.3")
    with pytest.warns(UserWarning, match=rf"saved with jax {jax.__version__}, now 0.8.3: the run resumes") as warned:
        run = quiet(TWO_EPOCHS, ended)(key, data, learning_rate=0.1)
    assert warned[0].filename == __file__
    assert bits(run) == bits(TWO_EPOCHS(key, data, learning_rate=0.1))


def everything(**changed):
    """Return a run with a part of every kind, most of them with fixed numbers."""
    parts = {
        "model": nnfx.models.mlp((3,), activation="tanh"),
        "loss": functools.partial(nnfx.losses.binary_cross_entropy, label_smoothing=0.1),
        "optimizer": functools.partial(optax.adam, b1=0.8),
        "stop": functools.partial(nnfx.stopping.patience, patience=3),
        "penalty": functools.partial(nnfx.regularizers.l2, l2=0.01),
        "average": functools.partial(nnfx.averaging.exponential, ema_decay=0.9),
        "augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.1),
        "metrics": {"accuracy": nnfx.metrics.binary_accuracy},
        "make_step": functools.partial(nnfx.make_step, skip_non_finite=True),
        "batch_size": 100,
        "epochs": 1,
        **changed,
    }
    return nnfx.fit(parts.pop("model"), parts.pop("loss"), parts.pop("optimizer"), **parts)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """Return the folder of a run of one epoch, to resume from."""
    out = tmp_path_factory.mktemp("begun")
    quiet(everything(), out)(jax.random.key(0), data, learning_rate=0.01)
    return out


OTHERS = {
    "activation": {"model": nnfx.models.mlp((3,), activation="relu")},
    "initializer": {"model": nnfx.models.mlp((3,), activation="tanh", initializer="he_normal")},
    "bias_initializer": {"model": nnfx.models.mlp((3,), activation="tanh", bias_initializer="normal")},
    "loss": {"loss": nnfx.losses.mean_square_error},
    "label_smoothing": {"loss": functools.partial(nnfx.losses.binary_cross_entropy, label_smoothing=0.2)},
    "optimizer": {"optimizer": optax.nadam},
    "b1": {"optimizer": functools.partial(optax.adam, b1=0.9)},
    "tolerance": {"stop": nnfx.stopping.small_change},
    "patience": {"stop": functools.partial(nnfx.stopping.patience, patience=4)},
    "penalty": {"penalty": functools.partial(nnfx.regularizers.l1, l1=0.01)},
    "l2": {"penalty": functools.partial(nnfx.regularizers.l2, l2=0.02)},
    "ema_decay": {"average": functools.partial(nnfx.averaging.exponential, ema_decay=0.8)},
    "noise": {"augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.2)},
    "accuracy": {"metrics": {"accuracy": nnfx.losses.binary_cross_entropy}},
    "make_step": {"make_step": nnfx.make_step},
    "batch_size": {"batch_size": 50},
}


BY_DEFAULT = {"activation", "loss", "b1", "noise"}


@pytest.mark.parametrize("part", [pytest.param(p, marks=() if p in BY_DEFAULT else pytest.mark.slow) for p in OTHERS])
def test_under_another_release_another_run_is_refused_all_the_same(data, key, begun, monkeypatch, part):
    pretend(monkeypatch, jax="99.0", jaxlib="99.0")
    before = sorted(begun.rglob("*"))
    with pytest.raises(
        ValueError, match=r"expected the run that is saved there, got a different one:\n  [a-z0-9_.\[\]]+: exp"
    ):
        quiet(everything(epochs=2, **OTHERS[part]), begun)(key, data, learning_rate=0.01)
    assert sorted(begun.rglob("*")) == before


@pytest.fixture(scope="module")
def longer(data):
    """Return a copy of a run with two epochs, and its result as bytes."""
    train = everything(epochs=2)
    return train, bits(train(jax.random.key(0), data, learning_rate=0.01))


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "nnfx"])
def test_under_another_release_the_same_run_goes_on(data, key, begun, longer, tmp_path, monkeypatch, package):
    shutil.copytree(begun, tmp_path / "copy")
    pretend(monkeypatch, **{package: "99.0"})
    train, expected = longer
    with pytest.warns(UserWarning, match=f"saved with {package} .*, now 99.0"):
        run = quiet(train, tmp_path / "copy")(key, data, learning_rate=0.01)
    assert bits(run) == expected


def starting_from(weights):
    """Return a perceptron that starts with these weights, which are read when it is initialised."""
    model = nnfx.models.perceptron()
    return model._replace(init=lambda key, inputs: {"params": jax.tree.map(jnp.asarray, weights())})


@pytest.mark.parametrize("version", [jax.__version__, "99.0"])
def test_another_start_is_refused(data, key, tmp_path, monkeypatch, version):
    file = tmp_path / "weights.npy"

    def weights():
        return {"kernel": np.load(file), "bias": np.zeros(1, np.float32)}

    train = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    np.save(file, np.full((2, 1), 0.5, np.float32))
    quiet(train, tmp_path / "run")(key, data, learning_rate=0.1)
    pretend(monkeypatch, jax=version)
    again = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    with pytest.warns(UserWarning, match="99.0") if version == "99.0" else contextlib.nullcontext():
        quiet(again, tmp_path / "run")(key, data, learning_rate=0.1)
    np.save(file, np.full((2, 1), 0.25, np.float32))
    other = nnfx.fit(starting_from(weights), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    # the function is the same, and only its result differs
    message = r"start.*kernel.*: expected values with mean 0.5 .*, got mean 0.25" if version == "99.0" else "program"
    with pytest.raises(ValueError, match=message):
        quiet(other, tmp_path / "run")(key, data, learning_rate=0.1)
