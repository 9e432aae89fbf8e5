"""`jax.vmap` for small networks on CPUs: the mapped axis is the last one, so that it fills the vector units.

`jax.vmap` puts the mapped axis first. For a network of a few units, XLA then emits loops over axes of 1 to 32 numbers,
which it unrolls instead of vectorising, and matrix products too small to be efficient. With the mapped axis last,
every operation on a number of one member becomes the same operation on a row with one number of each member, and a
small product is a sum of such rows.

The function is traced for one element, and each of its operations is then applied to all elements at once: by its rule
in `nnfx.sweeps.last_axis_rules`, by evaluating the functions inside it (calls, branches and loops, in this module),
or, for any other operation, by `jax.vmap` of this operation alone. `jax.vmap` also maps operations whose parameters
have other names than in the known JAX versions. So any function can be mapped; only its speed depends on the rules.

`nnfx.sweeps.programs` uses it for the members of a sweep.
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

__all__ = ["FEWEST", "OPTIONS", "map_last", "vmap"]

FEWEST = 32
"""Fewer elements than this do not fill the vector units: a measured value, since 16 would fill an AVX-512 unit."""
OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""Compiler options: by default, it uses half the width of AVX-512."""

Values = list[tuple[Any, bool]]
"""Arrays, each with a flag that says whether it is mapped; mapped arrays are `(..., elements)`."""


