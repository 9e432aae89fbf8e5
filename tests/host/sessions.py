"""What the tests of sessions share: runs that are small and soon compiled, and how they are cut off and looked at."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx

HYPER = {"learning_rate": 0.3, "patience": 5}


def fit(model=None, epochs=40, optimizer=optax.adam, **options):
    """Adam, dropout, batch norm and patience: everything that a run has a state of."""
    model = model or nnfx.models.mlp((6,), dropout=0.2, batch_norm=True)
    options = {"stop": nnfx.stopping.patience, **options}
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, batch_size=100, **options)


TRAIN = fit()
TWO_EPOCHS, FOUR_EPOCHS = (
    fit(nnfx.models.perceptron(), epochs, optax.sgd, stop=()) for epochs in (2, 4)
)  # small and soon compiled, where only the host's part is in question


def bits(tree):
    """Every leaf by path, as dtype, shape and bytes."""
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
    """What ends a run in the middle of a test as a kill does: nothing is saved then."""


def at_epoch(epoch, act):
    """Return an evaluation that does something after this epoch."""

    def evaluate(run):
        if int(run.epochs) == epoch:
            act()
        return {"last_loss": run.final["valid_loss"]}

    return evaluate


def cut():
    raise CutError


def perceptron(loss=nnfx.losses.binary_cross_entropy, optimizer=optax.sgd, batch_size=100, **options):
    return nnfx.fit(nnfx.models.perceptron(**options), loss, optimizer, epochs=2, batch_size=batch_size)
