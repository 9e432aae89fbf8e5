import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.models import conv, max_pool
from nnfx.sweeps.activation_bytes import activation_bytes, is_large

RNG = np.random.default_rng(0)
HYPER = {"learning_rate": jnp.float32(0.1)}


def run_of(model, **options):
    return nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1, **options)


def rows_of(*shape):
    return nnfx.data.prepare(RNG.normal(size=shape).astype(np.float32), np.zeros((shape[0], 1), np.float32)).train


@pytest.mark.parametrize(("options", "rows"), [({"batch_size": 10}, 10), ({}, 50)])
def test_a_linear_model_keeps_a_minibatch_of_inputs(options, rows):
    fit = run_of(nnfx.models.perceptron(), **options)
    assert activation_bytes(fit, rows_of(50, 8), HYPER) == rows * 8 * 4


def test_weights_are_not_counted():
    narrow, wide = (
        activation_bytes(run_of(nnfx.models.mlp((64, width)), batch_size=1), rows_of(5, 3), HYPER)
        for width in (8, 8000)
    )
    assert wide < 8000 * 4 * 10 < 64 * 8000 * 4
    assert narrow < wide


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nnfx.models.mlp((256, 256)), (32, 64), False),
        (nnfx.models.cnn([conv(32), max_pool(), conv(64)], hidden=(64,)), (32, 28, 28, 1), True),
        (nnfx.models.lstm(hidden=(64,)), (32, 96, 7), True),
        (nnfx.models.gru(hidden=(16,)), (32, 24, 2), False),
    ],
)
def test_what_reads_long_sequences_or_makes_many_maps_is_large(model, shape, expected):
    assert is_large(run_of(model, batch_size=32), rows_of(*shape), HYPER) == expected


def test_a_model_is_traced_once_for_all_sweeps_over_inputs_of_one_shape():
    model, traces = nnfx.models.perceptron(), []

    def apply(*arguments, **options):
        traces.append(1)
        return model.apply(*arguments, **options)

    fit = run_of(nnfx.Model(model.init, apply), batch_size=5)
    for rows in (rows_of(20, 3), rows_of(20, 3)):
        is_large(fit, rows, HYPER)
    assert len(traces) == 1
    is_large(fit, rows_of(20, 4), HYPER)
    assert len(traces) == 2
