"""Rules that apply an operation to all elements at once, with the mapped axis last; see `nnfx.sweeps.last_axis`.

Each rule returns the results, or None if the operation should be mapped in the same way as by `jax.vmap`. Rules are
needed where `jax.vmap` would move the mapped axis to the front, and for sums, which XLA does not vectorise over a last
axis. Everything that depends on the JAX version is also here: the names of an operation's parameters, and how to read
them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import JaxprEqn
from jax.extend.random import threefry_prng_impl

__all__ = [
    "CALLS",
    "LONGEST_SUM",
    "Operation",
    "applied",
    "aval",
    "bind",
    "drawing",
    "is_elementwise",
    "is_known",
    "opened",
    "scan_sizes",
    "select",
    "spread",
]

LONGEST_SUM = 64
"""Sums of at most this many terms are written out as additions: XLA would compute them one number at a time."""


CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}
"""The operations that only call a function, which is evaluated in their place, and the parameter that contains it."""

PARAMETERS = {
    "broadcast_in_dim": ["broadcast_dimensions shape sharding"],
    "concatenate": ["dimension"],
    "cond": ["branches", "branches branches_platforms"],
    "custom_jvp_call": ["call_jaxpr jvp_jaxpr_fun num_consts symbolic_zeros"],
    "custom_vjp_call": ["bwd call_jaxpr fwd_jaxpr_thunk num_consts out_trees symbolic_zeros"],
    "dot_general": ["dimension_numbers out_sharding precision preferred_element_type"],
    "dynamic_slice": ["slice_sizes"],
    "dynamic_update_slice": [""],
    "gather": ["dimension_numbers fill_value indices_are_sorted mode slice_sizes unique_indices"],
    "jit": [
        "compiler_options_kvs ctx_mesh donated_invars in_layouts in_shardings inline jaxpr keep_unused name"
        " out_layouts out_shardings"
    ],
    "random_bits": ["bit_width shape"],
    "reduce_sum": ["axes out_sharding"],
    "remat2": ["differentiated jaxpr policy prevent_cse"],
    "reshape": ["dimensions new_sizes sharding"],
    "scan": [
        "_split_transpose jaxpr length linear num_carry num_consts reverse unroll",  # JAX 0.9
        "jaxpr length num_carry num_consts reverse unroll",  # JAX 0.10
        "ft_in ft_out jaxpr length reverse unroll",  # JAX 0.12
    ],
    "select_n": [""],
    "squeeze": ["dimensions"],
    "threefry2x32": [""],
    "transpose": ["permutation"],
    "while": ["body_jaxpr body_nconsts cond_jaxpr cond_nconsts"],
}
"""The parameters of the operations that have rules, with one line for each JAX version that changed them.

