"""Functions of every kind to map with their axis last, and their comparison with `jax.vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import nnfx
from nnfx.data import batching
from nnfx.data.permutation import permutation
from nnfx.sweeps import last_axis

KEY = jax.random.key(0)
ROWS = jnp.arange(18.0).reshape(9, 2)


def _numbered(x):
    return (jnp.abs(x[0, 0]) * 10).astype(int)


def _trained(x):
    """Return the weights and losses of a few steps of Adam on a network with dropout."""
    model, optimizer = nnfx.models.mlp((6,), outputs=3, dropout=0.2), optax.adam(jnp.abs(x[0, 0]) / 10)
    params = model.init(KEY, ROWS)["params"]

    def step(carry, i):
        params, state = carry

        def loss(params):
            outputs, _ = model.apply({"params": params}, ROWS, key=jax.random.fold_in(KEY, i), train=True)
            return nnfx.losses.categorical_cross_entropy(outputs, jnp.arange(9) % 3).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    return lax.scan(step, (params, optimizer.init(params)), jnp.arange(4))


@jax.custom_jvp
def _with_own_jvp(x):
    return jnp.sin(x)


@_with_own_jvp.defjvp
def _own_jvp(primals, tangents):
    return _with_own_jvp(*primals), 3 * tangents[0]


@jax.custom_vjp
def _with_own_vjp(x):
    return jnp.sin(x)


_with_own_vjp.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (5 * g * x,))


def _twice_on_the_host(x):
    return jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def _recurrence(x):
    """Return the loss and gradient of a recurrent network on one sequence."""
    model = nnfx.models.lstm(outputs=1, hidden=(3,))
    sequences = x.reshape(2, 5, 2)
    variables = model.init(KEY, sequences)
    return jax.value_and_grad(lambda variables: (model.apply(variables, sequences)[0] ** 2).sum())(variables)


def _convolved(x):
    return lax.conv_general_dilated(
        x[None, :, :, None],
        jnp.ones((2, 2, 1, 3)) * x[0, 0],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


FUNCTIONS = {
    "products": lambda x: (x @ x.T, x @ jnp.ones((4, 3)), jnp.ones((3, 5)) @ x, x[0] @ x[1], jnp.outer(x[0], x[1])),
    "batched products": lambda x: jnp.einsum("bij,bkj->bki", jnp.stack([x, 2 * x]), jnp.ones((2, 3, 4))),
    "long products": lambda x: jnp.tile(x, 20) @ jnp.ones((80, 2)),
    "sums": lambda x: (x.sum(), x.sum(0), x.mean(1), jnp.tile(x, 20).sum(1), x.max(0), x.argmax(1)),
    "shapes": lambda x: jnp.concatenate([x, jnp.ones((1, 4))]).T.reshape(-1)[2:],
    "choices": lambda x: (jnp.where(x[0, 0] > 0, x, 0), jnp.where(x > 0, x, x[0, 0])),
    "branches": lambda x: lax.cond(x[0, 0] > 0, lambda: (x, 1.0), lambda: (-x, 0.0)),
    "cases out of range": lambda x: lax.switch(_numbered(x) - 3, [lambda: x, lambda: 2 * x, lambda: 3 * x]),
    "shared branches": lambda x: lax.fori_loop(0, 3, lambda i, y: lax.cond(i < 2, lambda: y + x, lambda: 2 * y), x),
    "loops of different lengths": lambda x: lax.while_loop(
        lambda carry: carry[0] < 30, lambda carry: (carry[0] + jnp.abs(carry[1]).sum(), carry[1] + 1), (0.0, x)
    ),
    "scans": lambda x: lax.scan(lambda total, row: (total + row, (total * row, 1.0)), jnp.zeros(4), x),
    "reverse scans": lambda x: lax.scan(lambda n, i: (n + i, n * x), 0.0, jnp.arange(3.0), reverse=True),
    "updates": lambda x: lax.fori_loop(0, 3, lambda i, y: y.at[i].set(x[i, 0]), jnp.zeros(4)),
    "slices": lambda x: (
        lax.dynamic_slice(x, (_numbered(x), 1), (2, 2)),
        lax.dynamic_update_slice(x, 2 * x[:1], (3, 0)),
        lax.dynamic_update_slice(x, 2 * x[:1], (_numbered(x), 0)),
    ),
    "updates elsewhere": lambda x: jnp.zeros(99).at[_numbered(x)].set(1.0),
    "rows": lambda x: ROWS[jnp.abs(x[:, 0]).astype(int)],
    "batches": lambda x: batching.take(
        nnfx.Batch(ROWS, ROWS[:, 0], ROWS[:, 1]), batching.Order(jnp.abs(x[:2, 0]).astype(int), x[:2, 1] > 0)
    ),
    "keys": lambda x: jax.random.normal(jax.random.fold_in(KEY, _numbered(x)), (3,)),
    "orders": lambda x: permutation(jax.random.fold_in(KEY, _numbered(x)), 19),
    "linear algebra": lambda x: jnp.linalg.inv(x[:4]),
    "gradients": lambda x: jax.grad(lambda w: nnfx.losses.binary_cross_entropy(x @ w, jnp.ones(5)).sum())(x[0]),
    "scans over constants": lambda x: lax.scan(lambda y, c: (y * c, y), x, jnp.arange(1.0, 4)),
    "unrolled scans": lambda x: lax.scan(lambda y, row: (y + row, y * row), x[0], x, unroll=2),
    "unrolled reverse scans": lambda x: lax.scan(lambda y, row: (y + row, y), x[0], x, unroll=3, reverse=True),
    "scans of nothing": lambda x: lax.scan(lambda y, _: (y + 1, None), x, None, length=3),
    "nested loops": lambda x: lax.fori_loop(0, 3, lambda i, y: lax.scan(lambda z, r: (z * r, z), y, x)[0] + i, x[0]),
    "loops over keys": lambda x: lax.fori_loop(
        0, 3, lambda i, key: jax.random.fold_in(key, i), jax.random.fold_in(KEY, _numbered(x))
    ),
    "branches of keys": lambda x: jax.random.bits(
        lax.cond(x[0, 0] > 0, lambda: jax.random.fold_in(KEY, _numbered(x)), lambda: KEY), (3,)
    ),
    "gathers": lambda x: (x[jnp.array([2, 0])], x[_numbered(x) % 3], ROWS[_numbered(x)], x.T[jnp.argsort(x[0])]),
    "scattered sums": lambda x: jnp.zeros(9).at[jnp.abs(x[:, 0]).astype(int)].add(x[:, 1]),
    "integers": lambda x: (_numbered(x) // 3, (x > 0).sum(0), (x > 0).any(1), _numbered(x) ^ 5, jnp.int8(3) + 0 * x),
    "bits": lambda x: jax.random.bits(jax.random.fold_in(KEY, _numbered(x)), (3, 2), jnp.uint8),
    "bits of no axes": lambda x: jax.random.bits(jax.random.fold_in(KEY, _numbered(x))),
    "keys of another generator": lambda x: x + jax.random.uniform(jax.random.key(1, impl="rbg"), (5, 4)),
    "splits": lambda x: jax.vmap(jax.random.uniform)(jax.random.split(jax.random.fold_in(KEY, _numbered(x)), 3)),
    "permutations": lambda x: jax.random.permutation(jax.random.fold_in(KEY, _numbered(x)), 9),
    "sorts": lambda x: (jnp.sort(x, 1), jnp.argsort(x[0]), jnp.cumsum(x, 0), lax.top_k(x, 2)),
    "calls": lambda x: (jax.jit(jnp.sin)(x), _with_own_jvp(x), _with_own_vjp(x), jax.checkpoint(jnp.cos)(x)),
    "gradients of their own": lambda x: (
        jax.grad(lambda y: _with_own_jvp(y).sum())(x),
        jax.grad(lambda y: _with_own_vjp(y).sum())(x),
        jax.grad(lambda y: jax.checkpoint(lambda z: jnp.sin(jnp.sin(z)))(y).sum())(x),
    ),
    "platforms": lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
    "platforms by default": lambda x: lax.platform_dependent(x, cuda=jnp.sin, default=jnp.cos),
    "work of the host": _twice_on_the_host,
    "convolutions": _convolved,
    "recurrence": _recurrence,
    "constants": lambda x: (x, jnp.ones(2), 3.0),
    "training": _trained,
}


def check_against_vmap(function, tolerance):
    x = jax.random.normal(KEY, (7, 5, 4), float)
    traced = jax.make_jaxpr(function)(x[0])
    results = jax.jit(lambda x: last_axis.map_last(traced, [x]))(x)
    expected = jax.tree.leaves(jax.jit(jax.vmap(function))(x))
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(ours, theirs)
