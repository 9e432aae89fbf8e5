"""What one device has of a batch, compared with the whole batch dealt out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import shards
from nnfx.shards import Split

DEVICES = 4
KEY = jax.random.key(0)


def dealt(rows):
    """Deal rows out like cards, padded with zeros: `(devices, share, ...)`."""
    padded = np.concatenate([rows, np.zeros((-len(rows) % DEVICES, *rows.shape[1:]), rows.dtype)])
    return np.stack([padded[device::DEVICES] for device in range(DEVICES)])


def on_each(function, rows, *arguments):
    """Apply a function on every device, each with its share of the rows."""
    how = Split(rows, DEVICES)

    def on_one(*arguments):
        with shards.split(how):
            return function(*arguments)

    mapped = jax.vmap(on_one, axis_name=how.axis, axis_size=DEVICES)
    return jax.tree.map(np.asarray, mapped(*map(jnp.asarray, arguments)))


@pytest.fixture(params=[8, 10, 3])
def batch(request):
    """Batches that the devices share evenly, with padding, and with fewer rows than devices."""
    return np.arange(1.0, 1 + 2 * request.param, dtype=np.float32).reshape(request.param, 2)


def test_shares_are_as_large_as_the_largest():
    assert [Split(rows, DEVICES).share for rows in (3, 8, 9)] == [1, 2, 3]
    assert Split(8, 4).axis != Split(8, 2).axis != Split(9, 2).axis


def test_a_share_is_dealt_like_cards(batch):
    found = on_each(lambda: shards.own(jnp.asarray(batch)), len(batch))
    np.testing.assert_array_equal(found, dealt(batch))


def test_what_is_gathered_is_the_whole_batch_in_order(batch):
    for whole in on_each(shards.gathered, len(batch), dealt(batch)):
        np.testing.assert_array_equal(whole, batch)


def test_totals_are_over_all_devices(batch):
    found = on_each(lambda share: shards.total({"sum": share.sum(0)}), len(batch), dealt(batch))
    np.testing.assert_array_equal(found["sum"], np.tile(batch.sum(0), (DEVICES, 1)))


def test_what_is_drawn_is_drawn_for_the_whole_batch(batch):
    def sample(shape):
        return jax.random.normal(KEY, shape)

    rows, share = len(batch), Split(len(batch), DEVICES).share
    found = on_each(lambda: shards.draw(sample, (share, 5)), rows)
    np.testing.assert_array_equal(found, dealt(np.asarray(sample((rows, 5)))))
    found = on_each(lambda: shards.draw(sample, (2, share), axis=1), rows)
    np.testing.assert_array_equal(found, np.moveaxis(dealt(np.asarray(sample((2, rows))).T), 1, 2))


def test_micro_batches_are_drawn_for_as_the_batch_is():
    """A micro-batch takes 2 of the 4 rows of each device: 8 rows, dealt out in the same way."""
    found = on_each(lambda: shards.draw(lambda shape: jax.random.normal(KEY, shape), (2,)), rows=16)
    np.testing.assert_array_equal(found, dealt(np.asarray(jax.random.normal(KEY, (8,)))))


def test_padding_has_no_weight(batch):
    found = on_each(lambda share: shards.weights(None, share), len(batch), dealt(batch))
    np.testing.assert_array_equal(found, dealt(np.ones(len(batch), np.float32)))
    given = on_each(lambda share: shards.weights(2 * share[:, 0], share), len(batch), dealt(batch))
    np.testing.assert_array_equal(given, 2 * dealt(batch)[..., 0])


def test_without_a_split_nothing_changes(batch):
    rows = jnp.asarray(batch)
    for function in (shards.total, shards.gathered, shards.own):
        assert function(rows) is rows
    assert shards.weights(None, rows) is None
    assert shards.draw(jnp.zeros, (3, 2)).shape == (3, 2)


def test_a_split_ends_with_its_block():
    with pytest.raises(RuntimeError, match="within"), shards.split(Split(8, DEVICES)):
        raise RuntimeError("within")
    assert shards.weights(None, jnp.ones((2, 1))) is None


def test_a_mesh_is_told_from_a_mapped_axis():
    assert not shards.is_left_to_xla()
    mesh = jax.sharding.Mesh(jax.devices()[:2], "batch")
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert shards.is_left_to_xla()
