"""The transformer, applied to a whole sequence at once or one step at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

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
from nnfx.models.normalization import LayerNorm
from nnfx.types import Array, Model, Sequences, Stream, Variables

KeysAndValues = tuple[Array, Array]
Attend = Callable[[Array, Array, Array], tuple[Array, KeysAndValues | None]]
"""A map from queries, keys and values, `(batch, time, heads, features)`, to the attended values and what to cache."""


class Cache(NamedTuple):
    """The keys and values of the latest steps of a stream; step t is stored at position `t mod context`.

    Attributes:
        steps: the number of steps read so far, an int32 scalar.
        layers: the keys and values of each layer, `(batch, context, heads, features)`.
    """

    steps: Array
    layers: tuple[KeysAndValues, ...]


class Block(nn.Module):
    """Attention, then two dense layers at each step, both with a residual connection."""

    heads: int
    hidden: int
    activation: Activation
    dropout: ArrayLike
    initializer: Initializer

    @nn.compact
    def __call__(self, x: Array, attend: Attend, train: bool) -> tuple[Array, KeysAndValues | None]:
        """Return the outputs, `(batch, time, width)`, and the keys and values to cache, if any."""
        width = x.shape[-1]

        def dense(name: str, x: Array, outputs: int, activation: Activation = activations.identity) -> Array:
            layer = Perceptron(outputs, activation, self.initializer, name=name)
            return layer(x.reshape(-1, x.shape[-1])).reshape(
                *x.shape[:-1], outputs
            )  # products that sum over a single axis are faster

        def dropped(x: Array) -> Array:
            return _dropped(self, x, self.dropout, train)

        normed = LayerNorm(name="attention_norm")(x)
        parts = (dense(name, normed, width) for name in ("query", "key", "value"))
        attended, kept = attend(*(part.reshape(*x.shape[:-1], self.heads, width // self.heads) for part in parts))
        x = x + dropped(dense("attended", attended.reshape(x.shape), width))
        inner = dense("hidden", LayerNorm(name="hidden_norm")(x), self.hidden, self.activation)
        return x + dropped(dense("output", inner, width)), kept


class Transformer(nn.Module):
    """Transformer blocks, followed by a dense layer."""

    outputs: int | None
    width: int
    layers: int
    heads: int
    hidden: int
    context: int
    causal: bool
    activation: Activation
    dropout: ArrayLike
    returns: str
    initializer: Initializer

    @nn.compact
    def __call__(self, inputs: Array | Sequences, *, train: bool = False, cache: Cache | None = None) -> Any:
        """Return `(batch, outputs)` or `(batch, time, outputs)`; given a cache, the new cache and a step's outputs."""
        x, lengths, state = inputs if isinstance(inputs, Sequences) else Sequences(inputs)
        checks.one_array("inputs", x, "(batch, time, features), or Sequences")
        if x.ndim != 3:
            raise ValueError(f"inputs: expected (batch, time, features), got {checks.describe(x)}")
        if state is not None:
            raise ValueError("inputs.state: expected None, since a transformer has no state, got a state")
        if lengths is not None:  # padding may hold NaN, which stays NaN when multiplied by zero
            x = jnp.where((jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None], x, 0)
        attend: Attend = partial(_attend_to_window, self._mask(x.shape[1], lengths))
        # a zero vector cannot be normalised: without a bias, its gradient would explode
        bias = nn.initializers.normal(0.1)
        x = Perceptron(self.width, initializer=self.initializer, bias_initializer=bias, name="input")(x)
        x = _dropped(self, x, self.dropout, train)
        after: list[Any] = []
        for i in range(self.layers):
            if cache is not None:
                attend = partial(_attend_to_cache, cache.steps, cache.layers[i])
            block = Block(self.heads, self.hidden, self.activation, self.dropout, self.initializer, name=f"block_{i}")
            x, kept = block(x, attend, train)
            after.append(kept)
        x = LayerNorm(name="norm")(x)
        if cache is None and self.returns == "last":
            last = jnp.full(len(x), x.shape[1]) if lengths is None else lengths
            x = jnp.take_along_axis(x, jnp.maximum(last - 1, 0)[:, None, None], axis=1)[:, 0]
        x = x if self.outputs is None else Perceptron(self.outputs, name="output")(x)
        return x if cache is None else (Cache(cache.steps + 1, tuple(after)), x[:, 0])

    def _mask(self, time: int, lengths: Array | None) -> Array:
        """Return the attention mask, `(time, time)`, or `(batch, time, time)` for sequences with lengths."""
        steps = jnp.arange(time)
        distance = steps[:, None] - steps[None]
        is_seen = (distance < self.context) & (distance > (-1 if self.causal else -self.context))
        return is_seen if lengths is None else is_seen[None] & (steps[None] < lengths[:, None])[:, None]


def _dropped(module: nn.Module, x: Array, rate: ArrayLike, train: bool) -> Array:
    if not train or (isinstance(rate, float) and rate == 0):
        return x
    return ops.dropout(module.make_rng("dropout"), x, rate)


