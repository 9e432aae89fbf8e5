"""The host's loop over batches; what it computes is held against runs in memory in `tests/host/test_streaming.py`."""

import itertools

import jax
import numpy as np
import optax

import nnfx
from nnfx.training import streaming

STEPS_PER_EPOCH, EPOCHS = 5, 3
BATCH = nnfx.Batch(np.ones((4, 2), np.float32), np.ones(4, np.float32), np.ones(4, np.float32))


def begun(**options):
    fit = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=EPOCHS, batch_size=4, **options
    )
    hyper = {"learning_rate": np.float32(0.1)}
    return fit, streaming.begin(fit, jax.random.key(0), BATCH, None, hyper), hyper


def strides(fit, standing, hyper, **options):
    return streaming.strides(
        fit, standing, itertools.repeat(BATCH), None, hyper, steps_per_epoch=STEPS_PER_EPOCH, **options
    )


def test_strides_end_with_epochs_and_where_they_are_asked_to():
    seen = [(each.steps, list(each.history)) for each in strides(*begun(), steps=0, pause_every=3)]
    assert [steps for steps, history in seen if history] == [5, 10, 15]
    assert {3, 5, 6, 9, 10, 12, 15} <= {steps for steps, _ in seen}
    assert seen[0] == (1, [])
    assert seen[-1] == (15, ["train_loss"])


def test_it_goes_on_in_the_middle_of_an_epoch():
    fit, standing, hyper = begun()
    whole = {each.steps: each for each in strides(fit, standing, hyper, steps=0)}[15]
    fit, standing, hyper = begun()
    for each in strides(fit, standing, hyper, steps=0, pause_every=7):
        if each.steps == 7:
            break
    assert int(each.standing.run.epoch) == 1
    assert float(each.standing.measured["loss"].weight) == 2 * 4
    *_, last = strides(fit, each.standing, hyper, steps=7)
    assert last.history == whole.history
    np.testing.assert_array_equal(last.standing.run.train.params["kernel"], whole.standing.run.train.params["kernel"])


def test_rules_look_at_what_the_epoch_began_with():
    rule = nnfx.stopping.StoppingRule(
        lambda: 0.0,
        lambda state, epoch: (optax.tree.norm(optax.tree.sub(epoch.after, epoch.before)), np.bool_(False)),
    )
    *_, last = strides(*begun(stop=rule), steps=0)
    fit, standing, hyper = begun()
    params = {
        each.steps: jax.device_get(each.standing.run.train.params) for each in strides(fit, standing, hyper, steps=0)
    }
    moved = optax.tree.norm(optax.tree.sub(params[15], params[10]))
    np.testing.assert_allclose(last.standing.run.rules[0], moved, rtol=1e-5)
