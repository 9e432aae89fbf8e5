"""Batches whose arrays do not fit together, or hold values that a loss or a metric cannot take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics

import nnfx
from nnfx.training import batch_checks
from nnfx.types import Batch

OUTPUTS = jax.ShapeDtypeStruct((3, 1), np.float32)
SQUARES = {"loss": nnfx.losses.mean_square_error}


def batch(inputs=((1.0,), (2.0,), (3.0,)), targets=(1.0, 2.0, 3.0), weights=(1.0, 1.0, 1.0)):
    return Batch(*(jnp.asarray(array) for array in (inputs, targets, weights)))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (batch(weights=1.0), ValueError, r"x.weights: expected floats \(rows,\), .*got 1.0"),
        (batch(weights=()), ValueError, r"x.weights: expected floats \(rows,\), at least one"),
        (batch(weights=(1, 1, 1)), ValueError, r"x.weights: expected floats .*got int32\[3\]"),
        (batch(targets=(1.0, 2.0)), ValueError, r"x: expected 3 rows, as many as weights, got float32\[2\]"),
        (batch(inputs=((1.0,),)), ValueError, r"x: expected 3 rows, as many as weights, got float32\[1,1\]"),
        (batch(inputs=((1j,), (2j,), (3j,))), TypeError, r"x.inputs: expected .*got complex64\[3,1\]"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(given, error, message):
    with pytest.raises(error, match=message):
        batch_checks.check_batch("x", given)
    batch_checks.check_batch("x", batch())


def test_what_users_hold_becomes_arrays():
    found = batch_checks.as_arrays("x", Batch([[1.0], [2.0]], np.array([1, 2]), [1, 0]))
    assert all(isinstance(array, jax.Array) for array in found)
    assert jnp.issubdtype(found.weights.dtype, jnp.floating)
    assert found.inputs.tolist() == [[1.0], [2.0]]
    assert batch_checks.inputs_as_arrays("x", [1.0, 2.0]).tolist() == [1.0, 2.0]
    tree = batch_checks.inputs_as_arrays("x", {"a": np.ones(2), "b": np.zeros(2)})
    assert {name: array.tolist() for name, array in tree.items()} == {"a": [1.0, 1.0], "b": [0.0, 0.0]}
    with pytest.raises(TypeError, match="x: expected a Batch, such as data.valid, got tuple"):
        batch_checks.as_arrays("x", ([[1.0]], [1.0], [1.0]))
    with pytest.raises(TypeError, match="x.targets: "):
        batch_checks.as_arrays("x", Batch([[1.0]], ["a"], [1.0]))
    with pytest.raises(ValueError, match="x.inputs: "):
        batch_checks.as_arrays("x", Batch(np.array([[1e300]]), [1.0], [1.0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (batch(weights=(1.0, -2.0, 1.0)), "data.weights: expected non-negative numbers, got -2"),
        (batch(weights=(1.0, np.inf, 1.0)), "data.weights: "),
        (batch(inputs=((1.0,), (np.nan,), (3.0,))), "data.inputs: "),
        (batch(targets=(1.0, np.nan, 3.0)), "targets: "),
    ],
)
def test_values_that_cannot_be_evaluated_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        batch_checks.check_evaluation(given, SQUARES, OUTPUTS)


def test_rows_of_weight_zero_may_hold_anything():
    hidden = batch(((1.0,), (np.nan,), (3.0,)), (1.0, np.inf, 3.0), (1.0, 0.0, 1.0))
    batch_checks.check_evaluation(hidden, SQUARES, OUTPUTS)
    nothing = batch(((np.nan,),) * 3, (np.nan,) * 3, (0.0,) * 3)
    batch_checks.check_evaluation(nothing, SQUARES, OUTPUTS)


@pytest.mark.parametrize("outputs", [jax.ShapeDtypeStruct((2, 1), np.float32), (OUTPUTS, OUTPUTS)])
def test_a_model_has_one_output_per_example(outputs):
    with pytest.raises(ValueError, match=r"model: expected one output per example, \(3, ...\), got "):
        batch_checks.check_outputs(outputs, 3)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_several_labels_per_row_do_not_suit_metrics_of_classes(key, metric):
    labels = (np.arange(30)[:, None] % np.array([2, 3, 5]) == 0).astype(int)
    data = nnfx.data.prepare(np.random.default_rng(0).normal(size=(30, 3)), labels, key=key, valid_fraction=0.3)
    model = nnfx.models.perceptron(outputs=3)
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, metrics=[metric])
    with pytest.raises(ValueError, match="labels: .*for several labels per row use binary_accuracy"):
        train(key, data, learning_rate=0.1)


@pytest.mark.parametrize("metric", ["perplexity", "f1", pytest.param("balanced_accuracy", marks=pytest.mark.slow)])
def test_labels_of_steps_count_with_the_weights_of_their_rows(key, metric):
    rng = np.random.default_rng(0)
    tokens, weights = jnp.asarray(rng.integers(0, 5, (6, 4))), jnp.asarray([1.0, 2.0, 1.0, 0.0, 1.0, 1.0])
    if metric != "perplexity":
        weights = (weights > 0).astype(float)
    batch = nnfx.types.Batch(tokens, (tokens * 2) % 5, weights)
    model = nnfx.models.embedding(5, 3, nnfx.models.rnn(5, (4,), returns="all"))
    variables = model.init(key, tokens)
    measures = {metric: getattr(nnfx.metrics, metric)}
    found = nnfx.evaluate(model, measures, variables, batch)[metric].value
    logits = np.asarray(jax.jit(model.apply)(variables, tokens), np.float64)[np.asarray(weights) > 0].reshape(-1, 5)
    labels = np.asarray(batch.targets)[np.asarray(weights) > 0].reshape(-1)
    if metric == "perplexity":
        each = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        expected = np.exp(np.average(each, weights=np.repeat(weights[weights > 0], 4)))
    else:
        predicted = logits.argmax(1)
        expected = {
            "f1": lambda: sklearn.metrics.f1_score(labels, predicted, average="macro"),
            "balanced_accuracy": lambda: sklearn.metrics.balanced_accuracy_score(labels, predicted),
        }[metric]()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    train = nnfx.fit(model, nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=1, metrics=[metric])
    data = nnfx.data.Data(batch, batch, nnfx.data.prepare(np.ones((4, 1)), np.ones(4), standardize=False).preprocess)
    assert np.isfinite(train(key, data, learning_rate=0.1).history[f"valid_{metric}"]).all()
