"""A small run over the devices of all processes, in a session: `together.py FOLDER [SECONDS]` prints its weights.

Every epoch is delayed by SECONDS, to leave time to kill the process.
"""

import functools
import json
import sys
import time

import jax
import numpy as np
import optax

import nnfx

EPOCHS, ROWS, BATCH_SIZE, RATE = 8, 64, 16, 0.1
MODEL, LOSS = nnfx.models.mlp((8,), activation="tanh"), nnfx.losses.mean_square_error


def examples():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(ROWS, 3)).astype(np.float32)
    return inputs, np.sin(inputs.sum(1))


def run_of(devices=None):
    parallel = None if devices is None else functools.partial(nnfx.data_parallel, devices=devices)
    return nnfx.fit(MODEL, LOSS, optax.sgd, epochs=EPOCHS, batch_size=BATCH_SIZE, parallel=parallel)


def steps_on_shares():
    """Take three steps on the whole batch, of which each process holds a share."""
    optimizer = optax.sgd(RATE)
    inputs, targets = examples()
    mine = nnfx.distributed.share(ROWS)
    batch = nnfx.Batch(inputs[mine], targets[mine], np.ones(ROWS, np.float32)[mine])
    batch = nnfx.distributed.from_shares(batch)
    state = nnfx.init_state(jax.random.key(1), MODEL, optimizer, inputs[:1])
    step = jax.jit(nnfx.make_step(MODEL, LOSS, optimizer))
    for _ in range(3):
        state, _ = step(nnfx.distributed.everywhere(state), batch)
    return nnfx.distributed.local(state)


def seeds_spread_over_devices():
    """Train two seeds on this process's devices, and return the weights of both."""
    data = nnfx.data.prepare(*examples())
    return nnfx.sweeps.sweep(run_of(), data, key=jax.random.key(2), seeds=2, learning_rate=RATE).variables


def numbers(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in jax.tree.leaves_with_path(tree)}


def main(folder, seconds=0.0):
    nnfx.distributed.start(heartbeat_seconds=4)
    train = run_of(jax.devices())

    def evaluate(run):
        time.sleep(float(seconds))
        return {"loss": run.final["train_loss"]}

    session = nnfx.session(train, folder, save_every_epochs=1, evaluate=evaluate, progress=False)
    run = session(jax.random.key(0), nnfx.data.prepare(*examples()), learning_rate=RATE)
    found = {
        "run": numbers(run.state.params),
        "devices": jax.device_count(),
        "outputs": numbers(run.predict([[0, 1, 2]])),
    }
    if jax.process_count() > 1:
        found |= {"shares": numbers(steps_on_shares().params), "seeds": numbers(seeds_spread_over_devices())}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
