"""Descriptions of the parts of a run: equal for equal parts, different for whatever changes a number."""

import functools
import importlib.util
import operator
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nnfx
from nnfx import memo
from nnfx.sessions.described_parts import array_words, differences, parts_of

SCALE = 0.5
SETTINGS = types.SimpleNamespace(scale=0.5, epochs=10)


def fit(**changed):
    parts = {
        "model": nnfx.models.mlp((4,), activation="tanh"),
        "loss": nnfx.losses.mean_square_error,
        "optimizer": optax.adam,
        "batch_size": 8,
        "epochs": 3,
        **changed,
    }
    return nnfx.fit(parts.pop("model"), parts.pop("loss"), parts.pop("optimizer"), **parts)


class Net(nn.Module):
    """A user's own module."""

    width: int = 4
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.1))(self.activation(nn.Dense(self.width)(x)))


class Linear(nnx.Module):
    def __init__(self, rngs, scale=1.0):
        self.linear, self.scale = nnx.Linear(2, 1, rngs=rngs), scale

    def __call__(self, x):
        return self.scale * self.linear(x)


class Halved(Linear):
    def __call__(self, x):
        return self.linear(x) / 2


def halve(outputs, targets):
    """Use a number defined in this module."""
    return SCALE * (outputs[:, 0] - targets) ** 2


def halve_by_settings(outputs, targets):
    return SETTINGS.scale * (outputs[:, 0] - targets) ** 2


def weighing(weight):
    return lambda outputs, targets: weight * (outputs[:, 0] - targets) ** 2


def starting_from(weights):
    model = nnfx.models.perceptron()
    return model._replace(init=lambda key, inputs: {"params": weights})


@jax.custom_vjp
def sloped(x):
    return x


sloped.defvjp(lambda x: (x, None), lambda _, slope: (2 * slope,))


@jax.custom_vjp
def flat(x):
    return x


flat.defvjp(lambda x: (x, None), lambda _, slope: (0 * slope,))

ONE, OTHER = (lambda o, t: (o[:, 0] - t) ** 2), (lambda o, t: (o[:, 0] + t) ** 2)  # distinguished, although on one line

