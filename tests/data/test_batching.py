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
