"""The communication between devices in a compiled program, read from its HLO text."""

import math
import re
from typing import NamedTuple

from jax.stages import Compiled

__all__ = ["Collective", "collectives"]


class Collective(NamedTuple):
    """A communication operation between devices in a compiled program.

    Attributes:
        kind: the operation, such as "all-reduce".
        bytes: the number of bytes that each device receives.
        arrays: the number of arrays exchanged.
    """

    kind: str
    bytes: int
    arrays: int


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast"
_EXCHANGE = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]")
_BITS = {"pred": 8}


def collectives(compiled: Compiled) -> list[Collective]:
    """List the collective operations of a compiled program, as in its HLO text; operations in a loop count once.

    Args:
        compiled: the program, such as `jax.jit(step).lower(state, batch).compile()`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> collectives(jax.jit(jnp.sum).lower(jnp.ones(3)).compile())
        []
    """
    found = []
    for line in (compiled.as_text() or "").splitlines():
        if exchange := _EXCHANGE.search(line):
            arrays = [
                math.prod(map(int, filter(None, shape["sizes"].split(",")))) * _bits(shape["dtype"]) // 8
                for shape in _SHAPE.finditer(exchange["shapes"])
            ]
            found.append(Collective(exchange["kind"], sum(arrays), len(arrays)))
    return found


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