CHANGES = {
    "activation": ({}, {"model": nnfx.models.mlp((4,), activation="relu")}, "model.activation: expected .*tanh, got"),
    "width": ({}, {"model": nnfx.models.mlp((5,), activation="tanh")}, r"model.hidden\[0\]: expected 4, got 5"),
    "initializer": ({}, {"model": nnfx.models.mlp((4,), activation="tanh", initializer="orthogonal")}, "model.init"),
    "bias": (
        {"model": nnfx.models.perceptron(bias_initializer=nn.initializers.constant(0.5))},
        {"model": nnfx.models.perceptron(bias_initializer=nn.initializers.constant(1.5))},
        "model.value: expected 0.5, got 1.5",
    ),
    "pretrained": (
        {"model": starting_from({"kernel": np.zeros((2, 1)), "bias": np.zeros(1)})},
        {"model": starting_from({"kernel": np.ones((2, 1)), "bias": np.zeros(1)})},
        r"model.*kernel: expected array float64\[2,1\] \w+, got array",
    ),
    "a field of a module": (
        {"model": nnfx.models.from_linen(Net())},
        {"model": nnfx.models.from_linen(Net(width=5))},
        "model.module.width: expected 4, got 5",
    ),
    "a function in a module": (
        {"model": nnfx.models.from_linen(Net())},
        {"model": nnfx.models.from_linen(Net(activation=nn.tanh))},
        "model.module.activation: expected jax.relu, got jax.tanh",
    ),
    "a module of nnx": (
        {"model": nnfx.models.from_nnx(lambda rngs: Linear(rngs))},
        {"model": nnfx.models.from_nnx(lambda rngs: Linear(rngs, scale=2.0))},
        "model.build: expected function <lambda>, source",
    ),
    "a class": (
        {"model": nnfx.models.from_nnx(functools.partial(Linear, scale=0.5))},
        {"model": nnfx.models.from_nnx(functools.partial(Halved, scale=0.5))},
        "model.build: expected class Linear, got class Halved",
    ),
    "loss": ({}, {"loss": nnfx.losses.huber}, "loss: expected nnfx.mean_square_error, got nnfx.huber"),
    "a number fixed in the loss": (
        {"loss": functools.partial(nnfx.losses.huber, delta=1.0)},
        {"loss": functools.partial(nnfx.losses.huber, delta=2.0)},
        "loss.delta: expected 1.0, got 2.0",
    ),
    "two functions on one line": ({"loss": ONE}, {"loss": OTHER}, "loss: expected function <lambda>, source"),
    "a number kept by a function": ({"loss": weighing(1.0)}, {"loss": weighing(2.0)}, "loss.weight: expected 1.0"),
    "an array kept by a function": (
        {"loss": weighing(np.ones(3))},
        {"loss": weighing(np.arange(3.0))},
        r"loss.weight: expected array float64\[3\] \w+, got array",
    ),
    "what a function is mapped by": ({"loss": jax.vmap(ONE)}, {"loss": jax.vmap(OTHER)}, "loss.fun: expected function"),
    "mapped or not": ({"loss": jax.vmap(ONE)}, {"loss": ONE}, "loss: expected jax"),
    "a derivative": (
        {"loss": lambda o, t: sloped(o[:, 0])},
        {"loss": lambda o, t: flat(o[:, 0])},
        "loss",
    ),
    "optimizer": ({}, {"optimizer": optax.sgd}, "optimizer: expected optax.adam, got optax.sgd"),
    "a number fixed in the optimizer": (
        {"optimizer": functools.partial(optax.adam, b2=0.99)},
        {},
        "optimizer.b2: expected 0.99, got nothing",
    ),
    "the start of an optimizer": (
        {"optimizer": functools.partial(optax.adagrad, initial_accumulator_value=0.1)},
        {"optimizer": functools.partial(optax.adagrad, initial_accumulator_value=0.2)},
        "optimizer.initial_accumulator_value: expected 0.1, got 0.2",
    ),
    "an optimizer made already": (
        {"optimizer": optax.chain(optax.clip(1.0), optax.adam(0.1))},
        {"optimizer": optax.chain(optax.clip(2.0), optax.adam(0.1))},
        r"optimizer.max_delta: expected 1.0, got 2.0",
    ),
    "a schedule": (
        {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 10))},
        {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 20))},
        "optimizer.decay_steps: expected 10, got 20",
    ),
    "batch size": ({}, {"batch_size": 4}, "batch_size: expected 8, got 4"),
    "no batch size": ({}, {"batch_size": None}, "batch_size: expected 8, got None"),
    "stopping rule": (
        {"stop": nnfx.stopping.small_change},
        {"stop": nnfx.stopping.step_budget},
        r"stop\[0\]: expected nnfx.small_change, got nnfx.step_budget",
    ),
    "a number fixed in a rule": (
        {"stop": functools.partial(nnfx.stopping.small_change, tolerance=1e-3)},
        {"stop": functools.partial(nnfx.stopping.small_change, tolerance=1e-4)},
        r"stop\[0\].tolerance: expected 0.001, got 0.0001",
    ),
    "a rule made already": (
        {"stop": nnfx.stopping.small_change(1e-3)},
        {"stop": nnfx.stopping.small_change(1e-4)},
        r"stop\[0\].tolerance: expected 0.001, got 0.0001",
    ),
    "one rule more": ({}, {"stop": nnfx.stopping.small_change}, "stop: expected none of them, got 1 of them"),
    "penalty": ({}, {"penalty": nnfx.regularizers.l2}, "penalty: expected None, got nnfx.l2"),
    "average": ({"average": nnfx.averaging.uniform}, {}, "average: expected nnfx.uniform, got None"),
    "augmentation": (
        {"augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.1)},
        {"augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.2)},
        r"augment\[0\].noise: expected 0.1, got 0.2",
    ),
    "metric": (
        {"metrics": {"error": nnfx.losses.mean_absolute_error}},
        {"metrics": {"error": nnfx.losses.mean_square_error}},
        "metrics.error: expected nnfx.mean_absolute_error, got nnfx.mean_square_error",
    ),
    "step": (
        {},
        {"make_step": functools.partial(nnfx.make_step, micro_batches=2)},
        "make_step.micro_batches: expected nothing, got 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_number_is_told(change):
    before, after, message = CHANGES[change]
    lines = differences(parts_of(fit(**before)), parts_of(fit(**after)))
    assert any(re.search(message, line) for line in lines), lines


def test_what_changes_none_is_not():
    first, second = (parts_of(fit(epochs=epochs, parallel=parallel)) for epochs, parallel in ((3, None), (9, jax.jit)))
    assert first == second
    for make in (
        lambda: {"model": nnfx.models.from_linen(Net()), "loss": weighing(np.ones(3))},
        lambda: {"optimizer": optax.chain(optax.clip(1.0), optax.adam(0.1)), "stop": nnfx.stopping.small_change(1e-3)},
        lambda: {"loss": jax.vmap(lambda o, t: (o[0] - t) ** 2), "augment": nnfx.augment.gaussian_noise},
    ):
        first, second = (parts_of(fit(**make())) for _ in range(2))
        assert first == second
        assert not any(" at 0x" in word for word in first.values())


def test_numbers_of_a_module_count_where_they_are_used(monkeypatch):
    before = parts_of(fit(loss=halve))
    monkeypatch.setitem(globals(), "SCALE", 0.25)
    assert differences(before, parts_of(fit(loss=halve))) == ["loss.SCALE: expected 0.5, got 0.25"]
    before = parts_of(fit(loss=halve_by_settings))
    monkeypatch.setattr(SETTINGS, "epochs", 20)  # not used by the loss
    assert parts_of(fit(loss=halve_by_settings)) == before
    monkeypatch.setattr(SETTINGS, "scale", 0.25)
    assert differences(before, parts_of(fit(loss=halve_by_settings))) == ["loss.SETTINGS.scale: expected 0.5, got 0.25"]


SOURCE = """
import jax.numpy as jnp
def helper(x):
    return {helper}
def loss(outputs, targets):
    return helper(outputs[:, 0] - targets)
"""
REWRITTEN = '''
import jax.numpy as jnp

EPOCHS = 7

def helper(x: jnp.ndarray) -> jnp.ndarray:
    """Square."""
    return (x  ** 2)  # as it was

def loss(outputs, targets):
    # what is in the way
    return helper(
        outputs[:, 0] - targets
    )
'''


def loss_of(path, text):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.loss


def test_comments_layout_types_and_what_is_not_used_do_not_count(tmp_path):
    first = parts_of(fit(loss=loss_of(tmp_path / "a.py", SOURCE.format(helper="x**2"))))
    again = parts_of(fit(loss=loss_of(tmp_path / "b.py", REWRITTEN)))
    assert first == again
    (line,) = differences(first, parts_of(fit(loss=loss_of(tmp_path / "c.py", SOURCE.format(helper="x**4")))))
    assert line.startswith("loss.helper: expected function helper, source ")


def test_without_source_constants_and_instructions_count():
    def made(text):
        names = {}
        exec(text, names)
        return names["loss"]

    first, same, constant, sign = (
        parts_of(fit(loss=made(f"loss = lambda o, t: {body}")))
        for body in ("(o[:, 0] - t) * 2", "(o[:, 0] - t) * 2", "(o[:, 0] - t) * 3", "(o[:, 0] + t) * 2")
    )
    assert first == same
    assert differences(first, constant)
    (line,) = differences(first, sign)
    assert line.startswith("loss.bytecode of ")


def test_the_inside_of_another_release_may_look_otherwise():
    expected = {"optimizer": "optax.adam", "optimizer~optax.b1": "0.9", "optimizer~optax.f": "function f, source 12"}
    moved = {"optimizer": "optax.adam", "optimizer~optax.b1": "0.9", "optimizer~optax.g.f": "function f, source 12"}
    assert differences(expected, moved, ["optax"]) == []
    assert differences(expected, moved, ["jax"]) != []
    assert differences(expected, {**moved, "optimizer~optax.b1": "0.8"}, ["optax"]) == [
        "optimizer.b1: expected 0.9, got 0.8"
    ]
    other = {**moved, "optimizer~optax.g.f": "function f, source 34"}
    assert differences(expected, other, ["optax"]) == [
        "parts: expected function f, source 12, got function f, source 34"
    ]
    assert differences({"loss~jax.dtype": "None"}, {"loss~jax.dtype": "dtype float32"}, ["jax"]) == []


class Sloped:
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, outputs, targets):
        return self.slope * (outputs[:, 0] - targets)


def test_odd_things_are_described_without_an_error():
    class Callable:
        __slots__ = ("other", "power")

        def __init__(self, power):
            self.power, self.other = power, self

        def __call__(self, outputs, targets):
            return (outputs[:, 0] - targets) ** self.power

    loss = Sloped(3)
    before = parts_of(fit(loss=loss))
    memo.held(loss, "program", object)  # like anything compiled for it
    assert parts_of(fit(loss=loss)) == before
    first, second = (parts_of(fit(loss=Callable(power))) for power in (2, 4))
    assert differences(first, second) == ["loss.power: expected 2, got 4"]
    for odd in (operator.itemgetter(0), {"a", "b"}, {(1, "b"): 2.0}, object(), np.float32, jnp.float32, jnp.exp, print):
        assert parts_of(fit(loss=weighing(odd))) == parts_of(fit(loss=weighing(odd)))


def test_arrays_of_any_dtype_are_told_apart():
    words = {array_words(jnp.full(2, value, dtype)) for value in (1, 2) for dtype in (jnp.bfloat16, jnp.float32, bool)}
    assert len(words) == 5
    assert array_words(jax.random.key(0)) != array_words(jax.random.key(1))
