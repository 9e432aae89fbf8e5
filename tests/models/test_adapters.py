import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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
