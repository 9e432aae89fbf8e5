import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from experiments.reproductions import pytorch_quickstart as quickstart


def test_initial_weights_are_those_of_pytorch(key):
    params = nnfx.models.from_linen(quickstart.Quickstart()).init(key, jnp.zeros((1, 28, 28)))["params"]
    shapes = [jnp.shape(params[f"Dense_{layer}"]["kernel"]) for layer in range(3)]
    assert shapes == [(784, 512), (512, 512), (512, 10)]
    for layer, (inputs, _) in enumerate(shapes):
        for values in params[f"Dense_{layer}"].values():
            bound = 1 / np.sqrt(inputs)
            assert 0.8 * bound < jnp.abs(values).max() <= bound
            assert float(values.mean()) == pytest.approx(0, abs=0.5 * bound)


def test_a_run_equals_the_tutorials_loop_in_numpy(small_images):
    """In float64: batches in the order of the file, the last of them incomplete, and the mean of the batches' means."""
    data, config = small_images, quickstart.Config(epochs=2, batch_size=16)
    curves = quickstart.run(3, data, config)
    keys = nnfx.split_key(jax.random.key(3))
    params = nnfx.models.from_linen(quickstart.Quickstart()).init(keys.init, data.train.inputs[:1])["params"]
    layers = [[np.float64(params[f"Dense_{layer}"][name]) for name in ("kernel", "bias")] for layer in range(3)]

    def forward(x):
        values = [x.reshape(len(x), -1)]
        for number, (kernel, bias) in enumerate(layers):
            values.append((np.maximum(values[-1], 0) if number else values[-1]) @ kernel + bias)
        return values

    def probabilities(logits):
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    train, test = (jax.tree.map(np.asarray, part) for part in (data.train, data.valid))
    for epoch in range(2):
        for start in range(0, 70, 16):
            x, y = np.float64(train.inputs[start : start + 16]), train.targets[start : start + 16]
            values = forward(x)
            error = (probabilities(values[-1]) - np.eye(10)[y]) / len(x)
            for number in (2, 1, 0):
                inputs = np.maximum(values[number], 0) if number else values[number]
                kernel_gradient, bias_gradient = inputs.T @ error, error.sum(0)
                error = (error @ layers[number][0].T) * (values[number] > 0)
                layers[number][0] -= 1e-3 * kernel_gradient
                layers[number][1] -= 1e-3 * bias_gradient
        found = probabilities(forward(np.float64(test.inputs))[-1])
        losses = -np.log(found[np.arange(30), test.targets])
        assert curves["loss"][epoch] == pytest.approx((losses[:16].mean() + losses[16:].mean()) / 2, rel=1e-5)
        assert curves["accuracy"][epoch] == pytest.approx(100 * np.mean(found.argmax(1) == test.targets))


@pytest.mark.slow
def test_runs_are_made_kept_and_compared(small_images, tmp_path, monkeypatch):
    config = quickstart.Config(tmp_path, seeds=(0, 1), epochs=1, batch_size=32, rows=40)
    summary = quickstart.main(config)
    assert [row["result"] for row in summary["rows"]] == ["epoch 1, test accuracy in %", "epoch 1, test loss"]
    assert [row["published"]["mean"] for row in summary["rows"]] == [50.2, 2.151703]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    monkeypatch.setattr(quickstart, "run", lambda *_: pytest.fail("a finished run is not made again"))
    assert quickstart.main(config)["runs"] == summary["runs"]
