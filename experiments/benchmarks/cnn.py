"""Training steps of convolutional networks: this library, Flax, PyTorch and Keras, from the same weights.

    python -m experiments.benchmarks cnn [--cases lenet vgg] [--repeats 7] [--allocators default tuned] [--devices 1 2]

Each time is the mean time of a step (gradient and Adam) over twenty batches; the mean loss is printed next to it, and
agrees between systems to rounding. Each combination of an allocator and a number of devices has its own process, the
same for all systems: "tuned" keeps memory instead of returning it to the operating system after each step, as
`nnfx.cpu.set_up` does. With two devices, each takes half of the batch.
"""

import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx
from experiments.benchmarks import steps
from experiments.benchmarks.steps import Run, Task, with_members, with_nnfx
from experiments.benchmarks.timing import Row, has_compiler
from nnfx.models import conv, max_pool

STEPS = 20


class Problem(NamedTuple):
    """A network, and twenty batches of noise for it.

    Attributes:
        size: pixels along a side.
        channels: channels of an image.
        features: features of each 3 × 3 convolution, with 0 for a 2 × 2 max pool.
        hidden: widths of the dense layers before the ten outputs.
        batch_size: images in a batch.
    """

    size: int
    channels: int
    features: tuple[int, ...]
    hidden: tuple[int, ...]
    batch_size: int

    def batches(self) -> nnfx.Batch:
        """Return the batches, `(20, batch, ...)`."""
        rng = np.random.default_rng(0)
        shape = (STEPS, self.batch_size, self.size, self.size, self.channels)
        labels = rng.integers(0, 10, shape[:2]).astype(np.int32)
        return nnfx.Batch(
            jnp.asarray(rng.uniform(size=shape), jnp.float32), jnp.asarray(labels), jnp.ones(shape[:2], jnp.float32)
        )

    def weights(self) -> list[np.ndarray]:
        """Return the kernels of the convolutions (HWIO), then of the dense layers, for inputs flattened as HWC."""
        rng = np.random.default_rng(1)
        maps = [self.channels, *(f for f in self.features if f)]
        side = self.size // 2 ** self.features.count(0)
        widths = [side * side * maps[-1], *self.hidden, 10]
        shapes = [(3, 3, *pair) for pair in itertools.pairwise(maps)] + list(itertools.pairwise(widths))
        return [(rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1]))).astype(np.float32) for s in shapes]


CASES = {
    "lenet": Problem(28, 1, (32, 0, 64, 0), (256,), 128),
    "vgg": Problem(32, 3, (64, 64, 0, 128, 128, 0), (), 32),
}


