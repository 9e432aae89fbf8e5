"""One run: this library, hand-written JAX, PyTorch, Keras and scikit-learn fit the same network.

    python -m experiments.benchmarks fit [--cases titanic digits fashion_mnist] [--repeats 7]

Every system starts from Glorot-uniform weights, runs Adam for the same number of epochs of shuffled minibatches, and
returns its final training loss, so that the losses over the seeds can be compared. `NNFX_DATA` names the folder that
contains Fashion-MNIST.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnfx
from experiments.benchmarks import problems
from experiments.benchmarks.peers import with_scikit_learn, with_torch
from experiments.benchmarks.problems import RATE, Problem
from experiments.benchmarks.timing import Row, System, compare, has_compiler, report
from nnfx.data import Data
from nnfx.training.fit import Fit


def main(
    cases: tuple[str, ...] = ("titanic", "digits", "fashion_mnist"),
    repeats: int = 7,
    out: Path = Path("runs/benchmarks"),
) -> dict[str, Any]:
    """Time a run of each system.

    Args:
        cases: the problems to run.
        repeats: the number of runs of each system, with the systems in turn; repeat i runs seed i.
        out: where the results go.
    """
    rows: list[Row] = []
    for case in cases:
        problem = getattr(problems, case)()
        if problem is None:
            print(f"{case}: skipped, since its files are not under NNFX_DATA")
            continue
        rows += compare(case, systems(problem), repeats)
    return report("fit", rows, out)


def systems(problem: Problem) -> dict[str, System]:
    """Return every system that can run this problem."""
    made = {
        "nnfx": System(with_nnfx(problem), is_peer=False),
        "JAX, scanned by hand": System(with_jax(problem, scanned=True)),
        "JAX, a loop of steps": System(with_jax(problem, scanned=False)),
        "PyTorch, eager": System(with_torch(problem)),
        "PyTorch, fused Adam": System(with_torch(problem, fused=True)),
        **({"PyTorch, compiled": System(with_torch(problem, fused=True, compiled=True))} if has_compiler() else {}),
        "Keras on JAX": System(with_keras(problem)),
    }
    if len(problem.inputs) < 10_000:
        made["scikit-learn"] = System(with_scikit_learn(problem))
    return made


def nnfx_run(problem: Problem) -> tuple[Fit, Data]:
    """Return the training function and the data of a problem for this library."""
    data = nnfx.data.prepare(problem.inputs, problem.labels, standardize=False)
    model = nnfx.models.mlp(problem.hidden, problem.outputs, problem.activation, initializer="glorot_uniform")
    binary = problem.outputs == 1
    loss = nnfx.losses.binary_cross_entropy if binary else nnfx.losses.categorical_cross_entropy
    train = nnfx.fit(model, loss, optax.adam, epochs=problem.epochs, batch_size=problem.batch_size)
    return train, data


def with_nnfx(problem: Problem) -> Any:
    """Fit with this library."""
    train, data = nnfx_run(problem)

    def run(seed: int) -> float:
        return float(train(jax.random.key(seed), data, learning_rate=RATE).final["train_loss"])

    return run


def with_jax(problem: Problem, scanned: bool) -> Any:
    """Fit with JAX and Optax alone: a whole run in nested scans, or a Python loop over compiled steps."""
    x, y = jnp.asarray(problem.inputs), jnp.asarray(problem.labels)
    activation = getattr(jax.nn, problem.activation)
    widths = (x.shape[1], *problem.hidden, problem.outputs)
    optimizer = optax.adam(RATE)
    steps = -(-len(x) // problem.batch_size)
    padding = steps * problem.batch_size - len(x)

    def init(key: jax.Array) -> Any:
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(widths) - 1)
        params = [(draw(k, shape), jnp.zeros(shape[1])) for k, shape in zip(keys, zip(widths, widths[1:]))]  # noqa: B905, RUF007
        return params, optimizer.init(params)

    def loss(params: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
        for kernel, bias in params[:-1]:
            x = activation(x @ kernel + bias)
        logits = x @ params[-1][0] + params[-1][1]
        if problem.outputs == 1:
            losses = optax.losses.sigmoid_binary_cross_entropy(logits[:, 0], y)
        else:
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
        return (losses * w).sum() / w.sum()

    def step(state: Any, rows: jax.Array, w: jax.Array) -> Any:
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, x[rows], y[rows], w)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value * w.sum()

    def order_of(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jnp.pad(jax.random.permutation(key, len(x)), (0, padding))
        weights = (jnp.arange(steps * problem.batch_size) < len(x)).astype(x.dtype)
        return order.reshape(steps, -1), weights.reshape(steps, -1)

    def epoch(state: Any, key: jax.Array) -> Any:
        state, totals = jax.lax.scan(lambda s, batch: step(s, *batch), state, order_of(key))
        return state, totals.sum() / len(x)

    @jax.jit
    def scanned_run(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, problem.epochs + 1)
        return jax.lax.scan(epoch, init(keys[0]), keys[1:])[1][-1]

    compiled_step, compiled_order, compiled_init = jax.jit(step, donate_argnums=0), jax.jit(order_of), jax.jit(init)

    def looped_run(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, problem.epochs + 1)
        state = compiled_init(keys[0])
        for i in range(problem.epochs):
            order, weights = (np.asarray(a) for a in compiled_order(keys[i + 1]))
            total = jnp.zeros(())
            for rows, w in zip(order, weights, strict=True):
                state, value = compiled_step(state, rows, w)
                total = total + value
        return total / len(x)

    chosen = scanned_run if scanned else looped_run
    return lambda seed: float(chosen(jax.random.key(seed)))


def with_keras(problem: Problem) -> Any:
    """Fit with Keras 3 on JAX."""
    import keras

    binary = problem.outputs == 1
    loss: Any = (
        keras.losses.BinaryCrossentropy(from_logits=True)
        if binary
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )

    def run(seed: int) -> float:
        keras.utils.set_random_seed(seed)
        hidden = [keras.layers.Dense(width, activation=problem.activation) for width in problem.hidden]
        model = keras.Sequential([*hidden, keras.layers.Dense(problem.outputs)])
        model.compile(keras.optimizers.Adam(RATE, epsilon=1e-8), loss)
        fitted = model.fit(
            problem.inputs, problem.labels, epochs=problem.epochs, batch_size=problem.batch_size, verbose=0
        )
        return float(fitted.history["loss"][-1])

    return run
