"""Targets that are missing weigh nothing, and each one that is present counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

import nnfx
from nnfx.data.folds import Folds

RNG = np.random.default_rng(0)
ROWS, FEATURES, OUTPUTS = 40, 3, 4
X = RNG.normal(size=(ROWS, FEATURES))
IS_KNOWN = RNG.random((ROWS, OUTPUTS)) < 0.6
IS_KNOWN[0] = False  # a row without any target
REAL = X @ RNG.normal(size=(FEATURES, OUTPUTS)) + RNG.normal(size=(ROWS, OUTPUTS))
BINARY = (REAL > 0).astype(float)
WEIGHTS = RNG.uniform(0.5, 2, ROWS)
LOSSES = {
    "mean_square_error": (REAL, lambda z, y: (z - y) ** 2),
    "mean_absolute_error": (REAL, lambda z, y: np.abs(z - y)),
    "huber": (REAL, lambda z, y: np.where(np.abs(z - y) <= 1, (z - y) ** 2 / 2, np.abs(z - y) - 0.5)),
    "binary_cross_entropy": (BINARY, lambda z, y: np.logaddexp(0, z) - y * z),
}


def masked(targets, is_known=IS_KNOWN):
    return np.where(is_known, targets, np.nan)


def prepared(targets, **options):
    return nnfx.data.prepare(X, targets, missing_targets="mask", **{"standardize": False, **options})


def own_mean(outputs, targets):
    return ((outputs - targets) ** 2).mean(-1)


@pytest.mark.parametrize("name", LOSSES)
def test_each_present_target_counts_once(name):
    targets, by_number = LOSSES[name]
    data = prepared(masked(targets), weights=WEIGHTS)
    assert data.train.weights.shape == (ROWS, OUTPUTS)
    outputs = RNG.normal(size=(ROWS, OUTPUTS))
    model = nnfx.Model(lambda key, x: {"params": jnp.zeros((*x.shape[:1], OUTPUTS))}, _as_given)
    loss = getattr(nnfx.losses, name)
    step = nnfx.make_step(model, loss, optax.sgd(1.0))
    state = nnfx.init_state(jax.random.key(0), model, optax.sgd(1.0), data.train.inputs)
    state = state._replace(params=jnp.asarray(outputs, jnp.float32))
    after, measured = jax.jit(step)(state, data.train)

    weights = WEIGHTS[:, None] * IS_KNOWN
    mean = np.average(by_number(outputs, targets), weights=weights)
    np.testing.assert_allclose(measured["loss"].value, mean, rtol=1e-6)
    gradient = np.asarray(state.params - after.params)
    assert (gradient[~IS_KNOWN] == 0).all()
    h = 1e-6
    slope = (by_number(outputs + h, targets) - by_number(outputs - h, targets)) / (2 * h)
    np.testing.assert_allclose(gradient, slope * weights / weights.sum(), rtol=1e-3, atol=1e-6)
    evaluated = nnfx.training.step.evaluate(model, {"loss": loss}, state.variables, data.train)["loss"].value
    np.testing.assert_allclose(evaluated, mean, rtol=1e-6)


def _as_given(variables, inputs, *, key=None, weights=None, train=False):
    """Return the parameters as outputs."""
    outputs = variables["params"]
    return (outputs, {}) if train else outputs


@pytest.mark.parametrize("batch_size", [None, 16])
def test_linear_regression_with_missing_targets_is_one_regression_for_each_output(batch_size):
    """Outputs share no weights, so each is least squares on the rows where its target is present."""
    data = prepared(masked(REAL))
    train = nnfx.fit(
        nnfx.models.perceptron(OUTPUTS),
        nnfx.losses.mean_square_error,
        optax.sgd if batch_size is None else optax.adam,
        epochs=600,
        batch_size=batch_size,
    )
    run = train(jax.random.key(0), data, learning_rate=1.0 if batch_size is None else 0.01)
    columns = np.c_[X, np.ones(ROWS)]
    for j, known in enumerate(IS_KNOWN.T):
        expected = columns @ np.linalg.lstsq(columns[known], REAL[known, j])[0]
        np.testing.assert_allclose(run.predict(X)[:, j], expected, atol=1e-3 if batch_size is None else 0.3)


def test_what_a_missing_target_held_changes_nothing():
    hidden = REAL.copy()
    hidden[~IS_KNOWN] = 1e6
    train = nnfx.fit(nnfx.models.mlp((4,), OUTPUTS), own_mean, optax.adam, epochs=3, batch_size=8)
    runs = [
        train(jax.random.key(0), prepared(np.ma.masked_array(values, ~IS_KNOWN)), learning_rate=0.01)
        for values in (REAL, hidden)
    ]
    np.testing.assert_array_equal(*(run.predict(X) for run in runs))


def test_without_a_missing_target_nothing_changes():
    masked_, plain = prepared(REAL), nnfx.data.prepare(X, REAL, standardize=False)
    jax.tree.map(np.testing.assert_array_equal, masked_, plain)
    assert masked_.train.weights.shape == (ROWS,)


def test_rows_that_lack_all_their_targets_have_no_weight():
    is_known = np.broadcast_to(IS_KNOWN[:, :1], REAL.shape)
    data = prepared(masked(REAL, is_known), weights=WEIGHTS)
    np.testing.assert_allclose(data.train.weights, WEIGHTS * is_known[:, 0], rtol=1e-6)
    labels = pd.Series(np.where(IS_KNOWN[:, 1], RNG.integers(0, 3, ROWS), np.nan)).astype("Int64")
    data = prepared(labels)
    assert data.train.targets.dtype == np.int32
    np.testing.assert_array_equal(data.train.weights, IS_KNOWN[:, 1])
    cross_entropy = nnfx.losses.categorical_cross_entropy
    run = nnfx.fit(nnfx.models.perceptron(3), cross_entropy, optax.sgd, epochs=2)(
        jax.random.key(0), data, learning_rate=0.1
    )
    assert np.isfinite(run.final["train_loss"])


def test_targets_are_standardised_by_those_present():
    data = prepared(masked(REAL), standardize_targets=True, key=jax.random.key(0), valid_fraction=0.25)
    known = np.asarray(data.train.weights) > 0
    for j, is_known in enumerate(known.T):
        column = np.asarray(data.train.targets)[is_known, j]
        np.testing.assert_allclose([column.mean(), column.std()], [0, 1], atol=1e-5)
    train = nnfx.fit(nnfx.models.perceptron(OUTPUTS), nnfx.losses.mean_square_error, optax.adam, epochs=2)
    assert train(jax.random.key(0), data, learning_rate=0.01).predict(X).shape == REAL.shape


def test_metrics_of_all_rows_are_means_over_outputs():
    """Each output is measured on the rows where its target is present, as by scikit-learn."""
    data = prepared(masked(BINARY))
    metrics = ["roc_auc", "r2", "binary_accuracy"]
    loss = nnfx.losses.binary_cross_entropy
    train = nnfx.fit(nnfx.models.perceptron(OUTPUTS), loss, optax.adam, epochs=2, metrics=metrics)
    run = train(jax.random.key(0), data, learning_rate=0.01)
    found, outputs = run.evaluate(data.train), np.asarray(run.predict(X), np.float64)
    columns = [(BINARY[known, j], outputs[known, j]) for j, known in enumerate(IS_KNOWN.T)]
    np.testing.assert_allclose(found["roc_auc"], np.mean([roc_auc_score(*each) for each in columns]), rtol=1e-5)
    np.testing.assert_allclose(found["r2"], np.mean([r2_score(*each) for each in columns]), rtol=1e-4)
    right = (outputs > 0) == (BINARY > 0)
    np.testing.assert_allclose(found["binary_accuracy"], right[IS_KNOWN].mean(), rtol=1e-5)


def test_folds_standardise_with_the_present_targets_of_their_own_rows():
    data = prepared(masked(REAL), standardize_targets=True)
    of_row = np.arange(ROWS) % 4
    folds = Folds.of(data.train, data.preprocess, jnp.asarray(of_row), 4)
    for fold in range(4):
        own = masked(REAL)[of_row != fold]
        np.testing.assert_allclose(folds.preprocess.target_mean[fold, 0], np.nanmean(own, 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(folds.preprocess.target_scale[fold, 0], np.nanstd(own, 0), rtol=1e-4)
    train = nnfx.fit(nnfx.models.perceptron(OUTPUTS), nnfx.losses.mean_square_error, optax.adam, epochs=2)
    swept = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), folds=4, learning_rate=[0.01, 0.1])
    assert np.isfinite(swept.histories["valid_loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"compute_dtype": jnp.bfloat16}])
def test_steps_of_other_kinds_see_the_same_targets(options):
    data = prepared(masked(REAL))
    model, loss = nnfx.models.mlp((4,), OUTPUTS), nnfx.losses.mean_square_error
    state = nnfx.init_state(jax.random.key(0), model, optax.sgd(0.1), data.train.inputs)
    plain, other = (
        jax.jit(nnfx.make_step(model, loss, optax.sgd(0.1), **each))(state, data.train)[0].params
        for each in ({}, options)
    )
    rtol = 1e-5 if "micro_batches" in options else 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), plain, other)


def test_batch_norm_sees_rows_not_targets():
    """An image as high as there are outputs: weights of targets are not weights of pixels."""
    images = RNG.normal(size=(ROWS, OUTPUTS, 5, 1))
    data = nnfx.data.prepare(images, masked(REAL), missing_targets="mask", standardize=False)
    model = nnfx.models.cnn([nnfx.models.conv(2, 3)], OUTPUTS, batch_norm=True)
    state = nnfx.init_state(jax.random.key(0), model, optax.sgd(0.0), data.train.inputs)
    step = jax.jit(nnfx.make_step(model, nnfx.losses.mean_square_error, optax.sgd(0.0)))
    of_rows = data.train._replace(weights=jnp.asarray(IS_KNOWN.any(1), jnp.float32))
    states = [step(state, batch)[0].model_state for batch in (data.train, of_rows)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states)


def test_a_mixture_with_an_absent_target_is_absent():
    batch = prepared(masked(REAL)).train
    mixed = nnfx.augment.mixup(jax.random.key(0), batch, alpha=1.0)
    assert ((np.asarray(mixed.weights) == 0) >= (np.asarray(batch.weights) == 0)).all()
    poisoned = batch._replace(targets=jnp.where(batch.weights > 0, batch.targets, jnp.nan))
    targets = np.asarray(nnfx.augment.mixup(jax.random.key(0), poisoned, alpha=1.0).targets)
    assert np.isfinite(targets[np.asarray(mixed.weights) > 0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnfx.data.prepare(X, masked(REAL)), "targets: expected finite numbers, got"),
        (
            lambda: nnfx.data.prepare(X, REAL, missing_targets="drop"),
            "missing_targets: expected one of 'error', 'mask'",
        ),
        (
            lambda: prepared(np.where(np.arange(OUTPUTS) == 2, np.nan, REAL)),
            "targets: expected at least one known value of output 2, got none",
        ),
        (lambda: prepared(np.where(IS_KNOWN, REAL, np.inf)), "targets: expected finite numbers"),
        (lambda: prepared(REAL, weights=np.ones((ROWS, 2))), r"weights: expected one per row, \(40,\), or the leading"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_of_several_outputs_together_cannot_be_masked():
    one_hot = np.eye(OUTPUTS)[RNG.integers(0, OUTPUTS, ROWS)]
    train = nnfx.fit(nnfx.models.perceptron(OUTPUTS), nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=1)
    with pytest.raises(ValueError, match="loss: expected a mean over outputs, since outputs have their own weights"):
        train(jax.random.key(0), prepared(masked(one_hot)), learning_rate=0.1)
    whole = prepared(masked(one_hot, np.broadcast_to(IS_KNOWN[:, :1], one_hot.shape)))
    assert np.isfinite(train(jax.random.key(0), whole, learning_rate=0.1).final["train_loss"])


def test_rows_without_a_label_are_a_class_of_their_own_when_classes_are_held_out():
    """Five of a hundred labels are positive, and half of the others are missing: one in five is held out, always."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(100) < 5, 1.0, 0.0)
    labels[(rng.random(100) < 0.5) & (labels == 0)] = np.nan
    for seed in range(10):
        options = {"key": jax.random.key(seed), "valid_fraction": 0.2, "stratify": True}
        data = nnfx.data.prepare(rng.normal(size=(100, 2)), labels, missing_targets="mask", **options)
        assert float((data.valid.targets * data.valid.weights).sum()) == 1


def test_class_weights_take_weights_of_one_column():
    x, labels = np.arange(6.0)[:, None], np.arange(6) % 2
    for class_weight, factor in (({0: 2.0}, 2.0), ("balanced", 1.0)):
        data = nnfx.data.prepare(x, labels[:, None], weights=np.ones((6, 1)), class_weight=class_weight)
        np.testing.assert_array_equal(np.asarray(data.train.weights).ravel()[::2], factor)
        assert data.train.weights.size == 6


def test_what_cannot_be_standardised_is_an_error():
    targets = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 4.0]])
    split = (np.array([0, 1]), np.array([2]))
    with pytest.raises(ValueError, match="targets: expected at least one known training value of every output"):
        nnfx.data.prepare(np.eye(3), targets, split=split, missing_targets="mask", standardize_targets=True)
