"""A cell applied along time, with a gradient that computes the matrix products of all steps as one."""

from functools import partial
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nnfx import checks, shards
from nnfx.ops import cudnn_lstm
from nnfx.ops.cells import Cell, RecurrentWeights, State, lstm_cell, require_weights, required_state
from nnfx.types import Array

Formulation = Literal["own", "plain", "cudnn"]


def recurrence(
    cell: Cell,
    inputs: Array,
    weights: RecurrentWeights,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    formulation: Formulation = "own",
) -> tuple[Array, State]:
    """Apply a cell along time: `s_t = cell(s_{t−1}, x_t)`, where the first array of the state is the output `h_t`.

    The hand-written gradient stores the values computed at each step, goes back through time only for the cotangents of
    the pre-activations, and multiplies these by the inputs in one product for all steps. It can be differentiated again
    by `jax.grad`.

    Args:
        cell: the cell, such as `nnfx.ops.lstm_cell`.
        inputs: x, `(batch, time, features)`.
        weights: the weights of the cell, of the inputs' dtype.
        state: the initial state, arrays `(batch, hidden)`; zeros if None.
        lengths: the number of real steps in each sequence, integers `(batch,)`; the rest is padding, which has no
            effect, even if its values are not finite.
        reverse: whether time runs backwards, from each sequence's last step.
        formulation: `"own"` uses the hand-written gradient; `"plain"` leaves the gradient to JAX, which also supports
            forward mode (`jax.jvp`); `"cudnn"` uses NVIDIA's LSTM, for float32 on NVIDIA GPUs. It runs forwards in time
            only, supports neither second derivatives nor `jax.vmap`, and needs at least one step in each sequence.

    Returns:
        The outputs, `(batch, time, hidden)`, which are zero at padded steps, and the last state.

    Raises:
        TypeError: for arrays that are not floats or not of the same dtype, or lengths that are not integers.
        ValueError: for shapes that do not match, lengths below 0 or above the number of steps, an unknown formulation,
            or `"cudnn"` where it is not supported.
        RuntimeError: for `"cudnn"` if JAX does not compute on a GPU.

    Example:
        >>> from nnfx.ops import RecurrentWeights, rnn_cell
        >>> adding = RecurrentWeights(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
        >>> outputs, _ = recurrence(rnn_cell(lambda z: z), jnp.arange(4.0).reshape(1, 4, 1), adding)
        >>> outputs.ravel()
        Array([0., 1., 3., 6.], dtype=float32)

    References:
        Werbos, *Backpropagation through time*, Proceedings of the IEEE 1990.
    """
    inputs, weights = jnp.asarray(inputs), RecurrentWeights(*map(jnp.asarray, weights))
    if inputs.ndim != 3 or 0 in inputs.shape[1:]:
        raise ValueError(
            "inputs: expected (batch, time, features) with at least one step and feature, got"
            f" {checks.describe(inputs)}"
        )
    require_weights(cell, inputs, weights)
    shape = (inputs.shape[0], weights.recurrent.shape[0])
    if state is None:
        state = (jnp.zeros(shape, inputs.dtype),) * cell.states
    state = required_state(cell, state, shape, inputs.dtype)
    if lengths is not None:
        lengths = _required_lengths(lengths, inputs)
    checks.choice("formulation", formulation, get_args(Formulation))
    if formulation == "cudnn":
        if cell != lstm_cell or reverse:
            raise ValueError(
                f"formulation: expected 'own' or 'plain' for the cell {cell.name!r} with reverse={reverse}, got 'cudnn'"
            )
        return cudnn_lstm.lstm(inputs, weights, state, lengths)
    is_real = None
    if lengths is not None:
        is_real = (jnp.arange(inputs.shape[1], dtype=lengths.dtype)[:, None] < lengths[None])[..., None]
    x = jnp.swapaxes(inputs, 0, 1)
    if is_real is not None:
        x = jnp.where(is_real, x, 0)  # padding may hold NaN, which stays NaN when multiplied by zero
    # Within shard_map, the inputs vary over the mesh and the weights may not, but the rules below need both to vary.
    # Adding a zero made from the inputs ensures this (XLA removes it), and the transpose is the sum that the gradient
    # needs.
    zero = jnp.zeros_like(inputs, shape=())
    packed, state = jax.tree.map(lambda leaf: leaf + zero, (cell.pack(weights), state))
    outputs, state = (_unroll_plainly if formulation == "plain" else _unroll)(cell, reverse, packed, x, state, is_real)
    if is_real is not None:
        outputs = jnp.where(is_real, outputs, 0)
    return jnp.swapaxes(outputs, 0, 1), state


