"""From one device to 100,000: the efficiency of data parallelism and sweeps, predicted from measurements.

    python -m experiments.scaling_model [--out DIR] [--seed N]

The time of a step and the size of its gradient are measured on this machine; bandwidths and latencies are options.
Data parallelism then costs one exchange per step, around a ring or along a tree. A sweep exchanges nothing, and loses
efficiency only if its runs cannot be distributed evenly. The figure shows the efficiency, which is the fraction of the
ideal throughput, for a fixed batch per device and for a fixed total batch. A range is shown: from exchanges that wait
for the whole gradient to exchanges that overlap with the computation as far as possible.

The model is checked where this is possible: it predicts the time of a step on two devices of this CPU for gradients of
several sizes. The devices share its cores, so they compute for as long as one device does for the examples of both;
the time of an exchange alone is added. Expect predictions to be accurate to about a third: the devices also share
caches and memory, which the model ignores. The experiment takes less than a minute.

The model also assumes that all devices are equally fast, that nothing fails, that links are not shared with other
programs, that data are read as fast as they are needed, and that the update itself is the same on every device.
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
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, command, print_table
from nnfx.training.data_parallel import data_parallel


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the scaling model."""

    out: Path = Path("runs/scaling_model")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    widths: tuple[int, ...] = (128, 512, 1024)
    """widths of the networks measured (two hidden layers each)"""
    batch_size: int = 1024
    """number of examples per device in a step"""
    node: int = 8
    """number of devices per node"""
    fast_bandwidth: float = 450e9
    """bandwidth between devices of a node, in bytes per second and direction"""
    fast_latency: float = 3e-6
    """time of the smallest possible exchange within a node, in seconds"""
    slow_bandwidth: float = 50e9
    """bandwidth between nodes for each device, in bytes per second and direction"""
    slow_latency: float = 10e-6
    """time of the smallest possible exchange between nodes, in seconds"""
    speed: float = 500.0
    """speed of a device, as a multiple of the speed of this machine"""
    members: int = 131_072
    """number of runs in the sweep to distribute"""
    repeats: int = 30
    """number of steps to time"""


class Link(NamedTuple):
    """The speed of a link between two devices: bytes per second, and seconds for the smallest exchange."""

    bandwidth: float
    latency: float


def ring(devices: int, size: float, link: Link) -> float:
    """Return the time in seconds that an all-reduce around a ring takes: `2 (n − 1) (S / (n B) + α)`.

    The data are cut into n parts, and every byte crosses each link about twice. The bandwidth is used optimally, but
    latencies add up linearly with n.

    Args:
        devices: n.
        size: S, in bytes.
        link: B and α.

    References:
        Patarasuk and Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, 2009.

    >>> ring(2, 100.0, Link(bandwidth=100.0, latency=1.0))
    3.0
    """
    return 2 * (devices - 1) * (size / (devices * link.bandwidth) + link.latency)


def tree(devices: int, size: float, link: Link) -> float:
    """Return the time in seconds that a pipelined all-reduce up and down a tree takes: `2 S / B + 2 ⌈log₂ n⌉ α`.

    A single device exchanges nothing, so its time is 0.

    >>> tree(1, 100.0, Link(1.0, 1.0)), tree(8, 100.0, Link(bandwidth=100.0, latency=1.0))
    (0.0, 8.0)
    """
    return 2 * size / link.bandwidth + 2 * math.ceil(math.log2(devices)) * link.latency if devices > 1 else 0.0


def all_reduce(devices: int, size: float, node: int, fast: Link, slow: Link) -> float:
    """Return the time in seconds that an all-reduce takes within nodes and then between them.

    Each of the two uses the faster of ring and tree. Between the nodes, each of a node's n devices carries one n-th
    of the node's sum.

    >>> all_reduce(1, 100.0, 8, Link(1.0, 1.0), Link(1.0, 1.0))
    0.0
    """
    within = min(devices, node)
    nodes = math.ceil(devices / node)
    inner = min(ring(within, size, fast), tree(within, size, fast))
    return inner + min(ring(nodes, size / within, slow), tree(nodes, size / within, slow))


def efficiency(computing: float, exchanging: float, hidden: float = 0.0) -> float:
    """Return the fraction of the ideal throughput if `hidden` seconds of the exchange overlap with the computation.

    >>> efficiency(1.0, 1.0), efficiency(1.0, 1.0, hidden=0.6)
    (0.5, 0.7142857142857143)
    """
    return computing / (computing + max(0.0, exchanging - hidden))


