"""Training steps of recurrent networks: this library, PyTorch, Flax and Keras, from the same weights.

    python -m experiments.benchmarks recurrent [--cases lstm-32x96x7x64 gru-64x96x7x128-two-layers] [--repeats 7]
        [--allocators default tuned] [--devices 1 2] [--members 16]

A case is named after its cell, batch size, time steps, inputs and hidden width. A dense layer turns the output after
the last step into one number, and the loss is the mean square error. Before the timing, all systems compute the
gradient of the first batch: the benchmark fails if they differ by more than rounding errors, and otherwise reports the
differences. Each time is the mean time of a step (gradient and Adam) over several batches; the mean loss is printed
next to it, and must agree as well. Each combination of an allocator and a number of devices has its own process; see
`cnn`.

Sixteen networks of the first case are also trained together, under `jax.vmap` and in a loop (`jax.lax.map`), against
sixteen trained one after another: each time is the time of one step of all sixteen.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import nnfx
from experiments.benchmarks import steps
from experiments.benchmarks.steps import Run, Task, with_members, with_nnfx
from experiments.benchmarks.timing import Row, Timed
from nnfx.models import conversion
from nnfx.types import Array, Params

GRADIENTS_APART = 1e-4
"""The largest difference between gradients, relative to the largest element of each array."""
LOSSES_APART = 1e-3
"""The largest difference between mean losses: Adam amplifies rounding errors, and Keras adds ε in a different place."""


class Problem(NamedTuple):
    """A recurrent network, and batches of noise for it.

    Attributes:
        cell: "lstm" or "gru".
        batch_size: sequences in a batch.
        time: time steps in a sequence.
        inputs: features of each time step.
        hidden: width of every layer.
        layers: number of recurrent layers.
        steps: number of training steps, small if each step takes long.
    """

    cell: str
    batch_size: int
    time: int
    inputs: int
    hidden: int
    layers: int = 1
    steps: int = 20

    @property
    def name(self) -> str:
        """The name of the case, such as "gru-64x96x7x128-two-layers"."""
        shape = "x".join(map(str, (self.batch_size, self.time, self.inputs, self.hidden)))
        return f"{self.cell}-{shape}" + ("-two-layers" if self.layers == 2 else "")

    def task(self) -> Task:
        """Return the task for this library; no bias is zero, so that each must be in the right place."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(self.steps, self.batch_size, self.time, self.inputs))
        y = rng.normal(size=x.shape[:2])
        batches = nnfx.Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), jnp.ones(y.shape, jnp.float32))
        model = getattr(nnfx.models, self.cell)(outputs=1, hidden=(self.hidden,) * self.layers)
        drawn = model.init(jax.random.key(0), batches.inputs[0])["params"]
        params = jax.tree.map(lambda leaf: leaf + (leaf.ndim == 1) * rng.normal(size=leaf.shape).astype("f") / 8, drawn)
        return Task(model, nnfx.losses.mean_square_error, params, batches)


SHAPES = ((32, 96, 7, 64), (64, 96, 7, 128), (64, 96, 7, 512), (32, 28, 28, 128))
CASES = {
    problem.name: problem
    for cell, shape, layers in itertools.product(("lstm", "gru"), SHAPES, (1, 2))
    for problem in [Problem(cell, *shape, layers=layers, steps=5 if shape[-1] == 512 else 20)]
}
ENSEMBLE = "lstm-32x96x7x64"


class Peer(NamedTuple):
    """The network of another library: its steps, and its gradient on the first batch, in this library's layout."""

    run: Run
    gradient: Callable[[], Params]


def main(
    cases: tuple[str, ...] = tuple(CASES),
    repeats: int = 7,
    allocators: tuple[str, ...] = ("default", "tuned"),
    devices: tuple[int, ...] = (1, 2),
    members: int = 16,
    out: Path = Path("runs/benchmarks"),
) -> dict[str, Any]:
    """Time training steps.

    Args:
        cases: the networks to time.
        repeats: the number of times that each system is timed, with the systems in turn.
        allocators: "default", "tuned" or both.
        devices: numbers of CPU devices over which this library splits a batch, or the networks trained together.
        members: number of networks trained together; 0 for none.
        out: where the results go.
    """
    for case in cases:
        nnfx.checks.choice("cases", case, CASES)
    if any(members % count for count in devices):
        raise ValueError(f"members: expected a multiple of every number of devices, {devices}, got {members}")
    return steps.in_processes("recurrent", cases, repeats, allocators, devices, members, out)