With other parameters, an operation may have another meaning, so it is mapped by `jax.vmap` of the same JAX version.
"""
FORMS = {name: [set(form.split()) for form in forms] for name, forms in PARAMETERS.items()}
"""The same names as sets."""


def is_known(equation: JaxprEqn) -> bool:
    """Return whether an operation has the parameters that it had when its rule was written."""
    return equation.params.keys() in FORMS.get(equation.primitive.name, ())


def opened(traced: Any) -> tuple[Any, Sequence[Any]]:
    """Return the equations of a function, and its constants; from JAX 0.12 on, one object contains both."""
    return getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())


def scan_sizes(equation: JaxprEqn) -> tuple[int, int]:
    """Return the numbers of constants and of carried values among the arguments of a scan."""
    if "ft_in" not in equation.params:
        return equation.params["num_consts"], equation.params["num_carry"]
    constants, carry, _ = equation.params["ft_in"].unpack()
    return len(constants), len(carry)


def drawing(equation: JaxprEqn) -> Any:
    """Return how random bits are drawn from a key, as a traced function; None for any other operation.

    If `jax.vmap` drew them with the mapped axis first, they would have to be transposed, which takes longer than
    drawing.
    """
    if equation.primitive.name != "random_bits" or not is_known(equation):
        return None
    key, params = aval(equation.invars[0]), equation.params
    if key.shape or key.dtype != jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype:
        return None

    def draw(key: Any) -> Any:
        return threefry_prng_impl.random_bits(jax.random.key_data(key), params["bit_width"], params["shape"])

    return jax.make_jaxpr(draw)(jax.ShapeDtypeStruct((), key.dtype))


def bind(equation: JaxprEqn, arrays: Sequence[Any]) -> list[Any]:
    """Apply an operation to arrays."""
    results = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


def aval(variable: Any) -> Any:
    """Return the shape and dtype of an argument or a result of an operation."""
    return variable.aval


def spread(array: Any, is_mapped: bool, shape: tuple[int, ...], size: int) -> Any:
    """Broadcast an array to a mapped array `(*shape, size)`: a scalar to the shape, an unmapped array to all elements.

    >>> spread(jnp.array([1.0, 2.0]), True, (3,), 2).shape
    (3, 2)
    """
    axes = range(jnp.ndim(array) - is_mapped)
    return lax.broadcast_in_dim(array, (*shape, size), (*axes, len(shape)) if is_mapped else tuple(axes))


def is_elementwise(equation: JaxprEqn) -> bool:
    """Return whether all arrays of an operation, and its result, have the same shape."""
    shapes = [aval(variable).shape for variable in (*equation.invars, *equation.outvars)]
    is_plain = not any(_is_key(variable) for variable in equation.invars)
    return is_plain and len(equation.outvars) == 1 and all(shape == shapes[-1] for shape in shapes)


def _is_key(variable: Any) -> bool:
    return bool(jnp.issubdtype(aval(variable).dtype, jax.dtypes.extended))


class Operation(NamedTuple):
    """An operation and its arguments, of which at least one is mapped.

    Attributes:
        equation: the operation on one element.
        arrays: its arguments.
        mapped: which of them are mapped, with the axis of the elements last.
        size: the number of elements.
    """

    equation: JaxprEqn
    arrays: Sequence[Any]
    mapped: Sequence[bool]
    size: int

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the operation."""
        return self.equation.params

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the arguments of one element."""
        return [aval(variable).shape for variable in self.equation.invars]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result of one element."""
        shape: tuple[int, ...] = aval(self.equation.outvars[0]).shape
        return shape


def select(which: Any, *cases: Any) -> Any:
    """Return the chosen case at each position, given the integer number of the case."""
    return lax.select_n(which > 0 if len(cases) == 2 else which, *cases) if len(cases) > 1 else cases[0]


