import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import nnfx
from nnfx.data import batching
from nnfx.training import batch_checks, run_checks

ACCURACY = {"accuracy": nnfx.metrics.binary_accuracy}


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(model=None, optimizer=optax.sgd, epochs=3, batch_size=None, **options):
    model = model or nnfx.models.perceptron()
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, batch_size=batch_size, **options)


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def bits(tree):
    return [
        np.asarray(leaf).tobytes()
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]


def test_the_perceptron_equals_logistic_regression_on_raw_features(key):
    passengers = nnfx.data.titanic("fare", "age")
    train = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=10_000,
        stop=nnfx.stopping.small_change,
    )  # fmt: skip
    run = train(key, passengers, learning_rate=2.0, tolerance=1e-6)
    kernel, bias = passengers.preprocess.raw_units(run.best.params["kernel"], run.best.params["bias"])

    raw = nnfx.data.titanic("fare", "age", standardize=False).train
    x, y = np.asarray(raw.inputs, np.float64), np.asarray(raw.targets)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(x, y)
    np.testing.assert_allclose(kernel[:, 0], reference.coef_[0], rtol=5e-4)
    np.testing.assert_allclose(bias, reference.intercept_, rtol=5e-4)
    np.testing.assert_allclose(
        run.evaluate(passengers.train)["loss"], log_loss(y, reference.predict_proba(x)), rtol=5e-5
    )
    assert run.reason == "small_change"
    assert int(run.epochs) < 10_000


@pytest.mark.parametrize("batch_size", [100, *(pytest.param(size, marks=pytest.mark.slow) for size in (None, 1))])
def test_twice_from_one_key_gives_the_same_bits(key, data, batch_size):
    model = nnfx.models.mlp((4,), dropout=0.3)
    train = make(model, batch_size=batch_size, metrics=ACCURACY)
    first, second, other = (train(k, data, learning_rate=0.1) for k in (key, key, jax.random.key(1)))
    assert bits((first.state, first.best, first.history)) == bits((second.state, second.best, second.history))
    assert bits(first.state.params) != bits(other.state.params)


@pytest.mark.parametrize("batch_size", [100, *(pytest.param(size, marks=pytest.mark.slow) for size in (None, 7, 1))])
def test_an_epoch_equals_a_python_loop_over_the_step(key, data, batch_size):
    model, optimizer = nnfx.models.mlp((4,), activation="tanh", dropout=0.3), optax.sgd(0.1)
    data = nnfx.data.Data(jax.tree.map(lambda a: np.asarray(a)[:110], data.train), data.valid, data.preprocess)
    run = make(model, optimizer, epochs=2, batch_size=batch_size)(key, data)

    step = nnfx.make_step(model, nnfx.losses.binary_cross_entropy, optimizer)

    @jax.jit
    def step_at(state, order, i):
        return step(state, batching.take(data.train, jax.tree.map(lambda a: a[i], order)))

    state = nnfx.init_state(key, model, optimizer, data.train.inputs)
    order_key = jax.random.split(key, 3)[2]
    rows = len(data.train.targets)
    history = []
    for epoch in range(2):
        order = batching.shuffled(order_key, epoch, rows, batch_size or rows)
        if batch_size is None:
            order = batching.in_order(rows, rows)
        measured = []
        for i in range(len(order.rows)):
            state, metrics = step_at(state, order, i)
            measured.append(metrics["loss"])
        history.append(sum(m.total for m in measured) / sum(m.weight for m in measured))
    close(run.state.params, state.params, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run.history["train_loss"], history, rtol=1e-6)


def test_changing_a_number_compiles_nothing(data, compilations):
    traces = []

    def counting(logits, labels, label_smoothing=0.0):
        traces.append(1)
        return nnfx.losses.binary_cross_entropy(logits, labels, label_smoothing)

    train = nnfx.fit(
        lambda dropout: nnfx.models.mlp((4,), dropout=dropout), counting, optax.adam, epochs=2,
        stop=(nnfx.stopping.patience, nnfx.stopping.small_change),
    )  # fmt: skip
    numbers = {"learning_rate": 0.1, "label_smoothing": 0.1, "dropout": 0.2, "patience": 3, "tolerance": 1e-6}
    first = train(jax.random.key(0), data, **numbers)
    key, others = jax.random.key(3), {
        "learning_rate": 1, "label_smoothing": np.float64(0.3), "dropout": jnp.float32(0.5), "patience": 7.0,
        "tolerance": 1e-3,
    }  # fmt: skip
    count, compiled = len(traces), compilations()
    assert count > 0
    for name, value in others.items():
        train(key, data, **{**numbers, name: value})
    assert (len(traces), compilations()) == (count, compiled)
    assert np.isfinite(first.final["valid_loss"])


