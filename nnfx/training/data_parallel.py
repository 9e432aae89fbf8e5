"""Data parallelism: one step with its batch split over devices."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nnfx import checks, shards
from nnfx.shards import Split
from nnfx.training.rows import filled, zeroed
from nnfx.types import Batch, Metrics, Step, TrainState

__all__ = ["data_parallel"]

Tree = TypeVar("Tree")

AXIS = "batch"
"""The axis of a mesh over which batches are split."""


def data_parallel(
    step: Step,
    *,
    strategy: Literal["mesh", "pmap"] = "mesh",
    devices: Sequence[jax.Device] | None = None,
) -> Step:
    """Turn a single-device step into a step that computes the same update with batches split over several devices.

    Each device computes its part of the gradient, `Σᵢ wᵢ ∇ℓᵢ / W`, where the sum is over its rows i, with weights wᵢ
    and losses ℓᵢ, and W is the total weight of the whole batch. These parts are summed across devices, and all devices
    make the same update. Batch sizes need not be divisible by the number of devices. Dropout, augmentation and
    batch-norm statistics give the same results as on the whole batch, so the number of devices changes results only by
    rounding.

    - **"mesh"** leaves the splitting to XLA (`jit` and shardings), which preserves the meaning of any model and any
      loss. This is the default choice.
    - **"pmap"** has each device run the step on its own rows (`jax.pmap`), so that this library controls the
      communication: one sum of the gradient per step, even with micro-batches. Custom layers, losses and augmentations
      that mix the examples of a batch, or draw random numbers for them, see only one device's rows; such code must
      use the functions of `nnfx.shards`.

    Args:
        step: a step made by `nnfx.make_step`.
        strategy: "mesh" or "pmap".
        devices: the devices over which batches are split; by default, all devices.

    Returns:
        A step to compile with `jax.jit`, to scan, or to pass to a run: `nnfx.fit(..., parallel=data_parallel)`.

    Raises:
        TypeError, ValueError: for a step that is not a function, an unknown strategy, or no devices.

    Example:
        >>> import nnfx, optax
        >>> model, optimizer = nnfx.models.perceptron(), optax.sgd(0.1)
        >>> step = nnfx.make_step(model, nnfx.losses.mean_square_error, optimizer)
        >>> batch = Batch(jnp.ones((5, 2)), jnp.ones(5), jnp.ones(5))
        >>> state = nnfx.init_state(jax.random.key(0), model, optimizer, batch.inputs)
        >>> state, measured = jax.jit(data_parallel(step))(state, batch)
        >>> int(state.step), float(measured["loss"].weight)
        (1, 5.0)

    References:
        Xu et al., *GSPMD: general and scalable parallelization for ML computation graphs*, arXiv:2105.04663, 2021.
    """
    if not callable(step):
        raise TypeError(f"step: expected a function of a state and a batch, got {checks.describe(step)}")
    checks.choice("strategy", strategy, ("mesh", "pmap"))
    devices = tuple(jax.devices() if devices is None else devices)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise ValueError(f"devices: expected one or more of jax.devices(), got {devices!r:.80}")
    if len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected each device once, got {devices!r:.80}")
    if len(devices) == 1 and devices[0] == jax.local_devices()[0]:
        return step
    return partial(_by_mesh, step, devices) if strategy == "mesh" else _ByPmap(step, devices)


def _by_mesh(
    step: Step, devices: tuple[jax.Device, ...], state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Let XLA split the step over the ambient mesh, if it has the axis `AXIS`, or otherwise over a new mesh."""
    batch = zeroed(batch)  # zeros, since rows to copy might be on another device
    ambient = jax.sharding.get_abstract_mesh()
    if AXIS in ambient.axis_names:
        stepped = step(_placed(P(), state), _placed(P(AXIS), batch))
        return _placed(P(), stepped)
    mesh = Mesh(np.array(devices), AXIS)
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        stepped = step(_placed(whole, state), _placed(rows, batch))
    return _placed(whole, stepped)


def _placed(sharding: Any, tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


class _ByPmap:
    """A step that each device runs on its own rows.

    Args:
        step: the step of a single device.
        devices: the devices over which batches are split.
    """

    def __init__(self, step: Step, devices: tuple[jax.Device, ...]) -> None:
        self._step, self._devices = step, devices
        self._mapped: dict[Split, Step] = {}  # compiled programs are kept with the results of `pmap`

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = filled(batch)  # before the rows are dealt, since a device may have no row to copy
        how = Split(batch.weights.shape[0], len(self._devices))
        if how not in self._mapped:
            self._mapped[how] = self._map(how)
        # padding repeats rows of the batch, with weight zero, since every model and loss can handle such rows
        places = jnp.arange(how.share * how.devices)
        dealt = jax.tree.map(lambda rows: rows.at[places % how.rows].get(mode="promise_in_bounds"), batch)
        is_real = (places < how.rows).reshape(-1, *[1] * (batch.weights.ndim - 1))
        dealt = dealt._replace(weights=jnp.where(is_real, dealt.weights, 0))
        return self._mapped[how](
            state, jax.tree.map(lambda rows: rows.reshape(how.share, how.devices, *rows.shape[1:]), dealt)
        )

    def _map(self, how: Split) -> Step:
        def on_one(state: TrainState, share: Batch) -> tuple[TrainState, Metrics]:
            with shards.split(how):
                return self._step(state, share)

        if jax.process_count() > 1:  # with several processes, `jax.pmap` takes only local rows

            def on_one_of_all(state: TrainState, share: Batch) -> tuple[TrainState, Metrics]:
                return on_one(state, jax.tree.map(lambda rows: rows.squeeze(1), share))

            mesh = Mesh(np.array(self._devices), how.axis)
            specs: Any = {"in_specs": (P(), P(None, how.axis)), "out_specs": P()}
            return jax.shard_map(on_one_of_all, mesh=mesh, check_vma=False, **specs)
        return jax.pmap(on_one, axis_name=how.axis, in_axes=(None, 1), out_axes=None, devices=self._devices)
