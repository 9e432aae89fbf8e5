"""Functions for the processes of one program to start, divide data, and agree on values."""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# the public functions that identify a process initialise JAX's devices, after which set-up is impossible
from jax._src.distributed import global_state as _engine
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nnfx import checks

_WEEK_MS = 7 * 24 * 3600 * 1000
"""How long to wait for another process: in effect, as long as its heartbeat shows that it is alive."""
_agreements, _meetings = itertools.count(), itertools.count()
_is_alone = False


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int = 20,
    join_seconds: int = 300,
) -> bool:
    """Join the other processes of this program, before JAX computes anything.

    Missing arguments are read from the environment variables of Slurm (`srun`), Open MPI (`mpirun`), Cloud TPU or
    Kubernetes. Without such an environment and without arguments, this process runs alone and nothing is started, so
    every program may call this function.

    A process cannot continue if another one dies: within about twice the heartbeat, JAX ends it with a message on
    standard error that names the lost process. An exception in any process has the same effect: it is printed, and
    that process ends at once.

    Args:
        coordinator: `host:port` of the first process, reachable from all processes; the port must be free.
        processes: the number of processes.
        process: the index of this process, from 0.
        heartbeat_seconds: the time without a heartbeat after which a process counts as dead.
        join_seconds: the time to wait for all processes to join.

    Returns:
        Whether there is more than one process.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or out of range, or if some required
            arguments are missing.
        RuntimeError: if JAX has already computed something, or if not all processes join in time.

    Example:
        >>> start()  # doctest: +SKIP
        False
    """
    if coordinator is not None and (not isinstance(coordinator, str) or not coordinator.rpartition(":")[2].isdigit()):
        raise ValueError(f"coordinator: expected 'host:port', got {checks.describe(coordinator)}")
    if processes is not None:
        checks.positive_integer("processes", processes)
    if process is not None:
        checks.non_negative_integer("process", process)
        if processes is not None and process >= processes:
            raise ValueError(
                f"process: expected a number from 0 to {processes - 1} for {processes} processes, got {process}"
            )
    checks.positive_integer("heartbeat_seconds", heartbeat_seconds)
    checks.positive_integer("join_seconds", join_seconds)
    if jax.distributed.is_initialized():
        return _count() > 1
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    # sessions handle termination signals, as they do in a single process
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        lacking = [name for name, value in given.items() if value is None]
        if lacking == list(given) and str(error).startswith("coordinator_address"):
            return False
        raise ValueError(
            f"{', '.join(lacking) or 'start'}: expected arguments, or Slurm, Open MPI, Cloud TPU or Kubernetes,"
            f" got neither: {error}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"processes: could not all connect to {_engine.coordinator_address} within {join_seconds} s: {error}"
        ) from error
    if _count() > 1:
        sys.excepthook = _ending_with(sys.excepthook, 2 * heartbeat_seconds)
    return _count() > 1


def is_first() -> bool:
    """Return whether this is the first process, which writes files; true for a process that runs alone.

    >>> is_first()
    True
    """
    return _count() == 1 or int(_engine.process_id) == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if it ran alone: it writes its own files, and does not communicate with others.

    Use it for work on local devices in which the other processes do not take part, with separate files for each.

    Example:
        >>> with alone():
        ...     is_first()
        True
    """
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def share(rows: int) -> slice:
    """Return the slice of rows that this process should read; the sizes of slices differ by at most one row.

    Example:
        >>> share(1000)
        slice(0, 1000, None)
    """
    checks.non_negative_integer("rows", rows)
    count = _count()
    mine = int(_engine.process_id) if count > 1 else 0
    return slice(rows * mine // count, rows * (mine + 1) // count)


def from_shares(tree: Any) -> Any:
    """Concatenate the rows of all processes into global arrays, with rows spread over all devices.

    Args:
        tree: the rows of this process: the same number in every process, and a multiple of the number of local devices.

    Returns:
        Arrays with the rows of the first process, followed by the rows of the second, and so on.

    Raises:
        ValueError: for rows that cannot be divided equally among the devices.

    Example:
        >>> from_shares(np.arange(8.0, dtype=np.float32)).shape
        (8,)
    """
    over_all = NamedSharding(Mesh(jax.devices(), "batch"), P("batch"))
    devices = jax.local_device_count()

    def spread(rows: Any) -> jax.Array:
        if np.ndim(rows) == 0 or len(rows) % devices:
            raise ValueError(f"rows: expected a multiple of the {devices} local devices, got {checks.describe(rows)}")
        return jax.make_array_from_process_local_data(over_all, np.asarray(rows))

    return jax.tree.map(spread, tree)


def local(tree: Any) -> Any:
    """Copy arrays that are replicated over several processes to the default device of this process.

    An array that JAX computes on the devices of several processes belongs to all of them, and no single process can
    compute with it. Other leaves are returned unchanged.

    Raises:
        ValueError: for arrays of which this process has only a part.

    Example:
        >>> local({"w": np.ones(2)})
        {'w': array([1., 1.])}
    """

    def here(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            raise ValueError(f"tree: expected arrays that every process holds in full, got a part of {leaf.aval}")
        mine = leaf.addressable_data(0)
        # via the host, since an array that is committed to a device cannot be used on others
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = jnp.asarray(np.asarray(jax.random.key_data(mine)))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(mine))
        return jnp.asarray(np.asarray(mine))

    return jax.tree.map(here, tree)


def everywhere(tree: Any) -> Any:
    """Replicate arrays, which must be equal in all processes, over the devices of all processes.

    In a single process, arrays are returned unchanged. Within `jit`, results stay replicated on every device.

    Example:
        >>> everywhere({"w": np.ones(2)})
        {'w': array([1., 1.])}
    """
    if _count() == 1:
        return tree
    whole = NamedSharding(Mesh(jax.devices(), "batch"), P())
    return jax.jit(lambda tree: tree, out_shardings=whole)(tree)


def agree(value: Any) -> Any:
    """Return the first process's value in every process, such as the time on its clock; all processes must call this.

    Args:
        value: anything that JSON can represent.

    Example:
        >>> agree([1.5, True])
        [1.5, True]
    """
    if _count() == 1:
        return value
    name = f"nnfx/agreement/{next(_agreements)}"
    if is_first():
        _client().key_value_set(name, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(name, _WEEK_MS))


def wait() -> None:
    """Wait until every process has reached this point, for example until the first one has written a file.

    >>> wait()
    """
    if _count() > 1:
        _client().wait_at_barrier(f"nnfx/meeting/{next(_meetings)}", _WEEK_MS)


def _count() -> int:
    return 1 if _is_alone else int(_engine.num_processes)


def _client() -> Any:
    return _engine.client


def _ending_with(shown: Any, seconds: float) -> Any:
    """Return a handler for uncaught exceptions that shows the exception and ends the process at once."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            return  # the other processes receive the interrupt too
        sys.stdout.flush()
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("waiting in case JAX reports a lost process as the cause", file=sys.stderr, flush=True)
            time.sleep(seconds)
        # JAX's own shutdown waits for the other processes, which wait for this one
        os._exit(1)

    return end