@pytest.fixture(scope="module")
def stopped():
    model, stop = nnfx.models.mlp((32,)), (nnfx.stopping.patience, nnfx.stopping.step_budget)
    return make(model, optax.adam, epochs=200, batch_size=100, stop=stop)


def epochs_of(stopped, key, data, epochs):
    """Train for exactly this many epochs."""
    return stopped(key, data, learning_rate=0.1, patience=1000, max_steps=epochs * -(-len(data.train.targets) // 100))


def test_the_best_weights_are_exactly_those_that_were_evaluated_best(key, data, stopped):
    run = epochs_of(stopped, key, data, 40)
    best = int(run.best.epoch)
    assert best == int(np.argmin(run.history["valid_loss"][:40])) + 1 < int(run.epochs) == 40
    assert run.best.loss == run.history["valid_loss"][best - 1]
    np.testing.assert_allclose(run.evaluate(data.valid)["loss"], run.best.loss, rtol=1e-6)
    shorter = epochs_of(stopped, key, data, best)
    assert int(shorter.epochs) == best
    close(shorter.state.params, run.best.params, rtol=1e-6, atol=1e-6)


def test_patience_ends_a_run_and_the_rest_of_the_history_is_empty(key, data, stopped):
    run = stopped(key, data, learning_rate=0.1, patience=5, max_steps=10_000)
    epochs = int(run.epochs)
    assert run.reason == "patience"
    assert epochs == int(run.best.epoch) + 5 < 200
    for values in map(np.asarray, run.history.values()):
        assert np.isfinite(values[:epochs]).all()
        assert np.isnan(values[epochs:]).all()
    assert run.final["valid_loss"] == run.history["valid_loss"][epochs - 1]
    freely = epochs_of(stopped, key, data, epochs)
    assert freely.reason == "step_budget"
    close(freely.state.params, run.state.params, rtol=1e-5, atol=1e-6)


def test_the_first_rule_that_says_stop_stops(key, data):
    train = make(epochs=50, stop=(nnfx.stopping.patience, nnfx.stopping.small_change))
    assert train(key, data, learning_rate=0.1, patience=50, tolerance=10.0).reason == "small_change"
    assert train(key, data, learning_rate=0.1, patience=50, tolerance=1e-30).reason == "last epoch"


def test_a_vmapped_run_equals_the_runs_made_one_at_a_time(data):
    train = make(nnfx.models.mlp((8,), dropout=0.2), epochs=20, batch_size=100, stop=nnfx.stopping.small_change)
    keys, rates = jax.random.split(jax.random.key(5), 3), jnp.array([0.01, 0.1, 0.3])
    runs = jax.vmap(lambda key, rate: train(key, data, learning_rate=rate, tolerance=0.02))(keys, rates)
    for i in range(3):
        single = train(keys[i], data, learning_rate=rates[i], tolerance=0.02)
        assert int(runs.epochs[i]) == int(single.epochs)
        close(jax.tree.map(lambda a, i=i: a[i], runs.state.params), single.state.params, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(runs.history["valid_loss"])[i], single.history["valid_loss"], rtol=1e-5)
    assert len(set(runs.epochs.tolist())) > 1
    assert runs.best.params["output"]["kernel"].shape == (3, 8, 1)
    for i in range(3):
        assert runs.final["valid_loss"][i] == runs.history["valid_loss"][i, int(runs.epochs[i]) - 1]
    predictions = jax.vmap(lambda run: run.predict(jnp.array([[30.0, 40.0]])))(runs)
    assert predictions.shape == (3, 1, 1)


@pytest.mark.parametrize("rematerialize_epochs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradient_through_a_run_equals_central_differences(key, rematerialize_epochs):
    """With respect to the rate, the weight decay, and the weight of a part of the loss."""
    with jax.enable_x64(True):
        passengers = nnfx.data.titanic("fare", "age", key=key, valid_fraction=0.25)
        train = nnfx.fit(
            nnfx.models.perceptron(),
            lambda o, t, survivors=1.0: nnfx.losses.binary_cross_entropy(o, t) * jnp.where(t > 0, survivors, 1),
            optax.adamw, epochs=3, batch_size=100, rematerialize_epochs=rematerialize_epochs,
        )  # fmt: skip
        at = {"learning_rate": 0.05, "weight_decay": 0.1, "survivors": 1.3}

        @jax.jit
        @jax.value_and_grad
        def held_out(numbers):
            run = train(key, passengers, **numbers)
            logits = run.apply(passengers.valid.inputs, run.state.variables)
            return nnfx.losses.binary_cross_entropy(logits, passengers.valid.targets).mean()

        _, slopes = held_out(at)
        for name, value in at.items():
            h = 1e-5 * value
            central = (held_out({**at, name: value + h})[0] - held_out({**at, name: value - h})[0]) / (2 * h)
            np.testing.assert_allclose(slopes[name], central, rtol=1e-5)


@pytest.mark.slow
def test_rematerialised_epochs_bound_the_memory_of_a_gradient(key, data):
    def memory(rematerialize_epochs):
        train = make(epochs=64, rematerialize_epochs=rematerialize_epochs)
        slope = jax.grad(lambda rate, data: train(key, data, learning_rate=rate).final["valid_loss"])
        return jax.jit(slope).lower(0.1, data).compile().memory_analysis().temp_size_in_bytes

    assert memory(True) < memory(False) / 5


def test_the_hyper_parameters_are_those_of_the_parts():
    assert make().hyper_names == ("label_smoothing", "learning_rate", "momentum")
    fixed = make(optimizer=functools.partial(optax.sgd, 0.1), stop=nnfx.stopping.patience)
    assert fixed.hyper_names == ("label_smoothing", "min_improvement", "momentum", "patience")


def test_a_model_of_hyper_parameters_predicts_after_training(key, data):
    train = make(lambda dropout: nnfx.models.mlp((4,), dropout=dropout))
    run = train(key, data, learning_rate=0.1, dropout=0.5)
    plain = nnfx.models.mlp((4,)).apply(run.best.variables, data.preprocess(np.array([[7.0, 30.0]])))
    np.testing.assert_allclose(run.predict([[7.0, 30.0]]), plain, rtol=1e-6)


@pytest.mark.slow
def test_smoothing_and_momentum_reach_their_parts(key, data):
    train = make()

    def losses(**hyper):
        return train(key, data, learning_rate=0.1, **hyper).history["train_loss"].tolist()

    assert losses() != losses(label_smoothing=0.2) != losses(momentum=0.9)
    assert losses() == losses(label_smoothing=0.0) == losses(momentum=0.0)


def test_float64_data_are_trained_in_float64(key):
    with jax.enable_x64(True):
        run = make(optimizer=optax.adam)(key, nnfx.data.titanic("fare", "age"), learning_rate=0.1)
        assert run.history["train_loss"].dtype == jnp.float64
        assert run.predict(np.array([[7.0, 30.0]])).dtype == jnp.float64


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(jax.jit, marks=pytest.mark.slow),
        lambda f: jax.jit(jax.grad(f)),
        pytest.param(lambda f: lambda r: jax.lax.map(f, r[None]), marks=pytest.mark.slow),
    ],
)
def test_a_run_on_data_closed_over_can_be_transformed(key, data, transform):
    train = make(stop=nnfx.stopping.patience)

    def held_out(rate):
        return train(key, data, learning_rate=rate, patience=2).final["valid_loss"]

    assert np.isfinite(transform(held_out)(jnp.float32(0.1))).all()


def test_a_loss_of_targets_closed_over_can_be_compiled():
    labels = jnp.array([0, 1, 1])
    assert jax.jit(lambda z: nnfx.losses.binary_cross_entropy(z, labels))(jnp.zeros(3)).shape == (3,)
    assert jax.jit(lambda z: nnfx.losses.categorical_cross_entropy(z, labels))(jnp.zeros((3, 2))).shape == (3,)
    assert jax.jit(lambda z: nnfx.metrics.binary_accuracy(z, labels))(jnp.zeros(3)).shape == (3,)


def test_checking_again_costs_nothing(key, data, monkeypatch):
    train = make()
    train(key, data, learning_rate=0.1)
    monkeypatch.setattr(batch_checks, "check_values", lambda *_: pytest.fail("values were looked at again"))
    monkeypatch.setattr(run_checks, "_check_shapes", lambda *_: pytest.fail("shapes were looked at again"))
    train(key, data, learning_rate=0.2)


@pytest.mark.usefixtures("nan_is_meant")
@pytest.mark.parametrize(
    "stop", [nnfx.stopping.non_finite, pytest.param(nnfx.stopping.non_finite(), marks=pytest.mark.slow)]
)
def test_divergence_is_not_taken_for_convergence(key, data, stop):
    train = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=300,
        stop=(nnfx.stopping.small_change, stop),
    )  # fmt: skip
    run = train(key, data, learning_rate=50.0)
    assert run.reason == "non_finite"
    assert int(run.epochs) < 300


