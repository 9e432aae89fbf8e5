import functools

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx import losses
from nnfx.training import hyperparameters


def test_names_are_the_numbers_of_the_signature():
    part = hyperparameters.factory(optax.adam)
    assert part.names == ("learning_rate", "b1", "b2", "eps", "eps_root")
    assert part.required == ("learning_rate",)
    assert hyperparameters.factory(losses.huber, leading=2).names == ("delta",)


def test_what_partial_fixes_is_no_longer_required():
    part = hyperparameters.factory(functools.partial(optax.sgd, learning_rate=0.1, nesterov=True))
    assert part.required == ()
    assert part.name == "sgd"


def test_each_part_gets_the_numbers_it_names():
    part = hyperparameters.factory(lambda outputs, targets, *, a, b=2: (a, b), leading=2)
    assert part.bind({"a": 1, "c": 3})(None, None) == (1, 2)
    assert hyperparameters.factory(lambda a=0: a).bind({"a": 5, "b": 1})() == 5


def test_numbers_of_every_kind_are_traced_alike():
    arrays = [
        hyperparameters.as_arrays({"x": value})["x"]
        for value in (1, 1.0, np.float64(1), np.int32(1), jax.numpy.ones(()))
    ]
    assert {(a.dtype, a.shape) for a in arrays} == {(np.dtype(np.float32), ())}


@pytest.mark.parametrize("number", [1e300, 1e-60, 10**400, -1e-60])
def test_numbers_that_the_default_float_cannot_represent_are_errors(number):
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.huber, optax.sgd, epochs=1)
    with pytest.raises(ValueError, match="momentum: expected a "):
        hyperparameters.check({"learning_rate": 0.1, "momentum": number}, train.all_factories)
    with pytest.raises(ValueError, match="learning_rate: expected a "):
        hyperparameters.check({"learning_rate": number}, train.all_factories)
