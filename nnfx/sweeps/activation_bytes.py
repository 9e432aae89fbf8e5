"""An estimate of whether the activations of a sweep's members fit into a CPU's caches."""

from typing import Any

import jax

from nnfx import memo
from nnfx.training.fit import Fit
from nnfx.types import Array, Batch, Hyper

LARGE = 2**20
"""Members with at least this many bytes of activations are trained one at a time: half a server core's L2 cache.

`python -m experiments.benchmarks cnn` and `recurrent` time such members side by side and one at a time.
"""


def is_large(fit: Fit, train: Batch, hyper: Hyper) -> bool:
    """Return whether members are better trained one at a time on a CPU device.

    Small networks trained side by side share the overhead of each operation, and fill a CPU's vector units. A large
    network fills the units by itself, and several would evict each other's activations from the cache between the
    forward and the backward pass.

    Args:
        fit: the run function.
        train: the training data.
        hyper: the hyper-parameters; their values do not matter.
    """
    leaves, tree = jax.tree.flatten(train.inputs)
    shapes = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    # kept, since computing the size traces the model
    found = memo.held(fit, (activation_bytes, shapes), lambda: activation_bytes(fit, train, hyper))
    return found >= LARGE


def activation_bytes(fit: Fit, train: Batch, hyper: Hyper) -> int:
    """Return the bytes that the forward pass on a minibatch keeps for the backward pass, excluding parameters."""
    rows = fit.batch_size or train.weights.shape[0]
    inputs: Any = jax.tree.map(lambda array: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype), train.inputs)

    def pullback(key: Array, inputs: Any, weights: Array, hyper: Hyper) -> list[Array]:
        model = fit.bind(hyper).model
        variables = model.init(key, inputs)

        def outputs(params: Any) -> Any:
            return model.apply({**variables, "params": params}, inputs, key=key, weights=weights, train=True)[0]

        params = variables["params"]
        of_params = {id(leaf) for leaf in jax.tree.leaves(params)}
        kept = jax.tree.leaves(jax.vjp(outputs, params)[1])
        return [leaf for leaf in kept if id(leaf) not in of_params]

    weights = jax.ShapeDtypeStruct((rows,), train.weights.dtype)
    kept = jax.eval_shape(pullback, jax.random.key(0), inputs, weights, hyper)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