def _step(cell: Cell, z: Any, state: State, is_real: Array | None) -> tuple[State, Any]:
    after, saved = cell.forward(z, state)
    if is_real is not None:
        after = tuple(jnp.where(is_real, new, old) for new, old in zip(after, state, strict=True))
    return after, saved


def _unroll_plainly(
    cell: Cell, reverse: bool, packed: Any, x: Array, state: State, is_real: Array | None
) -> tuple[Array, State]:
    @partial(jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)
    def body(state: State, step: tuple[Array, Array | None]) -> tuple[State, Array]:
        after, _ = _step(cell, cell.project(packed, state[0], step[0]), state, step[1])
        return after, after[0]

    state, outputs = lax.scan(body, state, (x, is_real), reverse=reverse)
    return outputs, state


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(
    cell: Cell, reverse: bool, packed: Any, x: Array, state: State, is_real: Array | None
) -> tuple[Array, State]:
    def body(state: State, step: tuple[Array, Array | None]) -> tuple[State, Array]:
        after, _ = _step(cell, cell.project(packed, state[0], step[0]), state, step[1])
        return after, after[0]

    state, outputs = lax.scan(body, state, (x, is_real), reverse=reverse)
    return outputs, state


def _unroll_forward(
    cell: Cell, reverse: bool, packed: Any, x: Array, state: State, is_real: Array | None
) -> tuple[tuple[Array, State], Any]:
    def body(state: State, step: tuple[Array, Array | None]) -> tuple[State, Any]:
        after, saved = _step(cell, cell.project(packed, state[0], step[0]), state, step[1])
        return after, (state, saved)  # the gradient needs the state before the step

    last, (states, saved) = lax.scan(body, state, (x, is_real), reverse=reverse)
    hidden = states[0]
    ends = (last[0][None], hidden[:-1]) if reverse else (hidden[1:], last[0][None])
    return (jnp.concatenate(ends), last), (packed, x, states, saved, is_real)


def _unroll_backward(cell: Cell, reverse: bool, kept: Any, cotangent: tuple[Array, State]) -> Any:
    packed, x, states, saved, is_real = kept
    d_outputs, d_last = cotangent
    # `project` is affine in the hidden state, so all steps share one pull-back; made here, so that no step copies
    # weights
    _, pull_hidden = jax.vjp(lambda hidden: cell.project(packed, hidden, x[0]), states[0][0])

    def body(d_state: State, step: Any) -> tuple[State, Any]:
        d_output, state, saved, is_real = step
        d_after = (d_state[0] + d_output, *d_state[1:])
        d_z, d_before = cell.backward(saved, state, d_after)
        if is_real is not None:
            d_z = jax.tree.map(lambda d: jnp.where(is_real, d, 0), d_z)
            d_before = tuple(jnp.where(is_real, new, old) for new, old in zip(d_before, d_after, strict=True))
        return (d_before[0] + pull_hidden(d_z)[0], *d_before[1:]), d_z

    d_state, d_z = lax.scan(body, d_last, (d_outputs, states, saved, is_real), reverse=not reverse)
    # a single axis for all steps of all examples, since XLA's product over two axes is several times slower on a CPU;
    # but if a mesh splits the examples, a separate axis keeps them on their devices
    rows = (states[0], x, d_z)
    if not shards.is_left_to_xla():
        rows = jax.tree.map(lambda stack: stack.reshape(-1, stack.shape[-1]), rows)
    _, pull = jax.vjp(lambda packed, x: cell.project(packed, rows[0], x), packed, rows[1])
    d_packed, d_x = pull(rows[2])
    return d_packed, d_x.reshape(x.shape), d_state, None


_unroll.defvjp(_unroll_forward, _unroll_backward)


def _required_lengths(lengths: Array, inputs: Array) -> Array:
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths: expected integers, got {checks.describe(lengths)}")
    if lengths.shape != inputs.shape[:1]:
        raise ValueError(f"lengths: expected one per sequence, {inputs.shape[:1]}, got {checks.describe(lengths)}")
    if checks.is_concrete(lengths):
        values = np.asarray(cast(Any, lengths))
        if values.size and (values.min() < 0 or values.max() > inputs.shape[1]):
            raise ValueError(
                f"lengths: expected numbers from 0 to {inputs.shape[1]}, the number of steps, "
                f"got {values.min()} to {values.max()}"
            )
    return lengths.astype(jnp.int32)  # steps are counted in int32, since 8-bit integers could overflow
