import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.models import conv, max_pool
from nnfx.sweeps.block_size import best_at_once, member_bytes

RNG = np.random.default_rng(0)
HYPER = {"learning_rate": jnp.float32(0.1)}


def run_of(model, **options):
    return nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1, **options)


def rows_of(*shape):
    return nnfx.data.prepare(RNG.normal(size=shape).astype(np.float32), np.zeros((shape[0], 1), np.float32)).train


@pytest.mark.parametrize(("options", "rows"), [({"batch_size": 10}, 10), ({}, 50)])
def test_a_linear_model_keeps_a_minibatch_of_inputs_and_its_weights_four_times(options, rows):
    fit = run_of(nnfx.models.perceptron(), **options)
    assert member_bytes(fit, rows_of(50, 8), HYPER) == rows * 8 * 4 + 4 * (8 + 1) * 4


def test_weights_are_not_counted_as_activations():
    narrow, wide = (
        member_bytes(run_of(nnfx.models.mlp((64, width)), batch_size=1), rows_of(5, 3), HYPER) for width in (8, 8000)
    )
    units = 8000 - 8
    weights = (64 + 1 + 1) * units * 4
    assert 0 < wide - narrow - 4 * weights < 3 * units * 4


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nnfx.models.mlp((8,)), (32, 2), 128),
        (nnfx.models.mlp((32, 32)), (32, 2), range(21, 128)),
        (nnfx.models.gru(hidden=(4,)), (32, 12, 2), range(21, 128)),
        (nnfx.models.mlp((64, 64)), (32, 2), 1),
        (nnfx.models.cnn([conv(32), max_pool(), conv(64)], hidden=(64,)), (32, 28, 28, 1), 1),
        (nnfx.models.lstm(hidden=(8,)), (32, 24, 1), 1),
    ],
)
def test_small_networks_share_the_cache_and_larger_ones_are_trained_one_at_a_time(model, shape, expected):
    found = best_at_once(run_of(model, batch_size=32), rows_of(*shape), HYPER)
    assert found in expected if isinstance(expected, range) else found == expected


def test_a_model_is_traced_once_for_all_sweeps_over_inputs_of_one_shape():
    model, traces = nnfx.models.perceptron(), []

    def apply(*arguments, **options):
        traces.append(1)
        return model.apply(*arguments, **options)

    fit = run_of(nnfx.Model(model.init, apply), batch_size=5)
    for rows in (rows_of(20, 3), rows_of(20, 3)):
        best_at_once(fit, rows, HYPER)
    assert len(traces) == 1
    best_at_once(fit, rows_of(20, 4), HYPER)
    assert len(traces) == 2
