"""A small run in a process of its own, to be killed: `python mortal.py FOLDER` prints the checksum of its bits.

Without a folder it is the run in one piece.
"""

import hashlib
import os
import sys

import jax
import numpy as np
import optax

import nnfx

EPOCHS = 12


def checksum(run):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(run):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()


def main(folder=None):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 5))
    data = nnfx.data.prepare(
        inputs, (inputs.sum(1) > generator.normal(size=120)) * 1, key=jax.random.key(1), valid_fraction=0.25
    )
    train = nnfx.fit(
        nnfx.models.mlp((8,), dropout=0.2, batch_norm=True),
        nnfx.losses.binary_cross_entropy,
        optax.adam,
        epochs=EPOCHS,
        batch_size=16,
        stop=nnfx.stopping.patience,
        metrics={"accuracy": nnfx.metrics.binary_accuracy},
    )
    if folder is not None:
        train = nnfx.session(train, folder, save_every_epochs=1, evaluate=lambda run: run.evaluate(data.train))
    print(checksum(train(jax.random.key(3), data, learning_rate=0.02, patience=10)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # what remains is to take everything down, which the tests need not wait for
