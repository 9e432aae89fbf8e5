import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import nnfx
from experiments.reproductions import keras_clothing as keras
from nnfx.data import batching


def test_a_run_equals_the_tutorials_loop_in_numpy(small_images):
    """In float64, with Keras' form of Adam: training loss and accuracy of each batch are those before its step."""
    data, config = small_images, keras.Config(epochs=2, batch_size=16)
    curves = keras.run(3, data, keras.make_run(config))
    keys = nnfx.split_key(jax.random.key(3))
    params = nnfx.models.mlp((128,), 10, initializer="glorot_uniform").init(keys.init, jnp.zeros((1, 28, 28, 1)))
    leaves, structure = jax.tree.flatten(params["params"])
    leaves = [np.float64(leaf) for leaf in leaves]
    for leaf in leaves:  # Glorot's uniform weights are within √(6 / (inputs + outputs)), and biases are zero
        bound = np.sqrt(6 / sum(leaf.shape)) if leaf.ndim == 2 else 0
        assert 0.9 * bound <= np.abs(leaf).max() <= bound
    train, test = (jax.tree.map(np.asarray, part) for part in (data.train, data.valid))

    def measured(leaves, x, y):
        """Return the loss, whether the class is right, and the gradients of the mean loss."""
        layers = jax.tree.unflatten(structure, leaves)
        (first, second), x = layers.values(), np.float64(x).reshape(len(x), -1)
        before = x @ first["kernel"] + first["bias"]
        hidden = np.maximum(before, 0)
        logits = hidden @ second["kernel"] + second["bias"]
        error = (special.softmax(logits, 1) - np.eye(10)[y]) / len(y)
        back = error @ second["kernel"].T * (before > 0)
        slopes = [
            {"kernel": x.T @ back, "bias": back.sum(0)},
            {"kernel": hidden.T @ error, "bias": error.sum(0)},
        ]
        losses = -special.log_softmax(logits, 1)[np.arange(len(y)), y]
        return losses, logits.argmax(1) == y, jax.tree.leaves(dict(zip(layers, slopes, strict=True)))

    moments, step = [(np.zeros_like(leaf), np.zeros_like(leaf)) for leaf in leaves], 0
    for epoch in range(2):
        order, seen = batching.shuffled(keys.order, epoch, 70, 16), []
        for rows, real in zip(np.asarray(order.rows), np.asarray(order.is_real), strict=True):
            step += 1
            *found, slopes = measured(leaves, train.inputs[rows[real]], train.targets[rows[real]])
            seen.append(found)
            moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2) for (m, v), g in zip(moments, slopes, strict=True)]
            rate = 1e-3 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            leaves = [p - rate * m / (np.sqrt(v) + 1e-7) for p, (m, v) in zip(leaves, moments, strict=True)]
        losses, right = (np.concatenate(each) for each in zip(*seen, strict=True))
        assert curves["train_loss"][epoch] == pytest.approx(losses.mean(), rel=1e-3)
        assert curves["train_accuracy"][epoch] == pytest.approx(100 * right.mean())
        losses, right, _ = measured(leaves, test.inputs, test.targets)
        assert curves["test_loss"][epoch] == pytest.approx(losses.mean(), rel=1e-3)
        assert curves["test_accuracy"][epoch] == pytest.approx(100 * right.mean())
    assert step == 10


@pytest.fixture
def runs():
    """Return three runs whose curves differ by a constant."""
    shapes = {"train_loss": 0.3, "train_accuracy": 88.0, "test_loss": 0.35, "test_accuracy": 87.0}
    return [{name: [value + d] * 5 for name, value in shapes.items()} for d in (0.0, 0.01, 0.02)]


def test_training_curves_are_taken_to_vary_as_ours_do(runs):
    first = keras.compare(runs)[0]
    assert first.result == "epoch 1, training loss"
    assert first.published.mean == pytest.approx((0.5022 + 0.4972) / 2)
    assert first.errors == pytest.approx((0.01 / np.sqrt(3), np.hypot(0.01 / np.sqrt(2), 1e-4 / np.sqrt(12))))


def test_test_losses_are_compared_by_welchs_statistic(runs):
    loss, accuracy = keras.compare(runs)[10:]
    assert (loss.result, accuracy.result) == ("epoch 5, test loss", "epoch 5, test accuracy in %")
    for row, ours, published in (
        (loss, [0.35, 0.36, 0.37], keras.TEST["loss"]),
        (accuracy, [87.0, 87.01, 87.02], keras.TEST["accuracy"]),
    ):
        expected = stats.ttest_ind(ours, published, equal_var=False).statistic
        assert row.standard_errors == pytest.approx(expected)


def test_the_test_set_is_compared_only_after_the_last_epoch(runs):
    short = [{name: values[:3] for name, values in curves.items()} for curves in runs]
    assert [row.result for row in keras.compare(short)] == [
        f"epoch {epoch}, training {measure}" for measure in ("loss", "accuracy in %") for epoch in (1, 2, 3)
    ]


def test_published_curves_are_those_of_the_printed_lines():
    """Typed a second time, as Keras printed them at the latest two renderings of the page."""
    printed = (
        "0.5022 0.8235 0.3774 0.8642 0.3402 0.8760 0.3154 0.8848 0.2958 0.8916",
        "0.4972 0.8238 0.3760 0.8645 0.3382 0.8761 0.3155 0.8837 0.2953 0.8910",
    )
    for number, line in enumerate(printed):
        values = np.array(line.split(), float).reshape(5, 2)
        np.testing.assert_allclose(keras.TRAINING["loss"][number], values[:, 0])
        np.testing.assert_allclose(keras.TRAINING["accuracy"][number], 100 * values[:, 1])


@pytest.mark.slow
def test_runs_are_made_kept_and_compared(small_images, tmp_path, monkeypatch):
    config = keras.Config(tmp_path, seeds=(0, 1), epochs=1, batch_size=32, rows=40)
    summary = keras.main(config)
    assert [row["result"] for row in summary["rows"]] == ["epoch 1, training loss", "epoch 1, training accuracy in %"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    monkeypatch.setattr(keras, "run", lambda *_: pytest.fail("a finished run is not made again"))
    assert keras.main(config)["runs"] == summary["runs"]
    with pytest.raises(pytest.fail.Exception):  # runs of another size are no finished ones
        keras.main(dataclasses.replace(config, rows=30))
