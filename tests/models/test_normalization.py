import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (33, 4)), jnp.float32)


class Net(nn.Module):
    """A batch norm and nothing else: ours, or that of Flax."""

    ours: bool

    @nn.compact
    def __call__(self, x, *, weights=None, train=False):
        if self.ours:
            return models.BatchNorm(momentum=0.8, name="norm")(x, weights=weights, train=train)
        return nn.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(x)


OURS, FLAX = models.from_linen(Net(ours=True)), models.from_linen(Net(ours=False))


def test_in_training_and_behind_it_the_numbers_are_those_of_flax(key):
    ours, flax = OURS.init(key, X), FLAX.init(key, X)
    assert jax.tree.map(jnp.shape, ours["params"]) == jax.tree.map(jnp.shape, flax["params"])
    outputs, state = OURS.apply(ours, X, train=True)
    expected, expected_state = FLAX.apply(flax, X, train=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    statistics = {name: state["batch_stats"]["norm"][name] for name in ("mean", "var")}
    outputs = OURS.apply(ours | state, X)
    expected = FLAX.apply(flax | {"batch_stats": {"norm": statistics}}, X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    # Flax's statistics decay slowly from their initial zeros; ours are those of the examples from the first batch on.
    np.testing.assert_allclose(statistics["mean"], np.mean(X, 0), rtol=1e-5)
    np.testing.assert_allclose(expected_state["batch_stats"]["norm"]["mean"], 0.2 * np.mean(X, 0), rtol=1e-5)


def test_padding_changes_neither_the_outputs_nor_the_state(key):
    variables = OURS.init(key, X)
    padded = jnp.concatenate([X, jnp.full((7, 4), 1e6)])
    weights = jnp.concatenate([jnp.ones(33), jnp.zeros(7)])
    outputs, state = OURS.apply(variables, X, train=True)
    of_padded, state_of_padded = OURS.apply(variables, padded, weights=weights, train=True)
    np.testing.assert_allclose(of_padded[:33], outputs, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state_of_padded, state)


def test_a_batch_of_one_value_a_channel_cannot_be_normalised_by():
    model = models.mlp((4,), batch_norm=True)
    variables = model.init(jax.random.key(0), X)
    assert np.isfinite(model.apply(variables, X[:1])).all()
    with pytest.raises(ValueError, match="inputs: expected more than one value per channel"):
        model.apply(variables, X[:1], train=True)
