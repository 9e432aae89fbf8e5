"""Class weights are scikit-learn's; standardised targets are undone where a run, a member or an ensemble predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.utils.class_weight import compute_class_weight

import nnfx
from nnfx.data.folds import Folds
from nnfx.data.targets import as_classes
from nnfx.sweeps.programs import Fixed, fold_data

RNG = np.random.default_rng(0)
ROWS = 60
X = RNG.normal(size=(ROWS, 2)) * [1, 20] + [0, 7]
Y = 1000 + 30 * (X @ [1.0, 0.1]) + RNG.normal(size=ROWS)
CLASSES = np.repeat([0, 1, 2], [40, 15, 5])
NAMES = np.array(["rare", "cat", "dog"], object)[CLASSES]
SPLIT = np.arange(0, ROWS, 2), np.arange(1, ROWS, 2)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.prepare(X, Y, standardize_targets=True, split=SPLIT)


@pytest.fixture(scope="module")
def train():
    return nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=60)


@pytest.fixture(scope="module")
def run(train, data):
    return train(jax.random.key(0), data, learning_rate=0.3)


# Classes


def test_classes_are_those_of_scikit_learn():
    for labels in (NAMES, np.array([3, 1, 10, 3], object)):
        theirs = LabelEncoder().fit(labels)
        codes, classes = as_classes(labels)
        np.testing.assert_array_equal(codes, theirs.transform(labels))
        assert classes == tuple(map(str, theirs.classes_))


@pytest.mark.parametrize("class_weight", ["balanced", {0: 2.0, 2: 0.5}])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_class_weights_are_those_of_scikit_learn(class_weight, is_weighted):
    weights = RNG.uniform(0.5, 2, ROWS) if is_weighted else np.ones(ROWS)
    data = nnfx.data.prepare(X, CLASSES, class_weight=class_weight, split=SPLIT, weights=weights)
    train, valid = SPLIT
    # a row of weight 2 counts twice, so repeating each row in proportion to its weight balances the same
    repeated = np.repeat(CLASSES[train], np.round(1e4 * weights[train]).astype(int))
    theirs = compute_class_weight(class_weight, classes=np.arange(3), y=repeated)
    for batch, rows in ((data.train, train), (data.valid, valid)):
        np.testing.assert_allclose(batch.weights, weights[rows] * theirs[CLASSES[rows]], rtol=1e-4)


def test_balanced_classes_weigh_the_same():
    weights = np.asarray(nnfx.data.prepare(X, NAMES, class_weight="balanced").train.weights)
    for name in ("rare", "cat", "dog"):
        assert weights[name == NAMES].sum() == pytest.approx(ROWS / 3)


def test_class_weights_go_by_name():
    data = nnfx.data.prepare(X, NAMES, class_weight={"dog": 3, "rare": 0})
    np.testing.assert_array_equal(data.train.weights, np.array([0, 1, 3])[CLASSES])
    mean = X[CLASSES > 0].mean(0)  # rows without weight are in no statistic
    np.testing.assert_allclose(data.preprocess.exact[0][0], mean)


@pytest.mark.parametrize(
    ("targets", "class_weight", "error", "message"),
    [
        (NAMES, "equal", ValueError, "class_weight: expected one of 'balanced', got 'equal'"),
        (NAMES, [1, 2, 3], TypeError, "class_weight: expected 'balanced' or a mapping .* got .1, 2, 3"),
        (NAMES, {"bird": 1}, ValueError, "class_weight: expected classes among 'cat', 'dog', 'rare', got 'bird'"),
        (CLASSES, {3: 1}, ValueError, "class_weight: expected classes among 0, 1, 2, got 3"),
        (CLASSES, {1: -1.0}, ValueError, r"class_weight\[1\]: expected .* at least 0, got -1"),
        (CLASSES, {1: "much"}, TypeError, r"class_weight\[1\]: expected a number, got 'much'"),
        (Y, "balanced", TypeError, "class_weight: expected one class per row as targets, .* got float64"),
        (np.eye(3, dtype=int)[CLASSES], "balanced", TypeError, "class_weight: expected one class per row .* got int64"),
        (CLASSES, {0: 0, 1: 0, 2: 0}, ValueError, "weights of data.train: expected non-negative"),
    ],
)  # fmt: skip
def test_class_weights_that_cannot_be_meant_are_refused(targets, class_weight, error, message):
    with pytest.raises(error, match=message):
        nnfx.data.prepare(X, targets, class_weight=class_weight)


# Standardised targets


def in_raw_units(outputs):
    return np.asarray(outputs) * Y[SPLIT[0]].std() + Y[SPLIT[0]].mean()


@pytest.mark.parametrize("targets", [Y, Y[:, None], np.stack([Y, -1e-3 * Y + 5], 1), Y.astype(np.float32)])
def test_targets_are_standardised_as_by_scikit_learn(targets):
    data = nnfx.data.prepare(X, targets, standardize_targets=True, split=SPLIT)
    columns = targets.reshape(ROWS, -1)
    theirs = StandardScaler().fit(columns[SPLIT[0]])
    for batch, rows in ((data.train, SPLIT[0]), (data.valid, SPLIT[1])):
        np.testing.assert_allclose(
            batch.targets, theirs.transform(columns[rows]).reshape(targets[rows].shape), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(data.preprocess.raw_outputs(batch.targets), targets[rows], rtol=1e-6)


def test_predictions_are_in_the_unit_of_the_targets(run, data):
    theirs = TransformedTargetRegressor(LinearRegression(), transformer=StandardScaler()).fit(X[SPLIT[0]], Y[SPLIT[0]])
    np.testing.assert_allclose(run.predict(X)[:, 0], theirs.predict(X), rtol=1e-4)
    outputs = run.apply(data.preprocess(X))
    assert abs(float(outputs.mean())) < 1
    np.testing.assert_allclose(run.predict(X), in_raw_units(outputs), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(run.predict)(X.astype(np.float32)), run.predict(X), rtol=1e-5)


def test_runs_side_by_side_predict_in_the_unit_of_the_targets(run, data):
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run)
    found = jax.vmap(lambda run: run.predict(X.astype(np.float32)))(runs)
    expected = in_raw_units(run.apply(data.preprocess(X)))
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-5)


def test_members_and_ensembles_predict_in_the_unit_of_the_targets(train, data):
    rates = [0.1, 0.01]
    result = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), learning_rate=rates, devices=jax.devices()[:1])
    together = result.ensemble(2).predict(X)
    assert together.shape == (2, ROWS, 1)
    for row, found in zip(result.rows, together, strict=True):
        member = result.member(row["member"])
        expected = in_raw_units(member.apply(data.preprocess(X)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(member.predict(X), expected, rtol=1e-5)


def test_the_data_of_a_fold_have_its_targets():
    whole = nnfx.data.prepare(X, Y, standardize_targets=True)
    of_row = np.arange(ROWS) % 2
    folds = Folds.of(whole.train, whole.preprocess, jnp.asarray(of_row), 2)
    train, valid, preprocess = fold_data(Fixed(whole.train, None, whole.preprocess, folds), jnp.asarray(1))
    expected = (Y - Y[of_row == 0].mean()) / Y[of_row == 0].std()
    for batch in (train, valid):
        np.testing.assert_allclose(batch.targets, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(preprocess.raw_outputs(train.targets), Y, rtol=1e-6)


@pytest.mark.slow
def test_folds_standardise_the_targets_of_their_own_rows():
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=5)
    whole = nnfx.data.prepare(X, Y, standardize_targets=True)
    key = jax.random.key(0)
    result = nnfx.sweeps.sweep(train, whole, key=key, folds=2, learning_rate=[0.1], devices=jax.devices()[:1])
    fold_of_row = np.asarray(nnfx.data.permutation.permutation(jax.random.fold_in(key, 1), ROWS)) % 2
    for row in result.rows:
        held_out = fold_of_row == row["fold"]
        by_hand = nnfx.data.prepare(
            X, Y, standardize_targets=True, split=(np.flatnonzero(~held_out), np.flatnonzero(held_out))
        )
        run = train(jax.random.fold_in(key, 0), by_hand, learning_rate=0.1)
        np.testing.assert_allclose(result.histories["valid_loss"][row["member"]], run.history["valid_loss"], rtol=1e-4)
        np.testing.assert_allclose(result.member(row["member"]).predict(X), run.predict(X), rtol=1e-5)


def test_a_session_tells_units_apart(train, data, tmp_path):
    def saved(targets):
        other = nnfx.data.prepare(X, targets, standardize_targets=True, split=SPLIT)
        return nnfx.session(train, tmp_path / "run", progress=False)(jax.random.key(0), other, learning_rate=0.3)

    run = saved(Y)
    np.testing.assert_array_equal(saved(Y).predict(X), run.predict(X))
    with pytest.raises(ValueError, match="preprocess.target_scale: expected float32"):
        saved(2 * Y)  # equal once standardised


def test_outputs_of_another_shape_are_refused(data):
    raw_outputs = data.preprocess.raw_outputs
    for outputs in (jnp.ones((4, 2)), jnp.ones((4, 1, 1)), (jnp.ones(4), jnp.ones(4))):
        with pytest.raises(
            ValueError, match=r"outputs: expected \(batch\) like the standardised targets, got .*run\.apply"
        ):
            raw_outputs(outputs)
    assert raw_outputs(jnp.ones(4)).shape == (4,)
    assert raw_outputs(jnp.ones((4, 1), jnp.bfloat16)).dtype == jnp.float32
    outputs = (1, 2)
    assert nnfx.data.prepare(X, Y).preprocess.raw_outputs(outputs) is outputs


def test_a_constant_target_is_only_centred():
    data = nnfx.data.prepare(X, np.full(ROWS, 5.0), standardize_targets=True)
    np.testing.assert_array_equal(data.train.targets, np.zeros(ROWS))
    np.testing.assert_array_equal(data.preprocess.raw_outputs(data.train.targets), np.full(ROWS, 5.0))


@pytest.mark.parametrize("targets", [CLASSES, NAMES, CLASSES > 0])
def test_only_floats_are_standardised(targets):
    with pytest.raises(TypeError, match="standardize_targets: expected targets that are floats, got (int64|bool)"):
        nnfx.data.prepare(X, targets, standardize_targets=True)
    with pytest.raises(TypeError, match="standardize_targets: expected True or False, got None"):
        nnfx.data.prepare(X, targets, standardize_targets=None)


def test_categories_of_pandas_are_classes_whether_they_stand_in_a_series_or_not():
    pandas = pytest.importorskip("pandas")
    given = pandas.Categorical([3, 7] * 4)
    for targets in (given, pandas.Series(given), pandas.CategoricalIndex(given)):
        data = nnfx.data.prepare(np.arange(8.0)[:, None], targets)
        assert data.preprocess.classes == ("3", "7")
        assert data.train.targets.tolist() == [0, 1] * 4


def test_missing_text_cannot_be_masked():
    with pytest.raises(ValueError, match="targets: expected no masked .*got 2; only numbers can be masked, not text"):
        nnfx.data.prepare(np.arange(4.0)[:, None], ["a", None] * 2, missing_targets="mask")


def test_targets_of_another_type_are_named_without_a_column():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="targets: expected numbers, booleans or text, got an Interval$"):
        nnfx.data.prepare(np.arange(4.0)[:, None], pandas.Series(pandas.interval_range(0, 4)))


STEPS = 5
LENGTHS = RNG.integers(1, STEPS + 1, ROWS)
IS_REAL = np.arange(STEPS) < LENGTHS[:, None]
OF_STEPS = {
    "one": RNG.normal(100, 7, (ROWS, STEPS)),
    "column": RNG.normal(100, 7, (ROWS, STEPS, 1)),
    "several": RNG.normal([1e4, -2.0], [3.0, 0.1], (ROWS, STEPS, 2)),
}
SEQUENCES = nnfx.models.Sequences(RNG.normal(size=(ROWS, STEPS, 2)), LENGTHS)


def padded(targets):
    """Return targets whose padding would spoil the statistics, if it were not left out."""
    return np.where(IS_REAL.reshape(ROWS, STEPS, *[1] * (targets.ndim - 2)), targets, 1e6)


@pytest.mark.parametrize("kind", OF_STEPS)
def test_targets_of_steps_are_standardised_over_all_real_steps(kind):
    y, train = OF_STEPS[kind], np.isin(np.arange(ROWS), SPLIT[0])
    data = nnfx.data.prepare(SEQUENCES, padded(y), standardize_targets=True, split=SPLIT)
    mean, scale = (of(y[train][IS_REAL[train]], axis=0) for of in (np.mean, np.std))
    for part, rows in zip((data.train, data.valid), SPLIT, strict=True):
        found = np.asarray(part.targets)[IS_REAL[rows]]
        np.testing.assert_allclose(found, ((y - mean) / scale)[rows][IS_REAL[rows]], rtol=1e-3, atol=1e-4)
        raw = np.asarray(data.preprocess.raw_outputs(part.targets))
        np.testing.assert_allclose(raw[IS_REAL[rows]], y[rows][IS_REAL[rows]], rtol=1e-5)
    shorter = jnp.zeros((3, 2, *y.shape[2:]))  # any number of rows and steps
    np.testing.assert_allclose(data.preprocess.raw_outputs(shorter), np.broadcast_to(mean, shorter.shape), rtol=1e-6)
    with pytest.raises(ValueError, match=r"outputs: expected \(batch, time.*\) like the standardised targets, got"):
        data.preprocess.raw_outputs(jnp.zeros((3, STEPS, 4)))


def test_steps_of_weight_zero_and_missing_targets_enter_no_statistic():
    y = padded(OF_STEPS["one"])
    weights = RNG.integers(0, 2, (ROWS, STEPS)).astype(float)
    weights[0] = 1
    known = y[IS_REAL & (weights > 0)]
    data = nnfx.data.prepare(SEQUENCES, y, weights=weights, standardize_targets=True)
    np.testing.assert_allclose(data.preprocess.target_mean, [[known.mean()]], rtol=1e-6)
    np.testing.assert_allclose(data.preprocess.target_scale, [[known.std()]], rtol=1e-5)
    missing = np.where(weights > 0, y, np.nan)
    masked = nnfx.data.prepare(SEQUENCES, missing, missing_targets="mask", standardize_targets=True)
    np.testing.assert_allclose(masked.preprocess.target_mean, data.preprocess.target_mean, rtol=1e-6)


def test_folds_standardise_the_steps_of_their_own_rows():
    y, of_row = OF_STEPS["several"], np.arange(ROWS) % 2
    data = nnfx.data.prepare(SEQUENCES, padded(y), standardize_targets=True)
    folds = Folds.of(data.train, data.preprocess, jnp.asarray(of_row), 2)
    for fold in range(2):
        own = y[(of_row != fold)[:, None] & IS_REAL]
        found = np.asarray(folds.targets(data.train.targets, fold))
        np.testing.assert_allclose(found[IS_REAL], ((y - own.mean(0)) / own.std(0))[IS_REAL], rtol=1e-3, atol=1e-3)
        preprocess = jax.tree.map(lambda stack, fold=fold: stack[fold], folds.preprocess)
        np.testing.assert_allclose(np.asarray(preprocess.raw_outputs(found))[IS_REAL], y[IS_REAL], rtol=1e-5)


def test_a_run_predicts_steps_in_raw_units_and_so_does_its_saved_model(tmp_path):
    mean = OF_STEPS["one"][IS_REAL].mean()
    data = nnfx.data.prepare(SEQUENCES, padded(OF_STEPS["one"]), standardize_targets=True)
    model = nnfx.models.gru(1, hidden=(2,), returns="all")
    run = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1)(
        jax.random.key(0), data, learning_rate=0.01
    )
    outputs, scale = run.apply(data.preprocess(SEQUENCES)), OF_STEPS["one"][IS_REAL].std()
    np.testing.assert_allclose(run.predict(SEQUENCES), np.asarray(outputs) * scale + mean, rtol=1e-5)
    run.save(tmp_path / "model")
    np.testing.assert_array_equal(nnfx.load(tmp_path / "model").predict(SEQUENCES), run.predict(SEQUENCES))
