import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import models, uncertainty

INPUTS = jnp.linspace(-1, 1, 12).reshape(4, 3)


def made(dropout=0.3, **options):
    model = models.mlp((50,), 2, activation="tanh", dropout=dropout, **options)
    return model, model.init(jax.random.key(1), INPUTS)


def test_the_moments_of_the_draws_are_those_of_the_masks(key):
    """With one hidden layer, outputs are sums over units, each kept with probability 1 − p and scaled by 1/(1 − p)."""
    model, variables = made()
    outputs = np.asarray(uncertainty.mc_dropout(key, model, variables, INPUTS, draws=4000), np.float64)
    of = {name: jax.tree.map(np.float64, layer) for name, layer in variables["params"].items()}
    hidden = np.tanh(np.float64(INPUTS) @ of["hidden_0"]["kernel"] + of["hidden_0"]["bias"])
    variance = 0.3 / 0.7 * hidden**2 @ of["output"]["kernel"] ** 2
    mean = hidden @ of["output"]["kernel"] + of["output"]["bias"]
    assert outputs.shape == (4000, 4, 2)
    assert (np.abs(outputs.mean(0) - mean) < 4.5 * np.sqrt(variance / 4000)).all()
    np.testing.assert_allclose(outputs.var(0), variance, rtol=4.5 * np.sqrt(2 / 4000))


def test_draws_are_a_function_of_the_key_and_their_number(key):
    model, variables = made()
    few, more = (uncertainty.mc_dropout(key, model, variables, INPUTS, draws=count) for count in (2, 3))
    np.testing.assert_array_equal(few, more[:2])
    assert not np.array_equal(more[0], more[1])
    np.testing.assert_allclose(
        more[1], model.apply(variables, INPUTS, key=jax.random.fold_in(key, 1), train=True)[0], rtol=1e-5
    )
    other = uncertainty.mc_dropout(jax.random.key(7), model, variables, INPUTS, draws=2)
    assert not np.array_equal(few, other)


def test_all_draws_are_one_program_that_is_kept(key, compilations):
    (model, variables), other_key, other_inputs = made(), jax.random.key(2), 2 * INPUTS
    uncertainty.mc_dropout(key, model, variables, INPUTS, draws=5)
    before = compilations()
    uncertainty.mc_dropout(other_key, model, variables, other_inputs, draws=5)
    assert compilations() == before


def test_a_pruned_model_predicts_like_the_model_with_its_pruned_weights(key):
    model, variables = made()
    pruned = models.masked(model, functools.partial(models.magnitude_masks, keep=0.5))
    of_pruned = pruned.init(jax.random.key(1), INPUTS)
    kernels = [np.abs(leaf).ravel() for leaf in jax.tree.leaves(variables) if leaf.ndim > 1]
    middle = np.median(np.concatenate(kernels))
    kept = jax.tree.map(lambda leaf: jnp.where((leaf.ndim < 2) | (jnp.abs(leaf) > middle), leaf, 0), variables)
    np.testing.assert_allclose(
        uncertainty.mc_dropout(key, pruned, of_pruned, INPUTS, draws=3),
        uncertainty.mc_dropout(key, model, kept, INPUTS, draws=3),
        rtol=1e-5,
    )


def test_without_dropout_all_draws_are_the_prediction(key):
    model, variables = made(dropout=0.0)
    outputs = uncertainty.mc_dropout(key, model, variables, INPUTS, draws=2)
    np.testing.assert_allclose(outputs, np.stack([model.apply(variables, INPUTS)] * 2), rtol=1e-5)


def test_dropout_of_flax(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.Dense(20)(x)))

    model = models.from_linen(Net())
    outputs = uncertainty.mc_dropout(key, model, model.init(key, INPUTS), INPUTS, draws=3)
    assert (outputs.std(0) > 0).all()


def test_wrong_input_is_named(key):
    model, variables = made()
    with pytest.raises(TypeError, match="key: expected a typed key"):
        uncertainty.mc_dropout(0, model, variables, INPUTS, draws=2)
    with pytest.raises(ValueError, match="draws: expected a positive integer, got 0"):
        uncertainty.mc_dropout(key, model, variables, INPUTS, draws=0)
    model, variables = made(batch_norm=True)
    with pytest.raises(ValueError, match="variables: expected only parameters, got also batch_stats"):
        uncertainty.mc_dropout(key, model, variables, INPUTS, draws=2)
