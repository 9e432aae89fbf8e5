import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import nnfx
from nnfx.stopping import Clock
from nnfx.sweeps.programs import programs_of
from nnfx.sweeps.table import Table

KEY = jax.random.key(0)


def test_nothing_crosses_between_devices():
    data = nnfx.data.titanic("fare", "age", key=KEY, valid_fraction=0.25)
    train = nnfx.fit(nnfx.models.mlp((8,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2, batch_size=100)
    table = Table.of(
        train, data, KEY, 2, None, {"learning_rate": np.linspace(0.1, 1, 8)}, Mesh(jax.devices(), "members")
    )
    programs = programs_of(train, table.mesh, table.axis, None)
    shared = (KEY, table.fixed)
    state = programs.start(table.hyper, table.groups, shared)
    arguments = (*shared, np.int32(0), np.int32(2), Clock(np.float32(0), np.float32(0)))
    compiled = programs.advance.compiled((state, table.hyper), table.groups, arguments)
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in compiled.as_text()


@pytest.mark.parametrize("drops", [True, False])
def test_a_sweep_that_drops_no_member_updates_its_state_in_place(drops):
    data = nnfx.data.prepare(np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2, standardize=False)
    train = nnfx.fit(nnfx.models.mlp((5,)), nnfx.losses.binary_cross_entropy, optax.adam, epochs=2, batch_size=8)
    table = Table.of(
        train, data, KEY, 1, None, {"learning_rate": np.linspace(0.1, 1, 64)}, Mesh(jax.devices()[:1], "members")
    )
    programs = programs_of(train, table.mesh, table.axis, None, drops)
    shared = (KEY, table.fixed)
    state = programs.start(table.hyper, table.groups, shared)
    arguments = (*shared, np.int32(0), np.int32(2), Clock(np.float32(0), np.float32(0)))
    analysis = programs.advance.compiled((state, table.hyper), table.groups, arguments).memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert size > 64 * 3 * 4 * (3 * 5 + 5 + 5 + 1), "weights and moments"
    assert analysis.alias_size_in_bytes == (0 if drops else size)
    programs.advance((state, table.hyper), table.groups, arguments)
    assert all(leaf.is_deleted() is not drops for leaf in jax.tree.leaves(state.train))
