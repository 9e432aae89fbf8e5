"""Loss landscapes: a grid of losses in one program, against the same grid in a Python loop over a compiled loss.

    python -m experiments.benchmarks landscape [--cases fashion titanic] [--points N] [--images 1000] [--repeats 7]

The grid is in a plane of filter-normalised random directions around the untrained weights of the convolutional
network of `experiments.fashion_mnist`, on the first images (random images if its files are missing), and of a network
with 16 hidden units on the passengers of the Titanic. Each number of devices has its own process; the loop,
which uses one device, is timed in each of them. The mean of all losses is printed next to the times, and agrees to
rounding.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nnfx
from experiments import fashion_mnist
from experiments.benchmarks import problems
from experiments.benchmarks.timing import Row, System, Timed, compare, report, seconds_of
from nnfx.insight import landscape
from nnfx.types import Array, Batch, Model, Params, PerExample


class Problem(NamedTuple):
    """A network and the data over which its loss is averaged."""

    model: Model
    loss: PerExample
    batch: Batch


def titanic(images: int) -> Problem:
    """Return a 2-16-1 network on all passengers."""
    del images
    data = nnfx.data.titanic("fare", "age")
    return Problem(nnfx.models.mlp((16,), activation="tanh"), nnfx.losses.binary_cross_entropy, data.train)


def fashion(images: int) -> Problem:
    """Return the network of four convolutions and two dense layers on the first images, or on noise."""
    model = fashion_mnist.network(fashion_mnist.Config(), 10)
    files = problems.fashion_mnist()
    if files is None:
        rng = np.random.default_rng(0)
        pixels, labels = rng.uniform(size=(images, 784)), rng.integers(0, 10, images)
    else:
        pixels, labels = files.inputs[:images], files.labels[:images]
    inputs = jnp.asarray(pixels, jnp.float32).reshape(-1, 28, 28, 1)
    batch = Batch(inputs, jnp.asarray(labels, jnp.int32), jnp.ones(len(inputs)))
    return Problem(model, nnfx.losses.categorical_cross_entropy, batch)


CASES: dict[str, Callable[[int], Problem]] = {"fashion": fashion, "titanic": titanic}
POINTS = {"fashion": 8, "titanic": 51}


def main(
    cases: tuple[str, ...] = ("fashion", "titanic"),
    points: int | None = None,
    images: int = 1000,
    devices: tuple[int, ...] = (1, 2),
    repeats: int = 7,
    out: Path = Path("runs/benchmarks"),
) -> dict[str, Any]:
    """Time landscapes.

    Args:
        cases: "fashion", "titanic" or both.
        points: number of points along each of the two axes; by default 51 for "titanic" and 8 for "fashion", for which
            51 × 51 points would take about ten minutes per repeat.
        images: number of images over which the loss of "fashion" is averaged.
        devices: numbers of CPU devices over which the points are split.
        repeats: the number of times that each system is timed, with the systems in turn.
        out: where the results go.
    """
    rows, lines = [], []
    code = "import sys; from experiments.benchmarks.landscape import run; run(sys.argv[1], *map(int, sys.argv[2:]))"
    for case in cases:
        points_of = POINTS[case] if points is None else points
        for count in devices:
            arguments = map(str, (points_of, images, count, repeats))
            printed = subprocess.run(
                [sys.executable, "-c", code, case, *arguments],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ,
            ).stdout
            timed = [Row(*row) for row in json.loads(printed.splitlines()[-1])]
            rows += timed
            lines += [f"{of.case}, {of.system}: {of.median_s / points_of**2 * 1e3:.2f} ms per point" for of in timed]
    summary = report("landscape", rows, out)
    print("\n".join(lines))
    return summary


def run(case: str, points: int, images: int, devices: int, repeats: int) -> None:
    """Time both systems in this process, and print the rows as JSON."""
    jax.config.update("jax_num_cpu_devices", devices)
    print(json.dumps(measure(case, CASES[case](images), points, devices, repeats)))


def measure(case: str, problem: Problem, points: int, devices: int, repeats: int) -> list[Row]:
    """Time both systems in turn, with a new plane for each repeat."""
    systems = {
        "one program": System(with_nnfx(problem, points, devices), is_peer=False),
        "a Python loop": System(with_loop(problem, points)),
    }
    return compare(f"{case}, {points} × {points}, {devices} devices", systems, repeats)


def _plane(problem: Problem, seed: int) -> tuple[dict[str, Any], landscape.Cut]:
    """Draw a random plane, outside the timed code."""
    variables = dict(jax.jit(problem.model.init)(jax.random.key(0), problem.batch.inputs[:1]))
    return jax.block_until_ready((variables, landscape.random_cut(jax.random.key(seed), variables["params"])))


def with_nnfx(problem: Problem, points: int, devices: int) -> Callable[[int], Timed]:
    """Measure the grid with this library, and return the mean of its losses."""
    axis = np.linspace(-1, 1, points)

    def grid(seed: int) -> Timed:
        variables, cut = _plane(problem, seed)

        def measured() -> float:
            chosen = jax.devices()[:devices]
            found = landscape.measure(*problem[:2], variables, problem.batch, cut, axis, axis, devices=chosen)
            return float(np.asarray(found.losses, np.float64).mean())

        return Timed(*seconds_of(measured))

    return grid


def with_loop(problem: Problem, points: int) -> Callable[[int], Timed]:
    """Measure the grid in a loop, as one would write it by hand, calling a compiled loss at each point."""
    axis = np.linspace(-1, 1, points).astype(np.float32)

    @jax.jit
    def loss_at(origin: Params, directions: Params, x: Array, y: Array) -> Array:
        params = jax.tree.map(lambda w, d: w + x * d[0] + y * d[1], origin, directions)
        outputs = problem.model.apply({"params": params}, problem.batch.inputs)
        return problem.loss(outputs, problem.batch.targets).mean()

    def grid(seed: int) -> Timed:
        _, cut = _plane(problem, seed)

        def measured() -> float:
            return float(np.mean([float(loss_at(cut.origin, cut.directions, x, y)) for x in axis for y in axis]))

        return Timed(*seconds_of(measured))

    return grid