def _attend_to_window(mask: Array, queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
    """Attend to the steps in the mask."""
    steps = jnp.arange(keys.shape[1])
    return ops.attention(ops.rotated(queries, steps), ops.rotated(keys, steps), values, mask), None


def _attend_to_cache(
    steps: Array, before: KeysAndValues, query: Array, key: Array, value: Array
) -> tuple[Array, KeysAndValues]:
    """Replace the oldest key and value in the cache by the key and value of a step, and attend to the whole cache."""
    context = before[0].shape[1]
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), steps % context, axis=1)
        for old, new in zip(before, (ops.rotated(key, steps[None]), value), strict=True)
    )
    is_filled = jnp.arange(context) <= steps
    turned, seen, found = arrays.promoted(ops.rotated(query, steps[None]), keys, values)
    return ops.attention(turned, seen, found, is_filled[None]).astype(query.dtype), (keys, values)


def _stream(module: Transformer) -> Stream:
    def start(batch_size: int, dtype: Any = None) -> Cache:
        checks.positive_integer("batch_size", batch_size)
        dtype = jnp.result_type(float) if dtype is None else dtype
        shape = (batch_size, module.context, module.heads, module.width // module.heads)
        return Cache(jnp.zeros((), jnp.int32), ((jnp.zeros(shape, dtype),) * 2,) * module.layers)

    def step(variables: Variables, state: Cache, x: Array) -> tuple[Cache, Array]:
        if len(state.layers) != module.layers:
            raise ValueError(f"state: expected the state of {module.layers} layers, got {len(state.layers)}")
        return cast(tuple[Cache, Array], module.apply(variables, x[:, None], cache=state))

    return Stream(start, step)


def transformer(
    outputs: int | None = 1,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    context: int = 128,
    causal: bool = True,
    activation: str | Activation = "gelu",
    dropout: BelowOne = 0.0,
    returns: Literal["last", "all"] = "last",
    initializer: str | Initializer = "glorot_uniform",
) -> Model:
    """A transformer: blocks of attention between steps and dense layers at each step, with residual connections.

    A dense layer first maps the inputs to the width of the network. Each layer of the transformer then maps x to x' by
    `h = x + attention(norm(x))` and `x' = h + V g(W norm(h))`, where V and W are the weights of two dense layers.
    Queries and keys are rotated by angles that grow with their position, so attention depends on the distance between
    steps. No step sees further back than `context` steps, so sequences and streams may have any length.

    Args:
        outputs: the number of outputs, from a dense layer; None to return the normalised output of the last block.
        width: the number of features of each step within the network, a multiple of `2 × heads`.
        layers: the number of layers.
        heads: the number of attention heads in each layer.
        hidden: the number of hidden units at each step within a layer; 4 × `width` if None.
        context: the number of latest steps that a step sees, including itself.
        causal: whether a step sees only itself and earlier steps. If not, it sees equally far ahead and back, and the
            model has no stream.
        activation: g, by name or as a function.
        dropout: the dropout rate for the input of the first layer and for each residual branch, at least 0 and below 1;
            may be traced.
        returns: `"last"` for the output at the last step, `"all"` for the outputs at every step.
        initializer: the initialiser of the weights, by name or as a function; see `nnfx.models.initializers`.

    Returns:
        A model from `(batch, time, features)`, or `Sequences` without a state, to `(batch, outputs)` or
        `(batch, time, outputs)`. A causal model has a `stream`, whose state holds the keys and values of the last
        `context` steps.

    Raises:
        ValueError: for an unknown name, a number that is not positive, a width that is not a multiple of `2 × heads`,
            or a dropout rate outside `[0, 1)`.

    Example:
        Make a network that predicts the next of 27 characters, and apply it to one character at a time:

        >>> from nnfx.models import embedding
        >>> model = embedding(27, 16, transformer(outputs=27, width=16, heads=2, returns="all"))
        >>> text = jnp.array([[7, 4, 11, 11, 14]])
        >>> variables = model.init(jax.random.key(0), text)
        >>> state = model.stream.start(batch_size=1)
        >>> for token in text.T:
        ...     state, logits = model.stream.step(variables, state, token)
        >>> bool(jnp.allclose(logits, model.apply(variables, text)[:, -1], atol=1e-5))
        True

    References:
        Vaswani et al., *Attention is all you need*, NeurIPS 2017. Xiong et al., *On layer normalization in the
        transformer architecture*, ICML 2020, for the position of the normalisation. Su et al., *RoFormer: enhanced
        transformer with rotary position embedding*, 2021. Beltagy, Peters and Cohan, *Longformer: the long-document
        transformer*, 2020, for the limited context.
    """
    if outputs is not None:
        checks.positive_integer("outputs", outputs)
    numbers = {"width": width, "layers": layers, "heads": heads, "context": context}
    for name, value in numbers.items() if hidden is None else {**numbers, "hidden": hidden}.items():
        checks.positive_integer(name, value)
    hidden = 4 * width if hidden is None else hidden
    if width % (2 * heads):
        raise ValueError(f"width: expected a multiple of 2 × heads, {2 * heads}, got {width}")
    checks.number("dropout", dropout, minimum=0, below=1)
    checks.choice("returns", returns, ("last", "all"))
    module = Transformer(
        outputs,
        width,
        layers,
        heads,
        hidden,
        context,
        causal,
        activations.get(activation),
        dropout,
        returns,
        initializers.get(initializer),
    )
    model = from_linen(module)
    return model._replace(stream=_stream(module)) if causal else model
