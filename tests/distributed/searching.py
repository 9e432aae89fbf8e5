"""A small search that several processes share: `searching.py FOLDER [HELD]` prints its losses, by point and seed.

In the program numbered HELD, the process says so after the first epoch, and then does not go on.
"""

import functools
import json
import sys
import threading

import jax
import numpy as np
import optax

import nnfx
from nnfx.search import Choice, Grid, LogUniform, search

SPACE = {"width": Choice(1, 2), "learning_rate": LogUniform(0.01, 1.0)}


@functools.cache
def make(width):
    return nnfx.fit(
        nnfx.models.mlp((width,)), nnfx.losses.mean_square_error, optax.sgd, epochs=2, stop=nnfx.stopping.patience
    )


def data():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(40, 3)).astype(np.float32)
    return nnfx.data.prepare(inputs, np.sin(inputs.sum(1)), key=jax.random.key(1), valid_fraction=0.25)


def found(out=None, **options):
    """Return the search."""
    return search(
        make,
        data(),
        {**SPACE, "patience": Choice(5)},
        key=jax.random.key(0),
        points=Grid(2),
        seeds=2,
        devices=jax.local_devices()[:1],
        out=out,
        progress=False,
        **options,
    )


def losses(result):
    """Return the loss of each member, in the order of the members."""
    return [row["valid_loss"] for row in sorted(result.rows, key=lambda row: row["member"])]


def main(folder, held=None):
    nnfx.distributed.start()

    def look(progress):
        calls.append(progress.epochs)
        if held is not None and len(calls) == 2 * int(held) + 1:
            print("holds", flush=True)
            threading.Event().wait()

    calls = []
    result = found(folder, on_chunk=look)
    print(json.dumps({"losses": losses(result), "trained": len(calls) // 2}))


if __name__ == "__main__":
    main(*sys.argv[1:])
