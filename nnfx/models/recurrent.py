"""Recurrent networks: simple, LSTM and GRU; stacked, bidirectional, or applied one step at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike

from nnfx import activations, arrays, checks, ops
from nnfx.activations import Activation
from nnfx.bounds import BelowOne
from nnfx.models import initializers
from nnfx.models.adapters import from_linen
from nnfx.models.dense import Perceptron
from nnfx.ops.cells import Cell, RecurrentWeights, State
from nnfx.ops.recurrence import Formulation
from nnfx.types import Array, Model, Sequences, Stream, Variables


class RecurrentLayer(nn.Module):
    """A recurrent layer in one direction."""

    cell: Cell
    hidden: int
    initializer: Initializer
    recurrent_initializer: Initializer
    biases: tuple[ArrayLike, ...]
    reverse: bool
    formulation: Formulation

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None, state: State | None) -> tuple[Array, State]:
        """Return the outputs, `(batch, time, hidden)`, and the last state."""

        def gate_by_gate(initializer: Initializer, key: Array, rows: int) -> Array:
            keys = jax.random.split(key, self.cell.gates)
            return jnp.concatenate([initializer(key, (rows, self.hidden), dtype) for key in keys], axis=-1)

        def bias(_: Array) -> Array:
            return jnp.concatenate([jnp.full(self.hidden, start, dtype) for start in self.biases])

        if x.ndim != 3:
            raise ValueError(f"inputs: expected (batch, time, features), got {checks.describe(x)}")
        dtype = jnp.result_type(float)
        x, *parts = arrays.promoted(
            x,
            self.param("input_kernel", partial(gate_by_gate, self.initializer), x.shape[-1]),
            self.param("recurrent_kernel", partial(gate_by_gate, self.recurrent_initializer), self.hidden),
            self.param("bias", bias),
        )
        weights, state = RecurrentWeights(*parts), _in_dtype(state, x.dtype)
        return ops.recurrence(
            self.cell, x, weights, state, lengths=lengths, reverse=self.reverse, formulation=self.formulation
        )


class RecurrentNetwork(nn.Module):
    """Stacked recurrent layers, followed by a dense layer."""

    cell: Cell
    outputs: int | None
    hidden: tuple[int, ...]
    bidirectional: bool
    dropout: ArrayLike
    returns: str
    stateful: bool
    initializer: Initializer
    recurrent_initializer: Initializer
    biases: tuple[ArrayLike, ...]
    formulation: Formulation

    @nn.compact
    def __call__(self, inputs: Array | Sequences, *, weights: Array | None = None, train: bool = False) -> Array:
        """Return `(batch, outputs)`, or `(batch, time, outputs)`; the hidden state itself if `outputs` is None."""
        x, lengths, state = inputs if isinstance(inputs, Sequences) else Sequences(inputs)
        checks.one_array("inputs", x, "(batch, time, features), or Sequences")
        directions = (False, True) if self.bidirectional else (False,)
        if state is not None and len(state) != len(self.hidden) * len(directions):
            wanted = len(self.hidden) * len(directions)
            raise ValueError(f"inputs.state: expected the state of {wanted} recurrent layers, got {len(state)}")
        if self.stateful:
            start = partial(
                zeros, self.cell, self.hidden, x.shape[0], jnp.promote_types(x.dtype, jnp.result_type(float))
            )
            carried = self.variable("carry", "state", start)
            rows = carried.value[0][0].shape[0]
            if rows != x.shape[0]:
                raise ValueError(
                    f"inputs: expected {rows} sequences, as many as the kept states, got {x.shape[0]}; train a stateful"
                    " model with nnfx.make_step, on batches of the size that it was initialised with"
                )
            if state is None:
                state = carried.value
        last: list[State] = []
        for i, width in enumerate(self.hidden):
            if i and train and not (isinstance(self.dropout, float) and self.dropout == 0):
                x = ops.dropout(self.make_rng("dropout"), x, self.dropout)
            both = []
            for reverse in directions:
                layer = RecurrentLayer(
                    self.cell,
                    width,
                    self.initializer,
                    self.recurrent_initializer,
                    self.biases,
                    reverse,
                    self.formulation,
                    name=f"layer_{i}_reverse" if reverse else f"layer_{i}",
                )
                outputs, end = layer(x, lengths, None if state is None else state[len(last)])
                both.append(outputs)
                last.append(end)
            x = jnp.concatenate(both, axis=-1) if self.bidirectional else outputs
        if self.stateful and train:
            assert state is not None
            carried.value = jax.tree.map(
                partial(_carried, weights), tuple(last), tuple(map(tuple, state)), carried.value
            )
        if self.returns == "last":
            x = jnp.concatenate([end[0] for end in last[-len(directions) :]], axis=-1)
        return x if self.outputs is None else Perceptron(self.outputs, name="output")(x)


def _carried(weights: Array | None, new: Array, before: Array, old: Array) -> Array:
    """Return a part of the state to keep; that of a row of weight zero, which is absent, stays as it was before."""
    if weights is not None:
        has_weight = (weights != 0).reshape(weights.shape[0], -1).any(1)
        new = jnp.where(has_weight[:, None], new, before.astype(new.dtype))
    return new.astype(old.dtype)


def _in_dtype(state: State | None, dtype: Any) -> State | None:
    """Return a state in the dtype of the computation, which may differ from the dtype it was stored in."""
    return jax.tree.map(lambda part: jnp.asarray(part).astype(dtype), state)


def zeros(cell: Cell, hidden: Sequence[int], batch_size: int, dtype: Any = None) -> tuple[State, ...]:
    """Return the initial state of each layer, zeros, in the default float dtype unless a dtype is given."""
    checks.positive_integer("batch_size", batch_size)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return tuple((jnp.zeros((batch_size, width), dtype),) * cell.states for width in hidden)


def _stream(cell: Cell, hidden: tuple[int, ...], outputs: int | None) -> Stream:
    def step(variables: Variables, state: tuple[State, ...], x: Array) -> tuple[tuple[State, ...], Array]:
        if len(state) != len(hidden):
            raise ValueError(f"state: expected the state of {len(hidden)} recurrent layers, got {len(state)}")
        params, after = variables["params"], []
        for i, before in enumerate(state):
            layer = params[f"layer_{i}"]
            x, *parts = arrays.promoted(x, layer["input_kernel"], layer["recurrent_kernel"], layer["bias"])
            after.append(cell.step(RecurrentWeights(*parts), cast(State, _in_dtype(before, x.dtype)), x))
            x = after[-1][0]
        if outputs is not None:
            x = cast(Array, Perceptron(outputs).apply({"params": params["output"]}, x))
        return tuple(after), x

    return Stream(partial(zeros, cell, hidden), step)


def _network(
    cell: Cell,
    outputs: int | None,
    hidden: Sequence[int],
    bidirectional: bool,
    dropout: ArrayLike,
    returns: str,
    stateful: bool,
    initializer: str | Initializer,
    recurrent_initializer: str | Initializer,
    formulation: Formulation,
    biases: tuple[ArrayLike, ...],
) -> Model:
    if outputs is not None:
        checks.positive_integer("outputs", outputs)
    if not isinstance(hidden, Sequence) or not hidden:
        raise ValueError(f"hidden: expected the widths of one or more layers, such as (64,), got {hidden!r}")
    for i, width in enumerate(hidden):
        checks.positive_integer(f"hidden[{i}]", width)
    checks.number("dropout", dropout, minimum=0, below=1)
    checks.choice("returns", returns, ("last", "all"))
    checks.choice("formulation", formulation, get_args(Formulation))
    if stateful and bidirectional:
        raise ValueError("stateful: expected False for a bidirectional model, which also reads backwards, got True")
    module = RecurrentNetwork(
        cell,
        outputs,
        tuple(hidden),
        bidirectional,
        dropout,
        returns,
        stateful,
        initializers.get(initializer),
        initializers.get(recurrent_initializer, "recurrent_initializer"),
        biases,
        formulation,
    )
    model = from_linen(module)
    return model if bidirectional else model._replace(stream=_stream(cell, tuple(hidden), outputs))


def rnn(
    outputs: int | None = 1,
    hidden: Sequence[int] = (64,),
    activation: str | Activation = "tanh",
    bidirectional: bool = False,
    dropout: BelowOne = 0.0,
    returns: Literal["last", "all"] = "last",
    stateful: bool = False,
    initializer: str | Initializer = "glorot_uniform",
    recurrent_initializer: str | Initializer = "orthogonal",
    formulation: Formulation = "own",
) -> Model:
    """A simple recurrent network, whose layers also read their own previous output: `h' = g(x W + h U + b)`.

    Here x is a layer's input at a step, h its output at the previous step, and h' its output at this step.

    Args:
        outputs: the number of outputs of a final dense layer; None to return the output h' of the last recurrent layer.
        hidden: the widths of the recurrent layers.
        activation: g, by name or as a function.
        bidirectional: whether each layer runs through time in both directions, with their outputs concatenated.
        dropout: the dropout rate for the outputs of every layer but the last, at least 0 and below 1; may be traced.
        returns: `"last"` for the output after the last step, `"all"` for the outputs at every step.
        stateful: whether each training batch continues the sequences of the previous one. The state is kept among the
            variables, in the collection `carry`, and gradients stop at the start of each batch: a long sequence that is
            cut into consecutive batches is trained by truncated backpropagation through time. Train on such batches in
            order with `nnfx.make_step`; `nnfx.fit` would shuffle them. A row of weight zero keeps its state.
        initializer: the initialiser of the input weights W, by name or as a function.
        recurrent_initializer: the initialiser of the recurrent weights U, by name or as a function.
        formulation: how to compute the recurrence, such as `"plain"` for forward-mode differentiation; see
            `nnfx.ops.recurrence`.

    Returns:
        A model from `(batch, time, features)`, or `Sequences`, to `(batch, outputs)` or `(batch, time, outputs)`. A
        model that is not bidirectional has a `stream`.

    Raises:
        ValueError: for an unknown name, a width that is not positive, a dropout rate outside `[0, 1)`, or a
            model that is both bidirectional and stateful.

    Example:
        >>> model = rnn(outputs=2, hidden=(8,), returns="all")
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> model.apply(variables, jnp.ones((4, 5, 3))).shape
        (4, 5, 2)

    References:
        Elman, *Finding structure in time*, Cognitive Science 1990.
    """
    options = (
        outputs,
        hidden,
        bidirectional,
        dropout,
        returns,
        stateful,
        initializer,
        recurrent_initializer,
        formulation,
    )
    return _network(ops.rnn_cell(activations.get(activation)), *options, biases=(0.0,))


def lstm(
    outputs: int | None = 1,
    hidden: Sequence[int] = (64,),
    bidirectional: bool = False,
    dropout: BelowOne = 0.0,
    returns: Literal["last", "all"] = "last",
    stateful: bool = False,
    forget_bias: ArrayLike = 1.0,
    initializer: str | Initializer = "glorot_uniform",
    recurrent_initializer: str | Initializer = "orthogonal",
    formulation: Formulation = "own",
) -> Model:
    """A long short-term memory network, whose gates control what is written, kept and output.

    From the input x and the previous output h, each step computes three gates i, f and o, each as `σ(x W + h U + b)`
    with its own weights, and a candidate `g = tanh(x W + h U + b)`. The new cell state is `c' = f c + i g`, and the new
    output `h' = o tanh(c')`, with products taken element by element.

    Args:
        outputs: the number of outputs; `rnn` describes all arguments except `forget_bias` in more detail.
        hidden: the widths of the recurrent layers.
        bidirectional: whether each layer runs through time in both directions.
        dropout: the dropout rate for the outputs of every layer but the last.
        returns: `"last"` for the output after the last step, `"all"` for the outputs at every step.
        stateful: whether each training batch continues the sequences of the previous one.
        forget_bias: the initial bias of the forget gates f; with 1, the cells initially keep most of their state.
        initializer: the initialiser of the input weights, applied separately to each gate and to the candidate.
        recurrent_initializer: the initialiser of the recurrent weights, applied in the same way.
        formulation: how to compute the recurrence.

    Returns:
        A model from `(batch, time, features)`, or `Sequences`, to `(batch, outputs)` or `(batch, time, outputs)`. A
        model that is not bidirectional has a `stream`; the state of each layer is `(h, c)`.

    Raises:
        ValueError: for an unknown name, a width that is not positive, a dropout rate outside `[0, 1)`, a model that
            is both bidirectional and stateful, or a forget bias that is not finite.

    Example:
        Apply the network one step at a time, as the data arrive:

        >>> model = lstm(outputs=1, hidden=(8,))
        >>> sequence = jax.random.normal(jax.random.key(1), (1, 5, 3))
        >>> variables = model.init(jax.random.key(0), sequence)
        >>> state = model.stream.start(batch_size=1)
        >>> for x in sequence.swapaxes(0, 1):
        ...     state, outputs = model.stream.step(variables, state, x)
        >>> bool(jnp.allclose(outputs, model.apply(variables, sequence), atol=1e-6))
        True

    References:
        Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 1997.
        Jozefowicz, Zaremba and Sutskever, *An empirical exploration of recurrent network architectures*, ICML 2015,
        for the bias.
    """
    options = (
        outputs,
        hidden,
        bidirectional,
        dropout,
        returns,
        stateful,
        initializer,
        recurrent_initializer,
        formulation,
    )
    checks.number("forget_bias", forget_bias)
    return _network(ops.lstm_cell, *options, biases=(0.0, forget_bias, 0.0, 0.0))


def gru(
    outputs: int | None = 1,
    hidden: Sequence[int] = (64,),
    bidirectional: bool = False,
    dropout: BelowOne = 0.0,
    returns: Literal["last", "all"] = "last",
    stateful: bool = False,
    initializer: str | Initializer = "glorot_uniform",
    recurrent_initializer: str | Initializer = "orthogonal",
    formulation: Formulation = "own",
) -> Model:
    """A network of gated recurrent units: one gate mixes the old and the new state, another resets the old state.

    From the input x and the previous output h, each step computes the reset gate r and the update gate z, each as
    `σ(x W + h U + b)` with its own weights. The candidate is `n = tanh(x W + b + r (h U + b'))`, also with its own
    weights, and the new output is `h' = (1 − z) n + z h`, with products taken element by element.

    Args:
        outputs: the number of outputs; `rnn` describes all arguments in more detail.
        hidden: the widths of the recurrent layers.
        bidirectional: whether each layer runs through time in both directions.
        dropout: the dropout rate for the outputs of every layer but the last.
        returns: `"last"` for the output after the last step, `"all"` for the outputs at every step.
        stateful: whether each training batch continues the sequences of the previous one.
        initializer: the initialiser of the input weights, applied separately to each gate and to the candidate.
        recurrent_initializer: the initialiser of the recurrent weights, applied in the same way.
        formulation: how to compute the recurrence.

    Returns:
        A model from `(batch, time, features)`, or `Sequences`, to `(batch, outputs)` or `(batch, time, outputs)`. A
        model that is not bidirectional has a `stream`.

    Raises:
        ValueError: for an unknown name, a width that is not positive, a dropout rate outside `[0, 1)`, or a
            model that is both bidirectional and stateful.

    Example:
        >>> variables = gru(outputs=1, hidden=(8,)).init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> jax.tree.map(jnp.shape, variables["params"]["layer_0"])
        {'bias': (32,), 'input_kernel': (3, 24), 'recurrent_kernel': (8, 24)}

    References:
        Cho et al., *Learning phrase representations using RNN encoder–decoder*, EMNLP 2014.
    """
    options = (
        outputs,
        hidden,
        bidirectional,
        dropout,
        returns,
        stateful,
        initializer,
        recurrent_initializer,
        formulation,
    )
    return _network(ops.gru_cell, *options, biases=(0.0,) * 4)