@pytest.mark.usefixtures("nan_is_meant")
def test_without_a_held_out_loss_that_is_a_number_the_best_weights_are_the_last(key, data):
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=300)
    run = train(key, data, learning_rate=50.0)
    assert int(run.best.epoch) < 300  # the best of the finite losses, which come first
    assert np.isfinite(run.best.loss)
    wild = jax.tree.map(lambda a: a, data)
    nan = nnfx.data.Data(wild.train, wild.valid._replace(inputs=wild.valid.inputs * 1e38), wild.preprocess)
    run = make(lambda: nnfx.models.perceptron(initializer=jax.nn.initializers.constant(1e30)), epochs=2)(
        key, nan, learning_rate=0.1
    )
    assert int(run.best.epoch) == 2


@pytest.mark.slow
def test_an_optimizer_that_searches_along_a_line(key, data):
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.lbfgs(), epochs=20)
    run = train(key, data)
    x, y = np.asarray(data.train.inputs, np.float64), np.asarray(data.train.targets)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(x, y)
    np.testing.assert_allclose(run.state.params["kernel"][:, 0], reference.coef_[0], rtol=1e-3)


def test_inputs_may_be_a_tree(key):
    def init(key, inputs):
        return {"params": {"w": jnp.ones((2,))}}

    def apply(variables, inputs, *, key=None, weights=None, train=False):
        outputs = inputs["a"] * variables["params"]["w"][0] + inputs["b"] * variables["params"]["w"][1]
        return (outputs, {}) if train else outputs

    rows = nnfx.Batch({"a": jnp.arange(4.0), "b": jnp.ones(4)}, jnp.arange(4.0) * 2 - 1, jnp.ones(4))
    prepared = nnfx.data.prepare(np.ones((4, 1)), np.ones(4))
    data = nnfx.data.Data(rows, None, prepared.preprocess)
    train = nnfx.fit(nnfx.Model(init, apply), nnfx.losses.mean_square_error, optax.sgd, epochs=300, batch_size=3)
    run = train(key, data, learning_rate=0.1)
    np.testing.assert_allclose(run.best.params["w"], [2, -1], atol=1e-2)


