"""From one device to 100,000: how efficient data parallelism and sweeps can be, from what can be measured here.

    python -m experiments.scaling_model [--out DIR] [--seed N]

The time of a step and the bytes of its gradient are measured on this machine, bandwidths and latencies are stated (the
options below). Data parallelism then costs a ring or a tree of exchanges a step; a sweep exchanges nothing, and loses
only what cannot be dealt out evenly. Drawn is the efficiency, the part of the ideal throughput, with the batch of each
device kept and with the batch of all kept; between exchanges that wait for the whole gradient and those that hide
behind the computation as far as they can.

What the model says is checked where it can be: on two devices of this CPU, a step is predicted for gradients of several
sizes. They share its cores, so that they compute as long as one device does for the examples of both; to that the time
of an exchange alone is added. Expect predictions within a third or so: the devices share caches and memory as well,
which the model does not know. It takes less than a minute.

Assumed besides: all devices are alike and none is late, nothing fails, links are not shared with others, data are read
as fast as they are needed, and the update itself is the same on every device.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, print_table
from nnfx.scale.parallel import data_parallel


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the scaling model."""

    out: Path = Path("runs/scaling_model")
    """where the results go"""
    seed: int = 0
    """the seed of everything random"""
    widths: tuple[int, ...] = (128, 512, 1024)
    """widths of the networks measured (two hidden layers of it)"""
    batch_size: int = 1024
    """examples of a device in a step"""
    node: int = 8
    """devices of a node"""
    fast_bandwidth: float = 450e9
    """bytes a second and direction between devices of a node"""
    fast_latency: float = 3e-6
    """seconds that an exchange within a node takes, however small"""
    slow_bandwidth: float = 50e9
    """bytes a second and direction between nodes, for each device"""
    slow_latency: float = 10e-6
    """seconds that an exchange between nodes takes, however small"""
    speed: float = 500.0
    """how many times faster than this machine a device computes"""
    members: int = 131_072
    """runs of the sweep that is dealt out"""
    repeats: int = 30
    """steps timed"""


class Link(NamedTuple):
    """How fast two devices exchange: bytes a second, and seconds however small."""

    bandwidth: float
    latency: float


def ring(devices: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce around a ring: `2 (n − 1) (S / (n B) + α)`.

    Every byte passes the links twice, in n parts that follow each other: optimal in bandwidth, linear in latency.

    Args:
        devices: n.
        size: S, bytes.
        link: B and α.

    References:
        Patarasuk and Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, 2009.

    >>> ring(2, 100.0, Link(bandwidth=100.0, latency=1.0))
    3.0
    """
    return 2 * (devices - 1) * (size / (devices * link.bandwidth) + link.latency)


def tree(devices: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce up a tree and down again, in parts that follow each other: `2 S / B + 2 ⌈log₂ n⌉ α`.

    >>> tree(1, 100.0, Link(1.0, 1.0)), tree(8, 100.0, Link(bandwidth=100.0, latency=1.0))
    (0.0, 8.0)
    """
    return 2 * size / link.bandwidth + 2 * math.ceil(math.log2(devices)) * link.latency if devices > 1 else 0.0


def all_reduce(devices: int, size: float, node: int, fast: Link, slow: Link) -> float:
    """Seconds of an all-reduce: within each node, then between nodes, by the better of ring and tree.

    Each device carries its n-th part of the sum of its node between the nodes.

    >>> all_reduce(1, 100.0, 8, Link(1.0, 1.0), Link(1.0, 1.0))
    0.0
    """
    within = min(devices, node)
    nodes = math.ceil(devices / node)
    inner = min(ring(within, size, fast), tree(within, size, fast))
    return inner + min(ring(nodes, size / within, slow), tree(nodes, size / within, slow))


def efficiency(computing: float, exchanging: float, hidden: float = 0.0) -> float:
    """The part of the ideal throughput, where so many seconds of the exchange hide behind the computation.

    >>> efficiency(1.0, 1.0), efficiency(1.0, 1.0, hidden=0.6)
    (0.5, 0.7142857142857143)
    """
    return computing / (computing + max(0.0, exchanging - hidden))


def sweep_efficiency(members: int, devices: int) -> float:
    """The part of the devices that is busy, of runs dealt out as evenly as they can be: `m / (n ⌈m / n⌉)`.

    >>> sweep_efficiency(8, 3)
    0.8888888888888888
    """
    return members / (devices * math.ceil(members / devices))


class Measured(NamedTuple):
    """A network's step on this machine; seconds and bytes.

    Attributes:
        width: of its hidden layers.
        size: of its gradient.
        one: of the step on one device.
        both: of the step on one device, on the batches of two.
        two: of the step on two devices, each with a batch as large.
        exchange: of an all-reduce of the gradient between two devices, alone.
    """

    width: int
    size: int
    one: float
    both: float
    two: float
    exchange: float

    @property
    def predicted(self) -> float:
        """What the model says of two devices that share their cores."""
        return self.both + self.exchange


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    if jax.local_device_count() < 2:
        raise RuntimeError(
            f"devices: expected two, got {jax.local_device_count()}; nnfx.cpu.set_up(devices=2) makes them"
        )
    measured = [measure(width, config) for width in config.widths]
    print_table(
        [
            "width",
            "gradient, bytes",
            "1 device, ms",
            "both batches",
            "exchange",
            "2 devices, predicted",
            "measured",
            "ratio",
        ],
        [
            [
                str(of.width),
                f"{of.size:,}",
                *(1e3 * seconds for seconds in (of.one, of.both, of.exchange, of.predicted, of.two)),
                of.two / of.predicted,
            ]
            for of in measured
        ],
    )
    largest = measured[-1]
    devices = np.unique(np.logspace(0, 5, 101).round().astype(int))
    curves = predict(largest, devices, config)
    shown = (1, 8, 64, 1_000, 10_000, 100_000)
    print(
        f"\npredicted efficiency of width {largest.width}, a device computing {config.speed:g} × as fast as this one:"
    )
    print_table(
        ["devices", *map(str, shown)],
        [[name, *(float(values[np.argmin(np.abs(devices - n))]) for n in shown)] for name, values in curves.items()],
    )
    draw(results, measured, devices, curves, config)
    return results.summary(
        {
            "measured": [{**of._asdict(), "predicted": of.predicted} for of in measured],
            "devices": devices,
            "efficiency": curves,
            "assumptions": {
                name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "seed")
            },
            "seed": config.seed,
        }
    )


