import copy
import functools

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sklearn.spec import Spec, frozen


def takes_sizes(n_features, n_outputs):
    assert (n_features, n_outputs) == (3, 2)
    return nnfx.models.mlp((4,), n_outputs)


WAYS = {
    "a name": "mlp",
    "a function of sizes": takes_sizes,
    "a function of outputs": functools.partial(nnfx.models.mlp, (4,)),
    "a function of numbers": lambda n_outputs, dropout=0.0: nnfx.models.mlp((4,), n_outputs, dropout=dropout),
    "outputs that are fixed": functools.partial(nnfx.models.mlp, (4,), outputs=2),
    "a model": nnfx.models.mlp((4,), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_models_are_given_in_several_ways(way):
    loss = nnfx.losses.mean_square_error
    spec = Spec(WAYS[way], (4,), "relu", loss, "adam", False, 1, None, None, None, None, 3, 2, "float32")
    drawn = spec.make().bind({"learning_rate": 0.1}).model.init(jax.random.key(0), np.ones((1, 3), np.float32))
    expected = nnfx.models.mlp((4,), 2).init(jax.random.key(0), np.ones((1, 3), np.float32))
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


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
