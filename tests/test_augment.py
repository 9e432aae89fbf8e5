import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import augment
from nnfx.types import Batch

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def images(rows=64, dtype=jnp.float32):
    x = jax.random.uniform(jax.random.key(5), (rows, 6, 4, 2)).astype(dtype)
    return Batch(x, jnp.arange(rows) % 3, jnp.ones(rows))


def test_noise_has_the_stated_deviation_and_no_mean(key):
    batch = images(2000)
    noise = np.asarray(augment.gaussian_noise(key, batch, 0.3).inputs - batch.inputs)
    standard_error = 0.3 / np.sqrt(noise.size)
    assert abs(noise.mean()) < 4 * standard_error
    assert abs(noise.std() - 0.3) < 4 * standard_error


def data():
    rows = np.random.default_rng(0).normal(size=(60, 2))
    return nnfx.data.prepare(rows, (rows.sum(1) > 0).astype(int), key=jax.random.key(1), valid_fraction=0.25)


def fit(**options):
    return nnfx.fit(
        nnfx.models.mlp((4,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=5, batch_size=10, **options
    )


def test_each_step_draws_anew_and_held_out_data_is_left_alone(key):
    seen = []

    def record(key, batch):
        jax.debug.callback(lambda value: seen.append(float(value)), jax.random.uniform(key))
        return batch

    fit(augment=record)(key, data(), learning_rate=0.1)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 5 * 5


def test_without_noise_nothing_but_the_stream_changes(key):
    run = fit(augment=augment.gaussian_noise)(key, data(), learning_rate=0.1, noise=0.0)
    plain = fit()(key, data(), learning_rate=0.1)
    np.testing.assert_array_equal(run.history["valid_loss"], plain.history["valid_loss"])


def test_several_act_one_after_the_other(key):
    def double(key, batch):
        return batch._replace(inputs=2 * batch.inputs)

    def shift(key, batch, offset):
        return batch._replace(inputs=batch.inputs + offset)

    run = fit(augment=(double, shift))(key, data(), learning_rate=0.1, offset=1.0)
    both = fit(augment=lambda key, batch: batch._replace(inputs=2 * batch.inputs + 1))
    np.testing.assert_array_equal(run.history["train_loss"], both(key, data(), learning_rate=0.1).history["train_loss"])


def test_micro_batches_see_what_the_whole_batch_would(key):
    model, optimizer, batch = nnfx.models.mlp((4,)), optax.sgd(0.1), data().train._replace()
    batch = jax.tree.map(lambda a: a[:40], batch)

    def one_step(parts):
        step = nnfx.make_step(
            model, nnfx.losses.binary_cross_entropy, optimizer, micro_batches=parts,
            augment=lambda key, batch: augment.gaussian_noise(key, batch, 1.0),
        )  # fmt: skip
        return jax.jit(step)(nnfx.init_state(key, model, optimizer, batch.inputs), batch)[0].params

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one_step(1), one_step(4))


def test_wrong_input(key):
    with pytest.raises(ValueError, match="noise: .*at least 0, got -1"):
        augment.gaussian_noise(key, images(), -1.0)
    with pytest.raises(TypeError, match="key: expected a typed key"):
        augment.gaussian_noise(0, images(), 1.0)
    with pytest.raises(TypeError, match="augment: expected functions of a key and a batch, got 3"):
        fit(augment=[3])
    cut = fit(augment=lambda key, batch: batch._replace(inputs=batch.inputs[:, :1]))
    with pytest.raises(ValueError, match=r"augment: expected a Batch whose inputs are float32\[45,2\] as before, got"):
        cut(key, data(), learning_rate=0.1)
    with pytest.raises(ValueError, match="augment: expected a Batch .*, got [A-Z]"):
        fit(augment=lambda key, batch: batch.inputs)(key, data(), learning_rate=0.1)
