"""The processes of one program: how they start, what each has of the data, and how they agree."""

import itertools
import json
import os
import sys
import time
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# the public functions that tell a process from others make JAX's devices, after which nothing can be set up any more
from jax._src.distributed import global_state as _engine
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nnfx import checks

_WEEK_MS = 7 * 24 * 3600 * 1000
"""How long to wait for another process: as long as it lives, which its heartbeat tells."""
_agreements, _meetings = itertools.count(), itertools.count()


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int = 20,
    join_seconds: int = 300,
) -> bool:
    """Join the other processes of this program, before JAX computes anything.

    What is not given is read from the environment that Slurm (`srun`), Open MPI (`mpirun`), Cloud TPU or Kubernetes
    sets. Where there is none of them, and nothing is given, this process runs alone: nothing is started then, so that
    every program may call it.

    A process whose peers die cannot go on: within about twice the heartbeat JAX ends it, with a message on its standard
    error that names the lost one. So does an exception in any of them: it is printed, and that process ends at once.

    Args:
        coordinator: `host:port` of the first process, reachable from all, with a port that is free there.
        processes: how many there are.
        process: which of them this one is, from 0.
        heartbeat_seconds: after how many seconds without a sign of life a process counts as dead.
        join_seconds: how many seconds to wait for all to come.

    Returns:
        Whether there is more than one process.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range, or only a part of those needed.
        RuntimeError: after JAX has computed something, or where not all processes come in time.

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
            raise ValueError(f"process: expected 0 to {processes - 1} of {processes} processes, got {process}")
    checks.positive_integer("heartbeat_seconds", heartbeat_seconds)
    checks.positive_integer("join_seconds", join_seconds)
    if jax.distributed.is_initialized():
        return _count() > 1
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    # signals that ask to end are answered by sessions, as they are without other processes
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
            f"{', '.join(lacking) or 'start'}: expected to be given, or an environment of Slurm, Open MPI, Cloud TPU or"
            f" Kubernetes; got neither: {error}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"processes: expected all to come to {_engine.coordinator_address} within {join_seconds} s, got {error}"
        ) from error
    if _count() > 1:
        sys.excepthook = _ending_with(sys.excepthook, 2 * heartbeat_seconds)
    return _count() > 1


def is_first() -> bool:
    """Say whether this process is the one that writes files; alone it is.

    >>> is_first()
    True
    """
    return int(_engine.process_id) == 0


def share(rows: int) -> slice:
    """Return which of so many rows are this process's to read; shares differ by one row at most.

    Example:
        >>> share(1000)
        slice(0, 1000, None)
    """
    checks.non_negative_integer("rows", rows)
    mine, count = int(_engine.process_id), _count()
    return slice(rows * mine // count, rows * (mine + 1) // count)


def from_shares(tree: Any) -> Any:
    """Return the arrays of all processes as one, its rows spread over the devices of all.

    Args:
        tree: this process's rows, as many as in every other, a multiple of its devices.

    Returns:
        Arrays of the rows of the first process, then of the second, and so on.

    Raises:
        ValueError: for rows that the devices cannot share.

    Example:
        >>> from_shares(np.arange(8.0, dtype=np.float32)).shape
        (8,)
    """
    over_all = NamedSharding(Mesh(jax.devices(), "batch"), P("batch"))
    devices = jax.local_device_count()

    def spread(rows: Any) -> jax.Array:
        if np.ndim(rows) == 0 or len(rows) % devices:
            raise ValueError(f"rows: expected a multiple of the {devices} devices here, got {checks.describe(rows)}")
        return jax.make_array_from_process_local_data(over_all, np.asarray(rows))

    return jax.tree.map(spread, tree)


def local(tree: Any) -> Any:
    """Return arrays that every process has whole as this process has them, on its own default device.

    What JAX computes with the devices of several processes is an array of all of them, with which one process alone can
    compute nothing. Other leaves are left as they are.

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
            raise ValueError(f"tree: expected arrays that every process has whole, got a part of {leaf.aval}")
        mine = leaf.addressable_data(0)
        # by way of the host, since what is bound to a device cannot be computed with on others any more
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = jnp.asarray(np.asarray(jax.random.key_data(mine)))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(mine))
        return jnp.asarray(np.asarray(mine))

    return jax.tree.map(here, tree)


def everywhere(tree: Any) -> Any:
    """Return arrays that are the same in every process as arrays of the devices of all, each of which has them whole.

    Alone it changes nothing. Within `jit` it keeps what is computed whole on every device.

    Example:
        >>> everywhere({"w": np.ones(2)})
        {'w': array([1., 1.])}
    """
    if _count() == 1:
        return tree
    whole = NamedSharding(Mesh(jax.devices(), "batch"), P())
    return jax.jit(lambda tree: tree, out_shardings=whole)(tree)


def agree(value: Any) -> Any:
    """Return the first process's value in all, such as what its clock says; every process has to call it alike.

    Args:
        value: of what JSON knows.

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
    """Wait until every process has come here, such as for a file that the first writes.

    >>> wait()
    """
    if _count() > 1:
        _client().wait_at_barrier(f"nnfx/meeting/{next(_meetings)}", _WEEK_MS)


def _count() -> int:
    return int(_engine.num_processes)


def _client() -> Any:
    return _engine.client


def _ending_with(shown: Any, seconds: float) -> Any:
    """Return what is done with an exception that nobody catches: it is shown, and the process ends at once."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            return  # which they get as well
        sys.stdout.flush()
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("waiting for word of a lost process, which would have ended this one", file=sys.stderr, flush=True)
            time.sleep(seconds)
        # JAX's own end waits for the other processes, which wait for this one
        os._exit(1)

    return end
