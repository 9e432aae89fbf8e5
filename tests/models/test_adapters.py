import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nnfx
from nnfx import models

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


class Weighing(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic, weights=None):
        assert isinstance(deterministic, bool)
        return nn.Dense(1)(x) if weights is None else weights[:, None]


def moments(variables, layer, x):
    pre = x @ np.asarray(variables["params"][layer]["kernel"])
    return 0.1 * pre.mean(0), 0.9 + 0.1 * pre.var(0)


def test_linen_predicts_what_the_module_does(key):
    module = LinenNet()
    model = models.from_linen(module)
    variables = model.init(key, X)
    np.testing.assert_array_equal(model.apply(variables, X), module.apply(variables, X, train=False))


def test_linen_returns_its_new_state_in_training_and_changes_nothing(key):
    model = models.from_linen(LinenNet())
    variables = model.init(key, X)
    _, state = model.apply(variables, X, key=key, train=True)
    mean, var = moments(variables, "Dense_0", X)
    np.testing.assert_allclose(state["batch_stats"]["BatchNorm_0"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["BatchNorm_0"]["var"], var, rtol=1e-4)
    assert (variables["batch_stats"]["BatchNorm_0"]["mean"] == 0).all()


def test_linen_modules_get_the_switches_they_name():
    model = models.from_linen(Weighing())
    variables = model.init(jax.random.key(0), X)
    outputs, _ = model.apply(variables, X, weights=jnp.arange(6.0), train=True)
    assert outputs.ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_nnx_predicts_what_the_module_does(key):
    model = models.from_nnx(lambda rngs: NnxNet(rngs=rngs))
    variables = model.init(key, X)
    module = NnxNet(rngs=nnx.Rngs(key))
    module.eval()
    np.testing.assert_allclose(model.apply(variables, X), module(X), rtol=1e-6)


def test_nnx_returns_its_new_state_in_training_and_changes_nothing(key):
    model = models.from_nnx(lambda rngs: NnxNet(rngs=rngs))
    variables = model.init(key, X)
    outputs, state = model.apply(variables, X, key=key, train=True)
    mean, var = moments(variables, "first", X)
    np.testing.assert_allclose(state["state"]["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["state"]["norm"]["var"], var, rtol=1e-4)
    assert (variables["state"]["norm"]["mean"] == 0).all()
    other, _ = model.apply(variables, X, key=jax.random.key(1), train=True)
    assert not np.allclose(outputs, other)


def test_nnx_draws_other_weights_from_another_key(key):
    model = models.from_nnx(lambda rngs: NnxNet(rngs=rngs))
    first, second = (model.init(k, X)["params"]["first"]["kernel"] for k in (key, jax.random.key(1)))
    assert not np.allclose(first, second)


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    shift: jax.Array

    def __init__(self, key, axis="batch"):
        one, two = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(3, 4, key=one), eqx.nn.Linear(4, 2, key=two)
        self.norm = eqx.nn.BatchNorm(4, axis, momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.shift = jnp.arange(2)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(x, key=key)) + self.shift, state


EQUINOX = models.from_equinox(EquinoxNet)


def equinox_itself(key, inference):
    """Return the module as Equinox makes it, mapped over a batch, and its state."""
    module, state = eqx.nn.make_with_state(EquinoxNet)(key)
    module = eqx.nn.inference_mode(module, value=inference)
    return jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="batch"), module, state


def test_equinox_predicts_what_the_module_does(key):
    mapped, _, state = equinox_itself(key, inference=True)
    expected, _ = mapped(X, state, key=jax.random.split(key, len(X)))
    np.testing.assert_allclose(EQUINOX.apply(EQUINOX.init(key, X), X), expected, rtol=1e-6)


def test_equinox_modules_may_come_with_their_state(key):
    model = models.from_equinox(eqx.nn.make_with_state(EquinoxNet))
    for ours, theirs in zip(jax.tree.leaves(model.init(key, X)), jax.tree.leaves(EQUINOX.init(key, X)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equinox_trains_as_the_module_does_with_the_same_keys(key):
    mapped, module, state = equinox_itself(key, inference=False)
    expected, after = mapped(X, state, key=jax.random.split(jax.random.key(1), len(X)))
    variables = EQUINOX.init(key, X)
    outputs, updated = EQUINOX.apply(variables, X, key=jax.random.key(1), train=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    found = updated["state"]["norm"]
    jax.tree.map(np.testing.assert_array_equal, found["batch_state_index"], after.get(module.norm.batch_state_index))
    assert (int(found["batch_counter"]), int(variables["state"]["norm"]["batch_counter"])) == (1, 0)
    other, _ = EQUINOX.apply(variables, X, key=jax.random.key(2), train=True)
    assert not np.allclose(outputs, other)


def test_equinox_s_floats_are_parameters_and_its_other_arrays_are_constants(key):
    variables = EQUINOX.init(key, X)
    assert sorted(variables) == ["constants", "params", "state"]
    assert sorted(variables["params"]) == ["first", "last", "norm"]
    assert variables["constants"]["shift"].tolist() == [0, 1]
    _, state = EQUINOX.apply(variables, X, key=key, train=True)
    assert state["constants"] == variables["constants"]


def test_an_equinox_instance_s_weights_are_the_start_of_every_key():
    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(5))
    model = models.from_equinox(lambda key: module)
    for seed in (0, 1):
        variables = model.init(jax.random.key(seed), X)
        np.testing.assert_array_equal(variables["params"]["layers"]["0"]["weight"], module.layers[0].weight)
        np.testing.assert_allclose(model.apply(variables, X), jax.vmap(module)(X), rtol=1e-6)


def test_equinox_modules_get_the_weight_of_their_example():
    class Weighed(eqx.Module):
        scale: jax.Array

        def __call__(self, x, weights, inference):
            assert isinstance(inference, bool)
            return self.scale * (x if weights is None else weights)

    model = models.from_equinox(lambda key: Weighed(jnp.ones(1)))
    outputs, _ = model.apply(model.init(jax.random.key(0), X), X, weights=jnp.arange(6.0), train=True)
    assert outputs.ravel().tolist() == [0, 1, 2, 3, 4, 5]


class PerExample(eqx.Module):
    """A layer that keeps the last example that it saw."""

    last: eqx.nn.StateIndex

    def __call__(self, x, state):
        return x, state.set(self.last, x)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2)(x)


HAIKU = models.from_haiku(haiku_net)


def test_haiku_does_what_its_own_apply_does_with_the_same_keys(key):
    theirs = hk.transform_with_state(haiku_net)
    params, state = theirs.init(key, X, is_training=True)
    variables = HAIKU.init(key, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), variables["params"], params)
    assert jax.tree.structure(variables["state"]) == jax.tree.structure(state)
    draw = jax.random.key(1)
    outputs, updated = HAIKU.apply(variables, X, key=draw, train=True)
    expected, after = theirs.apply(params, state, draw, X, is_training=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated["state"], after)
    predicted = HAIKU.apply({"params": variables["params"], **updated}, X)
    np.testing.assert_allclose(predicted, theirs.apply(params, after, None, X, is_training=False)[0], rtol=1e-5)


def test_haiku_without_state_has_none(key):
    model = models.from_haiku(lambda x: hk.nets.MLP([4, 1])(x))
    variables = model.init(key, X)
    assert list(variables) == ["params"]
    assert model.apply(variables, X, train=True)[1] == {}


@pytest.mark.parametrize("model", [EQUINOX, HAIKU], ids=["equinox", "haiku"])
def test_rows_without_weight_change_nothing_in_training(model, key):
    data = nnfx.Batch(jnp.asarray(X), jnp.zeros((6, 2)), jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0]))
    spoiled = data._replace(inputs=data.inputs.at[jnp.array([2, 5])].set(jnp.nan))
    state = nnfx.init_state(key, model, optax.sgd(0.1), X)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.mean_square_error, optax.sgd(0.1)))
    first, second = (step(state, batch)[0].variables for batch in (data, spoiled))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("model", [EQUINOX, HAIKU], ids=["equinox", "haiku"])
