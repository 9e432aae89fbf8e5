"""Augmentation within steps and runs; `tests/test_augment.py` tests the functions themselves."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import augment

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def data():
    rows = np.random.default_rng(0).normal(size=(60, 2))
    return nnfx.data.prepare(rows, (rows.sum(1) > 0).astype(int), key=jax.random.key(1), valid_fraction=0.25)


def fit(**options):
    return nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=5, batch_size=10, **options
    )


def test_each_step_draws_anew_and_held_out_data_is_left_alone(key):
    seen = []

    def record(key, batch):
        jax.debug.callback(lambda value: seen.append(float(value)), jax.random.uniform(key))
        return batch

    fit(augment=record)(key, data(), learning_rate=0.1)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 5 * 5


@pytest.mark.slow
def test_without_noise_nothing_but_the_stream_changes(key):
    run = fit(augment=augment.gaussian_noise)(key, data(), learning_rate=0.1, noise=0.0)
    plain = fit()(key, data(), learning_rate=0.1)
    np.testing.assert_array_equal(run.history["valid_loss"], plain.history["valid_loss"])


@pytest.mark.slow
def test_several_act_one_after_the_other(key):
    def double(key, batch):
        return batch._replace(inputs=2 * batch.inputs)

    def shift(key, batch, offset):
        return batch._replace(inputs=batch.inputs + offset)

    run = fit(augment=(double, shift))(key, data(), learning_rate=0.1, offset=1.0)
    both = fit(augment=lambda key, batch: batch._replace(inputs=2 * batch.inputs + 1))
    np.testing.assert_array_equal(run.history["train_loss"], both(key, data(), learning_rate=0.1).history["train_loss"])


@pytest.mark.slow
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


class Flat(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


def fit_images(augments, classes=3, **options):
    model = nnfx.models.from_linen(Flat(classes))
    return nnfx.fit(
        model, nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=2, batch_size=10,
        metrics={"accuracy": nnfx.metrics.accuracy}, augment=augments, **options,
    )  # fmt: skip


def image_data():
    x = np.random.default_rng(0).uniform(size=(60, 6, 4, 2))
    return nnfx.data.prepare(x, np.arange(60) % 3, key=jax.random.key(1), valid_fraction=0.25)


@pytest.mark.slow
def test_all_their_numbers_are_swept_in_one_run(key):
    mixing = functools.partial(augment.mixup, classes=3)
    train = fit_images((augment.flip, augment.shift, augment.rotation, augment.cutout, mixing))
    numbers = {"pixels": 1.0, "degrees": 10.0, "size": 2.0, "alpha": 0.3}
    sweep = jax.vmap(lambda x: train(key, image_data(), learning_rate=0.1, **{**numbers, "degrees": x}))
    final = sweep(jnp.array([10.0, 10.0, 90.0])).final
    assert final["train_loss"][0] == final["train_loss"][1] != final["train_loss"][2]
    assert ((final["train_accuracy"] >= 0) & (final["train_accuracy"] <= 1)).all()
    hits = final["valid_accuracy"] * 15  # held-out examples are neither mixed nor moved
    np.testing.assert_allclose(hits, np.round(hits), atol=1e-4)


def test_what_is_no_augmentation_is_refused(key):
    with pytest.raises(TypeError, match="augment: expected functions of a key and a batch, got 3"):
        fit(augment=[3])
    cut = fit(augment=lambda key, batch: batch._replace(inputs=batch.inputs[:, :1]))
    with pytest.raises(ValueError, match=r"augment: expected a Batch whose inputs are float32\[45,2\] as before, got"):
        cut(key, data(), learning_rate=0.1)
    with pytest.raises(ValueError, match="augment: expected a Batch .*, got [A-Z]"):
        fit(augment=lambda key, batch: batch.inputs)(key, data(), learning_rate=0.1)


NUMBERS = {"pixels": augment.shift, "degrees": augment.rotation, "size": augment.cutout}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_bounds_are_refused_before_training(key, name):
    with pytest.raises(ValueError, match=f"{name}: .*at least 0, got -1"):
        fit_images(NUMBERS[name])(key, image_data(), learning_rate=0.1, **{name: -1.0})


def test_mixing_needs_the_number_of_classes_that_the_model_has(key):
    with pytest.raises(ValueError, match="classes: expected the number of classes"):
        fit_images(augment.mixup)(key, image_data(), learning_rate=0.1, alpha=1.0)
    with pytest.raises(TypeError, match="classes: expected a whole number fixed with functools.partial"):
        fit_images(augment.mixup)(key, image_data(), learning_rate=0.1, alpha=1.0, classes=3)
    with pytest.raises(ValueError, match=r"targets: expected integer labels .*, got float32\[10,4\]"):
        fit_images(functools.partial(augment.mixup, classes=4))(key, image_data(), learning_rate=0.1, alpha=1.0)
