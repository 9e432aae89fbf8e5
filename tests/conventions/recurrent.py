"""Measures of the conventions of LSTMs and GRUs; each takes the package that it is about."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models, ops
from nnfx.ops.cells import RecurrentWeights
from tests.conventions.common import (
    KEY,
    LIBRARIES,
    PLAIN,
    first,
    haiku,
    is_orthogonal,
    is_spread,
    law,
    linen,
    number,
)

# gates: each library takes one step with given biases and kernels of the state; those of the inputs are zero


def lstm_torch(torch, bias, cell):
    layer = torch.nn.LSTM(1, 1)
    with torch.no_grad():
        for each in layer.parameters():
            each.zero_()
        layer.bias_ih_l0.copy_(torch.tensor(bias))
        _, (hidden, after) = layer(torch.zeros(1, 1, 1), (torch.zeros(1, 1, 1), torch.full((1, 1, 1), cell)))
    return float(hidden), float(after)


def lstm_keras(keras, bias, cell):
    layer = keras.layers.LSTMCell(1)
    layer.build((1, 1))
    layer.set_weights([np.zeros((1, 4)), np.zeros((1, 4)), bias])
    _, (hidden, after) = layer(np.zeros((1, 1)), [np.zeros((1, 1)), np.full((1, 1), cell)])
    return float(hidden[0, 0]), float(after[0, 0])


def lstm_haiku(hk, bias, cell):
    params = {"lstm/linear": {"w": jnp.zeros((2, 4)), "b": jnp.asarray(bias)}}
    state = hk.LSTMState(jnp.zeros((1, 1)), jnp.full((1, 1), cell))
    _, (_, (hidden, after)), _ = haiku(hk, lambda: hk.LSTM(1), jnp.zeros((1, 1)), state, params=params)
    return float(hidden[0, 0]), float(after[0, 0])


def lstm_nnfx(_, bias, cell):
    weights = RecurrentWeights(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.asarray(bias))
    hidden, after = ops.lstm_cell.step(weights, (jnp.zeros((1, 1)), jnp.full((1, 1), cell)), jnp.zeros((1, 1)))
    return float(hidden[0, 0]), float(after[0, 0])


def gru_torch(torch, kernel, bias, state):
    layer = torch.nn.GRU(1, 2)
    with torch.no_grad():
        for each in layer.parameters():
            each.zero_()
        layer.weight_hh_l0.copy_(torch.tensor(kernel.T))
        layer.bias_ih_l0.copy_(torch.tensor(bias))
        return layer(torch.zeros(1, 1, 1), torch.tensor(state)[None])[0].numpy()[0, 0]


def gru_keras(keras, kernel, bias, state):
    layer = keras.layers.GRUCell(2)
    layer.build((1, 1))
    layer.set_weights([np.zeros((1, 6)), kernel, np.stack([bias, 0 * bias])])
    return np.asarray(layer(np.zeros((1, 1)), [state])[0])[0]


def gru_haiku(hk, kernel, bias, state):
    params = {"gru": {"w_i": jnp.zeros((1, 6)), "w_h": jnp.asarray(kernel), "b": jnp.asarray(bias)}}
    return np.asarray(haiku(hk, lambda: hk.GRU(2), jnp.zeros((1, 1)), jnp.asarray(state), params=params)[1][0])[0]


def gru_nnfx(_, kernel, bias, state):
    weights = RecurrentWeights(jnp.zeros((1, 6)), jnp.asarray(kernel), jnp.asarray(np.append(bias, [0, 0])))
    return np.asarray(ops.gru_cell.step(weights, (jnp.asarray(state),), jnp.zeros((1, 1)))[0], float)[0]


def gru_flax(_, kernel, bias, state):
    kernels, biases = np.split(kernel, 3, 1), np.split(bias, 3)
    params = {f"i{gate}": {"kernel": np.zeros((1, 2)), "bias": b} for gate, b in zip("rzn", biases, strict=True)}
    params |= {f"h{gate}": {"kernel": u} for gate, u in zip("rzn", kernels, strict=True)}
    params["hn"]["bias"] = np.zeros(2)
    return np.asarray(nn.GRUCell(2).apply({"params": params}, state, jnp.zeros((1, 1)))[0])[0]


LSTM = {"Haiku": lstm_haiku, "Keras": lstm_keras, "PyTorch": lstm_torch, "nnfx": lstm_nnfx}
GRU = {"Haiku": gru_haiku, "Keras": gru_keras, "PyTorch": gru_torch, "nnfx": gru_nnfx, "Flax": gru_flax}


def lstm_order(step, library):
    """Tell the gates apart by what happens to a cell of −1 if one of them is wide open."""

    def gate(block):
        hidden, cell = step(library, 30 * np.eye(4, dtype=np.float32)[block], -1.0)
        if cell == pytest.approx(closed[1]):
            return "i" if hidden == pytest.approx(closed[0]) else "o"
        return "f" if cell == pytest.approx(-1) else "g"

    closed = step(library, np.zeros(4, np.float32), -1.0)
    return ", ".join(map(gate, range(4)))


@functools.cache
def gru_effects(step, library):
    """Return what becomes of a state of 0.8 if a gate is wide open: of r ½ 0.8, of n ½ 0.8 + ½, of z something else."""
    states = [
        step(library, np.zeros((2, 6), np.float32), np.repeat(30 * np.eye(3)[block], 2).astype(np.float32), STATE)[0]
        for block in range(3)
    ]
    return {"r" if s == pytest.approx(0.4) else "n" if s == pytest.approx(0.9) else "z": s for s in states}


STATE = np.full((1, 2), 0.8, np.float32)


def update_gate(step, library):
    return {0.8: "keeps the state", 0.0: "replaces the state"}[round(float(gru_effects(step, library)["z"]), 3)]


def reset_gate(step, library):
    """Let only the first unit's state through, with a kernel that exchanges the units."""
    effects = gru_effects(step, library)
    takes_new = -30.0 if effects["z"] > 0.5 else 30.0
    blocks = {"r": [30.0, -30.0], "z": [takes_new, takes_new], "n": [0.0, 0.0]}
    kernel = np.concatenate([(gate == "n") * np.eye(2)[::-1] for gate in effects], axis=1)
    bias = np.concatenate([blocks[gate] for gate in effects])
    after = step(library, kernel.astype(np.float32), bias.astype(np.float32), np.array([[0.5, 0.0]], np.float32))
    # the state (½, 0) becomes (½, 0), and then (0, ½); or (0, ½), and then (0, 0)
    if after == pytest.approx([0, np.tanh(0.5)], abs=1e-6):
        return "the state before the product"
    assert after == pytest.approx([0, 0], abs=1e-6)
    return "the product with the kernel"


