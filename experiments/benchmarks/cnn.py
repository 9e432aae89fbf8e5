"""Steps of convolutional networks (gradient and Adam): this library, Flax, PyTorch and Keras, from the same weights.

    python -m experiments.benchmarks cnn [--cases lenet vgg] [--repeats 7] [--allocators default tuned] [--devices 1 2]

Each time is that of a step, the mean of twenty on twenty batches; the mean of their losses stands beside it, and agrees
between systems to rounding. An allocator and a number of devices are a process of their own, the same for all systems
in it: "tuned" keeps memory instead of giving it back to the system after each step, as `nnfx.cpu.set_up` does. With
two devices, each takes half of the batch.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nnfx
from experiments.benchmarks.timing import Row, System, Timed, compare, has_compiler, report, seconds_of
from nnfx.models import conv, max_pool

RATE, STEPS = 1e-3, 20
TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**29),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
"""What glibc reads when a process begins; the same numbers as those of `nnfx.cpu.set_up`."""


class Problem(NamedTuple):
    """A network, and twenty batches of noise for it.

    Attributes:
        size: pixels along a side.
        channels: of an image.
        features: of each convolution of 3 × 3, with 0 for a max pool of 2 × 2.
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
        """Return the kernels of convolutions (HWIO), then those of dense layers, of positions by channels."""
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
    """Time steps.

    Args:
        cases: which networks.
        repeats: how often each system, in turns.
        allocators: "default" and "tuned".
        devices: over how many CPU devices this library splits a batch.
        members: how many networks the sweep under vmap has; 0 for none.
        out: where the results go.
    """
    rows = []
    for allocator, count in itertools.product(allocators, devices):
        environment = os.environ | (TUNED if allocator == "tuned" else {})
        code = (
            "import sys; from experiments.benchmarks.cnn import measure; measure(sys.argv[1], *map(int, sys.argv[2:]))"
        )
        for case in cases:
            printed = subprocess.run(
                [sys.executable, "-c", code, case, str(count), str(repeats), str(members)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            ).stdout
            found = [Row(*row) for row in json.loads(printed.splitlines()[-1])]
            rows += [row._replace(case=f"{case}, {allocator}, {count} devices") for row in found]
    return report("cnn", rows, out)


def measure(case: str, devices: int, repeats: int, members: int) -> None:
    """Time every system in this process, and print the rows as JSON."""
    jax.config.update("jax_num_cpu_devices", devices)
    problem = CASES[case]
    ours = {
        "nnfx, a step": with_nnfx(problem, devices, scanned=False),
        "nnfx, in a run": with_nnfx(problem, devices, scanned=True),
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
    rows = _compare(case, ours, peers, repeats)
    if members and devices == 1 and case == "lenet":
        small = problem._replace(batch_size=32)
        many = {f"{members} under vmap, batch 32": with_members(small, members)}
        rows += _compare(case, many, {"one, batch 32": with_nnfx(small, 1, scanned=True)}, repeats)
    print(json.dumps(rows))


def _compare(
    case: str, ours: dict[str, Callable[[], Timed]], peers: dict[str, Callable[[], Timed]], repeats: int
) -> list[Row]:
    """Time systems in turns; all have the weights and the batches of the problem, whatever the seed."""

    def system(name: str) -> System:
        run = (ours | peers)[name]
        return System(lambda _: run(), is_peer=name in peers)

    return compare(case, {name: system(name) for name in ours | peers}, repeats)


def _model(problem: Problem) -> nnfx.Model:
    layers = [conv(features) if features else max_pool() for features in problem.features]
    return nnfx.models.cnn(layers, 10, hidden=problem.hidden)


def _variables(problem: Problem) -> dict[str, Any]:
    """Return the common weights in the layout of this library."""
    weights = [jnp.asarray(weight) for weight in problem.weights()]
    layers = [{"kernel": weight, "bias": jnp.zeros(weight.shape[-1])} for weight in weights]
    convolutions = sum(1 for features in problem.features if features)
    dense = {f"hidden_{i}": layer for i, layer in enumerate(layers[convolutions:-1])} | {"output": layers[-1]}
    return {f"conv_{i}": layer for i, layer in enumerate(layers[:convolutions])} | {"dense": dense}


def _steps_of(problem: Problem, devices: int) -> tuple[Callable[..., Any], nnfx.TrainState]:
    """Return this library's step, on as many devices, and the state it starts from."""
    model, optimizer = _model(problem), optax.adam(RATE)
    if devices > 1:  # equal shares of a batch, so that the mean of their gradients is the gradient of the batch
        mean = optax.stateless(lambda updates, _: jax.lax.pmean(updates, "batch"))
        optimizer = optax.chain(mean, optimizer)
    state = nnfx.init_state(
        jax.random.key(0), model, optimizer, jnp.zeros((1, problem.size, problem.size, problem.channels))
    )
    params = _variables(problem)
    step = nnfx.make_step(model, nnfx.losses.categorical_cross_entropy, optimizer)
    return step, state._replace(params=params, opt_state=optimizer.init(params))


def with_nnfx(problem: Problem, devices: int, scanned: bool) -> Callable[[], Timed]:
    """Step with this library: a compiled step after the other, or all of them within one scan, as in a run."""
    step, start = _steps_of(problem, devices)
    batches = problem.batches()

    def one(state: nnfx.TrainState, batch: nnfx.Batch) -> tuple[nnfx.TrainState, jax.Array]:
        state, measured = step(state, batch)
        loss = measured["loss"].value
        return state, loss if devices == 1 else jax.lax.pmean(loss, "batch")

    def many(state: nnfx.TrainState, batches: nnfx.Batch) -> tuple[nnfx.TrainState, jax.Array]:
        return jax.lax.scan(one, state, batches)

    over = P(None, "batch") if scanned else P("batch")
    chosen: Any = many if scanned else one
    if devices > 1:
        mesh = Mesh(jax.devices()[:devices], "batch")
        chosen = jax.shard_map(chosen, mesh=mesh, in_specs=(P(), over), out_specs=P(), check_vma=False)
    compiled = jax.jit(chosen, donate_argnums=0)
    parts = [jax.tree.map(lambda array, i=i: array[i], batches) for i in range(STEPS)]

    def run() -> Timed:
        def go(state: nnfx.TrainState) -> float:
            if scanned:
                return float(compiled(state, batches)[1].mean())
            losses = []
            for part in parts:
                state, loss = compiled(state, part)
                losses.append(loss)
            return float(np.mean([float(loss) for loss in losses]))

        return _per_step(go, jax.tree.map(jnp.copy, start))

    return run


def with_members(problem: Problem, members: int) -> Callable[[], Timed]:
    """Step with many networks under vmap, all within one scan: the time of them all."""
    step, start = _steps_of(problem, 1)
    batches = problem.batches()

    def many(state: nnfx.TrainState) -> jax.Array:
        return jax.lax.scan(step, state, batches)[1]["loss"].value.mean()

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), start)
    compiled = jax.jit(jax.vmap(many))
    return lambda: _per_step(lambda state: float(compiled(state).mean()), stacked)


