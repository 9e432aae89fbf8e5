import jax
import jax.numpy as jnp
import pytest

from nnfx import stopping


def epoch(**metrics):
    return stopping.Epoch((), (), {name: jnp.float32(value) for name, value in metrics.items()})


def stops(rule, losses):
    state, result = rule.init(), []
    for loss in losses:
        state, stop = rule.update(state, epoch(valid_loss=loss))
        result.append(bool(stop))
    return result


def test_patience_counts_from_the_last_improvement():
    assert stops(stopping.patience(2), [5, 4, 4.5, 3, 3.5, 3.2]) == [False] * 5 + [True]


def test_an_improvement_below_the_minimum_does_not_count():
    losses = [5, 4.95, 4.9]
    assert stops(stopping.patience(2, min_improvement=0.2), losses) == [False, False, True]
    assert stops(stopping.patience(2), losses) == [False, False, False]


def test_a_loss_that_is_not_a_number_is_no_improvement():
    assert stops(stopping.patience(2), [5, jnp.nan, jnp.nan]) == [False, False, True]
    assert stops(stopping.patience(2), [5, -jnp.inf, 4, 4, 4]) == [False, False, False, False, True]


@pytest.mark.parametrize(("change", "stop"), [(0.04, True), (0.06, False)])
def test_small_change_is_relative_to_all_weights_together(change, stop):
    before = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    after = {"a": jnp.array([3.0 + change]), "b": jnp.array([4.0])}
    rule = stopping.small_change(0.01)
    assert bool(rule.update(rule.init(), stopping.Epoch(before, after, {}))[1]) == stop


def test_rules_are_pure_and_map_over_their_numbers():
    def first(limit):
        rule = stopping.patience(limit)
        state, _ = rule.update(rule.init(), epoch(valid_loss=1.0))
        return rule.update(state, epoch(valid_loss=2.0))[1]

    assert jax.jit(jax.vmap(first))(jnp.array([1.0, 2.0])).tolist() == [True, False]


def test_budgets_stop_at_what_they_allow():
    def stop(rule, **progress):
        return bool(rule.update(rule.init(), stopping.Epoch((), (), {}, **progress))[1])

    assert [stop(stopping.step_budget(7), step=step) for step in (6, 7, 8)] == [False, True, True]
    assert [stop(stopping.time_budget(7), seconds=seconds) for seconds in (6.9, 7.0)] == [False, True]


def test_an_epoch_whose_steps_were_all_skipped_is_no_small_change():
    rule, weights = stopping.small_change(0.1), jnp.ones(3)
    for loss, stop in ((jnp.nan, False), (1.0, True)):
        epoch = stopping.Epoch(weights, weights, {"train_loss": jnp.float32(loss)})
        assert bool(rule.update(rule.init(), epoch)[1]) is stop
