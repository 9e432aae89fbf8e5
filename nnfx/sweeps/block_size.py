"""How many members of a sweep a CPU device trains side by side, judged by their size in memory."""

from typing import Any

import jax

from nnfx import memo
from nnfx.training.fit import Fit
from nnfx.types import Array, Batch, Hyper

MOST = 128
"""The largest number of members side by side: they fill the vector units, and share the overhead of operations."""
CACHE = 2**21
"""Members side by side take at most this many bytes: a server core's L2 cache."""
LARGE = 96 * 2**10
"""Members of at least this many bytes are trained one at a time.

Few members fit into the cache then, and products of matrices, one for each of several members, are slower than single
ones. Measured on one core of an Intel Xeon: with 64-64 hidden units or LSTMs of 8 units, one at a time takes 0.9 times
as long as the best number side by side, with 32-32 units 1.1 times. `python -m experiments.benchmarks cnn` and
`recurrent` time larger networks both ways.
"""


def best_at_once(fit: Fit, train: Batch, hyper: Hyper) -> int:
    """Return the number of members that a CPU device trains side by side.

    Small networks trained side by side share the overhead of each operation, and fill a CPU's vector units. A large
    network fills the units by itself, and several would evict each other's weights and activations from the cache.

    Args:
        fit: the run function.
        train: the training data.
        hyper: the hyper-parameters; their values do not matter.
    """
    leaves, tree = jax.tree.flatten(train.inputs)
    shapes = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    # kept, since computing the size traces the model
    size = memo.held(fit, (member_bytes, shapes), lambda: member_bytes(fit, train, hyper))
    return 1 if size >= LARGE else min(MOST, CACHE // max(1, size))


def member_bytes(fit: Fit, train: Batch, hyper: Hyper) -> int:
    """Return the bytes that a step of one member uses.

    These are the activations that the forward pass on a minibatch keeps for the backward pass, and the parameters four
    times: their values and gradient, and the two moments of an optimizer such as Adam.
    """
    rows = fit.batch_size or train.weights.shape[0]
    inputs: Any = jax.tree.map(lambda array: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype), train.inputs)

    def kept(key: Array, inputs: Any, weights: Array, hyper: Hyper) -> tuple[list[Array], Any]:
        model = fit.bind(hyper).model
        variables = model.init(key, inputs)

        def outputs(params: Any) -> Any:
            return model.apply({**variables, "params": params}, inputs, key=key, weights=weights, train=True)[0]

        params = variables["params"]
        of_params = {id(leaf) for leaf in jax.tree.leaves(params)}
        leaves = jax.tree.leaves(jax.vjp(outputs, params)[1])
        return [leaf for leaf in leaves if id(leaf) not in of_params], params

    weights = jax.ShapeDtypeStruct((rows,), train.weights.dtype)
    activations, params = jax.eval_shape(kept, jax.random.key(0), inputs, weights, hyper)
    return _bytes(activations) + 4 * _bytes(params)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
