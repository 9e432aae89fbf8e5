import functools
import inspect

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx import augment, averaging, losses, models, regularizers, schedules, stopping
from nnfx.bounds import FREE, Bounds, NonNegative, bounds_of

OURS = [
    losses.binary_cross_entropy,
    losses.binary_cross_entropy_from_probabilities,
    losses.categorical_cross_entropy,
    losses.huber,
    augment.gaussian_noise,
    augment.shift,
    augment.rotation,
    augment.cutout,
    augment.mixup,
    averaging.exponential,
    regularizers.l1,
    regularizers.l2,
    regularizers.elastic_net,
    regularizers.max_norm,
    schedules.polynomial,
    schedules.warmup_cosine,
    schedules.one_cycle,
    schedules.reduce_on_plateau,
    stopping.small_change,
    stopping.patience,
    stopping.step_budget,
    stopping.time_budget,
    models.mlp,
    models.cnn,
    models.rnn,
    models.lstm,
    models.gru,
]
"""The library's functions of numbers that have a range."""

DATA = nnfx.data.prepare(np.arange(12.0).reshape(6, 2), np.arange(6.0))


def bounded():
    for function in OURS:
        for name in inspect.signature(function).parameters:
            if bounds_of(function, name) != FREE:
                yield function, name


@pytest.mark.parametrize("function", OURS, ids=lambda function: function.__name__)
def test_each_function_says_its_bounds_at_a_parameter(function):
    assert any(each is function for each, _ in bounded())


BATCH = DATA.train
CALLS = {
    "augment": lambda function, numbers: function(jax.random.key(0), BATCH, **numbers),
    "losses": lambda function, numbers: function(
        np.full((2, 2), 0.5, np.float32), np.eye(2, dtype=np.float32), **numbers
    ),
    "averaging": lambda function, numbers: function(1, **numbers),
}


def call(function, **numbers):
    """Call a function with the number under test, and valid values for its other arguments."""
    fillers = {
        "start": 1.0, "end": 0.1, "total_steps": 10.0, "peak": 1.0, "warmup_steps": 2.0, "l1": 1.0, "l2": 1.0,
        "hidden": (2,), "outputs": 1, "layers": (models.conv(2, 3),),
    }  # fmt: skip
    kind = function.__module__.rpartition(".")[2]
    needed = {n: p for n, p in inspect.signature(function).parameters.items() if p.default is p.empty}
    if kind == "regularizers" and "params" in needed:
        return function({"w": np.ones((2, 2), np.float32)}, **{**{n: 1.0 for n in needed if n != "params"}, **numbers})
    if kind in CALLS:
        return CALLS[kind](function, numbers)
    return function(**{**{n: fillers[n] for n in needed if n in fillers}, **numbers})


@pytest.mark.parametrize(("function", "name"), list(bounded()), ids=lambda each: getattr(each, "__name__", each))
def test_the_bounds_at_a_parameter_are_those_the_function_holds_to(function, name):
    bounds = bounds_of(function, name)
    outside = [each for each in (bounds.above, bounds.below) if each is not None]
    outside += [bounds.minimum - 0.001] if bounds.minimum is not None else []
    outside += [bounds.maximum + 0.001] if bounds.maximum is not None else []
    assert outside
    wrong = rf"^{name}: expected a finite number .*got"
    for number in outside:
        with pytest.raises(ValueError, match=wrong):
            bounds.check(name, number)
        with pytest.raises(ValueError, match=wrong):
            call(function, **{name: number})


def own(outputs, targets, noise=0.0, factor=1.0, delta=1.0, label_smoothing=0.0):
    return losses.mean_square_error(outputs, targets) * factor + noise * delta * label_smoothing


def own_augment(key, batch, size=1, degrees=0.0, pixels=0):
    return batch._replace(inputs=batch.inputs + size + degrees + pixels)


@functools.wraps(losses.huber)
def absolute(outputs, targets, delta=1.0):
    return losses.huber(outputs, targets, abs(delta))


@functools.wraps(losses.huber)
def halved(*args, **kwargs):
    return losses.huber(*args, **kwargs) / 2


def annotated(outputs, targets, noise: NonNegative = 0.0):
    return losses.mean_square_error(outputs, targets) + noise


@pytest.mark.parametrize(
    ("part", "numbers"),
    [
        ({"loss": own}, {"noise": -1.0, "factor": 2.0, "delta": -3.0, "label_smoothing": 7.0}),
        ({"augment": own_augment}, {"size": -2.0, "degrees": -90.0, "pixels": -1.0}),
        ({"loss": absolute}, {"delta": -1.0}),
        ({"penalty": lambda params, l2: l2}, {"l2": -1.0}),
        ({"optimizer": lambda learning_rate, momentum: optax.sgd(-learning_rate, momentum)}, {"momentum": -0.5}),
        ({"stop": lambda patience: stopping.step_budget(10 - patience)}, {"patience": -5.0}),
    ],
    ids=["loss", "augment", "wrapper", "penalty", "optimizer", "rule"],
)
def test_numbers_of_ones_own_functions_are_free(part, numbers):
    options = {"loss": losses.mean_square_error, "optimizer": optax.sgd, **part}
    train = nnfx.fit(models.perceptron(), options.pop("loss"), options.pop("optimizer"), epochs=1, **options)
    run = train(jax.random.key(0), DATA, learning_rate=1e-3, **numbers)
    assert np.isfinite(run.final["train_loss"])


