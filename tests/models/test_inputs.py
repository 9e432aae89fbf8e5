"""Every model of the library names its inputs in the error for anything that it cannot take."""

import jax
import numpy as np
import pandas as pd
import pytest

from nnfx.models import Sequences
from tests.test_contracts import FOREIGN, KEY, MODELS, TOKENS, inputs_of

OWN = sorted(MODELS.keys() - FOREIGN)
TAKE_SEQUENCES = {"rnn", "lstm", "gru", "transformer", *TOKENS}
WRONG = {
    "a frame": lambda x: pd.DataFrame({"age": [1.0, 2.0], "fare": [2.0, 3.0]}),
    "a column": lambda x: pd.Series([1.0, 2.0]),
    "strings": lambda x: np.full(x.shape, "a"),
    "objects": lambda x: np.full(x.shape, None),
    "complex numbers": lambda x: np.ones(x.shape, np.complex64),
    "nothing": lambda x: None,
    "text": lambda x: "inputs",
    "a dictionary": lambda x: {"x": x},
    "a pair": lambda x: (x, x),
    "a number": lambda x: np.float32(1),
    "one axis": lambda x: x.reshape(-1),
    "two more axes": lambda x: x[None, None],
    "empty examples": lambda x: x[:, :0],
}


def attempts(model, variables, x):
    """Initialise and apply a model, for prediction and in training."""
    return {
        "init": lambda: model.init(KEY, x),
        "apply": lambda: model.apply(variables, x),
        "train": lambda: model.apply(variables, x, key=KEY, train=True),
    }


@pytest.mark.parametrize("name", OWN)
def test_inputs_of_a_wrong_kind(name):
    model, inputs = MODELS[name], np.asarray(inputs_of(name))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, KEY, inputs))
    wrong = {kind: make(inputs) for kind, make in WRONG.items()}
    if name not in TAKE_SEQUENCES:
        wrong["sequences"] = Sequences(np.zeros((5, 7, 2), np.float32), np.array([1, 2, 3, 4, 5]))
        wrong["a list"] = inputs.tolist()
    for kind, x in wrong.items():
        for part, attempt in attempts(model, variables, x).items():
            if part == "init" and kind == "two more axes":
                continue  # a model that flattens its inputs takes any number of axes
            with pytest.raises((TypeError, ValueError), match="^inputs.*: expected .*, got ") as error:
                attempt()
            assert "\n" not in str(error.value), (kind, part)


@pytest.mark.parametrize("name", [name for name in OWN if name not in TOKENS and "forecaster" not in name])
def test_inputs_of_another_size_than_the_variables(name):
    model, inputs = MODELS[name], np.asarray(inputs_of(name))
    variables, wide = jax.eval_shape(model.init, KEY, inputs), np.concatenate([inputs, inputs], axis=-1)
    with pytest.raises(ValueError, match="^inputs: expected sizes that match the variables, got float32.*parameter"):
        jax.eval_shape(model.apply, variables, wide)


@pytest.mark.parametrize("name", OWN)
def test_no_rows_have_no_outputs(name):
    model, inputs = MODELS[name], np.asarray(inputs_of(name))
    variables, none = jax.eval_shape(model.init, KEY, inputs), inputs[:0]
    whole, empty = (jax.eval_shape(model.apply, variables, x).shape for x in (inputs, none))
    assert empty == (0, *whole[1:])