def measure(case: str, devices: int, repeats: int, members: int) -> list[Row]:
    """Compare gradients, and time every system, in this process."""
    return measure_problem(CASES[case], devices, repeats, members if case == ENSEMBLE else 0)


def measure_problem(problem: Problem, devices: int, repeats: int, members: int) -> list[Row]:
    """Compare gradients, and time every system and `members` networks trained together."""
    task = problem.task()
    ours = {
        "nnfx, a step": with_nnfx(task, devices, scanned=False),
        "nnfx, in a run": with_nnfx(task, devices, scanned=True),
    }
    peers = {"PyTorch": with_torch(problem, task)}
    if devices == 1:
        peers |= {"Flax as documented": with_flax(problem, task), "Keras on JAX": with_keras(problem, task)}
    errors = gradient_errors(task, {name: peer.gradient() for name, peer in peers.items()})
    timed = {name: peer.run for name, peer in peers.items()}
    rows = steps.compare_steps(problem.name, ours, timed, repeats)
    if members:
        many = {
            f"{members} under vmap": with_members(task, members, devices),
            f"{members} in a loop": with_members(task, members, devices, in_a_loop=True),
            f"{members} in turn": in_turn(ours["nnfx, in a run"], members),
        }
        others = {f"{members} of PyTorch in turn": in_turn(timed["PyTorch"], members)}
        rows += steps.compare_steps(f"{problem.name}, {members} networks", many, others, repeats)
    require_one_loss(rows)
    return [row._replace(gradient_error=errors.get(row.system)) for row in rows]


def in_turn(run: Run, members: int) -> Run:
    """Run `members` times, and return the time of one step of all of them."""

    def all_of_them() -> Timed:
        several = [run() for _ in range(members)]
        return Timed(sum(one.seconds for one in several), float(np.mean([one.loss for one in several])))

    return all_of_them


def gradient_errors(task: Task, gradients: Mapping[str, Params]) -> dict[str, float]:
    """Return the differences between each system's gradient of the first batch and this library's.

    Raises:
        ValueError: if a difference is larger than rounding errors, which means that the systems compute different
            functions.
    """
    batch = task.parts()[0]

    def loss_of(params: Params) -> Array:
        outputs, _ = task.model.apply({"params": params}, batch.inputs, train=True)
        return task.loss(outputs, batch.targets).mean()

    ours = jax.jit(jax.grad(loss_of))(task.params)
    errors = {}
    for name, theirs in gradients.items():
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(a).max(), jax.device_get(ours), dict(theirs))
        errors[name] = float(max(jax.tree.leaves(apart)))
        if not errors[name] <= GRADIENTS_APART:
            raise ValueError(f"{name}: expected the gradient of nnfx, got one that differs: {apart}")
    return errors


def require_one_loss(rows: list[Row]) -> None:
    """Raise an error if the mean losses of the systems are not nearly the same."""
    for row in rows:
        if not abs(row.loss / rows[0].loss - 1) <= LOSSES_APART:
            raise ValueError(f"{row.system}: expected the loss of {rows[0].system}, {rows[0].loss}, got {row.loss}")


def with_flax(problem: Problem, task: Task) -> Peer:
    """Step with Flax and Optax as in their documentation."""
    cell_of: Any = nn.OptimizedLSTMCell if problem.cell == "lstm" else nn.GRUCell

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(problem.layers):
                x = nn.RNN(cell_of(problem.hidden, name=f"layer_{i}"))(x)
            return nn.Dense(1, name="output")(x[:, -1])

    net: Any = Net()
    batch = task.parts()[0]
    params = {**conversion.to_flax(task.params), "output": task.params["output"]}

    def loss_of(params: Params, x: Array, y: Array) -> Array:
        return jnp.square(net.apply({"params": params}, x)[:, 0] - y).mean()

    def gradient() -> Params:
        found = jax.jit(jax.grad(loss_of))(params, batch.inputs, batch.targets)
        layers = {name: layer for name, layer in found.items() if name != "output"}
        return {**conversion.from_flax(layers), "output": found["output"]}

    return Peer(steps.with_optax(loss_of, params, task.batches), gradient)


