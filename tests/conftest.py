"""Strict settings for every test: rank promotion is an error, keys are typed, there are eight devices."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# Most of the suite's time is spent compiling, mainly generating code for programs that run once. Here LLVM optimises
# less and compiles each program in one piece, and XLA emits loops with the older and faster of its two emitters. XLA's
# own optimisations are unchanged. At level 0, a program and its operations one by one differ in their last bits.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=1",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
AS_USERS_COMPILE = "NNFX_TEST_AS_USERS_COMPILE"
"""Set this variable to 1 to test without these flags: as users compile, but slower."""


def takes(flags):
    """Return whether XLA accepts these flags; in another process, since an unknown flag ends it."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


# Workers inherit the flags from the process that starts them.
if os.environ.get(AS_USERS_COMPILE) != "1" and QUICK_TO_COMPILE[0] not in os.environ.get("XLA_FLAGS", "").split():
    known = QUICK_TO_COMPILE if takes(QUICK_TO_COMPILE) else [flag for flag in QUICK_TO_COMPILE if takes([flag])]
    os.environ["XLA_FLAGS"] = " ".join([*known, os.environ.get("XLA_FLAGS", "")])
# Experiments that run in processes of their own keep no programs in the user's cache.
# Tests whose processes share a folder of programs switch it on again.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
jax.config.update("jax_include_full_tracebacks_in_locations", False)  # writing them takes a twentieth of the time
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Unload the programs that a module's tests have compiled: Linux allows 65,530 memory mappings per process.

    Garbage is collected only then: tracing creates many objects, and scanning them repeatedly takes a twentieth of the
    time. Objects that survive a module, such as imported packages, are excluded from later collections.
    """
    gc.disable()
    yield
    gc.enable()
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def strict_dtypes():
    """Make implicit dtype promotion an error: for models, losses and ops (Optax's Adam needs promotion)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def nan_is_meant():
    """Switch off the flags that make NaN and infinities errors, for tests about them."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


_compiled = []


def _note_compilation(event, duration_secs, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


@pytest.fixture
def compilations():
    """Return a function that returns the number of programs that XLA has compiled so far."""
    return lambda: len(_compiled)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def fashion_mnist_files():
    """Skip the test if the four files of Fashion-MNIST are not under `NNFX_DATA`: tests download nothing."""
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
    """Skip the test if ETTh1 is not under `NNFX_DATA`: tests download nothing."""
    if not os.environ.get("NNFX_DATA"):
        pytest.skip("NNFX_DATA names no folder of data")
    if not (Path(os.environ["NNFX_DATA"]) / "ett/ETTh1.csv").exists():
        pytest.skip("NNFX_DATA has no ett/ETTh1.csv")


@pytest.fixture
def mutate():
    """Return the function that makes nearly valid files of valid ones."""
    return mutated


def mutated(rng, data, hot):
    """Change some bytes; delete, insert, repeat or blank a range; or truncate; mostly at the `hot` positions."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.choice(hot)) if rng.random() < 0.7 else int(rng.integers(len(data)))
        at = min(at, len(data) - 1)
        end = at + int(rng.integers(1, 40))
        kind = rng.integers(8)
        if kind <= 2:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            data[at] = int(rng.choice([0, 1, 0x30, 0x37, 0x7F, 0x80, 0xFF]))
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:at] = data[at:end]
        elif kind == 6:
            data[at:end] = bytes(len(data[at:end]))
        elif rng.random() < 0.5:
            del data[at:]
        else:
            data += data[at:end]
        data = data or bytearray(1)
    return bytes(data)