def _sum(terms: list[Any]) -> Any:
    """Add up arrays pairwise."""
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [lax.add(*pair) for pair in pairs] + terms[len(terms) // 2 * 2 :]
    return terms[0]


def _apart(function: Any, *arrays: Any) -> Any:
    """Call a function whose operations XLA does not fuse with others, so that its result is computed once."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arrays)


def _reduce_sum(of: Operation) -> list[Any] | None:
    (array,), axes = of.arrays, of.params["axes"]
    length = math.prod(array.shape[axis] for axis in axes)
    if not 0 < length <= LONGEST_SUM or array.dtype.itemsize < 4:
        return None
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    array = lax.transpose(array, (*axes, *kept))
    array = lax.reshape(array, (length, *array.shape[len(axes) :]))
    return [_apart(lambda rows: _sum([rows[i] for i in range(length)]), array)]


def _dot_general(of: Operation) -> list[Any] | None:
    """Multiply numbers and sum the products."""
    contracted, batch = of.params["dimension_numbers"]
    length = math.prod(of.shapes[0][axis] for axis in contracted[0])
    dtypes = {array.dtype for array in of.arrays} | {aval(of.equation.outvars[0]).dtype}
    if not 0 < length <= LONGEST_SUM or len(dtypes) > 1 or dtypes.pop().itemsize < 4:
        return None
    result = (*of.shape, of.size)  # the batch axes, the axes of the left factor, of the right factor, the elements
    factors, axes = [], []
    for i, (array, is_mapped) in enumerate(zip(of.arrays, of.mapped, strict=True)):
        free = [axis for axis in range(len(of.shapes[i])) if axis not in (*contracted[i], *batch[i])]
        order = (*contracted[i], *batch[i], *free)
        array = lax.transpose(array, (*order, len(order)) if is_mapped else order)
        factors.append(lax.reshape(array, (length, *array.shape[len(contracted[i]) :])))
        start = len(batch[i]) if i == 0 else len(of.shape) - len(free)
        axes.append([*range(len(batch[i])), *range(start, start + len(free)), *[len(of.shape)] * is_mapped])

    def product(*factors: Any) -> Any:
        rows = (
            [lax.broadcast_in_dim(factor[k], result, places) for k in range(length)]
            for factor, places in zip(factors, axes, strict=True)
        )
        return _sum([*map(lax.mul, *rows)])

    return [_apart(product, *factors)]


def _gather(of: Operation) -> list[Any] | None:
    """Gather rows of an array that all elements share."""
    table, rows = of.arrays
    how, width, places = of.params["dimension_numbers"], math.prod(table.shape[1:]), rows.ndim - 2
    is_of_rows = (
        how.collapsed_slice_dims == how.start_index_map == (0,)
        and not how.operand_batching_dims
        and how.offset_dims == tuple(range(places, len(of.shape)))
        and tuple(of.params["slice_sizes"]) == (1, *table.shape[1:])
        and of.shapes[1][-1:] == (1,)
    )
    is_within = of.params["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS and table.size < 2**31
    if list(of.mapped) != [False, True] or not is_of_rows or not is_within:
        return None
    starts = lax.reshape(rows, (*rows.shape[:-2], 1, of.size)) * width
    numbers = starts + lax.broadcasted_iota(rows.dtype, (*rows.shape[:-2], width, of.size), places)
    found = lax.reshape(table, (table.size,)).at[numbers].get(mode="promise_in_bounds")
    return [lax.reshape(found, (*of.shape, of.size))]


def _select_n(of: Operation) -> list[Any]:
    return [lax.select_n(*(spread(*value, of.shape, of.size) for value in zip(of.arrays, of.mapped, strict=True)))]


def _threefry2x32(of: Operation) -> list[Any]:
    rank = len(of.shape)  # keys are not expanded: they are carried through the rounds of the cipher
    return bind(
        of.equation,
        [
            lax.expand_dims(array, [*range(rank - jnp.ndim(array) + is_mapped), *([] if is_mapped else [rank])])
            for array, is_mapped in zip(of.arrays, of.mapped, strict=True)
        ],
    )


def _broadcast_in_dim(of: Operation) -> list[Any]:
    axes = (*of.params["broadcast_dimensions"], len(of.shape))
    return [lax.broadcast_in_dim(of.arrays[0], (*of.shape, of.size), axes)]


def _reshape(of: Operation) -> list[Any] | None:
    if of.params["dimensions"] is not None:
        return None
    return [lax.reshape(of.arrays[0], (*of.shape, of.size))]


def _squeeze(of: Operation) -> list[Any]:
    return [lax.squeeze(of.arrays[0], of.params["dimensions"])]


def _transpose(of: Operation) -> list[Any]:
    return [lax.transpose(of.arrays[0], (*of.params["permutation"], len(of.shape)))]


def _concatenate(of: Operation) -> list[Any]:
    parts = [spread(*part, of.size) for part in zip(of.arrays, of.mapped, of.shapes, strict=True)]
    return [lax.concatenate(parts, of.params["dimension"])]


def _dynamic_slice(of: Operation) -> list[Any] | None:
    array, *starts = of.arrays
    if any(of.mapped[1:]):
        return None
    return [lax.dynamic_slice(array, [*starts, jnp.zeros_like(starts[0])], (*of.params["slice_sizes"], of.size))]


def _dynamic_update_slice(of: Operation) -> list[Any] | None:
    (array, update, *starts), shapes = of.arrays, of.shapes
    if not starts or any(of.mapped[2:]):
        return None
    array, update = (spread(each, of.mapped[i], shapes[i], of.size) for i, each in enumerate((array, update)))
    return [lax.dynamic_update_slice(array, update, [*starts, jnp.zeros_like(starts[0])])]


RULES: dict[str, Callable[[Operation], list[Any] | None]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "select_n": _select_n,
    "squeeze": _squeeze,
    "threefry2x32": _threefry2x32,
    "transpose": _transpose,
}
"""The rule of each operation by name."""


def applied(of: Operation) -> list[Any] | None:
    """Return the results of an operation by its rule; None if it has no rule, or a form not covered by it."""
    rule = RULES.get(of.equation.primitive.name)
    return None if rule is None or not is_known(of.equation) else rule(of)