def with_flax(problem: Problem) -> Callable[[], Timed]:
    """Step with Flax and Optax as their documentation writes it."""
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

    net, optimizer, batches = Net(), optax.adam(RATE), problem.batches()
    shapes = jax.eval_shape(net.init, jax.random.key(0), batches.inputs[0])["params"]
    convolutions = [name for name in shapes if name.startswith("Conv")]
    ordered = sorted(convolutions) + sorted(shapes.keys() - set(convolutions))
    layers = zip(ordered, problem.weights(), strict=True)
    params = {name: {"kernel": jnp.asarray(w), "bias": jnp.zeros(w.shape[-1])} for name, w in layers}

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss_of(params: Any) -> jax.Array:
            logits = net.apply({"params": params}, x)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    parts = [(batches.inputs[i], batches.targets[i]) for i in range(STEPS)]

    def go(state: Any) -> float:
        losses = []
        for x, y in parts:
            *state, loss = step(*state, x, y)
            losses.append(loss)
        return float(np.mean([float(loss) for loss in losses]))

    return lambda: _per_step(go, [params, optimizer.init(params)])


def with_torch(problem: Problem, channels_last: bool = False, compiled: bool = False) -> Callable[[], Timed]:
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

    def go(optimizer: Any) -> float:
        losses = []
        for x, y in zip(images, labels, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def run() -> Timed:
        start()
        return _per_step(go, torch.optim.Adam(model.parameters(), lr=RATE, fused=True))

    return run


def with_keras(problem: Problem) -> Callable[[], Timed]:
    """Step with Keras 3 on JAX, an epoch of twenty batches."""
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
    model.compile(keras.optimizers.Adam(RATE, epsilon=1e-8), loss)
    untrained = [array for weight in problem.weights() for array in (weight, np.zeros(weight.shape[-1]))]
    model.optimizer.build(model.trainable_variables)
    fresh = [np.zeros_like(np.asarray(variable)) for variable in model.optimizer.variables]
    batches = problem.batches()
    x, y = np.asarray(batches.inputs).reshape(-1, *shape), np.asarray(batches.targets).reshape(-1)

    def go(_: None) -> float:
        fitted = model.fit(x, y, problem.batch_size, epochs=1, shuffle=False, verbose=0)
        return float(fitted.history["loss"][0])

    def run() -> Timed:
        model.set_weights(untrained)
        for variable, value in zip(model.optimizer.variables, fresh, strict=True):
            if "learning_rate" not in variable.path:
                variable.assign(value)
        return _per_step(go, None)

    return run


def _per_step(go: Callable[[Any], float], start: Any) -> Timed:
    """Time twenty steps, and return the time of one with the mean loss of all."""
    jax.block_until_ready(start)
    seconds, loss = seconds_of(lambda: go(start))
    return Timed(seconds / STEPS, loss)
