import jax
import numpy as np
import optax

import nnfx
from nnfx.scale.programs import programs_of
from nnfx.scale.table import Table

KEY = jax.random.key(0)


def test_nothing_crosses_between_devices():
    data = nnfx.data.titanic("fare", "age", key=KEY, valid_fraction=0.25)
    train = nnfx.fit(nnfx.models.mlp((8,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2, batch_size=100)
    table = Table.of(train, data, KEY, 2, None, {"learning_rate": np.linspace(0.1, 1, 8)}, tuple(jax.devices()))
    programs = programs_of(train, table.devices, table.axis)
    state = programs.start(KEY, table.seeds, table.folds, table.hyper, table.fixed)
    compiled = programs.chunk(2).lower(
        state, KEY, table.seeds, table.folds, table.hyper, table.fixed, np.int32(0)
    ).compile()  # fmt: skip
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in compiled.as_text()
