"""A streamed run that counts how often it sees each example: `streamed.py FOLDER [SECONDS]` prints the counts.

Example i is the i-th unit vector and the loss is minus the output, so that a step adds the learning rate over the batch
size to each weight whose example it sees, whatever the weights are. Every step is delayed by SECONDS.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx

EPOCHS, ROWS, BATCH_SIZE = 3, 96, 8


def linear(key, inputs):
    return {"params": {"w": jnp.zeros(inputs.shape[1])}}


def apply(variables, inputs, *, key=None, weights=None, train=False):
    outputs = inputs @ variables["params"]["w"]
    return (outputs, {}) if train else outputs


def main(folder, seconds=0.0):
    nnfx.distributed.start(heartbeat_seconds=4)
    folder = Path(folder)

    def slowly(key, batch):
        jax.debug.callback(lambda: time.sleep(float(seconds)))
        return batch

    train = nnfx.fit(
        nnfx.Model(linear, apply),
        lambda outputs, targets: -outputs,
        optax.sgd,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        augment=slowly if float(seconds) else (),
    )
    session = nnfx.session(train, folder / "run", save_every_steps=2, progress=False)
    run = session(jax.random.key(0), nnfx.data.stored(folder / "examples"), learning_rate=float(BATCH_SIZE))
    print(json.dumps(np.asarray(run.state.params["w"]).tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