INPUTS, HIDDEN = 200, 50
ROW = np.zeros((1, INPUTS), np.float32)


@functools.cache
def lstm_flax_kernels(_):
    cell = nn.OptimizedLSTMCell(HIDDEN)
    params = linen(cell, cell.initialize_carry(KEY, ROW.shape), ROW)["params"]
    gates = [np.concatenate([params[f"{kind}{gate}"]["kernel"] for gate in "ifgo"], axis=1) for kind in "ih"]
    assert all(is_orthogonal(params[f"h{gate}"]["kernel"]) for gate in "ifgo")
    return law(gates[0], INPUTS, HIDDEN), "`orthogonal`", params


@functools.cache
def lstm_haiku_kernels(hk):
    state = hk.LSTMState(jnp.zeros((1, HIDDEN)), jnp.zeros((1, HIDDEN)))
    params = haiku(hk, lambda: hk.LSTM(HIDDEN), ROW, state)[0]["lstm/linear"]
    text = law(params["w"], INPUTS + HIDDEN, 4 * HIDDEN) + " of inputs and state"
    return text, text, params["b"]


@functools.cache
def lstm_keras_kernels(keras):
    layer = keras.layers.LSTM(HIDDEN)
    layer.build((1, 1, INPUTS))
    kernel, recurrent, bias = layer.get_weights()
    assert is_orthogonal(recurrent)
    return f"{law(kernel, INPUTS, 4 * HIDDEN)} of all gates together", "`orthogonal` for all gates together", bias


