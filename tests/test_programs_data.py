"""Programs that a new user writes, from data to predictions, in a few lines."""

import inspect
import re

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

import nnfx

BEGINS, ENDS = re.compile(r"# the program, at most (\d+) lines"), "# ends here"


@pytest.fixture(autouse=True)
def few_lines(request):
    """Count the lines of the program within the test, without blank ones."""
    lines = [line.strip() for line in inspect.getsource(request.function).splitlines()]
    [(first, most)] = [
        (number, int(found[1])) for number, line in enumerate(lines) if (found := BEGINS.fullmatch(line))
    ]
    program = [line for line in lines[first + 1 : lines.index(ENDS)] if line]
    assert 0 < len(program) <= most
    assert not any(";" in line or len(line) > 112 for line in program)


@pytest.fixture
def passengers():
    """Return frames with numbers, text, booleans and holes, of which the ages and the ports decide who survived."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.uniform(1, 80, 300), "port": rng.choice(["Cherbourg", "Southampton"], 300)})
    frame["alone"] = rng.random(300) < 0.5
    frame["survived"] = np.where((frame["age"] < 40) ^ (frame["port"] == "Cherbourg"), "yes", "no")
    frame.loc[::17, "age"] = np.nan
    return frame[:240], frame[240:].drop(columns="survived"), frame["survived"][240:]


def test_a_frame_a_classifier_its_auc_and_a_prediction_for_a_new_frame(passengers):
    frame, new, truth = passengers
    # the program, at most 12 lines
    inputs, labels = frame.drop(columns="survived"), frame["survived"]
    data = nnfx.data.prepare(inputs, labels, key=jax.random.key(1), valid_fraction=0.25, missing="median")
    model = nnfx.models.mlp((16,))
    loss = nnfx.losses.binary_cross_entropy
    train = nnfx.fit(model, loss, optax.adam, epochs=100, batch_size=32, metrics="roc_auc")
    run = train(jax.random.key(0), data, learning_rate=0.03)
    auc = run.best_metrics["valid_roc_auc"]
    survives = run.predict(new)[:, 0] > 0
    # ends here
    assert auc > 0.9
    outputs = np.asarray(run.predict(inputs))[:, 0]
    assert roc_auc_score(labels == "yes", outputs) > 0.9
    assert data.classes == ("no", "yes")
    assert accuracy_score(truth == "yes", survives) > 0.8


def test_an_estimator_in_a_grid_search_over_a_pipeline():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    y = np.where(x[:, 0] * x[:, 1] > 0, "same", "different")
    # the program, at most 8 lines
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    model = nnfx.sklearn.Classifier("perceptron", epochs=30, random_state=0)
    pipeline = make_pipeline(PolynomialFeatures(), model)
    search = GridSearchCV(pipeline, {"classifier__learning_rate": [1e-4, 0.1]}, cv=3).fit(x, y)
    predicted = search.predict(x)
    # ends here
    assert search.best_params_ == {"classifier__learning_rate": 0.1}
    assert accuracy_score(y, predicted) > 0.9


def test_padded_sequences_a_classifier_and_predictions():
    """The class is whether the last real step is positive, whatever the padding holds."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 7, 120)
    values = rng.normal(size=(120, 6, 1))
    values[np.arange(6) >= lengths[:, None]] = np.nan
    labels = (values[np.arange(120), lengths - 1, 0] > 0).astype(int)
    # the program, at most 8 lines
    sequences = nnfx.models.Sequences(values, lengths)
    data = nnfx.data.prepare(sequences, labels, key=jax.random.key(1), valid_fraction=0.25)
    loss = nnfx.losses.binary_cross_entropy
    train = nnfx.fit(nnfx.models.gru(1, (8,)), loss, optax.adam, epochs=60, batch_size=30)
    run = train(jax.random.key(0), data, learning_rate=0.03)
    predicted = run.predict(sequences)[:, 0] > 0
    # ends here
    assert accuracy_score(labels, predicted) > 0.9


def test_tokens_and_a_loss_for_each_step_with_a_mask():
    """Each token is labelled with whether it is greater than the one before; some labels are unknown."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 100)
    tokens = rng.integers(1, 6, (100, 8))
    tags = np.c_[np.zeros(100, int), np.diff(tokens) > 0].astype(int)
    is_known = (np.arange(8) < lengths[:, None]) & (rng.random((100, 8)) < 0.8)
    hidden = np.where(is_known, tags, 7)  # not a class
    # the program, at most 12 lines
    import flax.linen as nn

    targets = np.ma.masked_array(hidden, ~is_known)
    data = nnfx.data.prepare(tokens, targets, missing_targets="mask", keep_integers=True)
    model = nnfx.models.from_linen(nn.Sequential([nn.Embed(6, 8), nn.RNN(nn.GRUCell(16)), nn.Dense(2)]))
    loss = nnfx.losses.categorical_cross_entropy
    train = nnfx.fit(model, loss, optax.adam, epochs=60, batch_size=25, metrics="accuracy")
    run = train(jax.random.key(0), data, learning_rate=0.02)
    labels = run.predict(tokens).argmax(-1)
    # ends here
    assert data.train.inputs.dtype == np.int32
    is_real = np.arange(8) < lengths[:, None]
    assert (np.asarray(labels) == tags)[is_real].mean() > 0.95
    right = (np.asarray(labels) == tags)[is_known].mean()
    np.testing.assert_allclose(run.evaluate(data.train)["accuracy"], right, rtol=1e-5)