@pytest.mark.usefixtures("nan_is_meant")
@pytest.mark.parametrize(("rule", "epochs"), [((), 4), (nnfx.stopping.non_finite, 1)])
def test_a_run_skips_or_stops_at_a_bad_step_and_says_which(key, data, rule, epochs):
    def penalty(params, poison=0.0):
        return jnp.where(poison > 0, jnp.sqrt(-poison), 0.0) * params["bias"].sum()

    train = make(
        epochs=4, stop=rule, penalty=penalty, make_step=functools.partial(nnfx.make_step, skip_non_finite=True)
    )
    run = train(key, data, learning_rate=0.1, poison=1.0)
    assert int(run.epochs) == epochs
    assert run.reason == ("non_finite" if rule else "last epoch")
    assert "was not finite at step 0" in run.fault
    assert train(key, data, learning_rate=0.1, poison=0.0).fault == ""
    start = nnfx.init_state(key, nnfx.models.perceptron(), optax.sgd(0.1), data.train.inputs)
    close(run.state.params, start.params, rtol=0)


@pytest.mark.slow
def test_penalties_are_swept_like_any_number(key, data):
    def l2(params, decay=0.0):
        return decay / 2 * optax.tree.norm(params, squared=True)

    train = make(penalty=l2, epochs=5)
    swept = jax.vmap(lambda decay: train(key, data, learning_rate=0.1, decay=decay).state.params)(
        jnp.array([0.0, 0.1, 1.0])
    )
    members = [jax.tree.map(lambda a, i=i: np.asarray(a)[i], swept) for i in range(3)]
    norms = [sum(np.square(leaf).sum() for leaf in jax.tree.leaves(member)) for member in members]
    assert norms[0] > norms[1] > norms[2]
    decayed = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy,
        lambda learning_rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate)), epochs=5,
    )  # fmt: skip
    expected = decayed(key, data, learning_rate=0.1, decay=0.1).state.params
    close(members[1], expected, rtol=1e-4, atol=1e-6)


def test_schedules_penalties_and_the_maximal_norm_take_their_numbers_from_the_run(key, data):
    def optimizer(peak, limit):
        schedule = nnfx.schedules.warmup_cosine(peak, warmup_steps=5, total_steps=30)
        return optax.chain(optax.sgd(schedule), nnfx.regularizers.max_norm(limit))

    train = make(nnfx.models.mlp((4,), activation="tanh"), optimizer, epochs=30, penalty=nnfx.regularizers.l2)
    assert train.hyper_names == ("l2", "label_smoothing", "limit", "peak")
    norms = jax.vmap(
        lambda limit: jnp.linalg.norm(
            train(key, data, peak=1.0, limit=limit, l2=1e-3).state.params["hidden_0"]["kernel"], axis=0
        ).max()
    )(jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(norms, [0.1, 0.5], rtol=1e-4)


def test_the_rate_is_reduced_on_a_plateau_of_the_training_loss(key, data):
    def optimizer(learning_rate, factor):
        return optax.chain(optax.sgd(learning_rate), nnfx.schedules.reduce_on_plateau(factor, patience=3))

    run = make(optimizer=optimizer, epochs=100)(key, data, learning_rate=1e-6, factor=0.5)
    assert run.state.opt_state[-1].scale < 0.5**3
