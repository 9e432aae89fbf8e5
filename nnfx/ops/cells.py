"""The cells of recurrent networks: the computation of one time step, and its hand-written gradient.

A cell consists of a linear part, `project`, which contains all matrix products, and an element-wise part, `forward`.
Since they are separate, the matrix products in the gradients of all steps can be computed as one; see
`nnfx.ops.recurrence`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from nnfx import checks, memo
from nnfx.types import Array

State = tuple[Array, ...]
"""The state of a cell, arrays `(batch, hidden)`: first the hidden state, which is also the cell's output."""


class RecurrentWeights(NamedTuple):
    """The weights of a cell, with one block of columns per gate, in the order documented for the cell.

    Attributes:
        inputs: the input kernel, `(features, gates × hidden)`.
        recurrent: the recurrent kernel, `(hidden, gates × hidden)`.
        bias: the bias, `(biases × hidden,)`.
    """

    inputs: Array
    recurrent: Array
    bias: Array


class Cell(NamedTuple):
    """One time step of a recurrent network, as pure functions.

    Attributes:
        name: the name of the cell.
        states: the number of arrays in its state.
        gates: the number of blocks of columns in its kernels.
        biases: the number of blocks in its bias.
        pack: `weights -> packed`, which converts the weights to the form that `project` expects.
        project: `(packed, hidden, x) -> z`, linear in the packed weights and affine in the hidden state and the
            inputs, for any number of leading axes.
        forward: `(z, state) -> (state, saved)`, element-wise; `saved` holds the values that the gradient needs.
        backward: `(saved, state, cotangent) -> (cotangent of z, cotangent of the state)`; `state` is the state before
            the step.
    """

    name: str
    states: int
    gates: int
    biases: int
    pack: Callable[[RecurrentWeights], Any]
    project: Callable[[Any, Array, Array], Any]
    forward: Callable[[Any, State], tuple[State, Any]]
    backward: Callable[[Any, State, State], tuple[Any, State]]

    def step(self, weights: RecurrentWeights, state: State, x: Array) -> State:
        """Return the state after one step on inputs `(batch, features)`.

        Raises:
            TypeError: for inputs or weights that are not floats, or not of the same dtype.
            ValueError: for shapes that do not match, or a state of the wrong shape or dtype.

        Example:
            >>> weights = RecurrentWeights(jnp.zeros((3, 8)), jnp.zeros((2, 8)), jnp.ones(8))
            >>> hidden, cell = lstm_cell.step(weights, (jnp.zeros((1, 2)), jnp.zeros((1, 2))), jnp.ones((1, 3)))
            >>> cell.round(4)  # σ(1) tanh(1)
            Array([[0.5568, 0.5568]], dtype=float32)
        """
        x, weights = jnp.asarray(x), RecurrentWeights(*map(jnp.asarray, weights))
        if x.ndim != 2:
            raise ValueError(f"x: expected one step, (batch, features), got {checks.describe(x)}")
        require_weights(self, x, weights)
        state = required_state(self, state, (len(x), len(weights.recurrent)), x.dtype)
        return self.forward(self.project(self.pack(weights), state[0], x), state)[0]


def require_weights(cell: Cell, inputs: Array, weights: RecurrentWeights) -> None:
    """Check that weights have the inputs' dtype, floats, and the shapes of a cell for inputs `(..., features)`."""
    arrays = {"inputs": inputs, **{f"weights.{name}": value for name, value in weights._asdict().items()}}
    for name, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype != inputs.dtype:
            raise TypeError(
                f"{name}: expected an array of floats with the dtype of the inputs, {inputs.dtype}, "
                f"got {checks.describe(value)}"
            )
    recurrent = weights.recurrent
    if recurrent.ndim != 2 or recurrent.shape[1] != cell.gates * recurrent.shape[0] or not recurrent.size:
        raise ValueError(
            f"weights.recurrent: expected (hidden, {cell.gates} × hidden) for the cell {cell.name!r}, "
            f"got {checks.describe(recurrent)}"
        )
    hidden = recurrent.shape[0]
    expected = {
        "inputs": (inputs.shape[-1], cell.gates * hidden),
        "bias": (cell.biases * hidden,),
    }
    for name, shape in expected.items():
        if getattr(weights, name).shape != shape:
            got = checks.describe(getattr(weights, name))
            raise ValueError(f"weights.{name}: expected {shape} for the cell {cell.name!r}, got {got}")


