import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.stopping import StoppingRule
from nnfx.training import parts

MODEL, MSE = nnfx.models.perceptron(), nnfx.losses.mean_square_error
BATCH = nnfx.Batch(jnp.ones((3, 2)), jnp.ones(3), jnp.ones(3))


def fit(model=MODEL, loss=MSE, optimizer=optax.sgd, **options):
    return nnfx.fit(model, loss, optimizer, epochs=1, **options)


def add(key, batch, offset=1.0):
    return batch._replace(inputs=batch.inputs + offset)


def double(key, batch):
    return batch._replace(inputs=2 * batch.inputs)


def test_every_part_is_an_argument_of_fit_and_the_optional_ones_are_by_default_none():
    arguments = inspect.signature(nnfx.fit).parameters
    for name in parts.Parts._fields:
        assert name in arguments, f"{name} is a part that nobody can hand in"
        has_default = arguments[name].default is not inspect.Parameter.empty
        assert has_default == (name in parts.Parts._field_defaults)
    assert set(parts.OPTIONAL) == {"penalty", "augment", "average"}


def test_numbers_are_bound_to_the_parts_that_name_them():
    train = fit(
        functools.partial(nnfx.models.mlp, (4,), activation="tanh"), nnfx.losses.huber, optax.sgd,
        penalty=nnfx.regularizers.l2, augment=add, average=nnfx.averaging.exponential, stop=nnfx.stopping.patience,
    )  # fmt: skip
    bound = train.bind(
        {"delta": 0.5, "learning_rate": 0.25, "l2": 4.0, "offset": 3.0, "ema_decay": 0.75, "patience": 2}
    )
    assert isinstance(bound.model, nnfx.Model)
    assert float(bound.loss(jnp.array([2.0]), jnp.array([0.0]))[0]) == 0.5 * (2 - 0.5 / 2)
    updates, _ = bound.optimizer.update({"w": jnp.array(8.0)}, bound.optimizer.init({"w": jnp.array(1.0)}))
    assert float(updates["w"]) == -2
    assert float(bound.penalty({"kernel": jnp.array([[3.0]])})) == 4 / 2 * 3**2
    assert bound.augment(jax.random.key(0), BATCH).inputs[0, 0] == 1 + 3
    assert [rule.update.__qualname__.split(".")[0] for rule in bound.stop] == ["patience"]
    assert list(bound.measures) == ["loss"]


def test_without_the_optional_parts_none_is_bound():
    bound = fit().bind({"learning_rate": 0.1})
    assert [getattr(bound, name) for name in parts.OPTIONAL] == [None] * 3
    assert (bound.stop, dict(bound.metrics)) == ((), {})


@pytest.mark.parametrize(("augment", "expected"), [((add, double), 4.0), ([double, add], 3.0), (double, 2.0)])
def test_augmentations_act_in_turn(augment, expected):
    bound = fit(augment=augment).bind({"learning_rate": 0.1})
    np.testing.assert_array_equal(bound.augment(jax.random.key(0), BATCH).inputs, np.full((3, 2), expected))


def test_each_augmentation_draws_for_itself():
    def drawn(key, batch):
        return batch._replace(inputs=batch.inputs + jax.random.normal(key, batch.inputs.shape))

    once = fit(augment=drawn).bind({"learning_rate": 0.1}).augment(jax.random.key(0), BATCH)
    twice = fit(augment=(drawn, drawn)).bind({"learning_rate": 0.1}).augment(jax.random.key(0), BATCH)
    assert not np.allclose(twice.inputs - once.inputs, once.inputs - BATCH.inputs)


def test_what_is_made_already_is_what_is_bound():
    rule, optimizer = nnfx.stopping.patience(3), optax.adam(0.1)
    train = fit(optimizer=optimizer, stop=rule)
    bound = train.bind({})
    assert bound.model is MODEL
    assert bound.optimizer is optimizer
    assert bound.stop == (rule,)
    assert (train.rule_names, train.hyper_names, train.required_names) == (("patience",), (), ())
    assert train.given["optimizer"] is optimizer
    assert train.given["stop"] == [rule]


