import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx import Mean
from nnfx.types import Sequences


def test_a_training_state_gives_what_apply_takes():
    state = nnfx.TrainState(jnp.int32(0), {"w": 1}, {"batch_stats": 2}, (), None, None)
    assert state.variables == {"params": {"w": 1}, "batch_stats": 2}


# Sequences


VALUES = np.arange(24.0, dtype=np.float32).reshape(3, 4, 2)


def test_sequences_take_lists_tensors_and_series():
    pandas, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")
    for lengths in ([4, 0, 2], pandas.Series([4, 0, 2]), torch.tensor([4, 0, 2]), np.array([4, 0, 2], np.uint8)):
        for values in (VALUES, VALUES.tolist(), torch.tensor(VALUES), jnp.asarray(VALUES)):
            sequences = Sequences(values, lengths)
            assert sequences.values.dtype == jnp.float32
            np.testing.assert_array_equal(sequences.values, VALUES)
            np.testing.assert_array_equal(sequences.lengths, [4, 0, 2])
    assert Sequences([[1, 2], [3, 0]], [2, 1]).values.dtype == jnp.int32  # tokens
    assert Sequences(VALUES) == (VALUES, None, None)


@pytest.mark.parametrize(
    ("values", "lengths", "error", "message"),
    [
        (VALUES, [4, 5, 0], ValueError, "lengths: expected numbers from 0 to 4, the number of steps, got 0 to 5"),
        (
            VALUES,
            jnp.array([4, -1, 0]),
            ValueError,
            "lengths: expected numbers from 0 to 4, the number of steps, got -1 to 4",
        ),
        (VALUES, [4, 2], ValueError, r"lengths: expected one per sequence for values float32\[3,4,2\], got int"),
        (VALUES, [[4, 2, 1]], ValueError, "lengths: expected one per sequence"),
        (VALUES, [4.0, 2.0, 1.0], TypeError, r"lengths: expected integers, \(batch,\), got float32\[3\]"),
        (VALUES, np.array([4, np.nan, 1]), TypeError, r"lengths: expected integers, \(batch,\), got float64\[3\]"),
        (VALUES, [True, False, True], TypeError, r"lengths: expected integers, \(batch,\), got bool\[3\]"),
        (
            VALUES,
            np.ma.array([4, 2, 1], mask=[0, 1, 0]),
            ValueError,
            "lengths: expected no masked or missing values, got 1",
        ),
        ([[[1.0], [2.0]], [[3.0]]], [2, 1], ValueError, "values: .* got rows of different lengths"),
        (VALUES, [4, [2], 1], ValueError, "lengths: .* got rows of different lengths"),
        (VALUES, [4, 2, 2**40], ValueError, "lengths: expected integers that int32 can hold"),
    ],
)
def test_lengths_that_cannot_be_are_named(values, lengths, error, message):
    with pytest.raises(error, match=message):
        Sequences(values, lengths)


def test_sequences_are_a_tree_that_transformations_take_apart():
    lengths = jnp.array([4, 0, 2])
    sequences = Sequences(jnp.asarray(VALUES), lengths, state=((jnp.ones((3, 2)),),))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda sequences: sequences)(sequences), sequences)
    assert jax.jit(lambda values, lengths: Sequences(values, lengths).lengths.sum())(VALUES, lengths) == 6
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), sequences)
    assert isinstance(stacked, Sequences)
    axes = Sequences(0, 0, None)
    means = jax.vmap(lambda each: each.values.mean(), in_axes=(axes,))(stacked._replace(state=None))
    np.testing.assert_allclose(means, [VALUES.mean()] * 2)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(sequences)]
    assert names == [".values", ".lengths", ".state[0][0]"]
    shapes = jax.eval_shape(lambda sequences: sequences, sequences)
    assert isinstance(shapes, Sequences)
    assert Sequences(shapes.values, shapes.lengths).lengths.shape == (3,)
    assert jax.tree.map(lambda leaf: [1, "a"], sequences).values == [1, "a"]  # a leaf may be anything


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, jnp.bfloat16])
def test_a_mean_is_counted_in_float32_at_least(dtype):
    found = Mean.of(jnp.ones(3000, dtype))
    assert found.total.dtype == found.weight.dtype == jnp.float32
    assert float(found.value) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_of_weight_zero_does_not_count(value):
    values, weights = jnp.array([1.0, value, 4.0]), jnp.array([2.0, 0.0, 1.0])
    assert float(Mean.of(values, weights).value) == 2.0
    slope = jax.grad(lambda values: Mean.of(values, weights).value)(values)
    np.testing.assert_allclose(slope, [2 / 3, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [3.0, -1.0], [np.nan, 1.0]])
def test_the_mean_of_nothing_and_of_senseless_weights_is_nan(weights):
    assert np.isnan(Mean.of(jnp.ones(2), jnp.array(weights)).value)
