import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.data import batching
from nnfx.types import Batch


@pytest.mark.parametrize(("rows", "batch_size"), [(7, 3), (6, 3), (5, 1), (4, 4), (1, 1), (100, 32)])
def test_every_row_is_visited_once_an_epoch(key, rows, batch_size):
    order = batching.shuffled(key, jnp.int32(3), rows, batch_size)
    assert order.shape == (-(-rows // batch_size), batch_size)
    flat = np.asarray(order).ravel()
    assert sorted(flat[:rows]) == list(range(rows))
    assert (flat[rows:] == rows).all()


def test_the_order_depends_on_the_key_and_the_epoch_alone(key):
    orders = [
        np.asarray(batching.shuffled(k, jnp.int32(e), 50, 5)).tolist() for k in (key, jax.random.key(1)) for e in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
    assert np.asarray(batching.shuffled(key, jnp.int32(1), 50, 5)).tolist() == orders[1]


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 33])
def test_orders_are_uniform_over_positions(key, rows):
    epochs = 4000
    orders = jax.vmap(lambda e: batching.shuffled(key, e, rows, rows)[0])(jnp.arange(epochs))
    counts = np.stack([np.bincount(column, minlength=rows) for column in np.asarray(orders).T])
    chi_square = ((counts - epochs / rows) ** 2 / (epochs / rows)).sum()
    freedom = (rows - 1) ** 2
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_rows_in_their_own_order():
    assert batching.in_order(5, 2).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_what_is_past_the_end_weighs_nothing():
    data = Batch({"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}, jnp.arange(3), jnp.array([1.0, 2.0, 3.0]))
    batch = batching.take(data, jnp.array([2, 0, 3]))
    assert batch.weights.tolist() == [3, 1, 0]
    assert batch.targets.tolist()[:2] == [2, 0]
    assert batch.inputs["b"].shape == (3, 2)
