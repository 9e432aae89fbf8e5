"""What users pass for a model, its variables and inputs: runs, weights, data, lists."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models, uncertainty
from nnfx.uncertainty import laplace
from tests.uncertainty.test_laplace import LINEAR, NEW, X, Y, batch, linear


def test_a_run_its_best_weights_data_and_lists_are_taken_or_named(key):
    data = nnfx.data.prepare(np.arange(12.0).reshape(6, 2), np.arange(6.0))
    train = nnfx.fit(models.mlp((4,), dropout=0.5), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    run = train(key, data, learning_rate=0.1)
    variables, inputs = run.best.variables, data.train.inputs
    with pytest.raises(TypeError, match="model: expected a Model, such as run.model, got a Run"):
        uncertainty.mc_dropout(key, run, variables, inputs, draws=2)
    with pytest.raises(TypeError, match="variables: expected .*such as run.best.variables, got a Best"):
        uncertainty.mc_dropout(key, run.model, run.best, inputs, draws=2)
    with pytest.raises(TypeError, match="inputs: expected prepared inputs .*such as data.valid.inputs, got a Data"):
        uncertainty.mc_dropout(key, run.model, variables, data, draws=2)
    expected = uncertainty.mc_dropout(key, run.model, variables, inputs, draws=2)
    for given in (inputs.tolist(), np.asarray(inputs)):
        np.testing.assert_array_equal(uncertainty.mc_dropout(key, run.model, variables, given, draws=2), expected)


def test_a_run_data_and_lists_are_taken_or_named(key):
    data, variables = batch(X, Y), linear([1.0, -2.0, 0.5])
    options = {"prior_precision": 1.0, "noise": 1.0, "layer": "*"}
    prepared = nnfx.data.prepare(X, Y)
    for call, message in (
        (lambda: laplace.fit(prepared, variables, data, **options), "model: expected a Model, .*got a Data"),
        (lambda: laplace.fit(LINEAR, [1.0], data, **options), "variables: expected .*got a list"),
        (lambda: laplace.fit(LINEAR, variables, prepared, **options), "data: expected a Batch, .*got a Data"),
        (lambda: laplace.predict(LINEAR, variables, data, X), "posterior: expected that of .*fit, got a Batch"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    posterior = laplace.fit(LINEAR, variables, data, **options)
    with pytest.raises(TypeError, match="inputs: expected prepared inputs .*got a Data"):
        laplace.predict(LINEAR, variables, posterior, prepared)
    with pytest.raises(TypeError, match="inputs: expected prepared inputs .*got a Data"):
        laplace.members(key, LINEAR, variables, posterior, prepared, draws=2)
    expected = laplace.predict(LINEAR, variables, posterior, jnp.asarray(NEW, jnp.float32))
    for given in (NEW, NEW.tolist()):
        found = laplace.predict(LINEAR, variables, posterior, given)
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6)
    lists = data._replace(inputs=X.tolist(), weights=[1.0] * len(X))
    found = laplace.fit(LINEAR, variables, lists, **options)
    np.testing.assert_allclose(found.curvature, posterior.curvature, rtol=1e-6)
