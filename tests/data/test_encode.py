"""Categories become the columns of scikit-learn's OneHotEncoder, and numbers beside them those of its other scalers."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import nnfx
from nnfx.data import encode
from nnfx.data.preprocess import MEANINGS

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

RNG = np.random.default_rng(0)
ROWS = 40
Y = np.arange(ROWS) % 2
AGE = RNG.normal(40, 9, ROWS)
ALONE = RNG.random(ROWS) < 0.4
PORT = RNG.choice(["Southampton", "Cherbourg", "Queenstown"], ROWS).astype(object)
DECK = RNG.choice([10, 2, 1], ROWS)
PLAIN = pandas.DataFrame({"port": PORT, "age": AGE, "alone": ALONE})
DECKS = PLAIN.assign(deck=pandas.Categorical(DECK))


def gapped(values, which):
    found = np.array(values, object)
    found[which] = None
    return found


GAPPED = PLAIN.assign(port=gapped(PORT, slice(0, ROWS, 7)), age=np.where(np.arange(ROWS) % 5, AGE, np.nan))


def columns_of_scikit_learn(frame, fills=False):
    numbers = [SimpleImputer(strategy="median")] if fills else []
    return ColumnTransformer(
        [
            ("port", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["port"]),
            ("age", make_pipeline(*numbers, StandardScaler()), ["age"]),
            ("alone", "passthrough", ["alone"]),
        ]
    ).fit(frame)


def in_polars(frame, dtype=polars.String):
    columns = {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}
    return polars.DataFrame(columns, schema_overrides={"port": dtype})


PORTS = ["Southampton", "Queenstown", "Cherbourg", "Rome"]  # in no order, and one that no row holds
FRAMES = {
    "object": PLAIN.astype({"port": object, "alone": object}),
    "string": PLAIN.astype({"port": "string", "alone": "boolean"}),
    "category": PLAIN.assign(port=pandas.Categorical(PORT, PORTS)),
    "String": in_polars(PLAIN),
    "Categorical": in_polars(PLAIN, polars.Categorical),
    "Enum": in_polars(PLAIN, polars.Enum(PORTS)),
}
NAMES = ("port=Cherbourg", "port=Queenstown", "port=Southampton", "age", "alone")


@pytest.mark.parametrize("kind", FRAMES)
def test_categories_are_the_columns_of_scikit_learn(kind):
    frame = FRAMES[kind]
    data = nnfx.data.prepare(frame, Y)
    assert data.features == NAMES
    expected = columns_of_scikit_learn(PLAIN).transform(PLAIN)
    np.testing.assert_allclose(data.train.inputs, expected.astype(float), rtol=1e-5, atol=1e-6)
    for again in (frame, frame[["alone", "age", "port"]], *FRAMES.values()):
        np.testing.assert_array_equal(data.preprocess(again), data.train.inputs)


def test_categories_that_are_numbers_are_in_their_order():
    data = nnfx.data.prepare(DECKS[["deck"]], Y)
    assert data.features == ("deck=1", "deck=2", "deck=10")
    np.testing.assert_array_equal(data.train.inputs, OneHotEncoder(sparse_output=False).fit_transform(DECKS[["deck"]]))


@pytest.mark.parametrize("frame", [GAPPED, in_polars(GAPPED)], ids=["pandas", "polars"])
def test_missing_categories_are_a_category_of_their_own(frame):
    data = nnfx.data.prepare(frame, Y, missing="median")
    expected = columns_of_scikit_learn(GAPPED, fills=True).transform(GAPPED).astype(float)
    assert data.features == (*NAMES[:3], "port missing", *NAMES[3:], "age missing")
    np.testing.assert_allclose(data.train.inputs[:, :6], expected, rtol=1e-5, atol=1e-6)
    lost = GAPPED["age"].isna().to_numpy()[:, None]
    np.testing.assert_allclose(data.train.inputs[:, 6:], StandardScaler().fit_transform(lost), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.preprocess(frame), data.train.inputs)
    assert data.report.filled == {"port": 6, "age": 8}


def test_rows_with_missing_categories_are_an_error_or_dropped():
    with pytest.raises(
        ValueError, match="inputs: expected no missing values, got 14, the first in column 'port' of row 0; m"
    ):
        nnfx.data.prepare(GAPPED, Y)
    data = nnfx.data.prepare(GAPPED, Y, missing="drop")
    known = GAPPED.notna().all(axis=1).to_numpy()
    assert data.report.dropped == (~known).sum()
    expected = columns_of_scikit_learn(GAPPED[known]).transform(GAPPED[known])
    np.testing.assert_allclose(data.train.inputs, expected.astype(float), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="inputs: expected no missing values, got some in column 'port'"):
        data.preprocess(GAPPED)


def test_missing_categories_that_training_did_not_hold_are_zero_where_values_are_filled():
    train, valid = np.arange(1, 7), np.array([0, 8])
    data = nnfx.data.prepare(GAPPED, Y, missing="median", split=(train, valid))
    ports = [each for each in data.features if each.startswith("port")]
    assert "port missing" not in ports
    np.testing.assert_array_equal(data.valid.inputs[0, : len(ports)], np.zeros(len(ports)))


@pytest.mark.parametrize("unseen", ["error", "other"])
def test_categories_that_training_did_not_hold(unseen):
    frame = PLAIN.assign(port=["Rome", *PORT[1:]])
    split = np.arange(1, ROWS), np.arange(1)
    data = nnfx.data.prepare(PLAIN, Y, unseen=unseen)
    assert "port=Rome" not in data.features
    if unseen == "error":
        for wrong in (lambda: data.preprocess(frame), lambda: nnfx.data.prepare(frame, Y, split=split)):
            with pytest.raises(
                ValueError, match="inputs: expected categories of 'port' .* got 'Rome'; .*unseen='other'"
            ):
                wrong()
        return
    expected = columns_of_scikit_learn(PLAIN).transform(frame)
    np.testing.assert_allclose(data.preprocess(frame), expected.astype(float), rtol=1e-5, atol=1e-6)
    valid = nnfx.data.prepare(frame, Y, split=split, unseen="other").valid
    np.testing.assert_array_equal(valid.inputs[0, :3], [0, 0, 0])


def test_rows_without_weight_bring_no_category():
    frame = PLAIN.assign(port=["Rome", *PORT[1:]])
    data = nnfx.data.prepare(frame, Y, weights=np.arange(ROWS) > 0)
    assert "port=Rome" not in data.features
    np.testing.assert_allclose(data.train.inputs[1:], nnfx.data.prepare(frame[1:], Y[1:]).train.inputs, rtol=1e-5)


def test_values_of_other_types_are_the_categories_they_equal():
    data = nnfx.data.prepare(DECKS, Y)
    for deck in (DECK, DECK.astype(float), [str(each) for each in DECK], DECK.astype(np.uint8)):
        np.testing.assert_array_equal(data.preprocess(DECKS.assign(deck=deck)), data.train.inputs)
    alone = DECKS.assign(alone=ALONE.astype(int), age=AGE.astype(object))
    np.testing.assert_array_equal(data.preprocess(alone), data.train.inputs)


def test_an_array_holds_the_encoded_columns(key):
    data = nnfx.data.prepare(PLAIN, Y)
    mean, scale = AGE.mean(), AGE.std()
    raw = np.asarray(data.train.inputs, np.float64)
    raw[:, 3] = AGE
    for found in (data.preprocess(raw), jax.jit(data.preprocess)(raw)):
        np.testing.assert_allclose(found, data.train.inputs, rtol=1e-4, atol=1e-5)
    assert float(data.preprocess.exact[0][0, 3]) == pytest.approx(mean)
    assert float(data.preprocess.exact[1][0, 3]) == pytest.approx(scale)
    with pytest.raises(
        ValueError, match=r"raw features \(batch, 5\), or a frame with the columns used in training, got float64"
    ):
        data.preprocess(raw[:, :4])


def test_the_map_survives_as_arrays_and_json():
    data = nnfx.data.prepare(GAPPED, ["no", "yes"] * 20, missing="median", unseen="other")
    fields = {field.name: getattr(data.preprocess, field.name) for field in dataclasses.fields(data.preprocess)}
    kept = json.loads(json.dumps({name: fields[name] for name in MEANINGS}))
    arrays = jax.tree.map(np.asarray, {name: value for name, value in fields.items() if name not in MEANINGS})

    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    again = nnfx.data.Preprocess(**arrays, **{name: tuples(value) for name, value in kept.items()})
    assert again.classes == data.classes == ("no", "yes")
    np.testing.assert_array_equal(again(GAPPED), data.train.inputs)
    assert {name: getattr(again, name) for name in MEANINGS} == {name: fields[name] for name in MEANINGS}


def test_columns_without_names_go_by_their_places():
    frame = pandas.DataFrame({0: PORT, 1: AGE})
    data = nnfx.data.prepare(frame, Y)
    assert data.features == ("x0=Cherbourg", "x0=Queenstown", "x0=Southampton", "x1")
    np.testing.assert_array_equal(data.preprocess(frame), data.train.inputs)
    with pytest.raises(ValueError, match="inputs: expected 2 columns, as in training, got 1"):
        data.preprocess(frame[[0]])
    named = nnfx.data.prepare(frame, Y, features=("port", "age"))
    np.testing.assert_array_equal(named.preprocess(PLAIN[["age", "port"]]), named.train.inputs)


def test_numbers_of_any_dtype_beside_categories_are_numbers():
    frame = PLAIN.assign(fare=pandas.array([None, *range(1, ROWS)], "Int64"), rank=DECK.astype(object))
    data = nnfx.data.prepare(frame, Y, missing="median")
    known = np.array([np.median(np.arange(1, ROWS)), *range(1, ROWS)])
    np.testing.assert_allclose(
        np.asarray(data.train.inputs)[:, [5, 6]],
        StandardScaler().fit_transform(np.stack([known, DECK], 1)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_without_standardising_only_numbers_stay_raw():
    data = nnfx.data.prepare(PLAIN, Y, standardize=False)
    expected = columns_of_scikit_learn(PLAIN).transform(PLAIN).astype(float)
    expected[:, 3] = AGE
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(data.preprocess(PLAIN), data.train.inputs)


WRONG = {
    "dates": (
        {"sailed": pandas.Timestamp("1912-04-10")},
        TypeError,
        "numbers, booleans or text, got a Timestamp in column 'sailed'",
    ),
    "lists": ({"sailed": [[1]] * ROWS}, TypeError, "numbers, booleans or text, got a list in column 'sailed'"),
    "same names": ({"port=Cherbourg": AGE}, ValueError, "a unique name .* column, got 'port=Cherbourg' twice"),
    "infinite": ({"age": np.inf}, ValueError, "finite numbers, got 40 not finite"),
    "nothing": ({"sailed": None}, ValueError, "at least one known value of 'sailed', got only missing values"),
    "no text": (
        {"sailed": pandas.array([None] * ROWS, "string")},
        ValueError,
        "at least one known value of 'sailed', got only",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_that_cannot_be_read_are_named(case):
    columns, error, message = WRONG[case]
    with pytest.raises(error, match=f"inputs: expected {message}"):
        nnfx.data.prepare(PLAIN.assign(**columns), Y, missing="median")


def test_columns_of_another_kind_than_in_training_are_named():
    data = nnfx.data.prepare(PLAIN, Y)
    for change, error, message in [
        ({"age": "old"}, TypeError, "inputs: expected numbers in column 'age', as in training, got 'old'"),
        ({"alone": "yes"}, TypeError, "inputs: expected booleans in column 'alone', as in training, got 'yes'"),
        ({"alone": 2}, ValueError, "inputs: expected booleans in column 'alone', as in training, got 2"),
        ({"port": 3.5}, ValueError, "inputs: expected categories of 'port' .* got '3.5'"),
    ]:
        with pytest.raises(error, match=message):
            data.preprocess(PLAIN.assign(**change))
    with pytest.raises(ValueError, match="keep_integers: expected integer inputs"):
        nnfx.data.prepare(PLAIN, Y, keep_integers=True)
    with pytest.raises(ValueError, match="unseen: expected one of 'error', 'other', got 'ignore'"):
        nnfx.data.prepare(PLAIN, Y, unseen="ignore")


def test_frames_of_numbers_alone_are_no_tables_of_categories():
    assert encode.columns("inputs", pandas.DataFrame({"a": [1, 2]})) is None
    assert encode.columns("inputs", pandas.DataFrame({"a": [1, 2.5]}, dtype=object)) is None
    assert encode.columns("inputs", np.ones((2, 2))) is None
    assert nnfx.data.prepare(pandas.DataFrame({"a": [1, 2]}), [0, 1], standardize=False).train.inputs.dtype == jnp.int32


LABELS = [["b", "a", "b"], np.array(["b", "a", "b"]), np.array([["b"], ["a"], ["b"]], object), ("b", "a", "b"),
          pandas.Series(["b", "a", "b"]), pandas.Series(["b", "a", "b"], dtype="category"),
          pandas.DataFrame({"y": ["b", "a", "b"]}), pandas.Series(["b", "a", "b"]).array,
          polars.Series(["b", "a", "b"]), polars.Series(["b", "a", "b"], dtype=polars.Enum(["b", "a"]))]  # fmt: skip


@pytest.mark.parametrize("given", LABELS, ids=range(len(LABELS)))
def test_text_as_targets_becomes_classes(given):
    data = nnfx.data.prepare(AGE[:3, None], given)
    assert data.classes == ("a", "b")
    assert data.train.targets.dtype == jnp.int32
    np.testing.assert_array_equal(data.train.targets, [1, 0, 1])
    assert "targets: int32[3] (a, b)" in repr(data)


def test_targets_of_numbers_and_booleans_have_no_names():
    assert nnfx.data.prepare(AGE[:, None], np.stack([Y, AGE], 1).astype(object)).train.targets.shape == (ROWS, 2)
    for given in (Y, Y > 0, AGE, pandas.Series(Y), polars.Series(Y > 0), pandas.Series(Y > 0, dtype="boolean")):
        assert nnfx.data.prepare(AGE[:, None], given).classes == ()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a", None, "b"], ValueError, "targets: expected no masked or missing values, got 1"),
        (pandas.Series(["a", None, "b"]), ValueError, "targets: expected no masked or missing values, got 1"),
        (["a", (1,), "b"], TypeError, "targets: expected numbers, booleans or text, got a tuple"),
        (np.array([["a", "b"]] * 3), TypeError, "targets: expected one column of labels, got <U1.3,2."),
        (pandas.DataFrame({"a": ["x", "y", "z"], "b": 1}), ValueError, "targets: expected one column of labels, got 2"),
        (
            pandas.Series([True, None, True], dtype="boolean"),
            ValueError,
            "targets: .* no masked or missing values, got 1",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        nnfx.data.prepare(AGE[:3, None], given)


@pytest.mark.slow
def test_a_frame_goes_through_runs_sessions_folds_and_ensembles(key, tmp_path):
    import optax

    labels = np.array(["lost", "saved"], object)[Y]
    data = nnfx.data.prepare(GAPPED, labels, missing="median", unseen="other", class_weight="balanced")
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=3, batch_size=8)
    run = train(key, data, learning_rate=0.1)
    assert run.preprocess.classes == ("lost", "saved")
    expected = run.apply(data.train.inputs)
    for frame in (GAPPED, in_polars(GAPPED), GAPPED[["alone", "port", "age"]]):
        np.testing.assert_array_equal(run.predict(frame), expected)
    long = nnfx.session(train, tmp_path / "run", progress=False)(key, data, learning_rate=0.1)
    np.testing.assert_array_equal(long.predict(GAPPED), expected)
    result = nnfx.sweeps.sweep(train, data, key=key, folds=2, learning_rate=[0.1])
    together = result.ensemble(2).predict(in_polars(GAPPED))
    for row, found in zip(result.rows, together, strict=True):
        np.testing.assert_allclose(found, result.member(row["member"]).predict(GAPPED), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (["22", "38", "?", "26"], "column 'age', got text that mostly reads as numbers, such as '22' and '?'"),
        (["1.5", "2", "3"], "column 'age', got text that mostly reads as numbers, such as '1.5'"),
        ([22.0, 38.0, "unknown"], "column 'age', got text that mostly reads as numbers, such as 22.0 and 'unknown'"),
    ],
)
def test_numbers_written_as_text_are_no_categories(values, error):
    frame = pandas.DataFrame({"age": values, "fare": np.arange(float(len(values)))})
    with pytest.raises(ValueError, match=re.escape(f"inputs: expected numbers or categories in {error}")):
        nnfx.data.prepare(frame, np.zeros(len(values)))
    meant = frame.assign(age=frame["age"].astype("category"))
    assert len(nnfx.data.prepare(meant, np.zeros(len(values))).features) == 1 + len(values)


def test_text_that_is_mostly_other_than_numbers_or_whole_is_a_category():
    frame = pandas.DataFrame({"cabin": ["A1", "B2", "3"], "code": ["01", "02", "10"]})
    assert nnfx.data.prepare(frame, np.zeros(3)).features == (
        *("cabin=3", "cabin=A1", "cabin=B2"),
        *("code=01", "code=02", "code=10"),
    )


def test_targets_that_are_numbers_written_as_text_are_refused_unless_they_are_whole():
    with pytest.raises(ValueError, match="targets: expected numbers or class names, got numbers as text, such"):
        nnfx.data.prepare(np.zeros((3, 1)), ["1.5", "10", "2"])
    assert nnfx.data.prepare(np.arange(3.0)[:, None], ["0", "7", "1"]).classes == ("0", "1", "7")
