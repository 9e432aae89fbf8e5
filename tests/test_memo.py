import copy
import functools
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import pytest

from nnfx import memo
from nnfx.types import Model

TRACES = []


@memo.compiled(static=2)
def scaled(function, factor, x):
    """Multiply the result of a function."""
    TRACES.append(factor)
    return factor * function(x)


def double(x):
    return 2 * x


def owners():
    def function(x):
        return 3 * x

    class Callable:
        def __call__(self, x):
            return 3 * x

    return {
        "function": lambda: lambda x: 3 * x,
        "partial": lambda: functools.partial(function),
        "instance": Callable,
        "compiled": lambda: jax.jit(lambda x: 3 * x),
    }


@pytest.mark.parametrize("kind", owners())
def test_a_program_is_made_once_and_dies_with_what_it_was_made_for(kind):
    owner = owners()[kind]()
    TRACES.clear()
    assert [float(scaled(owner, 2, jnp.float32(x))) for x in (1, 2, 5)] == [6, 12, 30]
    assert float(scaled(owner, 3, jnp.float32(1))) == 9
    assert TRACES == [2, 3], "one trace for each value of the static arguments"
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_a_model_holds_its_programs_by_its_function():
    model = Model(None, lambda variables, x: x)
    held = memo.held(model, "key", object)
    assert memo.held(Model(None, model.apply), "key", object) is held
    assert memo.held(Model(None, lambda variables, x: x), "key", object) is not held


def test_what_a_decorator_copies_is_not_taken_for_its_own():
    def function(x):
        return 3 * x

    assert scaled(function, 2, 1.0) == 6

    @functools.wraps(function)
    def wrapper(x):
        return 5 * x

    assert scaled(wrapper, 2, 1.0) == 10
    assert scaled(function, 2, 1.0) == 6


def test_the_one_not_used_for_longest_goes():
    def owner(): ...

    made = [memo.held(owner, i, object) for i in range(memo.LIMIT)]
    assert memo.held(owner, 0, object) is made[0]
    memo.held(owner, memo.LIMIT, object)
    assert memo.held(owner, 0, object) is made[0]
    assert memo.held(owner, 1, object) is not made[1]


def test_what_nothing_can_be_hung_on_shares_one_place_of_the_same_size():
    class Slotted:
        __slots__ = ()

        def method(self): ...

    owner = Slotted()
    for each in (owner, owner.method, int, 3):
        first = memo.held(each, "key", object)
        assert memo.held(each, "key", object) is first
        for i in range(memo.LIMIT):
            memo.held(("others", i), "key", object)
        assert memo.held(each, "key", object) is not first


def test_copies_and_pickles_hold_nothing():
    owner = functools.partial(double)
    memo.held(owner, "program", lambda: lambda: None)  # it cannot be pickled
    for twin in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        assert twin(2) == 4
        assert memo.held(twin, "program", lambda: "new") == "new"


def test_arguments_are_used_up_where_that_is_asked_for():
    @memo.compiled(donate=(1,))
    def add(function, x, y):
        return function(x) + y

    x = jnp.arange(4.0)
    assert add(double, x, 1.0).tolist() == [1, 3, 5, 7]
    assert x.is_deleted()
    assert add.eval_shape(double, jnp.arange(4.0), 1.0).shape == (4,)
    assert "add" in add.lower(double, jnp.arange(4.0), 1.0).as_text()
