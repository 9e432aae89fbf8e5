"""Code shared by benchmarks of training steps: a process for each setting, and the same initial weights for all."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nnfx
from experiments.benchmarks.timing import Row, System, Timed, compare, report, seconds_of
from nnfx.sweeps.blocks import Groups, update_table
from nnfx.types import Array, Params, PerExample, Step

RATE = 1e-3
TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**29),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
"""The variables that glibc reads when a process starts, with the same values as in `nnfx.cpu.set_up`."""

Run = Callable[[], Timed]
"""A function that takes all steps, and returns the time of one step and the mean loss of all steps."""


class Task(NamedTuple):
    """The model and data that this library trains on; other systems get the same in their own layouts.

    Attributes:
        model: the model.
        loss: the loss per example.
        params: the initial weights.
        batches: a batch for each step, `(steps, batch, ...)`.
    """

    model: nnfx.Model
    loss: PerExample
    params: Params
    batches: nnfx.Batch

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.batches.weights)

    def parts(self) -> list[nnfx.Batch]:
        """Return the batches one by one."""
        return [jax.tree.map(lambda array, i=i: array[i], self.batches) for i in range(self.steps)]


# A process for each setting


def in_processes(
    name: str,
    cases: Sequence[str],
    repeats: int,
    allocators: Sequence[str],
    devices: Sequence[int],
    members: int,
    out: Path,
) -> dict[str, Any]:
    """Time every case with every allocator and number of devices, each in its own process, and report.

    Args:
        name: the name of the benchmark; its module has `measure(case, devices, repeats, members) -> rows`.
        cases: the names of the cases.
        repeats: the number of times that each system is timed, with the systems in turn.
        allocators: "default", "tuned" or both.
        devices: numbers of CPU devices over which this library splits a batch.
        members: number of networks trained together, if the case has such a row.
        out: where the results go.
    """
    code = (
        f"import sys; from experiments.benchmarks import {name}, steps; steps.print_rows({name}.measure, *sys.argv[1:])"
    )
    rows = []
    for allocator, count in itertools.product(allocators, devices):
        environment = os.environ | (TUNED if allocator == "tuned" else {})
        for case in cases:
            printed = subprocess.run(
                [sys.executable, "-c", code, case, str(count), str(repeats), str(members)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            ).stdout
            found = [Row(*row) for row in json.loads(printed.splitlines()[-1])]
            rows += [row._replace(case=f"{row.case}, {allocator}, {count} devices") for row in found]
    return report(name, rows, out)


def print_rows(measure: Callable[..., list[Row]], case: str, devices: str, repeats: str, members: str) -> None:
    """Measure in this process, with this many CPU devices, and print the rows as JSON."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    print(json.dumps(measure(case, int(devices), int(repeats), int(members))))


def compare_steps(case: str, ours: dict[str, Run], peers: dict[str, Run], repeats: int) -> list[Row]:
    """Time systems in turn, with the same weights and batches for all systems, whatever the seed."""

    def system(name: str) -> System:
        run = (ours | peers)[name]
        return System(lambda _: run(), is_peer=name in peers)

    return compare(case, {name: system(name) for name in ours | peers}, repeats)


def per_step(go: Callable[[Any], float], start: Any, steps: int) -> Timed:
    """Time all steps, and return the time of one step and the mean loss of all steps."""
    jax.block_until_ready(start)
    seconds, loss = seconds_of(lambda: go(start))
    return Timed(seconds / steps, loss)


# This library


def _step_and_start(task: Task, devices: int) -> tuple[Step, nnfx.TrainState]:
    """Return the step for this number of devices, and the state to start from."""
    optimizer = optax.adam(RATE)
    if devices > 1:  # the parts of a batch are equal, so the mean of their gradients is the gradient of the batch
        mean = optax.stateless(lambda updates, _: jax.lax.pmean(updates, "batch"))
        optimizer = optax.chain(mean, optimizer)
    state = nnfx.init_state(jax.random.key(0), task.model, optimizer, task.batches.inputs[0])
    step = nnfx.make_step(task.model, task.loss, optimizer)
    return step, state._replace(params=task.params, opt_state=optimizer.init(task.params))