def vmap(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Map a function over the first axis of all arrays, like `jax.vmap`; inside, this axis is last.

    Args:
        function: a function of an element.

    Returns:
        A function of a tree of arrays `(elements, ...)`, which returns the results, `(elements, ...)`.

    Example:
        >>> vmap(lambda x: x @ x)(jnp.ones((40, 2))).sum().item()
        80.0
    """

    def mapped(over: Any) -> Any:
        element = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), over)
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(element)
        return jax.tree.unflatten(jax.tree.structure(shapes), map_last(traced, jax.tree.leaves(over)))

    return mapped


def map_last(traced: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Map a traced function over the first axis of all arrays, as `jax.vmap` does; inside, this axis is the last.

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
        for array, is_mapped in _Elements(size).evaluate(traced, values)
    ]


class _Elements:
    """Evaluates traced functions for all elements at once.

    Args:
        size: the number of elements.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def evaluate(self, traced: Any, arguments: Values) -> Values:
        """Return the results of a traced function."""
        values: dict[Any, tuple[Any, bool]] = {}

        def read(variable: Any) -> tuple[Any, bool]:
            if isinstance(variable, Literal):
                return np.asarray(variable.val, rules.aval(variable).dtype), False
            return values[variable]

        jaxpr, constants = rules.opened(traced)
        values.update(zip(jaxpr.constvars, [(constant, False) for constant in constants], strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            found = self.apply(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, found, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def apply(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Return the results of one operation."""
        arrays, mapped = _apart(inputs)
        if (called := _called(equation, inputs)) is not None:
            return self.evaluate(*called)
        if not any(mapped):
            return [(result, False) for result in rules.bind(equation, arrays)]
        if (kind := _kind(equation)) is not None:
            of_kind: Callable[[JaxprEqn, Values], Values] = getattr(self, f"_{kind}")
            return of_kind(equation, inputs)
        if (drawing := rules.drawing(equation)) is not None:
            return self.evaluate(drawing, inputs)
        results = rules.applied(rules.Operation(equation, arrays, mapped, self.size))
        if results is None:
            if rules.is_elementwise(equation):
                shape = rules.aval(equation.outvars[0]).shape
                arrays, mapped = [self.spread(value, shape) for value in inputs], [True] * len(inputs)
            axes = tuple(-1 if is_mapped else None for is_mapped in mapped)
            results = jax.vmap(lambda *given: rules.bind(equation, given), axes, -1, axis_size=self.size)(*arrays)
        return [(result, True) for result in results]

    def spread(self, value: tuple[Any, bool], shape: tuple[int, ...]) -> Any:
        """Broadcast a value to a mapped array `(*shape, elements)`; see `rules.spread`."""
        return rules.spread(*value, shape, self.size)

    def _cond(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Choose a branch: once for all elements if they agree, and otherwise for each."""
        (index, differs), operands = inputs[0], inputs[1:]
        arrays, mapped = _apart(operands)
        branches, shapes = equation.params["branches"], _shapes(equation)

        def run(branch: Any, *arrays: Any) -> list[Any]:
            found = self.evaluate(branch, list(zip(arrays, mapped, strict=True)))
            return [self.spread(value, shape) for value, shape in zip(found, shapes, strict=True)]

        if not differs:
            made = [lambda *arrays, branch=branch: run(branch, *arrays) for branch in branches]
            return [(result, True) for result in lax.switch(index, made, *arrays)]
        cases = zip(*(run(branch, *arrays) for branch in branches), strict=True)
        index = jnp.clip(index, 0, len(branches) - 1)
        return [
            (rules.select(self.spread((index, True), shape), *each), True)
            for each, shape in zip(cases, shapes, strict=True)
        ]

    def _while(self, equation: JaxprEqn, inputs: Values) -> Values:
        """Loop until every element has finished; an element that has finished keeps its values."""
        condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
        of_condition, of_body, carry = _parts(inputs, equation.params["cond_nconsts"], equation.params["body_nconsts"])
        shapes = _shapes(equation)
        mapped, differs = _while_mapped(equation, [is_mapped for _, is_mapped in inputs])

        def is_going_on(carry: Sequence[Any]) -> Any:
            return self.evaluate(condition, of_condition + list(zip(carry, mapped, strict=True)))[0][0]

        def advance(carry: Sequence[Any]) -> list[Any]:
            found = self.evaluate(body, of_body + list(zip(carry, mapped, strict=True)))
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
        """Loop over the leading axis of some arrays, which comes before the axes of an element."""
        body, shapes = equation.params["jaxpr"], [rules.aval(variable).shape for variable in _results(equation)]
        constants, carry, over = _parts(inputs, *rules.scan_sizes(equation))
        mapped = _mapped(equation, [is_mapped for _, is_mapped in inputs])
        of_carry, last = mapped[: len(carry)], len(carry)
        over_arrays, over_mapped = _apart(over)

        def turn(carry: Sequence[Any], each: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            own = list(zip(carry, of_carry, strict=True)) + list(zip(each, over_mapped, strict=True))
            after = self._as_mapped(self.evaluate(body, constants + own), mapped, shapes)
            return after[:last], after[last:]

        options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
        after, made = lax.scan(turn, self._as_mapped(carry, of_carry, shapes[:last]), over_arrays, **options)
        return list(zip([*after, *made], mapped, strict=True))

    def _as_mapped(self, values: Values, mapped: Sequence[bool], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Return the arrays of a loop's values; those of mapped values are broadcast to all elements."""
        return [
            self.spread(value, shape) if is_mapped else value[0]
            for value, is_mapped, shape in zip(values, mapped, shapes, strict=True)
        ]


def _apart(values: Values) -> tuple[list[Any], list[bool]]:
    return [array for array, _ in values], [is_mapped for _, is_mapped in values]


def _parts(values: Any, first: int, second: int) -> tuple[Any, Any, Any]:
    return values[:first], values[first : first + second], values[first + second :]


def _shapes(equation: JaxprEqn) -> list[tuple[int, ...]]:
    return [rules.aval(variable).shape for variable in equation.outvars]


def _results(equation: JaxprEqn) -> Sequence[Any]:
    """Return the results of one iteration of a scan."""
    results: Sequence[Any] = rules.opened(equation.params["jaxpr"])[0].outvars
    return results


def _kind(equation: JaxprEqn) -> str | None:
    """Return "cond", "while" or "scan" for operations of these forms; None for any other operation."""
    name = equation.primitive.name
    # effects, such as printing, are left to JAX
    return name if name in ("cond", "while", "scan") and rules.is_known(equation) and not equation.effects else None


def _called(equation: JaxprEqn, inputs: list[Any]) -> tuple[Any, list[Any]] | None:
    """Return the function that an operation merely calls, with its arguments; None for any other operation."""
    if not rules.is_known(equation) or equation.effects:
        return None
    params = equation.params
    if (platforms := params.get("branches_platforms")) is not None:  # from `lax.platform_dependent`
        branches = zip(platforms, params["branches"], strict=True)
        return next((branch, inputs[1:]) for names, branch in branches if names is None or "cpu" in names)
    return (params[rules.CALLS[name]], inputs) if (name := equation.primitive.name) in rules.CALLS else None


def _mapped_results(traced: Any, arguments: Sequence[bool]) -> list[bool]:
    """Return which results of a function are mapped, given which of its arguments are."""
    jaxpr, _ = rules.opened(traced)
    mapped = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> bool:
        return not isinstance(variable, Literal) and mapped.get(variable, False)

    for equation in jaxpr.eqns:
        found = _mapped(equation, [read(variable) for variable in equation.invars])
        mapped.update(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _mapped(equation: JaxprEqn, inputs: list[bool]) -> list[bool]:
    """Return which results of an operation are mapped."""
    if (called := _called(equation, inputs)) is not None:
        return _mapped_results(*called)
    if any(inputs) and _kind(equation) == "while":
        return _while_mapped(equation, inputs)[0]
    if any(inputs) and _kind(equation) == "scan":
        return _carried(equation.params["jaxpr"], *_parts(inputs, *rules.scan_sizes(equation)))
    return [any(inputs)] * len(equation.outvars)


def _while_mapped(equation: JaxprEqn, inputs: list[bool]) -> tuple[list[bool], bool]:
    """Return which values of a loop are mapped, and whether the loop ends at different times for different elements."""
    of_condition, of_body, carry = _parts(inputs, equation.params["cond_nconsts"], equation.params["body_nconsts"])
    carry = _carried(equation.params["body_jaxpr"], of_body, carry, [])
    differs = _mapped_results(equation.params["cond_jaxpr"], of_condition + carry)[0]
    return [differs or is_mapped for is_mapped in carry], differs


def _carried(body: Any, constants: list[bool], carry: list[bool], over: list[bool]) -> list[bool]:
    """Return which results of a loop's body are mapped after any number of iterations."""
    while True:
        results = _mapped_results(body, constants + carry + over)
        after = [*map(operator.or_, carry, results)]
        if after == carry:
            return carry + results[len(carry) :]
        carry = after
