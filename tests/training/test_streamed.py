"""Runs on data read batch by batch; `tests/sessions/test_streaming.py` compares them with runs in memory."""

import jax
import numpy as np
import optax

import nnfx
from nnfx.training.driver import drive
from nnfx.training.streamed import Streamed

STEPS_PER_EPOCH, EPOCHS = 5, 3
BATCH = nnfx.Batch(np.ones((4, 2), np.float32), np.ones(4, np.float32), np.ones(4, np.float32))


class Repeated:
    """A reader whose batches are all equal."""

    position = 0

    def __next__(self):
        self.position += 1
        return BATCH

    def get_state(self):
        return {"next_index": self.position}

    def set_state(self, position):
        self.position = position["next_index"]


def made(**options):
    fit = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=EPOCHS, batch_size=4, **options
    )
    hyper = {"learning_rate": np.float32(0.1)}
    return Streamed(fit, jax.random.key(0), BATCH, None, hyper, Repeated(), STEPS_PER_EPOCH, {})


def test_an_epoch_is_told_of_once_it_has_ended_and_pieces_end_where_they_are_asked_to():
    run = made()
    seen = {each.done: len(run.history(each.state, 0).get("train_loss", ())) for each in drive(run, run.start())}
    assert all(ended == steps // STEPS_PER_EPOCH for steps, ended in seen.items())
    assert (min(seen), max(seen)) == (1, 15)
    seen = {each.done for each in drive(run, run.start(), pause_every=(3, 7))}
    assert {3, 6, 7, 9, 12, 14, 15} <= seen


def test_it_goes_on_in_the_middle_of_an_epoch():
    run = made()
    *_, whole = drive(run, run.start())
    for each in drive(run, run.start(), pause_every=(7,)):
        if each.done == 7:
            break
    assert int(each.state.run.epoch) == 1
    assert float(each.state.measured["loss"].weight) == 2 * 4
    another = made()  # as in another process, with a reader at the start
    *_, last = drive(another, each.state)
    assert another.reader.position == 15
    jax.tree.map(np.testing.assert_array_equal, last.state.history, whole.state.history)
    np.testing.assert_array_equal(last.state.run.train.params["kernel"], whole.state.run.train.params["kernel"])


def test_a_state_can_be_gone_on_from_twice():
    run = made()
    state = run.start()
    for _ in range(2):
        *_, last = drive(run, state)
        assert last.done == 15
    assert float(state.run.train.params["kernel"][0, 0]) != float(last.state.run.train.params["kernel"][0, 0])


def test_rules_look_at_what_the_epoch_began_with():
    rule = nnfx.stopping.StoppingRule(
        lambda: 0.0,
        lambda state, epoch: (optax.tree.norm(optax.tree.sub(epoch.after, epoch.before)), np.bool_(False)),
    )
    run = made(stop=rule)
    states = {each.done: each.state.run for each in drive(run, run.start(), pause_every=(STEPS_PER_EPOCH,))}
    moved = optax.tree.norm(optax.tree.sub(states[15].train.params, states[10].train.params))
    np.testing.assert_allclose(states[15].rules[0], moved, rtol=1e-5)