def with_nnfx(task: Task, devices: int, scanned: bool) -> Run:
    """Step with this library: one compiled step after another, or all steps in one scan, as in a run."""
    step, start = _step_and_start(task, devices)

    def one(state: nnfx.TrainState, batch: nnfx.Batch) -> tuple[nnfx.TrainState, Array]:
        state, measured = step(state, batch)
        loss = measured["loss"].value
        return state, loss if devices == 1 else jax.lax.pmean(loss, "batch")

    def many(state: nnfx.TrainState, batches: nnfx.Batch) -> tuple[nnfx.TrainState, Array]:
        return jax.lax.scan(one, state, batches)

    over = P(None, "batch") if scanned else P("batch")
    chosen: Any = many if scanned else one
    if devices > 1:
        mesh = Mesh(jax.devices()[:devices], "batch")
        chosen = jax.shard_map(chosen, mesh=mesh, in_specs=(P(), over), out_specs=P(), check_vma=False)
    compiled = jax.jit(chosen, donate_argnums=0)
    parts = task.parts()

    def go(state: nnfx.TrainState) -> float:
        if scanned:
            return float(compiled(state, task.batches)[1].mean())
        losses = []
        for part in parts:
            state, loss = compiled(state, part)
            losses.append(loss)
        return float(np.mean([float(loss) for loss in losses]))

    return lambda: per_step(go, jax.tree.map(jnp.copy, start), task.steps)


def with_members(task: Task, members: int, devices: int = 1, in_a_loop: bool = False) -> Run:
    """Step with many networks, all steps in one scan; the time returned is the time of one step of all networks.

    Args:
        task: the model and data of each network.
        members: the number of networks.
        devices: the number of devices over which the networks are split.
        in_a_loop: whether the networks are trained in a loop, as sweeps train large networks, instead of under
            `jax.vmap`, which widens every operation.
    """
    step, start = _step_and_start(task, devices=1)

    def many(state: nnfx.TrainState) -> tuple[nnfx.TrainState, Array]:
        state, measured = jax.lax.scan(step, state, task.batches)
        return state, measured["loss"].value.mean()

    def in_loop(states: nnfx.TrainState) -> tuple[Array, Any]:
        table = jax.tree.map(lambda leaf: leaf[None], states), ()
        groups = Groups(np.zeros(1), np.zeros(1))
        (_, losses), room = update_table(lambda *_: lambda of: many(of[0]), table, groups, None, at_once=1)
        return losses[0], jax.tree.map(lambda leaf: leaf[None], room)

    def wide(states: nnfx.TrainState) -> tuple[Array, Any]:
        return jax.vmap(many)(states)[1], ()

    mesh, over = Mesh(jax.devices()[:devices], "members"), P("members")
    mapped = in_loop if in_a_loop else wide
    compiled = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=over, out_specs=over, check_vma=False))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), start)
    return lambda: per_step(lambda state: float(compiled(state)[0].mean()), stacked, task.steps)


# Other systems


def with_optax(loss_of: Callable[[Any, Array, Array], Array], params: Any, batches: nnfx.Batch) -> Run:
    """Step with Optax as in its documentation, on a loss of `(params, inputs, targets)`."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(params: Any, opt_state: Any, x: Array, y: Array) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    pairs = list(zip(batches.inputs, batches.targets, strict=True))

    def go(state: Any) -> float:
        losses = []
        for x, y in pairs:
            *state, loss = step(*state, x, y)
            losses.append(loss)
        return float(np.mean([float(loss) for loss in losses]))

    return lambda: per_step(go, [params, optimizer.init(params)], len(pairs))


def with_torch(
    loss_of: Callable[[Any, Any], Any], parameters: Sequence[Any], start: Callable[[], None], pairs: Sequence[Any]
) -> Run:
    """Step with PyTorch and its fused Adam.

    Args:
        loss_of: the loss as a function of inputs and targets.
        parameters: the parameters to train.
        start: a function that loads the common weights.
        pairs: the tensors of inputs and targets for each step.
    """
    import torch

    def go(optimizer: Any) -> float:
        losses = []
        for x, y in pairs:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def run() -> Timed:
        start()
        return per_step(go, torch.optim.Adam(parameters, lr=RATE, fused=True), len(pairs))

    return run


def with_keras(model: Any, loss: Any, weights: Sequence[np.ndarray], batches: nnfx.Batch) -> Run:
    """Train with Keras 3 on JAX for one epoch over all batches, from these weights."""
    import keras

    model.compile(keras.optimizers.Adam(RATE, epsilon=1e-8), loss)
    model.optimizer.build(model.trainable_variables)
    fresh = [np.zeros_like(np.asarray(variable)) for variable in model.optimizer.variables]
    steps, rows = batches.weights.shape
    x, y = (np.asarray(array).reshape(steps * rows, *array.shape[2:]) for array in (batches.inputs, batches.targets))

    def go(_: None) -> float:
        fitted = model.fit(x, y, rows, epochs=1, shuffle=False, verbose=0)
        return float(fitted.history["loss"][0])

    def run() -> Timed:
        model.set_weights(weights)
        for variable, value in zip(model.optimizer.variables, fresh, strict=True):
            if "learning_rate" not in variable.path:
                variable.assign(value)
        return per_step(go, None, steps)

    return run
