"""The data and the folder that the tests of sessions share."""

import jax
import pytest

import nnfx
from tests.sessions.sessions import TWO_EPOCHS, quiet


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    """Return the folder of a run that has ended."""
    out = tmp_path_factory.mktemp("ended")
    quiet(TWO_EPOCHS, out)(jax.random.key(0), data, learning_rate=0.1)
    return out
