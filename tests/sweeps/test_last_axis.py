"""Functions mapped with their axis last, against `jax.vmap`, and members of a sweep against single runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh

import nnfx
from nnfx.data import batching
from nnfx.data.permutation import permutation
from nnfx.sweeps import last_axis
from nnfx.sweeps.programs import MEMBERS, Programs
from nnfx.training.epochs import start

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
    "updates elsewhere": lambda x: jnp.zeros(99).at[_numbered(x)].set(1.0),
    "rows": lambda x: ROWS[jnp.abs(x[:, 0]).astype(int)],
    "batches": lambda x: batching.take(
        nnfx.Batch(ROWS, ROWS[:, 0], ROWS[:, 1]), batching.Order(jnp.abs(x[:2, 0]).astype(int), x[:2, 1] > 0)
    ),
    "keys": lambda x: jax.random.normal(jax.random.fold_in(KEY, _numbered(x)), (3,)),
    "orders": lambda x: permutation(jax.random.fold_in(KEY, _numbered(x)), 19),
    "linear algebra": lambda x: jnp.linalg.inv(x[:4]),
    "gradients": lambda x: jax.grad(lambda w: nnfx.losses.binary_cross_entropy(x @ w, jnp.ones(5)).sum())(x[0]),
    "constants": lambda x: (x, jnp.ones(2), 3.0),
    "training": _trained,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_mapped_as_by_vmap(name):
    function = FUNCTIONS[name]
    x = jax.random.normal(KEY, (7, 5, 4))
    traced = jax.make_jaxpr(function)(x[0])
    results = jax.jit(lambda x: last_axis.map_last(traced, [x]))(x)
    expected = jax.tree.leaves(jax.jit(jax.vmap(function))(x))
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 15, 129, 300])
def test_blocks_hold_every_element_once(count):
    x = jnp.arange(2.0 * count).reshape(count, 2)
    found = last_axis.side_by_side(lambda of: {"sum": of["x"].sum()}, {"x": x}, at_once=None)
    assert np.array_equal(found["sum"], x.sum(1))


def _fit(epochs=3, **options):
    model = nnfx.models.mlp((8,), activation="tanh")
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=32, **options)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)


@pytest.mark.parametrize(("seeds", "rates"), [(2, 20), (9, 2)])
def test_small_members_equal_single_runs(data, seeds, rates, monkeypatch):
    used = []
    original = last_axis.map_last
    monkeypatch.setattr(last_axis, "map_last", lambda *of: (used.append(1), original(*of))[1])
    train, key, rates = _fit(), jax.random.key(3), np.linspace(0.1, 1, rates)
    result = nnfx.sweeps.sweep(
        train, data, key=key, seeds=seeds, learning_rate=rates, devices=jax.devices()[:1], epochs_per_chunk=2
    )
    assert used
    for row in (result.rows[0], result.rows[-1]):
        run = train(jax.random.fold_in(key, row["seed"]), data, learning_rate=row["learning_rate"])
        member = result.member(row["member"])
        for ours, single in zip(*map(jax.tree.leaves, (member.variables, run.best.variables)), strict=True):
            np.testing.assert_allclose(ours, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "batch_size", "rates", "is_small"),
    [
        ((8,), 32, 16, True),
        ((8,), 32, 15, False),
        ((8,), 65, 16, False),
        ((8,), None, 16, False),
        ((300,), 32, 16, False),
    ],
)
def test_what_is_small(data, hidden, batch_size, rates, is_small):
    model = nnfx.models.mlp(hidden)
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, batch_size=batch_size)

    def member(rate):
        hyper = {"learning_rate": rate}
        return start(KEY, train.bind(hyper), data.train, None), hyper

    members = jax.eval_shape(jax.vmap(jax.vmap(member)), jnp.ones((1, rates)))
    for at_once, expected in ((None, is_small), (1, False)):
        programs = Programs(train, Mesh(jax.devices()[:1], MEMBERS), 1, at_once)
        assert programs._is_small(members) == expected
