"""Contracts that every model of the library fulfils."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nnfx import activations, checkpoint, models
from nnfx.forecasting import baselines


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(nn.tanh(nn.Dense(4)(x))))


class NnxBatchNorm(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(nnx.tanh(self.first(x)))))


class EquinoxBatchNorm(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 1, key=keys[1])
        self.norm, self.dropout = eqx.nn.BatchNorm(4, "batch", mode="batch"), eqx.nn.Dropout(0.2)

    def __call__(self, x, state, key):
        x, state = self.norm(jnp.tanh(self.first(x)), state)
        return self.last(self.dropout(x, key=key)), state


def haiku_batch_norm(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(jnp.tanh(hk.Linear(4)(x)), is_training)
    return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x)


MODELS = {
    "perceptron": models.perceptron(),
    "multi-output perceptron": models.perceptron(outputs=3, activation="sigmoid"),
    "single hidden layer": models.mlp(hidden=(8,), activation="tanh"),
    "no hidden layer": models.mlp(hidden=()),
    "deep": models.mlp(hidden=(8, 8, 8), outputs=2, initializer="he_normal"),
    "dropout": models.mlp(hidden=(16,), dropout=0.5, initializer="orthogonal"),
    "maxout": models.mlp(hidden=(6,), activation=functools.partial(activations.maxout, pieces=3)),
    "batch norm": models.mlp(hidden=(6,), batch_norm=True),
    "pruned": models.masked(models.mlp(hidden=(6,)), functools.partial(models.magnitude_masks, keep=0.5)),
    "cnn": models.cnn([models.conv(4), models.max_pool(), models.conv(3, strides=2)], outputs=2, hidden=(6,)),
    "cnn of sequences": models.cnn([models.conv(4, 2, dilation=2), models.avg_pool(2, 1)], activation="tanh"),
    "cnn of rows": models.reshaped(models.cnn([models.conv(2)], outputs=2), (-1, 2, 1)),
    "residual network": models.resnet(8, width=2, outputs=3),
    "rnn": models.rnn(outputs=2, hidden=(4,), activation="relu"),
    "lstm": models.lstm(hidden=(4,), returns="all"),
    "gru": models.gru(hidden=(4,)),
    "transformer": models.transformer(outputs=2, width=8, heads=2, context=3, dropout=0.1, returns="all"),
    "lstm of tokens": models.embedding(5, 3, models.lstm(5, hidden=(4,), returns="all"), dropout=0.2),
    "gru of tokens": models.embedding(5, 3, models.gru(5, hidden=(4,), returns="all")),
    "transformer of tokens": models.embedding(5, 4, models.transformer(5, 4, 1, 2, returns="all")),
    "convolutions of a time series": models.time_series_fcn(3, features=(4, 5, 4)),
    "residual network of a time series": models.time_series_resnet(3, features=(3, 4, 4)),
    "linear forecaster": baselines.linear(3),
    "forecaster about the last value": baselines.nlinear(3, individual=True),
    "forecaster of trend and season": baselines.dlinear(3, kernel=5),
    "linen": models.from_linen(LinenBatchNorm()),
    "nnx": models.from_nnx(lambda rngs: NnxBatchNorm(rngs=rngs)),
    "equinox": models.from_equinox(EquinoxBatchNorm),
    "haiku": models.from_haiku(haiku_batch_norm),
}
FOREIGN = {"linen", "nnx", "equinox", "haiku"}
TIME_SERIES = {"convolutions of a time series", "residual network of a time series"}
STATEFUL = {"batch norm", "residual network", *TIME_SERIES, *FOREIGN}
TOKENS = {"lstm of tokens", "gru of tokens", "transformer of tokens"}
SHAPES = {
    "cnn": (6, 6, 2),
    "cnn of sequences": (7, 2),
    "cnn of rows": (6,),
    "residual network": (8, 8, 2),
    "rnn": (7, 2),
    "lstm": (7, 2),
    "gru": (7, 2),
    "transformer": (7, 2),
    **dict.fromkeys(TIME_SERIES, (7, 2)),
    **dict.fromkeys(TOKENS, (7,)),
    "linear forecaster": (7, 2),
    "forecaster about the last value": (7, 2),
    "forecaster of trend and season": (7, 2),
}


KEY = jax.random.key(0)


def inputs_of(name):
    rng, shape = np.random.default_rng(0), (5, *SHAPES.get(name, (3,)))
    return jnp.asarray(rng.integers(0, 5, shape) if name in TOKENS else rng.normal(size=shape).astype(np.float32))


def floats_as(dtype, tree):
    """Return a tree whose floats are of this dtype; tokens stay integers."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


# These take longest, have tests of their own, and resemble cheaper ones.
COSTLY = {
    *("residual network", "gru", "cnn of sequences", "single hidden layer"),
    *("gru of tokens", "lstm of tokens", "transformer", *TIME_SERIES),
}


