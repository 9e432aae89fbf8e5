import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from experiments.reproductions import deepobs


def test_the_network_is_that_of_the_paper(key):
    params = deepobs.model().init(key, jnp.zeros((1, 28, 28, 1)))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["conv_0"]["kernel"] == (5, 5, 1, 32)
    assert shapes["conv_1"]["kernel"] == (5, 5, 32, 64)
    assert shapes["dense"]["hidden_0"]["kernel"] == (7 * 7 * 64, 1024)
    weights = params["dense"]["hidden_0"]["kernel"]
    assert jnp.abs(weights).max() <= 0.1, "cut off at two deviations"
    assert 0.043 < float(weights.std()) < 0.045, "that of a normal with deviation 0.05, cut off at two"
    for layer in (params["conv_0"], params["dense"]["output"]):
        np.testing.assert_allclose(layer["bias"], 0.05)


@pytest.mark.slow
def test_runs_are_made_kept_and_gone_on_with(small_images, tmp_path, monkeypatch):
    config = deepobs.Config(tmp_path, seeds=(0,), optimizers=("sgd", "adam"), epochs=1, batch_size=32, progress=False)
    summary = deepobs.main(config)
    assert [row["result"] for row in summary["rows"]] == [
        "sgd, epoch 1, test accuracy in %",
        "adam, epoch 1, test accuracy in %",
    ]
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    monkeypatch.setattr(deepobs, "train", lambda *_: pytest.fail("a finished run is not made again"))
    again = deepobs.main(config)
    assert again["runs"] == summary["runs"]
    curve = json.loads((tmp_path / "run_sgd_0.json").read_text())["run"]["test_accuracy"]
    assert len(curve) == 1
    assert 0 <= curve[0] <= 100


@pytest.mark.slow
def test_the_incomplete_batch_is_dropped(small_images):
    data = small_images.train
    optimizer = deepobs.OPTIMIZERS["sgd"]
    state = nnfx.init_state(jax.random.key(0), deepobs.model(), optimizer, data.inputs[:1])
    epoch = jax.jit(deepobs.make_epoch(deepobs.model(), nnfx.losses.categorical_cross_entropy, optimizer, 32))
    state, loss = epoch(state, data, jax.random.key(1))
    assert state.step == 70 // 32
    assert jnp.isfinite(loss)


def test_epochs_that_all_runs_reached_are_compared():
    runs = [{"optimizer": "adam", "test_accuracy": [85.26 + d, 80.0]} for d in (1, 2, 3)]
    first, second = deepobs.compare([*runs, {"optimizer": "sgd", "test_accuracy": [80.0]}])[1:]
    assert first.result == "adam, epoch 1, test accuracy in %"
    assert first.standard_errors == pytest.approx(2 / np.sqrt(1 / 3 + 0.57**2 / 10))
    assert (second.ours.mean, second.ours.count, second.published.count) == (80, 3, 10)
