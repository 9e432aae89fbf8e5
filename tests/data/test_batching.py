import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.data import batching
from nnfx.types import Batch


@pytest.mark.parametrize(
    ("rows", "batch_size"), [(7, 3), (6, 3), (5, 1), (4, 4), (1, 1), pytest.param(100, 32, marks=pytest.mark.slow)]
)
def test_every_row_is_visited_once_an_epoch(key, rows, batch_size):
    order = batching.shuffled(key, jnp.int32(3), rows, batch_size)
    assert order.rows.shape == order.is_real.shape == (-(-rows // batch_size), batch_size)
    flat, is_real = np.asarray(order.rows).ravel(), np.asarray(order.is_real).ravel()
    assert sorted(flat[:rows]) == list(range(rows))
    assert is_real[:rows].all()
    assert not is_real[rows:].any()
    # the last batch is filled up with rows of the same epoch, so that batch statistics remain those of the data
    np.testing.assert_array_equal(flat[rows:], flat[: len(flat) - rows])


def test_the_order_depends_on_the_key_and_the_epoch_alone(key):
    drawn = [batching.shuffled(k, jnp.int32(e), 50, 5).rows.tolist() for k in (key, jax.random.key(1)) for e in (0, 1)]
    assert len({str(order) for order in drawn}) == 4
    assert batching.shuffled(key, 1, 50, 5).rows.tolist() == drawn[1]


def orders(key, rows, epochs=20_000):
    draw = jax.jit(jax.vmap(lambda epoch: batching.permutation(jax.random.fold_in(key, epoch), rows)))
    return np.asarray(draw(jnp.arange(epochs)))


def deviation(counts, expected, freedom):
    """Return the distance of chi-square from its expectation, in standard deviations."""
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "rows", [2, 3, 16, 17, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (15, 18, 33, 101, 128, 257, 714))]
)
def test_orders_are_uniform(key, rows):
    drawn = orders(key, rows)
    assert (np.sort(drawn, axis=1) == np.arange(rows)).all()

    positions = np.stack([np.bincount(column, minlength=rows) for column in drawn.T])
    assert abs(deviation(positions, len(drawn) / rows, (rows - 1) ** 2)) < 5

    other_row = ~np.eye(rows, dtype=bool)
    for i, j in [(0, 1), (0, rows // 2), (rows // 3, rows - 1)]:
        if i != j:
            pairs = np.zeros((rows, rows))
            np.add.at(pairs, (drawn[:, i], drawn[:, j]), 1)
            freedom = rows * (rows - 1) - 1
            assert abs(deviation(pairs[other_row], len(drawn) / (freedom + 1), freedom)) < 5

    ascents = (drawn[:, 1:] > drawn[:, :-1]).sum(1)
    assert abs(ascents.mean() - (rows - 1) / 2) < 5 * np.sqrt((rows + 1) / 12 / len(drawn))
    if rows > 2:
        assert abs(ascents.var() / ((rows + 1) / 12) - 1) < 0.1
    fixed = (drawn == np.arange(rows)).sum(1)
    assert abs(fixed.mean() - 1) < 5 / np.sqrt(len(drawn))


def test_the_largest_orders_are_orders_too(key):
    assert np.array_equal(np.sort(batching.permutation(key, 1_000_003)), np.arange(1_000_003))


def test_rows_in_their_own_order():
    assert batching.in_order(5, 2).rows.tolist() == [[0, 1], [2, 3], [4, 0]]
    assert batching.in_order(5, 2).is_real.tolist() == [[True, True], [True, True], [True, False]]


def test_a_place_that_is_not_real_weighs_nothing():
    data = Batch({"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}, jnp.arange(3), jnp.array([1.0, 2.0, 3.0]))
    batch = batching.take(data, batching.Order(jnp.array([2, 0, 1]), jnp.array([True, True, False])))
    assert batch.weights.tolist() == [3, 1, 0]
    assert batch.targets.tolist() == [2, 0, 1]
    assert batch.inputs["b"].shape == (3, 2)
