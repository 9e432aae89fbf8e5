"""Operations whose form a release of JAX changes are mapped by `jax.vmap`."""

import functools

import jax
import jax.numpy as jnp
import pytest

from nnfx.sweeps import last_axis_rules
from tests.sweeps.mapped import FUNCTIONS, check_against_vmap

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
    check_against_vmap(FUNCTIONS[USES[name]], 2e-5)


@pytest.mark.parametrize(
    "function",
    [
        "training",
        "branches",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("nested loops", "batches", "splits", "recurrence")),
    ],
)
def test_all_operations_may_be_unknown(function, monkeypatch):
    for name in last_axis_rules.FORMS:
        monkeypatch.setitem(last_axis_rules.FORMS, name, [])
    check_against_vmap(FUNCTIONS[function], 2e-5)