def required_state(cell: Cell, state: State, shape: tuple[int, int], dtype: Any) -> State:
    """Return a cell's state as arrays, after checking their shape and dtype."""
    if not isinstance(state, tuple) or len(state) != cell.states:
        raise ValueError(
            f"state: expected a tuple of {cell.states} arrays for the cell {cell.name!r}, got {state!r:.60}"
        )
    arrays = tuple(jnp.asarray(part) for part in state)
    for i, part in enumerate(arrays):
        if part.shape != shape or part.dtype != dtype:
            wanted = checks.describe(jax.ShapeDtypeStruct(shape, dtype))
            raise ValueError(f"state[{i}]: expected {wanted}, got {checks.describe(part)}")
    return arrays


def _with_one(*parts: Array) -> Array:
    """Concatenate arrays along the last axis and append a one, by which the bias is multiplied."""
    return jnp.concatenate([*parts, jnp.ones_like(parts[0], shape=(*parts[0].shape[:-1], 1))], axis=-1)


def _pack(weights: RecurrentWeights) -> Array:
    return jnp.concatenate([weights.recurrent, weights.inputs, weights.bias[None]])


@jax.custom_jvp
def _affine(packed: Array, parts: tuple[Array, ...]) -> Array:
    """Multiply arrays, concatenated with a one at the end, by weights in a single product.

    The gradient with respect to each array is a separate product with the corresponding rows of the weights. JAX would
    multiply by all rows and slice the result, even if only one of these gradients is needed.
    """
    return _with_one(*parts) @ packed


def _affine_jvp(primals: tuple[Array, tuple[Array, ...]], tangents: tuple[Any, tuple[Any, ...]]) -> tuple[Array, Any]:
    (packed, parts), (d_packed, d_parts) = primals, tangents
    z, start = _affine(packed, parts), 0
    tangent = jnp.zeros_like(z)
    if not isinstance(d_packed, SymbolicZero):
        tangent += _with_one(*parts) @ d_packed
    for part, d_part in zip(parts, d_parts, strict=True):
        rows = packed[start : start + part.shape[-1]]
        if not isinstance(d_part, SymbolicZero):
            tangent += d_part @ rows
        start += part.shape[-1]
    return z, tangent


_affine.defjvp(_affine_jvp, symbolic_zeros=True)


def _project(packed: Array, hidden: Array, x: Array) -> Array:
    return _affine(packed, (hidden, x))


# The simple cell


def rnn_cell(activation: Callable[[Array], Array] = jnp.tanh) -> Cell:
    """The simple recurrent cell: `h' = g(x W + h U + b)`.

    Args:
        activation: g, element-wise.

    Example:
        >>> rnn_cell().gates
        1

    References:
        Elman, *Finding structure in time*, Cognitive Science 1990.
    """
    # the same activation must give the same cell object, since compiled programs are looked up by cell
    return memo.held(activation, rnn_cell, lambda: _rnn_cell(activation))


def _rnn_cell(activation: Callable[[Array], Array]) -> Cell:
    def forward(z: Array, _: State) -> tuple[State, Array]:
        return (activation(z),), z

    def backward(z: Array, state: State, cotangent: State) -> tuple[Array, State]:
        _, pull = jax.vjp(activation, z)
        (dz,) = pull(cotangent[0])
        return dz, (jnp.zeros_like(state[0]),)

    return Cell("rnn", 1, 1, 1, _pack, _project, forward, backward)


# Long short-term memory


def _lstm_forward(z: Array, state: State) -> tuple[State, State]:
    _, cell = state
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell = f * cell + i * g
    return (o * jnp.tanh(cell), cell), (i, f, g, o)


