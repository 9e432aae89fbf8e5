"""Runs to save and export."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx
from nnfx import Batch
from nnfx.data import Data

KEY = jax.random.key(0)
RAW = np.random.default_rng(1).normal([3.0, -200.0, 0.01], [1.0, 50.0, 0.002], (12, 3))


def run_of(model, inputs=RAW, **options):
    """Return a run of one epoch, on targets of zero, of the shape that the model's outputs have."""
    data = nnfx.data.prepare(inputs, np.zeros(len(inputs)), **options)
    shape = jax.eval_shape(lambda x: model.apply(model.init(KEY, x), x), data.train.inputs).shape
    train = Batch(data.train.inputs, jnp.zeros(shape), data.train.weights)
    fit = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    return fit(KEY, Data(train, None, data.preprocess), learning_rate=0.01)