def measure(width: int, config: Config) -> Measured:
    """Time a step on one device and on two, and the exchange alone."""
    model, optimizer = nnfx.models.mlp((width, width), outputs=10), optax.sgd(0.01)
    step = nnfx.make_step(model, nnfx.losses.categorical_cross_entropy, optimizer)
    key = jax.random.key(config.seed)
    state = nnfx.init_state(key, model, optimizer, jnp.zeros((1, 784)))

    def batch(devices: int) -> nnfx.Batch:
        rows = devices * config.batch_size
        inputs = jax.random.normal(key, (rows, 784))
        return nnfx.Batch(inputs, jnp.arange(rows) % 10, jnp.ones(rows))

    pair = jax.local_devices()[:2]
    alone, together = jax.jit(step), jax.jit(data_parallel(step, devices=pair))
    mesh = Mesh(pair, "batch")
    gradient = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape), leaf.dtype), state.params)
    exchange = jax.jit(
        jax.shard_map(
            lambda tree: jax.tree.map(lambda leaf: jax.lax.psum(leaf, "batch"), tree),
            mesh=mesh,
            in_specs=P("batch"),
            out_specs=P(),
        )
    )
    functions: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
        (alone, (state, batch(1))),
        (alone, (state, batch(2))),
        (together, (state, batch(2))),
        (exchange, (gradient,)),
    )
    one, both, two, alone_exchange = medians(functions, config.repeats)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    return Measured(width, size, one, both, two, alone_exchange)


def medians(functions: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...], repeats: int) -> list[float]:
    """Return the median seconds of compiled functions, called in turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for each, (function, arguments) in zip(seconds, functions, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first call compiles
                each.append(time.perf_counter() - began)
    return [statistics.median(each) for each in seconds]


def predict(of: Measured, devices: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Return the efficiency by the number of devices, for each way to use them."""
    fast, slow = Link(config.fast_bandwidth, config.fast_latency), Link(config.slow_bandwidth, config.slow_latency)
    computing = of.one / config.speed
    backward = 2 / 3 * computing  # of forward, gradient by the inputs and gradient by the weights, three products alike

    def parallel(n: int, seconds: float, hidden: float) -> float:
        return efficiency(seconds, all_reduce(n, of.size, config.node, fast, slow), hidden)

    return {
        "batch of each device kept, exchange waits": np.array([parallel(n, computing, 0) for n in devices.tolist()]),
        "batch of each device kept, exchange hides": np.array(
            [parallel(n, computing, backward) for n in devices.tolist()]
        ),
        "batch of all kept, exchange waits": np.array([parallel(n, computing / n, 0) for n in devices.tolist()]),
        f"sweep of {config.members:,} runs": np.array([sweep_efficiency(config.members, n) for n in devices.tolist()]),
    }


def draw(
    results: Results, measured: list[Measured], devices: np.ndarray, curves: dict[str, np.ndarray], config: Config
) -> None:
    """Draw predicted efficiencies, and predicted against measured steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), width_ratios=(1.7, 1))
    names = list(curves)
    left.fill_between(devices, curves[names[0]], curves[names[1]], color=BLUE, alpha=0.2, linewidth=0)
    for name, colour, style in zip(names, (BLUE, BLUE, ORANGE, GREEN), ("-", "--", "-", "-"), strict=True):
        left.plot(devices, curves[name], style, color=colour, label=name)
    left.axvline(config.node, color=GREY, linewidth=0.8, linestyle=":", label=f"a node of {config.node}")
    left.set(xscale="log", ylim=(0, 1.03), xlabel="devices", ylabel="efficiency (part of ideal throughput)")
    of = measured[-1]
    left.set_title(
        f"predicted: gradient of {of.size / 1e6:.1f} MB, steps of {of.one / config.speed * 1e6:.0f} µs;\n"
        f"{config.fast_bandwidth / 1e9:g} GB/s and {config.fast_latency * 1e6:g} µs within a node, "
        f"{config.slow_bandwidth / 1e9:g} GB/s and {config.slow_latency * 1e6:g} µs between",
        fontsize=10,
    )
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)  # where no curve can be
    predicted = [1e3 * each.predicted for each in measured]
    found = [1e3 * each.two for each in measured]
    right.plot(predicted, found, "o", color=BLUE, label="two devices of this machine")
    right.plot(predicted, [1e3 * each.one for each in measured], "x", color=GREY, label="one device, a batch for one")
    ends = np.array([min(predicted + found) / 1.5, max(predicted + found) * 1.5])
    right.plot(ends, ends, color="black", linewidth=0.8, label="as predicted")
    for each in measured:
        right.annotate(f"  width {each.width}", (1e3 * each.predicted, 1e3 * each.two), fontsize=8, va="top")
    right.set(xscale="log", yscale="log", xlabel="predicted step (ms)", ylabel="measured step (ms)", title="checked")
    right.legend(fontsize=8)
    results.figure("scaling", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=2)
    main(tyro.cli(Config, description=__doc__))
