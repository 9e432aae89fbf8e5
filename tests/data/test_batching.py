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


def test_rows_in_their_own_order():
    assert batching.in_order(5, 2).rows.tolist() == [[0, 1], [2, 3], [4, 0]]
    assert batching.in_order(5, 2).is_real.tolist() == [[True, True], [True, True], [True, False]]


def test_a_place_that_is_not_real_weighs_nothing():
    data = Batch({"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}, jnp.arange(3), jnp.array([1.0, 2.0, 3.0]))
    batch = batching.take(data, batching.Order(jnp.array([2, 0, 1]), jnp.array([True, True, False])))
    assert batch.weights.tolist() == [3, 1, 0]
    assert batch.targets.tolist() == [2, 0, 1]
    assert batch.inputs["b"].shape == (3, 2)


KEY = jax.random.key(0)
DATA = Batch(jnp.ones((3, 2)), jnp.arange(3), jnp.ones(3))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: batching.shuffled(0, 0, 5, 2), TypeError, "key: expected a typed key, .*, got 0"),
        (lambda: batching.shuffled(KEY, 0, 5, 0), ValueError, "batch_size: expected a positive integer, got 0"),
        (lambda: batching.shuffled(KEY, 0, 0, 2), ValueError, "rows: expected a positive integer, got 0"),
        (lambda: batching.in_order(5, 0), ValueError, "batch_size: expected a positive integer, got 0"),
        (lambda: batching.in_order(5.0, 2), TypeError, "rows: expected a positive integer, got 5.0"),
        (lambda: batching.take(DATA, [0, 1]), TypeError, r"order: expected an Order, as returned by .*, got \[0, 1\]"),
        (
            lambda: batching.take(DATA.inputs, batching.in_order(3, 2)),
            TypeError,
            "data: expected a Batch, such as data.train, got a",
        ),
        (
            lambda: batching.take(DATA, batching.in_order(4, 4)),
            ValueError,
            "order.rows: expected rows from 0 to 2, got rows from 0 to 3",
        ),
    ],
)
def test_orders_that_cannot_be_meant(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