def with_torch(problem: Problem, task: Task) -> Peer:
    """Step with PyTorch's own layers and its fused Adam.

    PyTorch adds two biases where one would be enough. If both were trained, their sum would move twice as far in a
    step of Adam as the single bias of the other libraries, so the gradient of the redundant one is set to zero.
    """
    import torch

    layer: Any = torch.nn.LSTM if problem.cell == "lstm" else torch.nn.GRU
    recurrent = layer(problem.inputs, problem.hidden, num_layers=problem.layers, batch_first=True)
    dense = torch.nn.Linear(problem.hidden, 1)
    layers = {name: layer for name, layer in task.params.items() if name != "output"}
    recurrent_weights = {name: torch.tensor(array) for name, array in conversion.to_torch({"params": layers}).items()}
    output = {name: torch.tensor(np.asarray(array)) for name, array in task.params["output"].items()}
    for i in range(problem.layers):
        bias = getattr(recurrent, f"bias_hh_l{i}")
        is_own = torch.zeros_like(bias)
        if problem.cell == "gru":
            is_own[2 * problem.hidden :] = 1
        bias.register_hook(lambda gradient, is_own=is_own: gradient * is_own)
    criterion = torch.nn.MSELoss()

    def loss_of(x: Any, y: Any) -> Any:
        return criterion(dense(recurrent(x)[0][:, -1])[:, 0], y)

    def start() -> None:
        recurrent.load_state_dict(recurrent_weights)
        dense.load_state_dict({"weight": output["kernel"].T, "bias": output["bias"]})

    pairs = [
        tuple(torch.tensor(np.asarray(array)) for array in (batch.inputs, batch.targets)) for batch in task.parts()
    ]
    parameters = [*recurrent.parameters(), *dense.parameters()]

    def gradient() -> Params:
        start()
        recurrent.zero_grad()
        dense.zero_grad()
        loss_of(*pairs[0]).backward()
        found = conversion.from_torch({name: value.grad.numpy() for name, value in recurrent.named_parameters()})
        return {**found["params"], "output": {"kernel": dense.weight.grad.numpy().T, "bias": dense.bias.grad.numpy()}}

    return Peer(steps.with_torch(loss_of, parameters, start, pairs), gradient)


def with_keras(problem: Problem, task: Task) -> Peer:
    """Train with Keras 3 on JAX for one epoch over all batches; its GRU also has two biases (see `with_torch`)."""
    import keras

    options: dict[str, Any] = {}
    if problem.cell == "gru":
        is_own = np.ones((2, 3 * problem.hidden), np.float32)
        is_own[1, : 2 * problem.hidden] = 0
        options = {"reset_after": True, "bias_constraint": lambda bias: bias * is_own}
    layer: Any = keras.layers.LSTM if problem.cell == "lstm" else keras.layers.GRU
    layers = [layer(problem.hidden, return_sequences=i < problem.layers - 1, **options) for i in range(problem.layers)]
    model = keras.Sequential(
        [keras.layers.Input((problem.time, problem.inputs)), *layers, keras.layers.Dense(1), keras.layers.Reshape(())]
    )
    batch = task.parts()[0]

    def loss_of(weights: list[Array]) -> Array:
        others = [variable.value for variable in model.non_trainable_variables]
        outputs, _ = model.stateless_call(weights, others, batch.inputs)
        return jnp.square(outputs - batch.targets).mean()

    def gradient() -> Params:
        return from_keras(jax.jit(jax.grad(loss_of))(list(map(jnp.asarray, weights))))

    weights = conversion.to_keras({"params": task.params})
    return Peer(steps.with_keras(model, "mean_squared_error", weights, task.batches), gradient)


def from_keras(arrays: list[Array]) -> Params:
    """Return weights, or a gradient, in this library's layout, without Keras's redundant biases."""
    params: dict[str, Any] = {}
    *recurrent, kernel, bias = map(np.asarray, arrays)
    for i in range(len(recurrent) // 3):
        inputs, of_hidden, biases = recurrent[3 * i : 3 * i + 3]
        layer = {"input_kernel": inputs, "recurrent_kernel": of_hidden, "bias": biases}
        if biases.ndim == 2:
            hidden = len(of_hidden)
            layer = {part: _other_gate_first(array) for part, array in layer.items()}
            layer["bias"] = np.concatenate([layer["bias"][0], biases[1, 2 * hidden :]])
        params[f"layer_{i}"] = layer
    return {**params, "output": {"kernel": kernel, "bias": bias}}


def _other_gate_first(array: np.ndarray) -> np.ndarray:
    """Swap the first two of three gates along the last axis."""
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)