def all_but(costly, names=MODELS):
    """Return the names of models, with the costly ones marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in costly else name for name in names]


@pytest.fixture(params=all_but(COSTLY))
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return MODELS[name]


@pytest.fixture
def inputs(name):
    return inputs_of(name)


@pytest.fixture
def variables(name):
    return variables_of(name)


@functools.cache
def variables_of(name):
    init, _, _ = compiled(MODELS[name])
    return init(KEY, inputs_of(name))


def train(model, variables, key, inputs):
    return model.apply(variables, inputs, key=key, weights=jnp.ones(len(inputs)), train=True)


@functools.cache
def compiled(model):
    """A model's init, its apply and its apply in training, each compiled once for all tests."""
    return jax.jit(model.init), jax.jit(model.apply), jax.jit(functools.partial(train, model))


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_same_key_same_bits_and_another_key_other_weights(model, variables, inputs):
    init, _, trained = compiled(model)
    assert same(init(KEY, inputs), init(KEY, inputs))
    assert not same(init(KEY, inputs)["params"], init(jax.random.key(1), inputs)["params"])
    assert same(trained(variables, KEY, inputs), trained(variables, KEY, inputs))


def test_only_the_shape_of_the_inputs_matters_to_init(model, variables, inputs):
    assert same(variables, model.init(KEY, 0 * inputs[:1]))


@pytest.mark.parametrize("name", all_but(COSTLY))
def test_jit_equals_eager(model, variables, inputs):
    _, predict, trained = compiled(model)
    close(predict(variables, inputs), model.apply(variables, inputs), rtol=1e-5, atol=1e-6)
    close(trained(variables, KEY, inputs), train(model, variables, KEY, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", all_but(MODELS.keys() - {"perceptron", "cnn of sequences", "linear forecaster"}))
def test_jit_equals_eager_in_init(model, variables, inputs):
    with jax.disable_jit():
        eager = model.init(KEY, inputs)
    close(variables, eager, rtol=1e-5, atol=1e-6)


def test_vmap_over_weights_equals_a_loop(model, inputs):
    init, predict, trained = compiled(model)

    @jax.jit
    @jax.vmap
    def mapped(key):
        variables = init(key, inputs)
        return variables, predict(variables, inputs), trained(variables, key, inputs)

    keys = jax.random.split(jax.random.key(3), 4)
    stacked, outputs, after_training = jax.device_get(mapped(keys))
    for i, key in enumerate(keys):
        single = init(key, inputs)
        close(jax.tree.map(lambda a, i=i: a[i], stacked), single, rtol=1e-5, atol=1e-6)
        close(outputs[i], predict(single, inputs), rtol=1e-5, atol=1e-5)
        close(jax.tree.map(lambda a, i=i: a[i], after_training), trained(single, key, inputs), rtol=1e-4, atol=1e-5)


def test_vmap_over_examples_equals_the_batch(model, variables, inputs):
    _, predict, _ = compiled(model)
    one_by_one = jax.jit(jax.vmap(lambda x: predict(variables, x[None])[0]))(inputs)
    close(one_by_one, predict(variables, inputs), rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_and_reach_every_parameter(model, variables, inputs):
    def total(params):
        return ((train(model, {**variables, "params": params}, KEY, inputs)[0] - 1) ** 2).sum()

    for leaf in map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(total))(variables["params"]))):
        assert np.isfinite(leaf).all()
        assert (leaf != 0).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
# layers of other libraries promote by default, and count in integers
@pytest.mark.parametrize("name", all_but(COSTLY, sorted(MODELS.keys() - FOREIGN)))
def test_the_dtype_is_kept(model, variables, dtype, inputs):
    with jax.numpy_dtype_promotion("strict"):
        variables, inputs = floats_as(dtype, (variables, inputs))
        outputs, state = jax.eval_shape(functools.partial(train, model), variables, KEY, inputs)
        assert outputs.dtype == jax.eval_shape(model.apply, variables, inputs).dtype == dtype
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state) if leaf.dtype != bool)  # such as masks


def test_one_trace_serves_every_call(model, variables, inputs):
    traces = []

    @jax.jit
    def predict(variables, inputs):
        traces.append(1)
        return model.apply(variables, inputs)

    for scale in (1.0, 2.0, 3.0):
        scaled = jax.tree.map(lambda a, s=scale: np.asarray(s * np.asarray(a), a.dtype), (variables, inputs))
        predict(variables=scaled[0], inputs=scaled[1])
    assert len(traces) == 1


def test_shapes_without_computing(model, variables, inputs):
    abstract = jax.eval_shape(model.init, KEY, inputs)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    _, predict, _ = compiled(model)
    assert jax.eval_shape(model.apply, variables, inputs).shape == predict(variables, inputs).shape


def test_state_comes_back_in_training_and_nothing_is_changed_in_place(model, name, variables, inputs):
    before = jax.tree.map(np.array, variables)
    _, predict, trained = compiled(model)
    outputs, state = trained(variables, KEY, inputs)
    assert outputs.shape == predict(variables, inputs).shape
    assert same(before, variables)
    expected = {k: v for k, v in variables.items() if k != "params"}
    assert jax.tree.structure(dict(state)) == jax.tree.structure(expected)
    assert (name in STATEFUL) == (not same(state, expected) if expected else False)


def test_variables_come_back_from_a_checkpoint(model, variables, inputs, tmp_path):
    checkpoint.save(tmp_path / "one", variables)
    loaded = checkpoint.load(tmp_path / "one", jax.eval_shape(model.init, KEY, inputs))
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    assert same(loaded, variables)


def test_an_exported_model_predicts_the_same(model, variables, inputs):
    _, predict, _ = compiled(model)
    exported = jax.export.export(predict)(variables, inputs)
    loaded = jax.export.deserialize(exported.serialize())
    close(loaded.call(variables, inputs), predict(variables, inputs), rtol=1e-5, atol=1e-6)
