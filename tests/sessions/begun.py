"""A run that starts under one release and resumes under another: `begun.py begin|resume FOLDER [CHANGED]`.

`begin` ends a session after some epochs, as a kill would. `resume` continues from there, and prints the losses; with
the name of a change it is another run, which must be rejected. Run both from the root of the repository.
"""

import functools
import os
import sys
import warnings

import flax.linen as nn
import jax
import numpy as np
import optax

import nnfx

HALF = 0.5


class Net(nn.Module):
    """A user's own network, with an initialiser from JAX and a layer from Flax."""

    width: int = 6

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(self.width, kernel_init=nn.initializers.orthogonal())(x))
        return nn.Dense(1)(hidden)


def squared(outputs, targets):
    return HALF * (outputs[:, 0] - targets) ** 2


def made(changed=""):
    parts = {
        "model": nnfx.models.mlp((8,), activation="tanh", dropout=0.1, batch_norm=True),
        "loss": functools.partial(nnfx.losses.huber, delta=1.5),
        "optimizer": functools.partial(optax.adam, b1=0.8),
        "stop": functools.partial(nnfx.stopping.patience, patience=50),
        "penalty": functools.partial(nnfx.regularizers.l2, l2=1e-3),
        "average": nnfx.averaging.exponential,
        "augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.05),
        "batch_size": 16,
        "epochs": 10,
    }
    own = {
        "model": nnfx.models.from_linen(Net()),
        "loss": squared,
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(0.01)),
    }
    changes = {
        "activation": {"model": nnfx.models.mlp((8,), dropout=0.1, batch_norm=True)},
        "loss": {"loss": nnfx.losses.mean_square_error},
        "delta": {"loss": functools.partial(nnfx.losses.huber, delta=1.0)},
        "optimizer": {"optimizer": optax.nadam},
        "batch_size": {"batch_size": 8},
        "noise": {"augment": functools.partial(nnfx.augment.gaussian_noise, noise=0.1)},
        "own": own,
        "own-loss": {**own, "loss": lambda outputs, targets: (outputs[:, 0] - targets) ** 2},
        "own-clip": {**own, "optimizer": optax.chain(optax.clip(2.0), optax.adam(0.01))},
        "own-width": {**own, "model": nnfx.models.from_linen(Net(width=7))},
    }
    parts.update(changes[changed] if changed else {})
    hyper = {} if changed.startswith("own") else {"learning_rate": 0.01}
    return nnfx.fit(parts.pop("model"), parts.pop("loss"), parts.pop("optimizer"), **parts), hyper


def main(what, folder, changed=""):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(80, 4))
    data = nnfx.data.prepare(
        inputs, inputs.sum(1) + generator.normal(size=80), key=jax.random.key(1), valid_fraction=0.25
    )
    train, hyper = made(changed)

    def leave(run):
        if what == "begin" and int(run.epochs) == 4:
            sys.stdout.flush()
            os._exit(0)
        return {"last": run.final["valid_loss"]}

    session = nnfx.session(train, folder, save_every_epochs=1, keep_last=3, evaluate=leave, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run = session(jax.random.key(3), data, **hyper)
        except ValueError as error:
            print("refused:", error)
            return
    print("python", sys.version.split()[0], "jax", jax.__version__)
    print(*(each.message for each in caught if "saved with" in str(each.message)))
    print("valid_loss", " ".join(f"{float(value):.6f}" for value in run.history["valid_loss"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
