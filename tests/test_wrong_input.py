"""Every kind of wrong input, at each public function that it can reach: the error names the argument."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from flax import nnx

import nnfx
from nnfx import activations, losses, metrics, models, ops, stopping
from nnfx.data import Data, prepare, titanic

KEY = jax.random.key(0)
X, Y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
DATA = prepare(X, Y, key=KEY, valid_fraction=0.25)
ONLY_TRAIN = prepare(X, Y)
LEGACY_KEY = np.array([0, 0], np.uint32)
SGD = functools.partial(optax.sgd, learning_rate=0.1)


def fit(model=None, loss=losses.binary_cross_entropy, optimizer=SGD, epochs=1, batch_size=5, **options):
    return nnfx.fit(model or models.perceptron(), loss, optimizer, epochs=epochs, batch_size=batch_size, **options)


def run(*args, data=DATA, key=KEY, hyper=None, **options):
    return fit(*args, **options)(key, data, **(hyper or {}))


def with_train(**changes):
    return Data(DATA.train._replace(**changes), DATA.valid, DATA.preprocess)


def gapped(value):
    x = X.copy()
    x[3, 1] = value
    return x


def weights_of_train():
    weights = np.ones(20)
    weights[np.asarray(prepare(X, np.arange(20), key=KEY, valid_fraction=0.25).valid.targets)] = 0
    return weights


def step_with(loss):
    model = models.perceptron()
    step = nnfx.make_step(model, loss, optax.sgd(0.1))
    return step(nnfx.init_state(KEY, model, optax.sgd(0.1), X), DATA.train)


TARGETS = DATA.train.targets
PLAIN, ONES = jnp.ones(3), jnp.ones((3, 1))

RUN = run()
RUNS = jax.vmap(lambda key: fit()(key, DATA))(jax.random.split(KEY, 2))

CASES = {
    # models
    "mlp unknown activation": (lambda: models.mlp((4,), activation="rellu"), ValueError, r"activation: .*'relu'\?"),
    "perceptron unknown activation": (lambda: models.perceptron(activation="x"), ValueError, "activation: .*'tanh'"),
    "activation by name": (lambda: activations.get("Tanh"), ValueError, r"activation: .*did you mean 'tanh'\?"),
    "mlp unknown initialiser": (lambda: models.mlp((4,), initializer="he"), ValueError, "initializer: .*'he_normal'"),
    "mlp unknown bias initialiser": (lambda: models.mlp((4,), bias_initializer="one"), ValueError, "bias_initializer: "),
    "mlp width of zero": (lambda: models.mlp((4, 0)), ValueError, r"hidden\[1\]: expected a positive integer, got 0"),
    "mlp hidden not a sequence": (lambda: models.mlp(16), TypeError, "hidden: expected a sequence"),
    "mlp fractional outputs": (lambda: models.mlp((4,), outputs=1.5), TypeError, "outputs: .*got 1.5"),
    "perceptron no outputs": (lambda: models.perceptron(outputs=0), ValueError, "outputs: .*got 0"),
    "mlp dropout of one": (lambda: models.mlp((4,), dropout=1.0), ValueError, "dropout: .*below 1, got 1"),
    "model legacy key": (lambda: models.mlp((4,)).init(LEGACY_KEY, X), TypeError, "key: expected a typed key"),
    "linen class": (lambda: models.from_linen(nnx.Linear), TypeError, "module: expected an instance"),
    "nnx instance": (lambda: models.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), TypeError, "build: .*function of rngs"),
    "nnx legacy key": (
        lambda: models.from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs)).init(0, X),
        TypeError,
        "key: expected a typed key",
    ),
    "nnx dropout without a key": (
        lambda: models.from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs)).apply({"params": {}}, X, train=True),
        ValueError,
        "key: expected a key",
    ),
    "maxout pieces": (lambda: activations.maxout(jnp.ones((2, 5)), 2), ValueError, "x: .*divisible by pieces=2"),
    "maxout no pieces": (lambda: activations.maxout(ONES, 0), ValueError, "pieces: .*got 0"),
    "dropout rate": (lambda: ops.dropout(KEY, PLAIN, -0.1), ValueError, "rate: .*at least 0.*got -0.1"),
    "dropout legacy key": (lambda: ops.dropout(LEGACY_KEY, PLAIN, 0.5), TypeError, "key: .*got uint32"),
    # losses and metrics
    "binary labels": (lambda: losses.binary_cross_entropy(PLAIN, jnp.array([0, 1, 2])), ValueError, "targets: .*0 or 1, got 2"),
    "binary labels of −1": (
        lambda: losses.binary_cross_entropy_from_probabilities(PLAIN, jnp.array([0, 1, -1])),
        ValueError,
        "targets: .*got -1",
    ),
    "logits as probabilities": (
        lambda: losses.binary_cross_entropy_from_probabilities(3 * PLAIN, jnp.array([0, 1, 1])),
        ValueError,
        "probabilities: expected numbers from 0 to 1",
    ),
    "labels broadcast": (lambda: losses.binary_cross_entropy(ONES, jnp.ones((1, 3))), ValueError, "targets: .*float32"),
    "lengths": (lambda: losses.mean_square_error(PLAIN, jnp.ones(4)), ValueError, r"targets: .*\[3\].*got float32\[4\]"),
    "absolute rank": (lambda: losses.mean_absolute_error(jnp.ones((3, 2)), PLAIN), ValueError, "targets: "),
    "huber scalar": (lambda: losses.huber(jnp.float32(1), jnp.float32(1)), ValueError, "outputs: expected a batch"),
    "one output is not a class": (lambda: metrics.accuracy(ONES, jnp.ones(3, int)), ValueError, "logits: .*binary_accuracy"),
    "binary accuracy labels": (lambda: metrics.binary_accuracy(PLAIN, 2 * PLAIN), ValueError, "labels: .*got 2"),
    "roc_auc labels": (lambda: metrics.roc_auc(PLAIN, jnp.array([1, 2, 1])), ValueError, "labels: .*got 2"),
    "huber delta": (lambda: losses.huber(PLAIN, PLAIN, delta=0.0), ValueError, "delta: .*above 0, got 0"),
    "targets of text": (lambda: losses.mean_square_error(PLAIN, np.array(["a"] * 3)), TypeError, "targets: .*<U1"),
    "targets not finite": (lambda: losses.huber(PLAIN, PLAIN * jnp.nan), ValueError, "targets: expected finite"),
    "class out of range": (
        lambda: losses.categorical_cross_entropy(jnp.ones((3, 2)), jnp.array([0, 1, 2])),
        ValueError,
        "targets: expected labels from 0 to 1, got labels from 0 to 2",
    ),
    "one class": (lambda: losses.categorical_cross_entropy(ONES, jnp.zeros(3, int)), ValueError, "outputs: .*two classes"),
    "classes as floats": (
        lambda: losses.categorical_cross_entropy(jnp.ones((3, 2)), PLAIN), ValueError, "targets: expected integer labels"
    ),
    "rows not one-hot": (
        lambda: losses.categorical_cross_entropy(jnp.ones((3, 2)), jnp.ones((3, 2))), ValueError, "targets: .*sum to 1"
    ),
    "label smoothing": (
        lambda: losses.binary_cross_entropy(PLAIN, PLAIN, label_smoothing=1.5), ValueError, "label_smoothing: .*got 1.5"
    ),
    "empirical rank": (lambda: losses.empirical(ONES), ValueError, "values: expected one per example"),
    "empirical weights": (lambda: losses.empirical(PLAIN, jnp.ones(4)), ValueError, "weights: .*got float32"),
    "accuracy shapes": (lambda: metrics.accuracy(jnp.ones((3, 2)), jnp.ones(4)), ValueError, "labels: "),
    "binary accuracy shapes": (lambda: metrics.binary_accuracy(PLAIN, jnp.ones(4)), ValueError, "labels: "),
    "roc_auc shapes": (lambda: metrics.roc_auc(PLAIN, jnp.ones(4)), ValueError, "scores: "),
    # data
    "prepare wrong rank": (lambda: prepare(X[:, 0], Y), ValueError, r"inputs: expected \(rows, features"),
    "prepare lengths": (lambda: prepare(X, Y[:-1]), ValueError, r"targets: expected as many rows as inputs, 20, got 19"),
    "prepare text": (lambda: prepare(X.astype(str), Y), TypeError, "inputs: expected an array of real numbers"),
    "prepare complex targets": (lambda: prepare(X, Y * 1j), TypeError, "targets: .*complex"),
    "prepare empty": (lambda: prepare(X[:0], Y[:0]), ValueError, "inputs: expected at least one row"),
    "prepare NaN": (lambda: prepare(gapped(np.nan), Y), ValueError, r"inputs: .*1 not finite, the first at \(3, 1\).*missing"),
    "prepare standardize": (lambda: prepare(X, Y, standardize="no"), TypeError, "standardize: expected True, .*got 'no'"),
    "prepare keep_integers": (lambda: prepare(X, Y, keep_integers=1), TypeError, "keep_integers: expected True, .*got 1"),
    "prepare infinite": (lambda: prepare(gapped(np.inf), Y, missing="drop"), ValueError, "inputs: expected finite"),
    "prepare NaN targets": (lambda: prepare(X, Y * np.nan), ValueError, "targets: expected finite"),
    "prepare unknown missing": (lambda: prepare(X, Y, missing="mean"), ValueError, "missing: .*'median'"),
    "prepare nothing left": (lambda: prepare(X * np.nan, Y, missing="drop"), ValueError, "inputs: .*got none"),
    "prepare unknown median": (lambda: prepare(X * np.nan, Y, missing="median"), ValueError, "inputs: .*'x0'"),
    "prepare weights": (lambda: prepare(X, Y, weights=-np.ones(20)), ValueError, "weights: .*negative.*got -1"),
    "prepare no weight": (lambda: prepare(X, Y, weights=np.zeros(20)), ValueError, "weights: .*positive"),
    "prepare no held-out weight": (
        lambda: prepare(X, Y, key=KEY, valid_fraction=0.25, weights=weights_of_train()), ValueError, "weights of data.valid: "
    ),
    "prepare integers too large": (lambda: prepare(X, Y + 3_000_000_000), ValueError, "targets: .*int32"),
    "prepare far from zero": (lambda: prepare(X + 1e9, Y), ValueError, "inputs: .*'x0'.*subtract an offset"),
    "prepare features as text": (lambda: prepare(X, Y, features="ab"), TypeError, "features: "),
    "prepare weights' length": (lambda: prepare(X, Y, weights=np.ones(3)), ValueError, "weights: .*one per row"),
    "prepare features": (lambda: prepare(X, Y, features=["a"]), ValueError, "features: expected 2 names, got 1"),
    "prepare fraction": (lambda: prepare(X, Y, key=KEY, valid_fraction=1.0), ValueError, "valid_fraction: .*below 1"),
    "prepare empty part": (lambda: prepare(X, Y, key=KEY, valid_fraction=0.01), ValueError, "valid_fraction: .*rows in both"),
    "prepare no key": (lambda: prepare(X, Y, valid_fraction=0.5), TypeError, "key: .*got None"),
    "prepare legacy key": (lambda: prepare(X, Y, key=LEGACY_KEY, valid_fraction=0.5), TypeError, "key: .*uint32"),
    "preprocess NaN": (lambda: DATA.preprocess(X * np.nan), ValueError, "inputs: expected finite numbers, got 40"),
    "preprocess infinite": (lambda: DATA.preprocess(X * np.inf), ValueError, "inputs: expected finite"),
    "preprocess text": (lambda: DATA.preprocess(np.ones((3, 2)) * 1j), TypeError, "inputs: .*complex"),
    "preprocess features": (lambda: DATA.preprocess(np.ones((3, 5))), ValueError, r"inputs: expected raw features .batch, 2."),
    "titanic unknown column": (lambda: titanic("fare", "agee"), ValueError, r"columns: .*did you mean 'age'\?"),
    "titanic no column": (lambda: titanic(), ValueError, "columns: expected at least one"),
    "titanic column twice": (lambda: titanic("age", "age"), ValueError, "columns: expected each column once"),
    "titanic its own target": (lambda: titanic("survived"), ValueError, "columns: expected one of"),
    "titanic legacy key": (lambda: titanic("age", key=0, valid_fraction=0.5), TypeError, "key: .*got 0"),
    # the step
    "init_state legacy key": (
        lambda: nnfx.init_state(LEGACY_KEY, models.perceptron(), optax.sgd(0.1), X), TypeError, "key: "
    ),
    "step loss not per example": (
        lambda: step_with(lambda o, t: losses.mean_square_error(o, t).mean()), ValueError, "values: expected one per example"
    ),
    "step outputs don't fit": (lambda: step_with(losses.categorical_cross_entropy), ValueError, "outputs: .*two classes"),
    # stopping rules
    "patience of zero": (lambda: stopping.patience(0), ValueError, "patience: .*at least 1, got 0"),
    "negative improvement": (lambda: stopping.patience(1, -1), ValueError, "min_improvement: .*got -1"),
    "tolerance of zero": (lambda: stopping.small_change(0.0), ValueError, "tolerance: .*above 0, got 0"),
    # creating a run
    "fit model": (lambda: fit(model="mlp"), TypeError, "model: expected a Model"),
    "fit loss": (lambda: fit(loss="mse"), TypeError, "loss: expected a function"),
    "fit optimizer": (lambda: fit(optimizer="adam"), TypeError, "optimizer: expected an Optax"),
    "fit metrics": (lambda: fit(metrics={"accuracy": 1}), TypeError, "accuracy: expected a function"),
    "fit metric called loss": (lambda: fit(metrics={"loss": metrics.accuracy}), ValueError, "metrics: .*'loss'"),
    "fit a Flax module": (lambda: fit(model=nn.Dense(1)), TypeError, "model: .*from_linen"),
    "fit a function of a key": (
        lambda: fit(model=lambda key: nn.Dense(1))(KEY, DATA), TypeError, "key: .*converted with nnfx.models.from_equinox"
    ),
    "fit a function of rngs": (
        lambda: fit(model=lambda rngs: nnx.Linear(2, 1, rngs=rngs))(KEY, DATA), TypeError, "rngs: .*converted with .*from_nnx"
    ),
    "fit a function of inputs": (
        lambda: fit(model=lambda x: nn.Dense(1))(KEY, DATA), TypeError, "x: .*converted with nnfx.models.from_haiku"
    ),
    "fit a metric of scikit-learn": (
        lambda: fit(metrics={"auc": sklearn.metrics.roc_auc_score}), TypeError, "auc: expected a function of JAX arrays, got roc_auc_score of sklearn; .*'roc_auc'"
    ),
    "fit a loss of scikit-learn": (
        lambda: fit(loss=functools.partial(sklearn.metrics.log_loss, normalize=False)), TypeError, "loss: expected a function of JAX arrays, got log_loss of sklearn"
    ),
    "fit a metric of all rows as the loss": (
        lambda: fit(loss=metrics.roc_auc), TypeError, "loss: expected one value per example, got roc_auc, which is a metric over all rows"
    ),
    "fit negative rate": (
        lambda: fit(optimizer=functools.partial(optax.sgd, -0.1)), ValueError, "learning_rate: .*above 0, got -0.1"
    ),
    "fit rule": (lambda: fit(stop=[5]), TypeError, "stop: expected factories"),
    "fit penalty": (lambda: fit(penalty=0.1), TypeError, "penalty: expected a function.*got 0.1"),
    "fit make_step": (lambda: fit(make_step=4), TypeError, "make_step: expected a function"),
    "step precision": (lambda: nnfx.make_step(None, None, None, precision="half"), ValueError, "precision: .*'bfloat16'"),
    "step no micro-batches": (lambda: nnfx.make_step(None, None, None, micro_batches=0), ValueError, "micro_batches: "),
    "run negative penalty": (
        lambda: run(penalty=nnfx.regularizers.l2, hyper={"l2": -1}), ValueError, "l2: .*at least 0, got -1"
    ),
    "run no penalty": (lambda: run(penalty=nnfx.regularizers.l2), TypeError, "l2: expected a number for l2, got nothing"),
    "fit epochs": (lambda: fit(epochs=0), ValueError, "epochs: .*got 0"),
    "fit batch of zero": (lambda: fit(batch_size=0), ValueError, "batch_size: .*got 0"),
    "fit fractional batch": (lambda: fit(batch_size=2.5), TypeError, "batch_size: .*got 2.5"),
    # running it
    "run legacy key": (lambda: run(key=LEGACY_KEY), TypeError, r"key: expected a typed key.*got uint32\[2\]"),
    "run integer key": (lambda: run(key=0), TypeError, "key: expected a typed key.*got 0"),
    "run several keys": (lambda: run(key=jax.random.split(KEY)), ValueError, "key: expected one key"),
    "run arrays": (lambda: run(data=(X, Y)), TypeError, "data: expected nnfx.data.Data"),
    "run batch too large": (lambda: run(batch_size=16), ValueError, "batch_size: expected at most the 15 rows.*got 16"),
    "run negative rate": (
        lambda: run(optimizer=optax.sgd, hyper={"learning_rate": -0.1}), ValueError, "learning_rate: .*above 0, got -0.1"
    ),
    "run rate of an optimizer already made": (
        lambda: run(optimizer=optax.sgd(0.1), hyper={"learning_rate": 0.1}), TypeError, "learning_rate: .*the optimizer is an instance: .*use its factory"
    ),
    "sweep rate of an optimizer already made": (
        lambda: nnfx.sweeps.sweep(fit(optimizer=optax.sgd(0.1)), DATA, key=KEY, learning_rate=[0.1]), TypeError, "learning_rate: .*the optimizer is an instance"
    ),
    "run rate of zero": (
        lambda: run(optimizer=optax.adam, hyper={"learning_rate": 0}), ValueError, "learning_rate: .*above 0, got 0"
    ),
    "run rate not finite": (lambda: run(hyper={"learning_rate": jnp.nan}), ValueError, "learning_rate: .*finite"),
    "run no rate": (lambda: run(optimizer=optax.sgd), TypeError, "learning_rate: expected a number for sgd, got nothing"),
    "run several rates": (lambda: run(hyper={"learning_rate": jnp.ones(3)}), ValueError, "learning_rate: .*jax.vmap"),
    "run unknown number": (lambda: run(hyper={"learning_rat": 1}), TypeError, r"learning_rat: .*'learning_rate'\?"),
    "run rate of text": (lambda: run(hyper={"learning_rate": "fast"}), TypeError, "learning_rate: expected a number"),
    "run a choice": (lambda: run(hyper={"momentum": True}), TypeError, "momentum: expected a number.*partial"),
    "run patience": (
        lambda: run(stop=stopping.patience, hyper={"patience": 0}), ValueError, "patience: .*at least 1, got 0"
    ),
    "run tolerance": (
        lambda: run(stop=stopping.small_change, hyper={"tolerance": -1}), ValueError, "tolerance: .*got -1"
    ),
    "run patience without held-out data": (
        lambda: run(data=ONLY_TRAIN, stop=stopping.patience), ValueError, "data.valid: expected held-out data for patience"
    ),
    "run smoothing": (lambda: run(hyper={"label_smoothing": 2}), ValueError, "label_smoothing: .*at most 1, got 2"),
    "run factory of nothing": (lambda: run(lambda: None), TypeError, "lambda.*: expected it to return a Model, got None"),
    "run a name taken twice": (
        lambda: run(loss=lambda o, t, momentum=0.0: losses.huber(o, t), hyper={"momentum": 0.5}),
        TypeError,
        "momentum: expected a hyper-parameter of one part only, got one of <lambda> and sgd",
    ),
    "run a model that ignores train": (
        lambda: run(nnfx.Model(models.perceptron().init, lambda v, x, **_: x @ v["params"]["kernel"])),
        ValueError,
        "model: expected apply.*train=True",
    ),
    "run a model without params": (
        lambda: run(nnfx.Model(lambda key, x: {}, models.perceptron().apply)), ValueError, "model: expected init"
    ),
    "run a key as a number": (lambda: run(hyper={"momentum": KEY}), TypeError, "momentum: expected a number"),
    "run held-out data of another width": (
        lambda: run(data=Data(DATA.train, DATA.valid._replace(inputs=jnp.ones((5, 3))), DATA.preprocess)),
        ValueError,
        "data.valid.inputs: expected examples of shape .2,., got .3,.",
    ),
    "run weights at batch size 1": (
        lambda: run(data=with_train(weights=jnp.arange(1.0, 16)), batch_size=1), ValueError, "batch_size: .*relative"
    ),
    "run no weight": (lambda: run(data=with_train(weights=jnp.zeros(15))), ValueError, "data.train.weights: .*positive"),
    "run integer weights": (lambda: run(data=with_train(weights=jnp.ones(15, int))), ValueError, "data.train.weights: .*floats"),
    "run a loss that broadcasts": (
        lambda: run(loss=lambda o, t: ((o - t) ** 2).mean(-1)), (ValueError, TypeError), "loss: .*broadcast|rank"
    ),
    "run labels within a loss of one's own": (
        lambda: run(loss=lambda o, t: losses.binary_cross_entropy(o, t), data=with_train(targets=TARGETS + 1)),
        ValueError,
        "targets: .*0 or 1, got 2",
    ),
    "evaluate other variables": (
        lambda: RUN.evaluate(DATA.train, {"mse": losses.mean_square_error}),
        TypeError,
        r"variables: expected {'params': ...}.*got \['mse'\]",
    ),
    "predict with parameters alone": (
        lambda: RUN.predict(X[:1], [1.0]),
        TypeError,
        "variables: expected .*got list",
    ),
    "evaluate not a batch": (lambda: RUN.evaluate(DATA), TypeError, "data: expected a Batch.*got Data"),
    "predict with stacked runs": (lambda: RUNS.predict(X), ValueError, "run: expected a single run.*jax.vmap"),
    "reason of stacked runs": (lambda: RUNS.reason, ValueError, "run: expected a single run"),
    "predict other features": (lambda: RUN.predict(np.ones((2, 3))), ValueError, "inputs: expected raw features"),
    "predict NaN": (lambda: RUN.predict(X * np.nan), ValueError, "inputs: expected finite"),
    "run NaN inputs": (
        lambda: run(data=with_train(inputs=DATA.train.inputs.at[2, 1].set(jnp.nan))),
        ValueError,
        r"data.train.inputs: .*1 not finite, the first at \(2, 1\)",
    ),
    "run NaN weights": (lambda: run(data=with_train(weights=jnp.full(15, jnp.nan))), ValueError, "data.train.weights: "),
    "run lengths": (lambda: run(data=with_train(targets=TARGETS[:-1])), ValueError, "data.train: expected 15 rows"),
    "run empty": (
        lambda: run(data=Data(jax.tree.map(lambda a: a[:0], DATA.train), None, DATA.preprocess), batch_size=None),
        ValueError,
        "data.train.weights: .*at least one",
    ),
    "run non-binary labels": (lambda: run(data=with_train(targets=TARGETS + 1)), ValueError, "targets: .*0 or 1, got 2"),
    "run labels out of range": (
        lambda: run(models.perceptron(2), losses.categorical_cross_entropy, data=with_train(targets=TARGETS * 5)),
        ValueError,
        "targets: expected labels from 0 to 1, got labels from 0 to 5",
    ),
    "run labels in the held-out part": (
        lambda: run(data=Data(DATA.train, DATA.valid._replace(targets=DATA.valid.targets - 1), DATA.preprocess)),
        ValueError,
        "targets: .*got -1",
    ),
    "run loss not per example": (
        lambda: run(loss=lambda o, t: losses.mean_square_error(o, t).mean()), ValueError, "loss: expected one value per example"
    ),
    "run metric not per example": (
        lambda: run(metrics={"error": lambda o, t: losses.mean_square_error(o, t).mean()}), ValueError, "error: expected one value per example"
    ),
    "run outputs don't fit": (lambda: run(models.perceptron(outputs=3)), ValueError, "targets: .*outputs.*got int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_raises_a_clear_error(name, monkeypatch):
    monkeypatch.setattr(nnfx.training.fit, "scan_epochs", lambda *_: pytest.fail("training was reached"))
    call, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call()
