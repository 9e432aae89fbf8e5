"""Models of tokens: an embedding, followed by any sequence model."""

import contextlib
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from nnfx import checks, ops
from nnfx.bounds import BelowOne
from nnfx.models import initializers
from nnfx.types import Apply, Array, Model, Sequences, Stream, Variables

NAME = "embedding"
"""The name of the embedding table among the parameters."""


def embedding(
    tokens: int, features: int, model: Model, dropout: BelowOne = 0.0, initializer: str | Initializer = "normal"
) -> Model:
    """A model of tokens: `model` is applied to a learned vector for each token, `xₜ = E[tokenₜ]`.

    Tokens are integers that stand for characters or words, for example. Pass `keep_integers=True` to
    `nnfx.data.prepare`, so that tokens are not converted to floats.

    Args:
        tokens: the number of different tokens.
        features: the length of the vectors.
        model: the model that takes the vectors, `(batch, time, features)`, such as a `gru` or a `transformer` with
            `returns="all"`. It may have any other collections of variables, and a stream.
        dropout: the dropout rate for the entries of the vectors, at least 0 and below 1; may be traced.
        initializer: the initialiser of the vectors, by name or as a function; see `nnfx.models.initializers`.

    Returns:
        A model from tokens `(batch, time)`, or `Sequences` of tokens, to the outputs of `model`. The table of vectors,
        `(tokens, features)`, is the parameter `embedding`, alongside the parameters of `model`. If `model` has a
        stream, the result has a stream from tokens `(batch,)`. The outputs are NaN for traced tokens out of range.

    Raises:
        TypeError: if `model` is not a `Model`; and, when the result is applied, if the tokens are not integers.
        ValueError: for a number that is not positive, a dropout rate outside `[0, 1)`, an unknown name, or a model with
            a parameter called `embedding`; and, when the result is applied, for tokens out of range.

    Example:
        Make a network that predicts the next of 27 characters at every step:

        >>> from nnfx.models import lstm
        >>> model = embedding(27, 8, lstm(outputs=27, hidden=(16,), returns="all"))
        >>> text = jnp.array([[7, 4, 11, 11, 14]])
        >>> variables = model.init(jax.random.key(0), text)
        >>> sorted(variables["params"]), model.apply(variables, text).shape
        (['embedding', 'layer_0', 'output'], (1, 5, 27))

    References:
        Bengio, Ducharme, Vincent and Jauvin, *A neural probabilistic language model*, JMLR 2003.
    """
    checks.positive_integer("tokens", tokens)
    checks.positive_integer("features", features)
    if not isinstance(model, Model):
        raise TypeError(
            f"model: expected a Model, such as nnfx.models.gru(returns='all'), got {checks.describe(model)}"
        )
    checks.number("dropout", dropout, minimum=0, below=1)
    draw = initializers.get(initializer)

    def init(key: Array, inputs: Any) -> Variables:
        checks.key("key", key)
        of_table, of_model = jax.random.split(key)
        table = draw(of_table, (tokens, features), jnp.result_type(float))
        variables = model.init(of_model, _vectors(table, inputs))
        if NAME in variables["params"]:
            raise ValueError(f"model: expected no parameter called {NAME!r}, got one; is it already a model of tokens?")
        return {**variables, "params": {NAME: table, **variables["params"]}}

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        table, others = _split(variables)
        vectors = _vectors(table, inputs)
        if not train:
            return model.apply(others, vectors, key=key, weights=weights)
        if not (isinstance(dropout, float) and dropout == 0):
            if key is None:
                raise ValueError("key: expected a key, since dropout needs one in training, got None")
            key, of_dropout = jax.random.split(key)
            vectors = _with_values(vectors, ops.dropout(of_dropout, _values(vectors), dropout))
        return model.apply(others, vectors, key=key, weights=weights, train=True)

    def step(variables: Variables, state: Any, x: Array) -> tuple[Any, Array]:
        assert model.stream is not None
        table, others = _split(variables)
        return model.stream.step(others, state, _looked_up(table, x))

    stream = None if model.stream is None else Stream(model.stream.start, step)
    return Model(init, cast(Apply, apply), stream)


def _split(variables: Variables) -> tuple[Array, Variables]:
    """Return the embedding table, and the variables of the inner model."""
    params = dict(variables["params"])
    table = params.pop(NAME)
    return table, {**variables, "params": params}


def _values(inputs: Any) -> Array:
    return inputs.values if isinstance(inputs, Sequences) else inputs


def _with_values(inputs: Any, values: Array) -> Any:
    return inputs._replace(values=values) if isinstance(inputs, Sequences) else values


def _vectors(table: Array, inputs: Any) -> Any:
    """Return the vectors of tokens; padding, which may hold any values, gets the vector of token 0."""
    tokens = _values(inputs)
    if isinstance(tokens, list):
        tokens = jnp.asarray(tokens)
    checks.one_array("inputs", tokens, "of tokens (batch, time), or Sequences")
    if tokens.ndim != 2:
        raise ValueError(f"inputs: expected tokens (batch, time), got {checks.describe(tokens)}")
    if isinstance(inputs, Sequences) and inputs.lengths is not None:
        is_known = checks.is_concrete(inputs)  # if so, the values of the tokens can be checked
        with jax.ensure_compile_time_eval() if is_known else contextlib.nullcontext():
            tokens = jnp.where(jnp.arange(tokens.shape[1])[None] < jnp.asarray(inputs.lengths)[:, None], tokens, 0)
    return _with_values(inputs, _looked_up(table, tokens))


def _looked_up(table: Array, tokens: Array) -> Array:
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"inputs: expected tokens, which are integers, got {checks.describe(tokens)}; nnfx.data.prepare keeps them"
            " with keep_integers=True"
        )
    checks.class_labels("inputs", tokens, len(table), what="tokens")
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.int32))
    tokens = jnp.where(tokens < 0, len(table), tokens)  # negative indices would count from the end
    return jnp.asarray(table).at[tokens].get(mode="fill", fill_value=jnp.nan)
