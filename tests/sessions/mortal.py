"""A small program in a process of its own, to be killed: `mortal.py KIND FOLDER` prints the checksum of its result.

The kind is `run`, `sweep` or `halving`. Without a folder, it is the reference that is never killed.
"""

import hashlib
import os
import sys
import time

import jax
import numpy as np
import optax

import nnfx

EPOCHS = {"run": 12, "sweep": 8, "halving": 8}


def checksum(tree):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()


def main(kind, folder=None):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 5))
    data = nnfx.data.prepare(
        inputs, (inputs.sum(1) > generator.normal(size=120)) * 1, key=jax.random.key(1), valid_fraction=0.25
    )
    train = nnfx.fit(
        nnfx.models.mlp((8,), dropout=0.2, batch_norm=True) if kind == "run" else nnfx.models.perceptron(),
        nnfx.losses.binary_cross_entropy,
        optax.adam,
        epochs=EPOCHS[kind],
        batch_size=16 if kind == "run" else 45,
        stop=nnfx.stopping.patience,
        metrics={"accuracy": nnfx.metrics.binary_accuracy},
    )
    if kind == "run":
        if folder is not None:
            train = nnfx.session(train, folder, save_every_epochs=1, evaluate=lambda run: run.evaluate(data.train))
        print(checksum(train(jax.random.key(3), data, learning_rate=0.02, patience=10)))
        return
    how = {"halving": nnfx.sweeps.Halving((2, 4), keep=0.5)} if kind == "halving" else {"epochs_per_chunk": 1}
    kept = {} if folder is None else {"out": folder, "save_every_seconds": 0.0, "on_chunk": lambda _: time.sleep(0.1)}
    result = nnfx.sweeps.sweep(
        train, data, key=jax.random.key(3), seeds=2, learning_rate=np.logspace(-3, 0, 4), patience=2, **how, **kept
    )
    print(checksum((result.variables, result.histories, [row["epochs"] for row in result.rows])))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # skip the shutdown, which the tests need not wait for
