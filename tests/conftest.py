"""Strict settings for every test: rank promotion is an error, keys are typed, there are eight devices."""

import os

import jax
import pytest

# Most of the suite's time is compiling, half of it LLVM's optimisation of code that runs once. What XLA does to a
# program is not touched; the experiments and the benchmarks run as users' programs do.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


@pytest.fixture
def strict_dtypes():
    """Make an implicit change of dtype an error: for models, losses and ops (Optax's Adam needs promotion)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