def sweep_efficiency(members: int, devices: int) -> float:
    """Return the fraction of devices that are busy if runs are distributed as evenly as possible: `m / (n ⌈m / n⌉)`.

    >>> sweep_efficiency(8, 3)
    0.8888888888888888
    """
    return members / (devices * math.ceil(members / devices))


class Measured(NamedTuple):
    """Measurements of a network's step on this machine, in seconds and bytes.

    Attributes:
        width: the width of the network's hidden layers.
        size: the size of the gradient in memory.
        one: the time of a step on one device.
        both: the time of a step on one device with the examples of two devices.
        two: the time of a step on two devices, each with a batch of the same size.
        exchange: the time of an all-reduce of the gradient between two devices, by itself.
    """

    width: int
    size: int
    one: float
    both: float
    two: float
    exchange: float

    @property
    def predicted(self) -> float:
        """The model's prediction for two devices that share their cores."""
        return self.both + self.exchange


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    if jax.local_device_count() < 2:
        raise RuntimeError(
            f"devices: expected two, got {jax.local_device_count()}; call nnfx.cpu.set_up(devices=2) first"
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
    print(f"\npredicted efficiency of width {largest.width}, for a device {config.speed:g} × as fast as this one:")
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
    """Return the median time in seconds that each compiled function takes; the functions are called in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for each, (function, arguments) in zip(seconds, functions, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first call compiles
                each.append(time.perf_counter() - began)
    return [statistics.median(each) for each in seconds]


def predict(of: Measured, devices: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Return the efficiency by number of devices, for each way to use devices."""
    fast, slow = Link(config.fast_bandwidth, config.fast_latency), Link(config.slow_bandwidth, config.slow_latency)
    computing = of.one / config.speed
    backward = 2 / 3 * computing  # two of three equal products: the gradients of inputs and weights

    def parallel(n: int, seconds: float, hidden: float) -> float:
        return efficiency(seconds, all_reduce(n, of.size, config.node, fast, slow), hidden)

    return {
        "fixed batch per device, no overlap": np.array([parallel(n, computing, 0) for n in devices.tolist()]),
        "fixed batch per device, overlap": np.array([parallel(n, computing, backward) for n in devices.tolist()]),
        "fixed total batch, no overlap": np.array([parallel(n, computing / n, 0) for n in devices.tolist()]),
        f"sweep of {config.members:,} runs": np.array([sweep_efficiency(config.members, n) for n in devices.tolist()]),
    }


def draw(
    results: Results, measured: list[Measured], devices: np.ndarray, curves: dict[str, np.ndarray], config: Config
) -> None:
    """Plot predicted efficiencies, and predicted against measured steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), width_ratios=(1.7, 1))
    names = list(curves)
    left.fill_between(devices, curves[names[0]], curves[names[1]], color=BLUE, alpha=0.2, linewidth=0)
    for name, colour, style in zip(names, (BLUE, BLUE, ORANGE, GREEN), ("-", "--", "-", "-"), strict=True):
        left.plot(devices, curves[name], style, color=colour, label=name)
    left.axvline(config.node, color=GREY, linewidth=0.8, linestyle=":", label=f"a node of {config.node}")
    left.set(xscale="log", ylim=(0, 1.03), xlabel="devices", ylabel="efficiency (fraction of ideal throughput)")
    of = measured[-1]
    left.set_title(
        f"predicted: gradient of {of.size / 1e6:.1f} MB, steps of {of.one / config.speed * 1e6:.0f} µs;\n"
        f"{config.fast_bandwidth / 1e9:g} GB/s and {config.fast_latency * 1e6:g} µs within a node, "
        f"{config.slow_bandwidth / 1e9:g} GB/s and {config.slow_latency * 1e6:g} µs between",
        fontsize=10,
    )
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)  # away from the curves
    predicted = [1e3 * each.predicted for each in measured]
    found = [1e3 * each.two for each in measured]
    right.plot(predicted, found, "o", color=BLUE, label="two devices of this machine")
    right.plot(predicted, [1e3 * each.one for each in measured], "x", color=GREY, label="one device, one batch")
    ends = np.array([min(predicted + found) / 1.5, max(predicted + found) * 1.5])
    right.plot(ends, ends, color="black", linewidth=0.8, label="as predicted")
    for each in measured:
        right.annotate(f"  width {each.width}", (1e3 * each.predicted, 1e3 * each.two), fontsize=8, va="top")
    right.set(xscale="log", yscale="log", xlabel="predicted step (ms)", ylabel="measured step (ms)", title="check")
    right.legend(fontsize=8)
    results.figure("scaling", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=2)
    command(main, Config, __doc__)
