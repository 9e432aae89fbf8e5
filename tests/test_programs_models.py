"""Programs as new users write them, from data to a model that others use: short, and right."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

import nnfx


def written(*functions):
    """Return the lines that users write: those between two comments in each function."""
    lines = []
    for function in functions:
        _, code = inspect.getsource(function).split("# what a user writes\n")
        code, _ = code.split("# the end\n")
        lines += [line for line in code.splitlines() if line.strip()]
    assert not [line for line in lines if len(line) >= 120 or ";" in line or line.strip().startswith("#")]
    return lines


def train_digits(folder):
    # what a user writes
    import jax
    import optax

    import nnfx

    data = nnfx.data.digits(key=jax.random.key(1), valid_fraction=0.25)
    layers = [nnfx.models.conv(8), nnfx.models.max_pool(), nnfx.models.conv(16), nnfx.models.max_pool()]
    loss = nnfx.losses.categorical_cross_entropy
    train = nnfx.fit(nnfx.models.cnn(layers), loss, optax.adam, epochs=5, batch_size=64)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    run.save(folder / "digits")
    # the end
    return run


def export_digits(folder, run, images):
    # what a user writes
    run.export(folder / "digits.onnx")
    # the end
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "digits.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"inputs": images})[0]


LOADING = """
import numpy as np
import nnfx
model = nnfx.load("digits")
np.save("classes.npy", model.predict(np.load("images.npy")).argmax(1))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, train_digits(folder)


def test_a_network_for_digits_is_trained_saved_and_loaded_in_another_process(digits):
    assert len(written(train_digits, export_digits)) + len(LOADING.strip().splitlines()) <= 14
    folder, _ = digits
    images, labels = load_digits(return_X_y=True)
    np.save(folder / "images.npy", images.reshape(-1, 8, 8, 1))
    subprocess.run([sys.executable, "-c", LOADING], cwd=folder, check=True)
    assert (np.load(folder / "classes.npy") == labels).mean() > 0.95


def test_the_network_for_digits_is_exported_to_onnx(digits):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    folder, run = digits
    images, labels = load_digits(return_X_y=True)
    classes = export_digits(folder, run, images.reshape(-1, 8, 8, 1).astype(np.float32)).argmax(1)
    assert (classes == labels).mean() > 0.95


def train_equinox(data):
    # what a user writes
    import equinox as eqx, jax, nnfx, optax  # noqa: E401, I001

    model = nnfx.models.from_equinox(lambda key: eqx.nn.MLP(2, 1, 16, 1, key=key))
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.adam, epochs=40)
    run = train(jax.random.key(0), data, learning_rate=0.03)
    # the end
    return run  # noqa: RET504


def train_haiku(data):
    # what a user writes
    import haiku as hk, jax, nnfx, optax  # noqa: E401, I001

    model = nnfx.models.from_haiku(lambda x: hk.nets.MLP([16, 1])(x))
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.adam, epochs=40)
    run = train(jax.random.key(0), data, learning_rate=0.03)
    # the end
    return run  # noqa: RET504


@pytest.mark.parametrize("train", [train_equinox, train_haiku])
def test_a_module_of_another_library_is_trained(train):
    assert len(written(train)) <= 5  # with the imports
    x = np.random.default_rng(0).normal(size=(200, 2))
    labels = x[:, 0] ** 2 > x[:, 1]  # no line separates them
    run = train(nnfx.data.prepare(x, labels))
    assert ((run.predict(x)[:, 0] > 0) == labels).mean() > 0.9


def fine_tune(network, data):
    # what a user writes
    import jax
    import optax

    import nnfx

    weights = nnfx.models.conversion.from_torch(network.state_dict())
    model = nnfx.models.pretrained(nnfx.models.mlp((16,), outputs=3), weights)
    head = nnfx.optimizers.freeze(optax.adam, "hidden_*")
    train = nnfx.fit(model, nnfx.losses.categorical_cross_entropy, head, epochs=100)
    run = train(jax.random.key(0), data, learning_rate=0.05)
    # the end
    return run  # noqa: RET504


def test_the_head_of_a_network_of_pytorch_is_fine_tuned():
    torch = pytest.importorskip("torch")

    assert len(written(fine_tune)) <= 12
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    labels = x[:, :3].argmax(1)
    run = fine_tune(network, nnfx.data.prepare(x, labels, standardize=False))
    hidden = run.best.params["hidden_0"]
    np.testing.assert_array_equal(hidden["kernel"], network[0].weight.detach().numpy().T)
    np.testing.assert_array_equal(hidden["bias"], network[0].bias.detach().numpy())
    before = (network(torch.from_numpy(x)).argmax(1).numpy() == labels).mean()
    assert before < 0.5
    assert (np.asarray(run.predict(x)).argmax(1) == labels).mean() > 0.75