def test_a_run_trains_them(model, key):
    data = nnfx.data.prepare(X, X[:, :2] - X[:, 1:])
    train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=3, batch_size=3)
    run = train(key, data, learning_rate=0.05)
    assert run.history["train_loss"][-1] < run.history["train_loss"][0]
    assert run.predict(X).shape == (6, 2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: models.from_equinox(eqx.nn.Identity()), TypeError, r"build: .*an instance of Identity; .*lambda key"),
        (lambda: models.from_equinox(7), TypeError, "build: expected a function of a key.*got 7"),
        (
            lambda: models.from_equinox(lambda key: 7),
            TypeError,
            "build: .*module, got a function that returns int",
        ),
        (
            lambda: models.from_equinox(lambda key: EquinoxNet(key, "rows")),
            ValueError,
            "axis_name: expected 'rows', as in eqx.nn.BatchNorm, got 'batch'",
        ),
        (
            lambda: models.from_equinox(lambda key: eqx.nn.Dropout(jnp.array(0.5))),
            ValueError,
            r"p: expected a Python number as the rate of eqx.nn.Dropout.*nnfx.ops.dropout",
        ),
        (
            lambda: EXAMPLE.apply(EXAMPLE.init(jax.random.key(0), X), X, train=True),
            ValueError,
            r"build: expected a module with the same state for all examples.*pmean\(value, 'batch'\)",
        ),
        (lambda: models.from_haiku(hk.transform(haiku_net)), TypeError, "function: .*before hk.transform, got"),
        (lambda: models.from_haiku(hk.Linear), TypeError, "function: expected a function that creates its modules"),
    ],
)
def test_what_is_no_module_of_equinox_or_haiku(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


EXAMPLE = models.from_equinox(lambda key: PerExample(eqx.nn.StateIndex(jnp.zeros(3))))


@pytest.mark.parametrize(("package", "adapt"), [("equinox", models.from_equinox), ("haiku", models.from_haiku)])
def test_a_package_that_is_missing_is_named_with_its_extra(package, adapt, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}: required.*nnfx\[{package}\]"):
        adapt(lambda key: None)


def class_of(package):
    """Return a stand-in for a class that this package defines."""
    return type("Net", (type("Base", (), {"__module__": f"{package}.some.module"}),), {"__call__": lambda self, x: x})


@pytest.mark.parametrize(
    ("foreign", "hint"),
    [
        (nn.Dense(1), "from_linen"),
        (nn.Dense, "from_linen"),
        (nnx.Linear(2, 1, rngs=nnx.Rngs(0)), "from_nnx"),
        (eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), "from_equinox"),
        (eqx.nn.MLP, "from_equinox"),
        (hk.transform(haiku_net), "from_haiku"),
        (class_of("torch")(), "conversion.from_torch"),
        (class_of("keras"), "conversion.from_keras"),
    ],
)
def test_the_adapter_is_named_where_a_foreign_module_is_passed(foreign, hint):
    mse = nnfx.losses.mean_square_error
    for call in (
        lambda: nnfx.fit(foreign, mse, optax.sgd, epochs=1),
        lambda: nnfx.make_step(foreign, mse, optax.sgd(0.1)),
    ):
        with pytest.raises(TypeError, match=rf"model: expected .*; .*nnfx\.models\.{hint}"):
            call()


def test_the_adapter_is_named_where_a_factory_returns_a_foreign_module():
    data = nnfx.data.prepare(X, X[:, :2])
    train = nnfx.fit(lambda: eqx.nn.Identity(), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    with pytest.raises(TypeError, match=r"return a Model.*from_equinox"):
        train(jax.random.key(0), data, learning_rate=0.1)
