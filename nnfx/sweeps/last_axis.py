"""`jax.vmap` for small networks on CPUs: the mapped axis is the last one, so that it fills the vector units.

`jax.vmap` puts the mapped axis first. For a network of a few units, XLA then emits loops over axes of 1 to 32 numbers,
which it unrolls instead of vectorising, and matrix products too small to be efficient. With the mapped axis last, every
operation on a number of one member becomes the same operation on a row with one number of each member, and a small
product is a sum of such rows.

The function is traced for one element, and each of its operations is then applied to all elements at once: by its rule
in `nnfx.sweeps.last_axis_rules`, or as `jax.vmap` does. So any function can be mapped; only its speed depends on the
rules.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from nnfx.sweeps import last_axis_rules as rules

LONGEST_SUM = rules.LONGEST_SUM
AT_ONCE = 128
"""The number of elements in a block: their activations stay in a core's cache."""
FEWEST = 16
"""Fewer elements than this do not fill the vector units."""
OPTIONS = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_prefer_vector_width": 512}
"""Options of the compiler: operations this short take longer if they are divided among threads."""

CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
"""The operations that only call another function, which is evaluated in their place."""

Values = list[tuple[Any, bool]]
"""Arrays, each with whether it is mapped; mapped arrays are `(..., elements)`."""


