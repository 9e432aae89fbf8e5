"""The exchanges read from a program's text, against the sizes of what is exchanged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nnfx.distributed.collectives import Collective, collectives

EVERYWHERE = P()


def exchanged(function, *inputs, out=EVERYWHERE):
    """Return the exchanges of a function of shares, compiled for four devices."""
    mesh = Mesh(np.array(jax.devices()[:4]), "x")
    spread = jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=out, check_vma=False)
    return collectives(jax.jit(spread).lower(*inputs).compile())


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.int8, 1), (jnp.uint32, 4)])
def test_a_sum_receives_the_bytes_of_the_array(dtype, size):
    found = exchanged(functools.partial(jax.lax.psum, axis_name="x"), jnp.ones((8, 3), dtype))
    assert found == [Collective("all-reduce", 2 * 3 * size, 1)]


def test_a_gathering_receives_all_shares():
    gather = functools.partial(jax.lax.all_gather, axis_name="x")
    assert exchanged(gather, jnp.ones((8, 3))) == [Collective("all-gather", 4 * 2 * 3 * 4, 1)]


def test_a_permutation_receives_one_share():
    def turn(share):
        return jax.lax.ppermute(share, "x", [(i, (i + 1) % 4) for i in range(4)])

    assert exchanged(turn, jnp.ones((8, 3)), out=P("x")) == [Collective("collective-permute", 2 * 3 * 4, 1)]


def test_what_each_device_computes_alone_exchanges_nothing():
    assert exchanged(jnp.sin, jnp.ones((8, 3)), out=P("x")) == []
