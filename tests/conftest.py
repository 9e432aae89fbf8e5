"""Strict settings for every test: rank promotion is an error, keys are typed, there are eight devices."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# Most of the suite's time is compiling, most of that code generation for programs that run once: LLVM optimises less
# here, in one piece, and loops are written by the older and quicker of XLA's two ways. What XLA does to a program is
# not touched. At level 0 there are wrong numbers: see test_the_gradient_of_maxout_behind_a_product.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=1",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
AS_USERS_COMPILE = "NNFX_TEST_AS_USERS_COMPILE"
"""Set this variable to 1 to test without these flags: what users run, in more time."""


def takes(flags):
    """Whether XLA takes these flags: one that it does not know ends the process, so another one is asked."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


# Workers inherit what the process that starts them has found.
if os.environ.get(AS_USERS_COMPILE) != "1" and QUICK_TO_COMPILE[0] not in os.environ.get("XLA_FLAGS", "").split():
    known = QUICK_TO_COMPILE if takes(QUICK_TO_COMPILE) else [flag for flag in QUICK_TO_COMPILE if takes([flag])]
    os.environ["XLA_FLAGS"] = " ".join([*known, os.environ.get("XLA_FLAGS", "")])
jax.config.update("jax_include_full_tracebacks_in_locations", False)  # a twentieth of the time goes into writing them
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Unload the programs that a module's tests have compiled: Linux maps 65,530 pieces of memory a process at most.

    Garbage is collected then, too, and not on the way: tracing makes many objects, and looking through them all again
    and again takes a twentieth of the time. What is left after a module, such as imported packages, is there to stay
    and need not be looked through again.
    """
    gc.disable()
    yield
    gc.enable()
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def strict_dtypes():
    """Make an implicit change of dtype an error: for models, losses and ops (Optax's Adam needs promotion)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def nan_is_meant():
    """Switch the flags off that make NaN and infinities errors, for tests that are about them."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


_compiled = []


def _note_compilation(event, duration_secs, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


@pytest.fixture
def compilations():
    """Return how many programs XLA has compiled so far, when it is called."""
    return lambda: len(_compiled)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def fashion_mnist_files():
    """Skip where the four files of Fashion-MNIST do not lie under `NNFX_DATA`: tests download nothing."""
    if not os.environ.get("NNFX_DATA"):
        pytest.skip("NNFX_DATA names no folder of data")
    folder = Path(os.environ["NNFX_DATA"]) / "fashion-mnist"
    kinds = ("images-idx3", "labels-idx1")
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in kinds]
    lacking = [name for name in names if not (folder / name).exists()]
    if lacking:
        pytest.skip(f"NNFX_DATA has no fashion-mnist/{', '.join(lacking)}")


@pytest.fixture
def etth1_file():
    """Skip where ETTh1 does not lie under `NNFX_DATA`: tests download nothing."""
    if not os.environ.get("NNFX_DATA"):
        pytest.skip("NNFX_DATA names no folder of data")
    if not (Path(os.environ["NNFX_DATA"]) / "ett/ETTh1.csv").exists():
        pytest.skip("NNFX_DATA has no ett/ETTh1.csv")
