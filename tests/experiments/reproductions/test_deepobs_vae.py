import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import integrate, stats

import nnfx
from experiments.reproductions import deepobs_vae as vae


@pytest.fixture(scope="module")
def variables():
    return vae.MODEL.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def test_the_layers_are_those_of_the_suite(variables):
    shapes = jax.tree.map(jnp.shape, variables["params"])
    kernels = {name: layer["kernel"] for name, layer in shapes.items()}
    assert [kernels[f"ConvolutionLayer_{i}"] for i in range(6)] == [(4, 4, n, 64) for n in (1, 64, 64, 1, 64, 64)]
    dense = [kernels[f"Dense_{i}"] for i in range(5)]
    assert dense == [(3136, 8), (3136, 8), (8, 24), (24, 49), (14 * 14 * 64, 784)]
    for name, layer in variables["params"].items():
        *window, inputs, outputs = layer["kernel"].shape
        bound = np.sqrt(6 / (np.prod(window) * (inputs + outputs)))
        assert 0.8 * bound < jnp.abs(layer["kernel"]).max() <= bound, name
        assert not layer["bias"].any()


@pytest.mark.parametrize(("strides", "inputs", "padding"), [(2, 1, [(2, 2)] * 2), (1, 64, [(2, 1)] * 2)])
def test_convolutions_of_the_decoder_are_transposes(strides, inputs, padding):
    """TensorFlow's are the gradient, with respect to its inputs, of a convolution with its SAME padding."""
    rng, size = np.random.default_rng(0), 7 * strides
    x = jnp.asarray(rng.normal(0, 1, (2, 7, 7, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(0, 1, (4, 4, 64, inputs)), jnp.float32)

    def convolution(z):
        return lax.conv_general_dilated(
            z, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )

    (expected,) = jax.vjp(convolution, jnp.zeros((2, size, size, 64)))[1](x)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    found = nnfx.ops.convolution(vae.spread(x) if strides == 2 else x, flipped, padding=padding)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_the_loss_is_the_squared_error_plus_the_divergence():
    """The divergence of each latent number is integrated over its density."""
    rng = np.random.default_rng(0)
    images, targets = rng.uniform(0, 1, (3, 784)), rng.uniform(0, 1, (3, 28, 28, 1))
    means, logs = rng.normal(0, 1, (2, 3, 8))
    found = vae.loss(jnp.asarray(np.concatenate([images, means, logs], 1)), jnp.asarray(targets))

    def divergence(mean, deviation):
        density = stats.norm(mean, deviation)
        ends = mean - 12 * deviation, mean + 12 * deviation
        return integrate.quad(lambda z: density.pdf(z) * (density.logpdf(z) - stats.norm.logpdf(z)), *ends)[0]

    expected = [
        np.sum((image - target.ravel()) ** 2) + sum(map(divergence, mean, np.exp(log)))
        for image, target, mean, log in zip(images, targets, means, logs, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_latent_numbers_are_drawn_in_testing_too_but_nothing_is_dropped(variables):
    """The latent mean does not depend on the key; the image does, through the latent numbers alone."""
    x = jax.random.uniform(jax.random.key(1), (5, 28, 28, 1))
    first, second = (vae.MODEL.apply(variables, x, key=jax.random.key(number)) for number in (2, 3))
    np.testing.assert_array_equal(first[:, 784:], second[:, 784:])
    assert jnp.abs(first[:, :784] - second[:, :784]).max() > 1e-4
    trained, _ = vae.MODEL.apply(variables, x, key=jax.random.key(2), train=True)
    assert jnp.abs(trained[:, 784:] - first[:, 784:]).max() > 1e-3


def test_incomplete_batches_are_dropped_from_the_test_set(variables):
    images, key = jax.random.uniform(jax.random.key(1), (10, 28, 28, 1)), jax.random.key(2)
    found = vae.loss_on(key, variables, images, 4)
    keys, losses = jax.random.split(key, 2), []
    for number in range(2):
        batch = images[4 * number : 4 * number + 4]
        losses.append(vae.loss(vae.MODEL.apply(variables, batch, key=keys[number]), batch))
    assert float(found) == pytest.approx(float(np.concatenate(losses).mean()), rel=1e-5)


def test_epochs_that_all_runs_reached_are_compared():
    runs = [{"test_loss": [133.0 + d, 29.0 + d, 28.0]} for d in (0, 1, 2)]
    before, first = vae.compare([*runs, {"test_loss": [136.0, 32.0]}])
    assert (before.result, first.result) == ("before training, test loss", "epoch 1, test loss")
    deviation = np.std([29, 30, 31, 32], ddof=1)
    assert first.standard_errors == pytest.approx((30.5 - 29.682) / np.sqrt(deviation**2 / 4 + 0.130**2 / 10))


def test_published_losses_are_those_of_the_baselines():
    """The test losses of the ten published seeds, to three digits."""
    seeds = {
        0: (133.002, 133.051, 133.020, 132.997, 132.955, 133.003, 132.942, 132.989, 132.997, 132.984),
        1: (29.661, 29.679, 29.574, 29.814, 29.868, 29.738, 29.574, 29.572, 29.497, 29.844),
        2: (27.513, 27.604, 27.561, 27.765, 27.748, 27.796, 27.502, 27.519, 27.555, 27.947),
        5: (25.606, 25.569, 25.495, 25.647, 25.573, 25.662, 25.690, 25.680, 25.744, 25.836),
    }
    for epoch, losses in seeds.items():
        assert vae.PUBLISHED[epoch] == pytest.approx((np.mean(losses), np.std(losses, ddof=1)), abs=0.001)


@pytest.mark.slow
def test_runs_are_made_kept_and_learn(small_images, tmp_path, monkeypatch):
    config = vae.Config(tmp_path, seeds=(0, 1), epochs=2, batch_size=10)
    summary = vae.main(config)
    assert [row["result"] for row in summary["rows"]] == [
        "before training, test loss",
        "epoch 1, test loss",
        "epoch 2, test loss",
    ]
    for curves in summary["runs"]:
        assert curves["test_loss"][2] < curves["test_loss"][1] < curves["test_loss"][0]
    monkeypatch.setattr(vae, "run", lambda *_: pytest.fail("a finished run is not made again"))
    assert vae.main(config)["runs"] == summary["runs"]