def main(
    cases: tuple[str, ...] = ("lenet", "vgg"),
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
        devices: numbers of CPU devices over which this library splits a batch, or the networks of a sweep.
        members: number of networks in the sweep; 0 for no sweep.
        out: where the results go.
    """
    return steps.in_processes("cnn", cases, repeats, allocators, devices, members, out)


def measure(case: str, devices: int, repeats: int, members: int) -> list[Row]:
    """Time every system in this process."""
    problem = CASES[case]
    task = task_of(problem)
    ours = {
        "nnfx, a step": with_nnfx(task, devices, scanned=False),
        "nnfx, in a run": with_nnfx(task, devices, scanned=True),
    }
    peers = {"PyTorch, channels last": with_torch(problem, channels_last=True)}
    if devices == 1:
        peers |= {
            "PyTorch, eager": with_torch(problem),
            "Flax as documented": with_flax(problem),
            "Keras on JAX": with_keras(problem),
        }
        if has_compiler():
            peers["PyTorch, compiled"] = with_torch(problem, channels_last=True, compiled=True)
    rows = steps.compare_steps(case, ours, peers, repeats)
    if members and case == "lenet":
        small = task_of(problem._replace(batch_size=32))
        many = {
            f"{members} under vmap, batch 32": with_members(small, members, devices),
            f"{members} in a loop, as sweeps train them": with_members(small, members, devices, in_a_loop=True),
        }
        rows += steps.compare_steps(case, many, {"one, batch 32": with_nnfx(small, 1, scanned=True)}, repeats)
    return rows


def task_of(problem: Problem) -> Task:
    """Return the task for this library; the common weights are in Flax's layout, which this library uses too."""
    layers = [conv(features) if features else max_pool() for features in problem.features]
    model = nnfx.models.cnn(layers, 10, hidden=problem.hidden)
    weights = [jnp.asarray(weight) for weight in problem.weights()]
    every = [{"kernel": weight, "bias": jnp.zeros(weight.shape[-1])} for weight in weights]
    convolutions = sum(1 for features in problem.features if features)
    dense = {f"hidden_{i}": layer for i, layer in enumerate(every[convolutions:-1])} | {"output": every[-1]}
    params = {f"conv_{i}": layer for i, layer in enumerate(every[:convolutions])} | {"dense": dense}
    return Task(model, nnfx.losses.categorical_cross_entropy, params, problem.batches())


def with_flax(problem: Problem) -> Run:
    """Step with Flax and Optax as in their documentation."""
    pool: Any = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for features in problem.features:
                x = nn.relu(nn.Conv(features, (3, 3))(x)) if features else pool(x)
            x = x.reshape(len(x), -1)
            for width in problem.hidden:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(10)(x)

    net, batches = Net(), problem.batches()
    shapes = jax.eval_shape(net.init, jax.random.key(0), batches.inputs[0])["params"]
    convolutions = [name for name in shapes if name.startswith("Conv")]
    ordered = sorted(convolutions) + sorted(shapes.keys() - set(convolutions))
    layers = zip(ordered, problem.weights(), strict=True)
    params = {name: {"kernel": jnp.asarray(w), "bias": jnp.zeros(w.shape[-1])} for name, w in layers}

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = net.apply({"params": params}, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return steps.with_optax(loss_of, params, batches)


def with_torch(problem: Problem, channels_last: bool = False, compiled: bool = False) -> Run:
    """Step with PyTorch and its fused Adam."""
    import torch

    layers: list[torch.nn.Module] = []
    maps, side = problem.channels, problem.size
    for features in problem.features:
        if features:
            layers += [torch.nn.Conv2d(maps, features, 3, padding=1), torch.nn.ReLU()]
            maps = features
        else:
            layers.append(torch.nn.MaxPool2d(2))
            side //= 2
    layers.append(torch.nn.Flatten())
    for inputs, width in itertools.pairwise([side * side * maps, *problem.hidden, 10]):
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    weighted = [layer for layer in model if hasattr(layer, "weight")]
    convolutions = sum(1 for features in problem.features if features)

    def start() -> None:
        for i, (layer, weight) in enumerate(zip(weighted, problem.weights(), strict=True)):
            if i < convolutions:
                ours = weight.transpose(3, 2, 0, 1)
            else:
                if i == convolutions:  # PyTorch flattens channels first
                    weight = weight.reshape(side, side, maps, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
                ours = weight.T
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(ours))
                layer.bias.zero_()

    form = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=form)
    criterion = torch.nn.CrossEntropyLoss()

    def eager_loss(x: Any, y: Any) -> Any:
        return criterion(model(x), y)

    loss_of: Any = torch.compile(eager_loss) if compiled else eager_loss
    batches = problem.batches()
    images = [torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous(memory_format=form) for x in batches.inputs]
    labels = [torch.tensor(np.asarray(y).astype(np.int64)) for y in batches.targets]
    pairs = list(zip(images, labels, strict=True))
    return steps.with_torch(loss_of, list(model.parameters()), start, pairs)


def with_keras(problem: Problem) -> Run:
    """Train with Keras 3 on JAX for one epoch of twenty batches."""
    import keras

    layers: list[Any] = []
    for features in problem.features:
        if features:
            layers.append(keras.layers.Conv2D(features, 3, padding="same", activation="relu"))
        else:
            layers.append(keras.layers.MaxPooling2D(2))
    hidden = [keras.layers.Dense(width, activation="relu") for width in problem.hidden]
    shape = (problem.size, problem.size, problem.channels)
    model = keras.Sequential(
        [keras.layers.Input(shape), *layers, keras.layers.Flatten(), *hidden, keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    untrained = [array for weight in problem.weights() for array in (weight, np.zeros(weight.shape[-1]))]
    return steps.with_keras(model, loss, untrained, problem.batches())