def _lstm_backward(saved: State, state: State, cotangent: State) -> tuple[Array, State]:
    i, f, g, o = saved
    _, cell = state
    d_hidden, d_cell = cotangent
    bounded = jnp.tanh(f * cell + i * g)  # recomputing this is cheaper than storing it
    d_o = d_hidden * bounded
    d_cell = d_cell + d_hidden * o * (1 - bounded * bounded)
    d_z = (d_cell * g * i * (1 - i), d_cell * cell * f * (1 - f), d_cell * i * (1 - g * g), d_o * o * (1 - o))
    return jnp.concatenate(d_z, axis=-1), (jnp.zeros_like(d_hidden), d_cell * f)


lstm_cell = Cell("lstm", 2, 4, 4, _pack, _project, _lstm_forward, _lstm_backward)
"""The cell of a long short-term memory, whose gates control what is written, kept and output.

From the input x and the previous output h, a step computes the gates i, f and o, each as `σ(x W + h U + b)` with its
own weights, and the candidate `g = tanh(x W + h U + b)`. The new state is `(h', c')`, with `c' = f c + i g` and
`h' = o tanh(c')`. The blocks of the weights are in the order i, f, g, o.

References:
    Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 1997.
    Gers, Schmidhuber and Cummins, *Learning to forget*, Neural Computation 2000.
"""


# The gated recurrent unit


def _gru_pack(weights: RecurrentWeights) -> tuple[Array, Array]:
    """Return the recurrent weights and the input weights, each with its bias."""
    of_inputs, of_hidden = jnp.split(weights.bias, [3 * weights.recurrent.shape[0]])
    of_hidden = jnp.pad(of_hidden, (2 * len(of_hidden), 0))
    return (
        jnp.concatenate([weights.recurrent, of_hidden[None]]),
        jnp.concatenate([weights.inputs, of_inputs[None]]),
    )


def _gru_project(packed: tuple[Array, Array], hidden: Array, x: Array) -> tuple[Array, Array]:
    return _affine(packed[0], (hidden,)), _affine(packed[1], (x,))


def _gru_forward(z: tuple[Array, Array], state: State) -> tuple[State, State]:
    (gates_h, of_hidden), (gates_x, of_x) = (jnp.split(part, [2 * state[0].shape[-1]], axis=-1) for part in z)
    gates = jax.nn.sigmoid(gates_h + gates_x)
    r, update = jnp.split(gates, 2, axis=-1)
    candidate = jnp.tanh(of_x + r * of_hidden)
    return (candidate + update * (state[0] - candidate),), (gates, candidate, of_hidden)


def _gru_backward(saved: State, state: State, cotangent: State) -> tuple[tuple[Array, Array], State]:
    gates, candidate, of_hidden = saved
    r, update = jnp.split(gates, 2, axis=-1)
    (d_hidden,) = cotangent
    d_update = d_hidden * (state[0] - candidate) * update * (1 - update)
    d_x = d_hidden * (1 - update) * (1 - candidate * candidate)
    d_r = d_x * of_hidden * r * (1 - r)
    return (
        (jnp.concatenate([d_r, d_update, d_x * r], axis=-1), jnp.concatenate([d_r, d_update, d_x], axis=-1)),
        (d_hidden * update,),
    )


gru_cell = Cell("gru", 1, 3, 4, _gru_pack, _gru_project, _gru_forward, _gru_backward)
"""The gated recurrent unit, with the reset gate applied after the product, as in cuDNN, Flax and PyTorch.

From the input x and the previous output h, a step computes the gates r and z, each as `σ(x W + h U + b)` with its own
weights, and the candidate `n = tanh(x W + b + r (h U + b'))`. The new output is `h' = (1 − z) n + z h`. The blocks of
the weights are in the order r, z, n; the bias has a fourth block, b'.

References:
    Cho et al., *Learning phrase representations using RNN encoder–decoder*, EMNLP 2014.
"""