@pytest.mark.parametrize(
    "optimizer", [optax.MultiSteps(optax.sgd(0.1), 2), lambda: optax.MultiSteps(optax.sgd(0.1), 2)]
)
def test_an_optimizer_that_accumulates_is_one_like_any_other(optimizer):
    assert isinstance(fit(optimizer=optimizer).bind({}).optimizer, optax.GradientTransformation)


def test_what_was_given_is_told_as_it_was_given():
    given = fit(augment=add, stop=(nnfx.stopping.patience, nnfx.stopping.non_finite)).given
    assert (given["model"], given["loss"], given["optimizer"], given["penalty"]) == (MODEL, MSE, optax.sgd, None)
    assert (given["augment"], given["stop"]) == ([add], [nnfx.stopping.patience, nnfx.stopping.non_finite])


def test_a_step_is_given_the_parts_that_there_are():
    seen = []

    def make_step(model, loss, optimizer, metrics, **others):
        seen.append((model, set(metrics), set(others)))
        return nnfx.make_step(model, loss, optimizer, metrics, **others)

    plain = fit(make_step=make_step)
    plain.step(plain.bind({"learning_rate": 0.1}))
    full = fit(make_step=make_step, metrics={"mae": nnfx.losses.mean_absolute_error}, penalty=nnfx.regularizers.l1)
    full.step(full.bind({"learning_rate": 0.1, "l1": 0.1}))
    assert seen == [(MODEL, set(), set()), (MODEL, {"mae"}, {"penalty"})]


@pytest.mark.parametrize("budget", [nnfx.stopping.time_budget, nnfx.stopping.time_budget(1.0)])
def test_whether_a_clock_is_needed_is_read_off_the_rules(budget):
    hyper = {"max_seconds": 1.0, "learning_rate": 0.1}
    assert fit(stop=(nnfx.stopping.non_finite, budget)).needs_clock(hyper)
    assert not fit(stop=nnfx.stopping.non_finite).needs_clock(hyper)
    assert not fit().needs_clock(hyper)


def test_one_device_is_the_same_recipe():
    plain, split = fit(), fit(parallel=nnfx.data_parallel)
    assert plain.alone is plain
    assert split.alone is split.alone
    assert (split.alone.parallel, split.alone.factories) == (None, split.factories)


WRONG = {
    "model": ({"model": lambda: MSE}, "<lambda>: expected it to return a Model, got"),
    "optimizer": ({"optimizer": lambda: 0.1}, "<lambda>: expected it to return a GradientTransformation, got 0.1"),
    "rule": ({"stop": lambda: None}, "<lambda>: expected it to return a StoppingRule, got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_factories_that_make_something_else_are_named(name):
    given, message = WRONG[name]
    with pytest.raises(TypeError, match=f"^{message}"):
        fit(**given).bind({"learning_rate": 0.1})


NOT_PARTS = {
    "model": ({"model": 3}, "model: expected a Model or a function that returns one, got 3"),
    "loss": ({"loss": None}, "loss: expected a function of outputs and targets, got None"),
    "optimizer": ({"optimizer": 0.1}, "optimizer: expected an Optax factory or optimizer, got 0.1"),
    "penalty": ({"penalty": 0.1}, "penalty: expected a function of the parameters, got 0.1"),
    "augment": ({"augment": 1}, "augment: expected a function or a sequence of functions, got 1"),
    "augments": ({"augment": [add, 1]}, "augment: expected functions of a key and a batch, got 1"),
    "average": ({"average": 0.9}, "average: expected a function such as nnfx.averaging.exponential, got 0.9"),
    "stop": ({"stop": "patience"}, "stop: expected a function or a sequence of functions, got 'patience'"),
    "rules": ({"stop": [None]}, "stop: expected factories, such as nnfx.stopping.patience, got None"),
}


@pytest.mark.parametrize("name", NOT_PARTS)
def test_what_is_no_part_is_refused(name):
    given, message = NOT_PARTS[name]
    with pytest.raises(TypeError, match=f"^{message}"):
        fit(**given)


def test_rules_are_a_kind_of_their_own():
    assert isinstance(nnfx.stopping.patience(2), StoppingRule)
    assert not callable(nnfx.stopping.patience(2))
