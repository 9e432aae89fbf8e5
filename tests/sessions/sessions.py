"""Helpers for the tests of sessions: small runs that compile fast, interruptions, and comparisons."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx

HYPER = {"learning_rate": 0.3, "patience": 5}


def fit(model=None, epochs=40, optimizer=optax.adam, **options):
    """Return a run with every kind of state: of Adam, dropout, batch norm and patience."""
    model = model or nnfx.models.mlp((6,), dropout=0.2, batch_norm=True)
    options = {"stop": nnfx.stopping.patience, **options}
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, batch_size=100, **options)


TRAIN = fit()
TWO_EPOCHS, FOUR_EPOCHS = (
    fit(nnfx.models.perceptron(), epochs, optax.sgd, stop=()) for epochs in (2, 4)
)  # small and fast to compile, for tests of the host alone


def bits(tree):
    """Return every leaf by path, as dtype, shape and bytes."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    plain = {
        path: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for path, leaf in leaves.items()
    }
    return {path: (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for path, leaf in plain.items()}


def quiet(train, out, **options):
    return nnfx.session(train, out, progress=False, **options)


def checkpoints(out):
    return sorted(int(path.name.removeprefix("epoch-")) for path in (out / "checkpoints").glob("epoch-????????"))


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


class CutError(BaseException):
    """Ends a run in the middle of a test, like a kill: nothing is saved."""


def at_epoch(epoch, act):
    """Return an evaluation that calls a function after this epoch."""

    def evaluate(run):
        if int(run.epochs) == epoch:
            act()
        return {"last_loss": run.final["valid_loss"]}

    return evaluate


def cut():
    raise CutError


def perceptron(loss=nnfx.losses.binary_cross_entropy, optimizer=optax.sgd, batch_size=100, **options):
    return nnfx.fit(nnfx.models.perceptron(**options), loss, optimizer, epochs=2, batch_size=batch_size)