@functools.cache
def lstm_torch_kernels(torch):
    torch.manual_seed(0)
    layer = torch.nn.LSTM(INPUTS, HIDDEN)
    kernels, biases = (
        [each.detach().numpy() for name, each in layer.named_parameters() if kind in name]
        for kind in ("weight", "bias")
    )
    assert [law(kernel, HIDDEN, HIDDEN) for kernel in kernels] == ["uniform"] * 2
    assert [is_spread(bias, HIDDEN) for bias in biases] == [True] * 2
    text = f"`{PLAIN.format('hidden')}`"
    return text, text, f"twice {text}"


@functools.cache
def lstm_nnfx_kernels(_):
    layer = models.lstm(hidden=(HIDDEN,)).init(KEY, ROW[None])["params"]["layer_0"]
    assert all(is_orthogonal(gate) for gate in np.split(np.asarray(layer["recurrent_kernel"]), 4, axis=1))
    return law(layer["input_kernel"], INPUTS, HIDDEN), "`orthogonal`", layer["bias"]


def lstm_kernels(library):
    """Return how the kernels of inputs and state are drawn, and what the bias is."""
    named = {"Flax": lstm_flax_kernels, "Haiku": lstm_haiku_kernels, "Keras": lstm_keras_kernels}
    return {**named, "PyTorch": lstm_torch_kernels, "nnfx": lstm_nnfx_kernels}[library]


def forget_bias_flax(library):
    params = lstm_flax_kernels(library)[2]
    assert "bias" not in params["if"], "there is one bias for both kernels"
    return number(first(params["hf"]["bias"]))


def forget_bias_haiku(hk):
    stored = float(np.abs(lstm_haiku_kernels(hk)[2]).max())
    kept = -lstm_haiku(hk, np.zeros(4, np.float32), -1.0)[1]  # σ of the bias
    return f"{round(np.log(kept / (1 - kept)), 4):g}, added to the stored {stored:g}"


def forget_bias_of_all(library, kernels):
    gates = np.asarray(kernels(library)[2]).reshape(4, HIDDEN)
    assert (np.delete(gates, 1, axis=0) == 0).all()
    return f"{gates[1].min():g}" if gates[1].min() == gates[1].max() else "different"


def lstm_flax_order(library):
    assert set(lstm_flax_kernels(library)[2]) == {f"{kind}{gate}" for kind in "ih" for gate in "ifgo"}
    return "one kernel each"


def gru_flax_order(_):
    params = linen(nn.GRUCell(2), jnp.zeros((1, 2)), jnp.zeros((1, 1)))["params"]
    assert set(params) == {f"{kind}{gate}" for kind in "ih" for gate in "rzn"}
    return "one kernel each"


RECURRENT = {
    "order of an LSTM's gates: input i, forget f, candidate g, output o": {
        **{name: functools.partial(lstm_order, step) for name, step in LSTM.items()},
        "Flax": lstm_flax_order,
    },
    "bias of the forget gate at first": {
        "Flax": forget_bias_flax,
        "Haiku": forget_bias_haiku,
        "Keras": lambda keras: forget_bias_of_all(keras, lstm_keras_kernels),
        "PyTorch": lambda torch: lstm_torch_kernels(torch)[2],
        "nnfx": lambda library: forget_bias_of_all(library, lstm_nnfx_kernels),
    },
    "order of a GRU's gates: reset r, update z, candidate n": {
        **{name: (lambda library, step=step: ", ".join(gru_effects(step, library))) for name, step in GRU.items()},
        "Flax": gru_flax_order,
    },
    "update gate of 1": {name: functools.partial(update_gate, step) for name, step in GRU.items()},
    "reset gate multiplies": {name: functools.partial(reset_gate, step) for name, step in GRU.items()},
    "kernel of an LSTM's inputs": {
        name: (lambda library, name=name: lstm_kernels(name)(library)[0]) for name in LIBRARIES
    },
    "kernel of an LSTM's state": {
        name: (lambda library, name=name: lstm_kernels(name)(library)[1]) for name in LIBRARIES
    },
}
