"""Raw rows are transformed as in training: large integers, column names, masks, and values that are not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx.data.preprocess import Preprocess, each

RNG = np.random.default_rng(0)
Y = np.arange(40) % 2
LARGE = {
    "int64": (2_000_000_000 + 50_000_000 * np.arange(40)).astype(np.int64)[:, None],
    "uint64": (2**63 + 2**50 * np.arange(40, dtype=np.uint64))[:, None],
    "dates": (np.datetime64("2026-01-01", "ns") + np.arange(40) * np.timedelta64(1, "D")).astype(np.int64)[:, None],
    "float64": 1e30 * RNG.normal(size=(40, 1)),
    "int8": np.arange(40, dtype=np.int8)[:, None],
    "float16": (1000 + np.arange(40) / 2).astype(np.float16)[:, None],
    "small": 1e-30 * RNG.normal(size=(40, 2)),
}


@pytest.mark.parametrize("name", LARGE)
def test_raw_training_rows_become_what_was_trained_on(name):
    x = LARGE[name]
    data = nnfx.data.prepare(x, Y)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6, atol=1e-6)
    for again in (x, x.tolist(), jax.tree.map(lambda leaf: leaf, x)):
        np.testing.assert_array_equal(data.preprocess(again)[:20], data.train.inputs[:20])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), data.preprocess)
    for prepared in each(stacked, x):
        np.testing.assert_array_equal(prepared, data.train.inputs)


@pytest.mark.parametrize("missing", ["error", "median"])
def test_traced_inputs_are_prepared_in_the_precision_of_the_device(missing):
    x = np.where(RNG.random((40, 2)) < 0.2, np.nan, RNG.normal(size=(40, 2))) if missing == "median" else LARGE["small"]
    data = nnfx.data.prepare(x * 7 + 3, Y, missing=missing) if missing == "median" else nnfx.data.prepare(x, Y)
    raw = x * 7 + 3 if missing == "median" else x
    found = jax.jit(lambda preprocess, x: preprocess(x))(data.preprocess, raw.astype(np.float32))
    np.testing.assert_allclose(found, data.train.inputs, rtol=1e-4, atol=1e-5)
    maps = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), data.preprocess)
    both = jax.vmap(lambda preprocess: preprocess(raw))(maps)
    np.testing.assert_allclose(both[1], data.train.inputs, rtol=1e-4, atol=1e-5)


def test_many_rows_are_prepared_in_parts():
    x = RNG.normal(size=(70_000, 3)) * 5 + 2
    x[::9, 1] = np.nan
    data = nnfx.data.prepare(x, np.zeros(len(x)), missing="median")
    np.testing.assert_array_equal(data.preprocess(x), data.train.inputs)
    x[-1, 0] = np.inf
    with pytest.raises(
        ValueError, match=r"inputs: expected finite numbers, got 1 not finite, the first at \(69999, 0\)"
    ):
        data.preprocess(x)


def test_a_nan_scalar_stands_for_no_median():
    for nothing in (None, jnp.asarray(np.nan), np.nan):
        preprocess = Preprocess(nothing, jnp.zeros(()), jnp.ones(()), (), (2,))
        np.testing.assert_array_equal(preprocess(np.ones((3, 2))), np.ones((3, 2)))
        with pytest.raises(ValueError, match="inputs: expected finite numbers"):
            preprocess(np.array([[1.0, np.nan]]))


def test_masked_values_are_filled_where_missing_ones_are():
    x = np.ma.array(RNG.normal(size=(40, 2)), mask=RNG.random((40, 2)) < 0.3)
    data = nnfx.data.prepare(x, Y, missing="median")
    np.testing.assert_array_equal(data.preprocess(x), data.train.inputs)
    with pytest.raises(ValueError, match="inputs: expected finite"):
        nnfx.data.prepare(x.data, Y).preprocess(x)


# Integers


TOKENS = RNG.integers(0, 50, (40, 6))


@pytest.mark.parametrize("options", [{"standardize": False}, {"keep_integers": True}])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_integers_may_stay_integers(options, dtype, key):
    data = nnfx.data.prepare(TOKENS.astype(dtype), Y, key=key, valid_fraction=0.25, **options)
    for batch in (data.train, data.valid):
        assert batch.inputs.dtype == jnp.int32
    for tokens in (TOKENS, TOKENS.tolist(), TOKENS.astype(float), jnp.asarray(TOKENS)):
        found = data.preprocess(tokens)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, TOKENS)
    assert jax.jit(data.preprocess)(TOKENS).dtype == jnp.int32


def test_what_are_no_integers_is_refused_where_they_are_kept():
    data = nnfx.data.prepare(TOKENS, Y, keep_integers=True)
    for wrong in (TOKENS + 0.5, TOKENS + 2**40, np.full((1, 6), np.nan)):
        with pytest.raises(ValueError, match="inputs: expected .* that int32 can hold"):
            data.preprocess(wrong)
    with pytest.raises(
        ValueError, match="inputs of data.train: expected integers that int32 can hold, got 1099511627776"
    ):
        nnfx.data.prepare(np.array([[2**40]]), [1], keep_integers=True)
    with pytest.raises(ValueError, match="keep_integers: expected integer inputs without missing values, got float64"):
        nnfx.data.prepare(TOKENS + 0.5, Y, keep_integers=True)
    with pytest.raises(ValueError, match="keep_integers: .* got standardize=True"):
        nnfx.data.prepare(TOKENS, Y, keep_integers=True, standardize=True)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (TOKENS, {}),
        (TOKENS, {"keep_integers": False, "standardize": False}),
        (TOKENS > 3, {"standardize": False}),
        (TOKENS.reshape(40, 6, 1), {"standardize": False}),
    ],
    ids=["standardised", "asked", "booleans", "images"],
)
def test_other_integers_become_floats(x, options):
    data = nnfx.data.prepare(x, Y, **options)
    assert data.train.inputs.dtype == data.preprocess(x).dtype == jnp.float32
    np.testing.assert_array_equal(data.preprocess(x), data.train.inputs)


def test_a_map_made_by_hand_leaves_tokens_as_they_are():
    for number in (jnp.zeros(()), np.float32(0)):
        tokens = Preprocess(None, number, number + 1, (), (6,))(TOKENS)
        assert tokens.dtype == jnp.int32
    assert Preprocess(None, jnp.zeros(()), jnp.full((), 255.0), (), (6,))(TOKENS).dtype == jnp.float32


# Names


def frames(columns):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    return pandas.DataFrame(columns), polars.DataFrame(columns)


COLUMNS = {"age": RNG.normal(40, 9, 40), "fare": RNG.normal(30, 5, 40), "class": RNG.integers(1, 4, 40)}


@pytest.mark.parametrize("which", [0, 1], ids=["pandas", "polars"])
def test_the_columns_of_frames_go_by_their_names(which):
    data = nnfx.data.prepare(frames(COLUMNS)[which], Y)
    assert data.features == ("age", "fare", "class")
    for order in (["age", "fare", "class"], ["class", "age", "fare"]):
        for frame in frames({name: COLUMNS[name] for name in order}):
            np.testing.assert_array_equal(data.preprocess(frame), data.train.inputs)
    as_array = np.stack(list(COLUMNS.values()), 1)
    np.testing.assert_array_equal(data.preprocess(as_array), data.train.inputs)
    strange = {
        "lacking": ({"age": [1.0], "fare": [2.0]}, "got columns without 'class'$"),
        "additional": ({**COLUMNS, "port": COLUMNS["age"]}, "got columns with 'port'$"),
        "other": ({"Age": [1.0], "fare": [2.0], "class": [3]}, "got columns without 'age' and with 'Age'$"),
    }
    for columns, message in strange.values():
        with pytest.raises(ValueError, match=f"inputs: expected the 3 columns used in training, {message}"):
            data.preprocess(frames(columns)[which])


def test_columns_that_come_twice():
    pandas = pytest.importorskip("pandas")
    twice = pandas.DataFrame(np.ones((3, 2)), columns=["a", "a"])
    with pytest.raises(ValueError, match="inputs: expected a unique name for each feature, got 'a' twice"):
        nnfx.data.prepare(twice, [0, 1, 1])
    data = nnfx.data.prepare(np.ones((3, 2)), [0, 1, 1], features=("a", "b"))
    with pytest.raises(ValueError, match="got columns without 'b' and twice 'a'"):
        data.preprocess(twice)
    with pytest.raises(ValueError, match="features: expected a unique name for each feature, got 'b' twice"):
        nnfx.data.prepare(np.ones((3, 2)), [0, 1, 1], features=["b", "b"])


def test_columns_without_names_go_by_their_places():
    pandas = pytest.importorskip("pandas")
    x = RNG.normal(size=(40, 2))
    for trained, given in ((x, pandas.DataFrame(x, columns=["a", "b"])), (pandas.DataFrame(x), pandas.DataFrame(x))):
        data = nnfx.data.prepare(trained, Y)
        assert data.features == ("x0", "x1")
        np.testing.assert_array_equal(data.preprocess(given), data.train.inputs)


def test_the_passengers_of_a_frame_go_by_name():
    pandas = pytest.importorskip("pandas")
    data = nnfx.data.titanic("fare", "age", "sex")
    row = {"sex=male": [1.0], "age": [30.0], "fare": [7.0]}
    np.testing.assert_array_equal(data.preprocess(pandas.DataFrame(row)), data.preprocess([[7.0, 30.0, 1.0]]))
    with pytest.raises(ValueError, match="without 'sex=male' and with 'sex'"):
        data.preprocess(pandas.DataFrame({"sex": [1.0], "age": [30.0], "fare": [7.0]}))


def test_what_was_no_text_in_training_is_named():
    data = nnfx.data.prepare(np.ones((2, 2)), [0, 1], features=("age", "sex"))
    for frame in frames({"age": [1.0, 2.0], "sex": ["male", "female"]}):
        with pytest.raises(TypeError, match="inputs: expected numbers in column 'sex', as in training, got 'male'"):
            data.preprocess(frame)


@pytest.mark.slow
def test_many_columns_take_no_longer_than_they_are_many():
    import time

    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(RNG.normal(size=(4, 40_000)), columns=[f"c{i}" for i in range(40_000)])
    began = time.process_time()
    data = nnfx.data.prepare(frame, [0, 1, 1, 0])
    np.testing.assert_array_equal(data.preprocess(frame[frame.columns[::-1]]), data.train.inputs)
    assert time.process_time() - began < 10  # of the processor; comparing all pairs took half a minute


def test_a_series_is_one_feature():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    values = RNG.normal(size=40)
    for series in (pandas.Series(values, name="age"), polars.Series("age", values)):
        data = nnfx.data.prepare(series, Y)
        assert data.features == ("age",)
        np.testing.assert_array_equal(data.preprocess(series), nnfx.data.prepare(values[:, None], Y).train.inputs)


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"])
def test_nothing_that_is_prepared_is_nan(flag):
    x = np.where(RNG.random((40, 2)) < 0.2, np.nan, RNG.normal(size=(40, 2)))
    jax.config.update(flag, True)
    try:
        for missing in ("drop", "median"):
            data = nnfx.data.prepare(x, Y, missing=missing)
            known = x if missing == "median" else x[~np.isnan(x).any(1)]
            for leaf in jax.tree.leaves((data, data.preprocess(known))):
                assert np.isfinite(leaf).all()
        series = nnfx.forecasting.windows(np.nan_to_num(x), 3, 2)
        assert np.isfinite(nnfx.forecasting.as_data(series).preprocess(series.inputs)).all()
    finally:
        jax.config.update(flag, False)


@pytest.mark.slow
def test_tokens_reach_an_embedding_by_every_way(key, tmp_path):
    import flax.linen as nn
    import optax

    class Embedding(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            assert tokens.dtype == jnp.int32
            return nn.Dense(2)(nn.Embed(50, 4)(tokens).mean(1))

    train = nnfx.fit(
        nnfx.models.from_linen(Embedding()), nnfx.losses.categorical_cross_entropy, optax.sgd, epochs=2, batch_size=10
    )
    whole = nnfx.data.prepare(TOKENS, Y, keep_integers=True)
    run = train(key, whole, learning_rate=0.1)
    expected = run.apply(whole.train.inputs)
    np.testing.assert_array_equal(run.predict(TOKENS), expected)
    np.testing.assert_array_equal(run.predict(TOKENS.tolist()), expected)
    assert np.isfinite(run.evaluate(whole.train)["loss"])
    result = nnfx.sweeps.sweep(train, whole, key=key, folds=2, learning_rate=[0.1])
    assert result.ensemble(2).predict(TOKENS).shape == (2, 40, 2)
    long = nnfx.session(train, tmp_path / "run", progress=False)(key, whole, learning_rate=0.1)
    np.testing.assert_array_equal(long.predict(TOKENS), expected)
    by_hand = nnfx.data.Data(whole.train, None, Preprocess(None, jnp.zeros(()), jnp.ones(()), (), (6,)))
    np.testing.assert_array_equal(train(key, by_hand, learning_rate=0.1).predict(TOKENS), expected)


def test_sequences_of_unequal_length_are_said_to_be_prepared():
    data = nnfx.data.prepare(RNG.normal(size=(40, 5, 1)), Y)
    sequences = nnfx.models.Sequences(jnp.zeros((2, 5, 1)), jnp.array([5, 2]))
    with pytest.raises(
        TypeError, match=r"inputs: expected raw features .*, got Sequences; pass preprocessed inputs to run\.apply"
    ):
        data.preprocess(sequences)


def test_values_that_cannot_be_prepared_name_their_column():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.arange(12.0).reshape(4, 3), columns=["a", "b", "c"])
    data = nnfx.data.prepare(frame, np.arange(4.0))
    missing = frame.mask(frame == 7)
    for call in (data.preprocess, lambda given: nnfx.data.prepare(given, np.arange(4.0))):
        with pytest.raises(ValueError, match=r"inputs: .*got 1 not finite, the first at \(2, 1\), column 'b'"):
            call(missing)
    wanted = "inputs: expected numbers in column 'b', as in training, got 'old'"
    for text in (frame.assign(b="old"), frame.astype(object).mask(frame == 7, "old")):
        with pytest.raises(TypeError, match=wanted):
            data.preprocess(text)
    np.testing.assert_array_equal(data.preprocess(frame.astype(object)), data.preprocess(frame))
    mixed = frame.assign(port=["x", "y", "x", "y"])
    encoded = nnfx.data.prepare(mixed, np.arange(4.0))
    with pytest.raises(ValueError, match="column 'b'"):
        encoded.preprocess(mixed.assign(b=missing["b"]))