def side_by_side(function: Callable[[Any], Any], over: Any, at_once: int | None) -> Any:
    """Map a function over the first axis of all arrays, small networks with the mapped axis last.

    Args:
        function: a function of an element.
        over: a tree of arrays `(elements, ...)`.
        at_once: the number of elements side by side; the others follow in a loop. None for the best number.

    Returns:
        The results, `(elements, ...)`.

    Example:
        >>> side_by_side(lambda x: x @ x, jnp.ones((40, 2)), at_once=None).sum().item()
        80.0
    """
    leaves = jax.tree.leaves(over)
    count = leaves[0].shape[0]
    element = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), over)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(element)
    blocks = -(-count // (at_once or AT_ONCE))
    size = -(-count // blocks)
    # the last element again, for blocks of equal size
    numbers = np.minimum(np.arange(blocks * size), count - 1).reshape(blocks, size)
    results = lax.map(lambda rows: map_last(traced, [leaf[rows] for leaf in leaves]), jnp.asarray(numbers))
    results = [result.reshape(-1, *result.shape[2:])[:count] for result in results]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def map_last(traced: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Map a traced function over the first axis of all arrays, as `jax.vmap` does; within, this axis is the last one.

    Results agree with those of `jax.vmap` up to rounding. The map cannot be differentiated: custom derivatives are
    lost. Derivatives within the function are not affected.

    Args:
        traced: a function of an element, as returned by `jax.make_jaxpr`.
        arguments: its arguments, arrays `(elements, ...)`.

    Returns:
        The results, `(elements, ...)`.

    Example:
        >>> traced = jax.make_jaxpr(lambda x: x @ x)(jnp.zeros(2))
        >>> map_last(traced, [jnp.arange(6.0).reshape(3, 2)])[0].tolist()
        [1.0, 13.0, 41.0]
    """
    size = arguments[0].shape[0]
    values = [(jnp.moveaxis(argument, 0, -1), True) for argument in arguments]
    return [
        jnp.moveaxis(array, -1, 0) if is_mapped else jnp.broadcast_to(array, (size, *jnp.shape(array)))
        for array, is_mapped in _Elements(size).closed(traced, values)
    ]


class _Elements:
    """Evaluates traced functions for all elements at once.

    Args:
        size: the number of elements.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def closed(self, traced: ClosedJaxpr, arguments: Values) -> Values:
        """Return the results of a traced function."""
        values: dict[Any, tuple[Any, bool]] = {}

        def read(variable: Any) -> tuple[Any, bool]:
            if isinstance(variable, Literal):
                return np.asarray(variable.val, rules.aval(variable).dtype), False
            return values[variable]

        jaxpr = traced.jaxpr
        values.update(zip(jaxpr.constvars, [(constant, False) for constant in traced.consts], strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            found = self.apply(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, found, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def apply(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Return the results of one operation."""
        name, (arrays, mapped) = equation.primitive.name, _apart(inputs)
        if (called := _called(equation, inputs)) is not None:
            return self.closed(*called)
        if not any(mapped):
            return [(result, False) for result in rules.bind(equation, arrays)]
        if name in ("cond", "while", "scan"):
            loop: Callable[[JaxprEqn, Values], Values] = getattr(self, f"_{name}")
            return loop(equation, inputs)
        results = (
            rules.RULES[name](rules.Operation(equation, arrays, mapped, self.size)) if name in rules.RULES else None
        )
        if results is None:
            if rules.is_elementwise(equation):
                shape = rules.aval(equation.outvars[0]).shape
                arrays, mapped = [self.spread(value, shape) for value in inputs], [True] * len(inputs)
            axes = tuple(-1 if is_mapped else None for is_mapped in mapped)
            results = jax.vmap(lambda *given: rules.bind(equation, given), axes, -1, axis_size=self.size)(*arrays)
        return [(result, True) for result in results]

    def spread(self, value: tuple[Any, bool], shape: tuple[int, ...]) -> Any:
        """Return a value, or a scalar that is the same everywhere, as a mapped array `(*shape, elements)`."""
        return rules.spread(*value, shape, self.size)

    def _cond(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Choose a branch, for all elements together if they agree, and otherwise for each."""
        (index, differs), operands = inputs[0], inputs[1:]
        arrays, mapped = _apart(operands)
        branches, shapes = equation.params["branches"], _shapes(equation)

        def run(branch: ClosedJaxpr, *arrays: Any) -> list[Any]:
            found = self.closed(branch, list(zip(arrays, mapped, strict=True)))
            return [self.spread(value, shape) for value, shape in zip(found, shapes, strict=True)]

        if not differs:
            made = [lambda *arrays, branch=branch: run(branch, *arrays) for branch in branches]
            return [(result, True) for result in lax.switch(index, made, *arrays)]
        cases = zip(*(run(branch, *arrays) for branch in branches), strict=True)
        index = index if index.dtype == bool else jnp.clip(index, 0, len(branches) - 1)
        return [
            (lax.select_n(self.spread((index, True), shape), *each), True)
            for each, shape in zip(cases, shapes, strict=True)
        ]

    def _while(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Loop until every element has ended; an element that has ended keeps its values."""
        condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
        of_condition, of_body, carry = _parts(inputs, equation.params["cond_nconsts"], equation.params["body_nconsts"])
        shapes = _shapes(equation)
        mapped, differs = _while_mapped(equation, [is_mapped for _, is_mapped in inputs])

        def is_going_on(carry: Sequence[Any]) -> Any:
            return self.closed(condition, of_condition + list(zip(carry, mapped, strict=True)))[0][0]

        def advance(carry: Sequence[Any]) -> list[Any]:
            found = self.closed(body, of_body + list(zip(carry, mapped, strict=True)))
            after = self._as_mapped(found, mapped, shapes)
            if not differs:
                return after
            is_going = (is_going_on(carry), True)
            return [
                lax.select(self.spread(is_going, shape), new, old)
                for new, old, shape in zip(after, carry, shapes, strict=True)
            ]

        def is_any_going_on(carry: Sequence[Any]) -> Any:
            return is_going_on(carry).any() if differs else is_going_on(carry)

        results = lax.while_loop(is_any_going_on, advance, self._as_mapped(carry, mapped, shapes))
        return list(zip(results, mapped, strict=True))

    def _scan(self, equation: JaxprEqn, inputs: Values) -> Values:
        params, shapes = equation.params, _shapes(equation)
        constants, carry, over = _parts(inputs, params["num_consts"], params["num_carry"])
        mapped = _mapped(equation, [is_mapped for _, is_mapped in inputs])
        carried, stacked = mapped[: len(carry)], mapped[len(carry) :]
        over_arrays, over_mapped = _apart(over)

        def turn(carry: Sequence[Any], each: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            own = list(zip(carry, carried, strict=True)) + list(zip(each, over_mapped, strict=True))
            found = self.closed(params["jaxpr"], constants + own)
            after = self._as_mapped(found[: len(carried)], carried, shapes)
            return after, [array for array, _ in found[len(carried) :]]

        options = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
        after, made = lax.scan(turn, self._as_mapped(carry, carried, shapes), over_arrays, **options)
        return list(zip(after, carried, strict=True)) + list(zip(made, stacked, strict=True))

    def _as_mapped(self, values: Values, mapped: Sequence[bool], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Return the arrays, spread over all elements where a loop's values are mapped."""
        return [
            self.spread(value, shape) if is_mapped else value[0]
            for value, is_mapped, shape in zip(values, mapped, shapes, strict=False)
        ]


def _apart(values: Values) -> tuple[list[Any], list[bool]]:
    return [array for array, _ in values], [is_mapped for _, is_mapped in values]


def _parts(values: Any, first: int, second: int) -> tuple[Any, Any, Any]:
    return values[:first], values[first : first + second], values[first + second :]


def _shapes(equation: JaxprEqn) -> list[tuple[int, ...]]:
    return [rules.aval(variable).shape for variable in equation.outvars]


def _called(equation: JaxprEqn, inputs: list[Any]) -> tuple[ClosedJaxpr, list[Any]] | None:
    """Return the function that an operation merely calls, with its arguments; None for any other operation."""
    params = equation.params
    if (platforms := params.get("branches_platforms")) is not None:  # of `lax.platform_dependent`
        backend, branches = jax.default_backend(), zip(platforms, params["branches"], strict=True)
        return next(branch for names, branch in branches if names is None or backend in names), inputs[1:]
    if equation.primitive.name not in CALLS:
        return None
    called: Any = params.get("call_jaxpr", params.get("jaxpr"))
    return called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), inputs


def _mapped_results(traced: ClosedJaxpr, arguments: Sequence[bool]) -> list[bool]:
    """Return which results of a function are mapped, given which of its arguments are."""
    mapped = dict(zip(traced.jaxpr.invars, arguments, strict=True))
    for equation in traced.jaxpr.eqns:
        inputs = [not isinstance(variable, Literal) and mapped.get(variable, False) for variable in equation.invars]
        mapped.update(zip(equation.outvars, _mapped(equation, inputs), strict=True))
    return [not isinstance(variable, Literal) and mapped.get(variable, False) for variable in traced.jaxpr.outvars]


def _mapped(equation: JaxprEqn, inputs: list[bool]) -> list[bool]:
    """Return which results of an operation are mapped."""
    if (called := _called(equation, inputs)) is not None:
        return _mapped_results(*called)
    if any(inputs) and equation.primitive.name == "while":
        return _while_mapped(equation, inputs)[0]
    if any(inputs) and equation.primitive.name == "scan":
        constants, carry, over = _parts(inputs, equation.params["num_consts"], equation.params["num_carry"])
        return _carried(equation.params["jaxpr"], constants, carry, over)
    return [any(inputs)] * len(equation.outvars)


def _while_mapped(equation: JaxprEqn, inputs: list[bool]) -> tuple[list[bool], bool]:
    """Return which values of a loop are mapped, and whether the loop ends at different times for different elements."""
    of_condition, of_body, carry = _parts(inputs, equation.params["cond_nconsts"], equation.params["body_nconsts"])
    carry = _carried(equation.params["body_jaxpr"], of_body, carry, [])
    differs = _mapped_results(equation.params["cond_jaxpr"], of_condition + carry)[0]
    return [differs or is_mapped for is_mapped in carry], differs


def _carried(body: ClosedJaxpr, constants: list[bool], carry: list[bool], over: list[bool]) -> list[bool]:
    """Return which results of a loop's body are mapped after any number of turns."""
    while True:
        results = _mapped_results(body, constants + carry + over)
        after = [*map(operator.or_, carry, results)]
        if after == carry:
            return carry + results[len(carry) :]
        carry = after
