"""Functions mapped with their axis last, against `jax.vmap`, and members of a sweep against single runs."""

import functools

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
from nnfx.sweeps import last_axis, last_axis_rules
from nnfx.sweeps.programs import MEMBERS, Fixed, Groups, Program, Programs
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


def _check_against_vmap(function, tolerance):
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_mapped_as_by_vmap(name):
    _check_against_vmap(FUNCTIONS[name], 2e-5)


@pytest.mark.parametrize(
    "name", ["products", "sums", "loops of different lengths", "nested loops", "gradients", "recurrence"]
)
def test_a_function_is_mapped_as_by_vmap_in_double_precision(name):
    with jax.enable_x64(True):
        _check_against_vmap(FUNCTIONS[name], 1e-12)


USES = {
    "broadcast_in_dim": "shapes",
    "concatenate": "shapes",
    "cond": "shared branches",
    "custom_jvp_call": "calls",
    "custom_vjp_call": "calls",
    "dot_general": "products",
    "dynamic_slice": "updates",
    "dynamic_update_slice": "slices",
    "gather": "batches",
    "jit": "calls",
    "random_bits": "bits",
    "reduce_sum": "sums",
    "remat2": "calls",
    "reshape": "shapes",
    "scan": "nested loops",
    "select_n": "choices",
    "squeeze": "updates",
    "threefry2x32": "bits",
    "transpose": "shapes",
    "while": "loops of different lengths",
}
"""A function with each operation that has a rule."""


@functools.cache
def _forms_used(name):
    """Return the operations within a function, each with whether its parameters are known."""
    found = set()

    def search(jaxpr):
        for equation in last_axis_rules.opened(jaxpr)[0].eqns:
            found.add((equation.primitive.name, last_axis_rules.is_known(equation)))
            if (drawing := last_axis_rules.drawing(equation)) is not None:
                search(drawing)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    search(value)

    search(jax.make_jaxpr(FUNCTIONS[name])(jnp.ones((5, 4))))
    return found


@pytest.mark.parametrize("name", last_axis_rules.PARAMETERS)
def test_the_forms_of_this_release_are_known(name):
    assert (name, True) in _forms_used(USES[name])
    assert (name, False) not in _forms_used(USES[name])


@pytest.mark.parametrize("name", last_axis_rules.PARAMETERS)
def test_an_operation_of_an_unknown_form_is_mapped_by_vmap(name, monkeypatch):
    monkeypatch.setitem(last_axis_rules.FORMS, name, [{"a parameter of a later release"}])
    _check_against_vmap(FUNCTIONS[USES[name]], 2e-5)


def test_all_operations_may_be_unknown(monkeypatch):
    for name in last_axis_rules.FORMS:
        monkeypatch.setitem(last_axis_rules.FORMS, name, [])
    for name in ("training", "nested loops", "branches", "batches", "splits", "recurrence"):
        _check_against_vmap(FUNCTIONS[name], 2e-5)


def test_effects_are_left_to_jax():
    seen = []

    def function(x):
        def body(carry, row):
            jax.debug.callback(lambda value: seen.append(float(value)), row.sum())
            return carry + row, row.sum()

        return lax.scan(body, jnp.zeros(4), x)

    x = jax.random.normal(KEY, (3, 5, 4))
    traced = jax.make_jaxpr(function)(x[0])
    results = jax.jit(lambda x: last_axis.map_last(traced, [x]))(x)
    jax.effects_barrier()
    np.testing.assert_allclose(results[0], x.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sorted(seen), np.sort(x.sum(2).ravel()), rtol=1e-5, atol=1e-5)


def test_options_that_the_compiler_does_not_know_are_left_out():
    def function(members, groups, shared):
        return members * shared, ()

    mesh = Mesh(jax.devices()[:1], MEMBERS)
    program = Program(function, mesh, 0, options=lambda *_: {"xla_of_another_release": 1})
    assert program(jnp.ones((2, 3)), Groups(jnp.arange(2), jnp.arange(2)), 2.0).sum() == 12


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


@pytest.mark.parametrize(("seeds", "rates"), [(2, 32), (34, 1)])
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
    ("hidden", "batch_size", "places", "folds", "is_small"),
    [
        ((8,), 32, (1, 32), None, True),
        ((8,), 32, (32, 1), None, True),
        ((8,), 32, (32, 2), None, False),
        ((8,), 32, (5, 32), "folds", True),
        ((8,), 32, (5, 31), "folds", False),
        ((8,), 32, (1, 31), None, False),
        ((8,), 65, (1, 32), None, False),
        ((8,), None, (1, 32), None, False),
        ((101,), 32, (1, 32), None, False),
    ],
)
def test_what_is_small(data, hidden, batch_size, places, folds, is_small):
    model = nnfx.models.mlp(hidden)
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, batch_size=batch_size)

    def member(rate):
        hyper = {"learning_rate": rate}
        return start(KEY, train.bind(hyper), data.train, None), hyper

    members = jax.eval_shape(jax.vmap(jax.vmap(member)), jnp.ones(places))
    shared = KEY, Fixed(data.train, None, data.preprocess, folds)
    for at_once, expected in ((None, is_small), (1, False)):
        programs = Programs(train, Mesh(jax.devices()[:1], MEMBERS), 1, at_once)
        assert programs._is_small(members, shared) == expected
        sequences = shared[1]._replace(train=data.train._replace(inputs=jnp.ones((9, 4, 2))))
        assert not programs._is_small(members, (KEY, sequences))
