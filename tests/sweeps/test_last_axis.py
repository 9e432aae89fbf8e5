"""Functions mapped with their axis last, against `jax.vmap`, and members of a sweep against single runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh

import nnfx
from nnfx.sweeps import last_axis
from nnfx.sweeps.blocks import Groups
from nnfx.sweeps.programs import MEMBERS, Fixed, Program, Programs
from nnfx.training.epochs import start
from tests.sweeps.mapped import FUNCTIONS, KEY, check_against_vmap


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_mapped_as_by_vmap(name):
    check_against_vmap(FUNCTIONS[name], 2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "products",
        "sums",
        "loops of different lengths",
        "nested loops",
        "gradients",
        pytest.param("recurrence", marks=pytest.mark.slow),
    ],
)
def test_a_function_is_mapped_as_by_vmap_in_double_precision(name):
    with jax.enable_x64(True):
        check_against_vmap(FUNCTIONS[name], 1e-12)


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
def test_trees_of_any_number_of_elements(count):
    x = jnp.arange(2.0 * count).reshape(count, 2)
    found = last_axis.vmap(lambda of: {"sum": of["x"].sum()})({"x": x})
    assert np.array_equal(found["sum"], x.sum(1))


def _fit(epochs=3, **options):
    model = nnfx.models.mlp((8,), activation="tanh")
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=32, **options)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)


@pytest.mark.parametrize(("seeds", "rates"), [(2, 32), pytest.param(34, 1, marks=pytest.mark.slow)])
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
        programs = Programs(train, Mesh(jax.devices()[:1], MEMBERS), 1, at_once, drops=True)
        assert programs.is_small(members, shared) == expected
        sequences = shared[1]._replace(train=data.train._replace(inputs=jnp.ones((9, 4, 2))))
        assert not programs.is_small(members, (KEY, sequences))