@pytest.mark.parametrize(
    ("options", "numbers", "message"),
    [
        ({"loss": losses.huber}, {"delta": 0.0}, "delta: .*above 0, got 0"),
        ({"loss": halved}, {"delta": 0.0}, "delta: .*above 0, got 0"),
        ({"loss": jax.jit(annotated)}, {"noise": -1.0}, "noise: .*at least 0, got -1"),
        ({"augment": augment.gaussian_noise}, {"noise": -1.0}, "noise: .*at least 0, got -1"),
        ({"stop": stopping.small_change}, {"tolerance": 0.0}, "tolerance: .*above 0, got 0"),
        ({}, {"learning_rate": 0.0}, "learning_rate: .*above 0, got 0"),
        ({}, {"momentum": 1.0}, "momentum: .*at least 0 and below 1, got 1"),
        ({"loss": own}, {"noise": np.nan}, "noise: expected (a )?finite number"),
        ({"average": averaging.exponential}, {"ema_decay": 2.0}, "ema_decay: .*at most 1, got 2"),
    ],
)
def test_numbers_of_the_librarys_functions_are_not(options, numbers, message):
    loss = options.get("loss", losses.mean_square_error)
    others = {name: part for name, part in options.items() if name != "loss"}
    train = nnfx.fit(models.perceptron(), loss, optax.sgd, epochs=1, **others)
    with pytest.raises(ValueError, match=message):
        train(jax.random.key(0), DATA, **{"learning_rate": 1e-3, **numbers})
    with pytest.raises(ValueError, match=message):
        nnfx.sweeps.sweep(
            train, DATA, key=jax.random.key(0), **{"learning_rate": 1e-3, **{n: [v] for n, v in numbers.items()}}
        )


def test_numbers_fixed_beforehand_are_held_to_the_same_bounds():
    fixed = functools.partial(functools.partial(losses.huber, delta=-1.0))
    with pytest.raises(ValueError, match="delta: .*above 0, got -1"):
        nnfx.fit(models.perceptron(), fixed, optax.sgd, epochs=1)
    with pytest.raises(ValueError, match="learning_rate: .*above 0, got -1"):
        nnfx.fit(models.perceptron(), losses.huber, functools.partial(optax.adam, -1.0), epochs=1)
    nnfx.fit(models.perceptron(), functools.partial(own, noise=-1.0, factor=np.inf), optax.sgd, epochs=1)


def test_annotations_of_ones_own_are_read():
    assert bounds_of(annotated, "noise") == Bounds(minimum=0)
    assert bounds_of(own, "noise") == FREE


@pytest.mark.parametrize(
    ("optimizer", "name", "legal", "illegal"),
    [
        (optax.adam, "b1", (0, 0.9), (1, -0.1)),
        (optax.adam, "b2", (0, 0.999), (1, 1.5)),
        (optax.nadam, "b1", (0,), (1,)),
        (optax.adamw, "eps", (0, 1e-8), (-1e-8,)),
        (optax.rmsprop, "decay", (0, 0.9), (1, -0.1)),
        (optax.lion, "b2", (0, 1), (1.1,)),
        (optax.adamax, "b2", (1,), (1.1,)),
    ],
)
def test_the_numbers_of_optax_s_optimizers_have_the_bounds_within_which_they_update(optimizer, name, legal, illegal):
    params = {"w": np.ones(2, np.float32)}

    def updated(number):
        made = optimizer(0.1, **{name: number})
        return made.update(params, made.init(params), params)[0]["w"]

    for number in legal:
        bounds_of(optimizer, name).check(name, number)
        assert np.isfinite(updated(number)).all()
    for number in illegal:
        with pytest.raises(ValueError, match=f"{name}: expected a finite number .*got"):
            bounds_of(optimizer, name).check(name, number)
    if name == "b1" and 1 in illegal:
        assert not np.isfinite(updated(1)).all()


def test_a_decay_of_one_is_refused_before_a_run_that_it_would_turn_to_nan():
    train = nnfx.fit(models.perceptron(), losses.mean_square_error, optax.adam, epochs=1)
    with pytest.raises(ValueError, match="b1: expected a finite number at least 0 and below 1, got 1"):
        train(jax.random.key(0), DATA, learning_rate=0.1, b1=1.0)
