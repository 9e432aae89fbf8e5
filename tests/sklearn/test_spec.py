import copy
import functools

import numpy as np
import optax

import nnfx
from nnfx.sklearn.spec import frozen


def test_copies_are_frozen_alike_and_other_values_are_not():
    values = [
        {"a": [1, {"b": 2.0}]},
        functools.partial(optax.adam, b1=0.95),
        functools.partial(functools.partial(nnfx.models.mlp, (4,)), activation="tanh"),
        nnfx.models.mlp((4,)),
        optax.sgd(0.1),
        (1, True, None, "x"),
    ]
    for value in values:
        assert frozen(copy.deepcopy(value)) == frozen(value)
    assert len({frozen(value) for value in values}) == len(values)
    assert frozen(1) != frozen(True)
    assert frozen([1]) != frozen([1.0])


def test_what_cannot_be_hashed_equals_only_itself():
    array = np.ones(2)
    assert frozen([array]) == frozen([array])
    assert hash(frozen([array])) == hash(frozen([array]))
    assert frozen([array]) != frozen([array.copy()])
